//! What a driver compiled, kept from one start of the program to the next, where the adapter offers it (Vulkan).

use crate::Device;
use sha2::{Digest, Sha256};

/// Bytes of the checksum in front of a driver's data.
const CHECKSUM: usize = 32;

fn checksum(data: &[u8]) -> [u8; CHECKSUM] {
    Sha256::digest(data).into()
}

/// The driver's data of a kept cache, if it is whole: drivers may trust what is in it.
fn whole(kept: &[u8]) -> Option<&[u8]> {
    let (sum, data) = kept.split_at_checked(CHECKSUM)?;
    (sum == checksum(data)).then_some(data)
}

impl Device {
    /// Name of the file in which this device's cache belongs, where the adapter offers one: adapters and drivers that cannot read
    /// each other's have different names.
    pub fn pipeline_cache_name(&self) -> Option<String> {
        let offered = self.inner.device.features().contains(wgpu::Features::PIPELINE_CACHE);
        offered.then(|| wgpu::util::pipeline_cache_key(&self.inner.adapter_info)).flatten()
    }

    /// Compiles with what [`Device::pipeline_cache`] gave at an earlier start. Broken and foreign data is ignored, and so is a second
    /// call; kernels that were compiled before gain nothing.
    pub fn use_pipeline_cache(&self, kept: Option<&[u8]>) {
        if self.pipeline_cache_name().is_none() {
            return;
        }
        self.inner.pipeline_cache.get_or_init(|| {
            let descriptor = wgpu::PipelineCacheDescriptor {
                label: Some("kernels"),
                data: kept.and_then(whole),
                // Data of another driver starts an empty cache.
                fallback: true,
            };
            // SAFETY: the checksum tells that the data is what `get_data` gave, and wgpu compares its header with the adapter.
            unsafe { self.inner.device.create_pipeline_cache(&descriptor) }
        });
    }

    /// What the driver compiled so far, to be kept; `None` where [`Device::use_pipeline_cache`] was not called or nothing is offered.
    pub fn pipeline_cache(&self) -> Option<Vec<u8>> {
        let data = self.inner.pipeline_cache.get()?.get_data()?;
        Some([checksum(&data).as_slice(), &data].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_data_is_ignored() {
        let kept = [checksum(b"compiled").as_slice(), b"compiled"].concat();
        assert_eq!(whole(&kept), Some(&b"compiled"[..]));
        for broken in [&kept[..CHECKSUM - 1], &kept[..kept.len() - 1], b"", &[0; 40]] {
            assert_eq!(whole(broken), None);
        }
    }
}
