//! One kernel variant alone, with guard regions: for conformance, autotune and benchmarks.

use crate::kernel::{Kernel, KernelKey};
use crate::time::Instant;
use crate::{Device, DeviceOptions};
use pulid_ops::{Slot, Variant};
use pulid_tensor::{HostTensor, Result, TensorType};
use std::sync::Arc;

/// What a single run gave.
#[derive(Clone, Debug)]
pub struct SingleRun {
    /// The result.
    pub output: HostTensor,
    /// Bytes outside the result that were changed: 0 for a correct kernel.
    pub stray_bytes: usize,
    /// Wall time of each timed repetition in seconds, submission included.
    pub seconds: Vec<f64>,
}

/// Bytes behind each result and scratch buffer, within its binding, that a kernel must not touch; there are as many before it,
/// where the binding does not reach.
pub const GUARD: usize = 4096;
/// What guards and results hold before the run; results stay so where a kernel forgets an element.
pub const SENTINEL: u8 = 0xA5;

/// Runs a variant on operands, once plus `repeats` timed times.
///
/// # Errors
/// A kernel that does not compile, or a lost device.
pub async fn run_single(
    device: &Device,
    variant: &Variant,
    inputs: &[HostTensor],
    output: &TensorType,
    repeats: usize,
) -> Result<SingleRun> {
    run(device, variant, inputs, output, repeats, &|key| device.kernel(key)).await
}

/// [`run_single`] once, with shaders as `edit` changes them: for faults that are planted to see whether they are noticed. The
/// driver's bounds checks are on, since a fault may reach anywhere.
///
/// # Errors
/// As there, or for an edit that does not compile.
pub async fn run_single_edited(
    device: &Device,
    variant: &Variant,
    inputs: &[HostTensor],
    output: &TensorType,
    edit: &dyn Fn(&str, &str) -> String,
) -> Result<SingleRun> {
    run(device, variant, inputs, output, 0, &|key| edited(device, &key, edit)).await
}

/// The kernel that [`run_single_edited`] runs.
pub(crate) fn edited(device: &Device, key: &KernelKey, edit: &dyn Fn(&str, &str) -> String) -> Result<Arc<Kernel>> {
    let options = DeviceOptions { bounds_checks: true, ..DeviceOptions::default() };
    let kernel =
        Kernel::compile_edited(&device.inner.device, key, options, None, |text| edit(key.shader, text).into())?;
    Ok(Arc::new(kernel))
}

/// A buffer for a result, between guard regions.
pub(crate) struct Guarded {
    buffer: wgpu::Buffer,
    /// Bytes of all.
    size: usize,
    /// Where the result begins.
    start: usize,
    /// Bytes of the result.
    used: usize,
}

impl Guarded {
    pub(crate) fn new(device: &Device, used: usize) -> Guarded {
        let start = GUARD.next_multiple_of(device.inner.storage_alignment as usize);
        let size = start + used.next_multiple_of(16) + GUARD;
        let buffer = device.create_buffer("guarded", size);
        device.inner.queue.write_buffer(&buffer, 0, &vec![SENTINEL; size]);
        Guarded { buffer, size, start, used }
    }

    /// The result and the guard behind it: a kernel that writes further than its result is caught by the guard, and not stopped
    /// by the device. What lies before a binding is out of reach of a device that checks.
    fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: self.start as u64,
            size: None,
        })
    }

    /// The result's bytes, and how many bytes of the guards were changed.
    async fn read(&self, device: &Device) -> Result<(Vec<u8>, usize)> {
        let mut bytes = device.read_buffer(&self.buffer, self.size).await?;
        let stray = strays(&bytes, self.start, self.used);
        bytes.truncate(self.start + self.used);
        Ok((bytes.split_off(self.start), stray))
    }
}

/// Bytes before and behind the `used` ones from `start` that no longer are what they were.
fn strays(bytes: &[u8], start: usize, used: usize) -> usize {
    let changed = |guard: &[u8]| guard.iter().filter(|&&b| b != SENTINEL).count();
    changed(&bytes[..start]) + changed(&bytes[start + used..])
}

/// A dispatch with its buffers.
pub(crate) type Bound = (Arc<Kernel>, wgpu::BindGroup, [u32; 3]);

/// Operands on the device. For work within [`Device::scoped`].
pub(crate) fn upload(device: &Device, inputs: &[HostTensor]) -> Vec<wgpu::Buffer> {
    let one = |tensor: &HostTensor| {
        let buffer = device.create_buffer("operand", tensor.bytes().len());
        device.write_buffer(&buffer, tensor.bytes());
        buffer
    };
    inputs.iter().map(one).collect()
}

/// A variant's dispatches on these buffers. For work within [`Device::scoped_compiling`].
pub(crate) fn bind(
    device: &Device,
    variant: &Variant,
    operands: &[wgpu::Buffer],
    result: &Guarded,
    scratch: &[Guarded],
    kernel_of: &dyn Fn(KernelKey) -> Result<Arc<Kernel>>,
) -> Result<Vec<Bound>> {
    let gpu = &device.inner;
    let mut recorded = Vec::with_capacity(variant.dispatches.len());
    for d in &variant.dispatches {
        let kernel = kernel_of(KernelKey::new(d.shader, &d.features, &d.constants))?;
        let params = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: (d.params.len() as u64).next_multiple_of(16),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue.write_buffer(&params, 0, &d.params);
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() }];
        for (i, slot) in d.bindings.iter().enumerate() {
            // Exactly the operand: a kernel that reads past a binding is the device's to stop.
            let resource = match *slot {
                Slot::Input(i) => operands[i].as_entire_binding(),
                Slot::Output => result.binding(),
                Slot::Scratch(i) => scratch[i].binding(),
                Slot::Unused => operands[0].as_entire_binding(),
            };
            entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource });
        }
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(d.shader),
            layout: &kernel.layout,
            entries: &entries,
        });
        recorded.push((kernel, group, d.grid));
    }
    Ok(recorded)
}

pub(crate) fn encode(pass: &mut wgpu::ComputePass<'_>, recorded: &[Bound]) {
    for (kernel, group, [x, y, z]) in recorded {
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(*x, *y, *z);
    }
}

/// Runs a variant with the kernels that `kernel_of` gives; see [`run_single`].
pub(crate) async fn run(
    device: &Device,
    variant: &Variant,
    inputs: &[HostTensor],
    output: &TensorType,
    repeats: usize,
    kernel_of: &dyn Fn(KernelKey) -> Result<Arc<Kernel>>,
) -> Result<SingleRun> {
    let gpu = &device.inner;
    let keys = variant.dispatches.iter().map(|d| KernelKey::new(d.shader, &d.features, &d.constants));
    let prepared = device.scoped_compiling(keys, || {
        let operands = upload(device, inputs);
        let result = Guarded::new(device, output.bytes());
        let scratch: Vec<_> = variant.scratch.iter().map(|&b| Guarded::new(device, b)).collect();

        let recorded = bind(device, variant, &operands, &result, &scratch, kernel_of)?;
        Ok((result, scratch, recorded))
    });
    let (result, scratch, recorded) = prepared.await?;

    let mut seconds = Vec::with_capacity(repeats);
    for repeat in 0..=repeats {
        let start = Instant::now();
        let submission = device.scoped(|| {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                encode(&mut pass, &recorded);
            }
            gpu.queue.submit([encoder.finish()]);
            Ok(())
        });
        submission.await?;
        device.finished().await?;
        if repeat > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }

    let (bytes, mut stray_bytes) = result.read(device).await?;
    for buffer in &scratch {
        stray_bytes += buffer.read(device).await?.1;
    }
    Ok(SingleRun { output: HostTensor::from_bytes(output, &bytes)?, stray_bytes, seconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_on_either_side_count() {
        // A result of 3 bytes and one of padding between guards of 4.
        let around = |change: Option<usize>| {
            let mut bytes = [SENTINEL; 12];
            bytes[4..7].fill(0);
            if let Some(i) = change {
                bytes[i] = 0;
            }
            strays(&bytes, 4, 3)
        };
        assert_eq!(around(None), 0);
        assert_eq!([0, 3, 7, 11].map(|i| around(Some(i))), [1; 4]);
        assert_eq!([4, 6].map(|i| around(Some(i))), [0; 2]);
    }
}
