//! What a device reaches at its best, by small kernels that do nothing else: what others can be measured by.

use crate::Device;
use crate::kernel::Kernel;
use crate::single::Bound;
use crate::timing::time_sets;
use pulid_ops::DeviceKind;
use pulid_tensor::Result;
use std::borrow::Cow;
use std::sync::Arc;

/// What a device was seen to reach.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Peaks {
    /// Bytes read and written a second while a buffer is copied that no cache holds.
    pub bytes: f64,
    /// Floating-point operations a second of multiply-adds in f32.
    pub flops: f64,
    /// Of cooperative matrices, f16 by f16 with f32 sums, where kernels use them.
    pub cooperative_flops: Option<f64>,
}

/// Invocations of a workgroup of each kernel.
const INVOCATIONS: u64 = 256;
/// Samples, of which the fastest counts.
const SAMPLES: usize = 5;

/// A kernel with its work.
struct Loop {
    name: &'static str,
    text: Cow<'static, str>,
    /// Bytes of the operand and of the result.
    bytes: [u64; 2],
    workgroups: u64,
    /// What one execution does.
    work: f64,
}

/// Measures what a device reaches: some tenths of a second on a GPU.
///
/// # Errors
/// A lost device, memory that is not there.
pub async fn peaks(device: &Device) -> Result<Peaks> {
    let capabilities = device.capabilities();
    let loops = loops(capabilities.kind, capabilities.cooperative_size, capabilities.lanes());
    let mut reached = Vec::with_capacity(loops.len());
    for each in &loops {
        reached.push(each.work / seconds(device, each).await?);
    }
    Ok(Peaks { bytes: reached[0], flops: reached[1], cooperative_flops: reached.get(2).copied() })
}

/// The kernels for a device: of bytes, of multiply-adds, and of cooperative matrices where it has some.
fn loops(kind: DeviceKind, cooperative_size: u32, lanes: Option<[u32; 2]>) -> Vec<Loop> {
    // Enough for every multiprocessor; a CPU has few.
    let (megabytes, workgroups) = if kind == DeviceKind::Cpu { (64, 64) } else { (128, 4096) };
    let bytes = megabytes << 20;
    let copy = Loop {
        name: "copy",
        text: include_str!("peaks/copy.wgsl").into(),
        bytes: [bytes, bytes],
        workgroups: bytes / (16 * INVOCATIONS),
        work: 2.0 * bytes as f64,
    };
    let invocations = workgroups * INVOCATIONS;
    let multiply = Loop {
        name: "multiply",
        text: include_str!("peaks/multiply.wgsl").into(),
        bytes: [48, 16 * invocations],
        workgroups,
        // STEPS, sums, elements of a sum, and two operations each.
        work: (invocations * 256 * 8 * 4 * 2) as f64,
    };
    let mut loops = vec![copy, multiply];
    if let Some(lanes) = lanes.filter(|_| cooperative_size > 0) {
        // As many subgroups at least, and at most, where their size varies: what is said is reached.
        let (size, [most, subgroups]) = (u64::from(cooperative_size), lanes.map(|n| invocations / u64::from(n)));
        let text = include_str!("peaks/cooperative.wgsl");
        let text = text.replace("coop_mat16x16", &format!("coop_mat{size}x{size}"));
        loops.push(Loop {
            name: "cooperative",
            text: text.replace("SIZE = 16u", &format!("SIZE = {size}u")).into(),
            // Six factors; a matrix of sums for each subgroup.
            bytes: [6 * 2 * size * size, 4 * size * size * most],
            workgroups,
            work: (subgroups * 64 * 8 * size * size * size * 2) as f64,
        });
    }
    loops
}

/// Seconds of the fastest execution.
async fn seconds(device: &Device, work: &Loop) -> Result<f64> {
    let set = device.scoped(|| Ok(bound(device, work))).await?;
    let timing = time_sets(device, &[vec![set]], SAMPLES).await?;
    Ok(timing.seconds.into_iter().fold(f64::INFINITY, f64::min))
}

fn bound(device: &Device, work: &Loop) -> Bound {
    let gpu = &device.inner.device;
    let source = wgpu::ShaderSource::Wgsl(work.text.clone());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(work.name), source };
    // SAFETY: the buffers below have an element for each invocation, and loops end.
    let module = unsafe { gpu.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    let pipeline = gpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(work.name),
        layout: None,
        module: &module,
        entry_point: Some(work.name),
        compilation_options: Default::default(),
        cache: None,
    });
    let layout = pipeline.get_bind_group_layout(0);
    let buffers = work.bytes.map(|bytes| device.create_buffer(work.name, bytes as usize));
    let entries: Vec<_> = buffers
        .iter()
        .zip(0..)
        .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    let group = gpu.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(work.name),
        layout: &layout,
        entries: &entries,
    });
    (Arc::new(Kernel { pipeline, layout, params_size: 0 }), group, [work.workgroups as u32, 1, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_do_the_work_that_is_counted() {
        for (size, lanes) in [(8u64, 8), (16, 32)] {
            let loops = loops(DeviceKind::Discrete, size as u32, Some([lanes; 2]));
            let [copy, multiply, cooperative] = loops.as_slice() else { panic!("three loops") };
            assert_eq!(copy.workgroups * INVOCATIONS * 16, copy.bytes[0]);
            assert!(copy.workgroups <= u64::from(pulid_ops::MAX_WORKGROUPS) && copy.bytes[1] <= 128 << 20);
            assert!(multiply.text.contains("const STEPS = 256u;"));
            assert_eq!(multiply.text.matches("= fma(").count(), 8);
            assert!(cooperative.text.contains("const STEPS = 64u;"));
            assert!(cooperative.text.contains(&format!("const SIZE = {size}u;")));
            assert_eq!(cooperative.text.matches(&format!("coop_mat{size}x{size}<")).count(), 3);
            assert_eq!(cooperative.text.matches("= coopMultiplyAdd(").count(), 8);
            assert_eq!(cooperative.bytes[0], 6 * 2 * size * size);
            assert!(cooperative.bytes[1] <= 128 << 20);
        }
        assert_eq!(loops(DeviceKind::Cpu, 0, Some([8; 2])).len(), 2);
        // Where the size varies there is room for the most subgroups, and the fewest are counted.
        let [least, most, varying] = [[32, 32], [64, 64], [32, 64]].map(|lanes| {
            let mut loops = loops(DeviceKind::Discrete, 16, Some(lanes));
            loops.pop().expect("cooperative matrices")
        });
        assert_eq!((varying.bytes[1], varying.work), (least.bytes[1], most.work));
    }

    #[test]
    fn a_device_reaches_something() {
        let options = crate::DeviceOptions { timestamps: true, ..Default::default() };
        let device = pollster::block_on(Device::open("auto", options)).unwrap();
        let peaks = pollster::block_on(peaks(&device)).unwrap();
        // Between a slow machine and what no device has.
        assert!((1e7..1e14).contains(&peaks.bytes) && (1e7..1e16).contains(&peaks.flops), "{peaks:?}");
        assert_eq!(peaks.cooperative_flops.is_some(), device.capabilities().cooperative_size > 0);
    }
}
