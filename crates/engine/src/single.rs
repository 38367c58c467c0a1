//! One kernel variant alone, with guard regions: for conformance, autotune and benchmarks.

use crate::kernel::{Kernel, KernelKey};
use crate::time::Instant;
use crate::{Device, DeviceOptions};
use pulid_ops::{Slot, Variant};
use pulid_tensor::{Error, HostTensor, Result, TensorType};
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

/// Bytes behind each result and scratch buffer that a kernel must not touch.
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
    let options = DeviceOptions { bounds_checks: true, ..DeviceOptions::default() };
    let compile = |key: KernelKey| {
        let kernel = Kernel::compile_edited(&device.inner.device, &key, options, |text| edit(key.shader, text).into())?;
        device.check()?;
        Ok(Arc::new(kernel))
    };
    run(device, variant, inputs, output, 0, &compile).await
}

async fn run(
    device: &Device,
    variant: &Variant,
    inputs: &[HostTensor],
    output: &TensorType,
    repeats: usize,
    kernel_of: &dyn Fn(KernelKey) -> Result<Arc<Kernel>>,
) -> Result<SingleRun> {
    let gpu = &device.inner;
    let mut operands = Vec::with_capacity(inputs.len());
    for tensor in inputs {
        let buffer = device.new_buffer("operand", tensor.bytes().len())?;
        device.write_buffer(&buffer, tensor.bytes());
        operands.push(buffer);
    }
    let guarded = |bytes: usize| -> Result<(wgpu::Buffer, usize)> {
        let size = bytes.next_multiple_of(16) + GUARD;
        let buffer = device.new_buffer("guarded", size)?;
        gpu.queue.write_buffer(&buffer, 0, &vec![SENTINEL; size]);
        Ok((buffer, size))
    };
    let (result, result_size) = guarded(output.bytes())?;
    let scratch = variant.scratch.iter().map(|&b| guarded(b)).collect::<Result<Vec<_>>>()?;

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
            // Exactly the operand: a kernel that reads or writes past a binding is the device's to stop, and a
            // write into the padding behind the result is caught by the guard.
            let buffer = match *slot {
                Slot::Input(i) => &operands[i],
                Slot::Output => &result,
                Slot::Scratch(i) => &scratch[i].0,
                Slot::Unused => &operands[0],
            };
            entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource: buffer.as_entire_binding() });
        }
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(d.shader),
            layout: &kernel.layout,
            entries: &entries,
        });
        recorded.push((kernel, group, d.grid));
    }
    device.check()?;

    let mut seconds = Vec::with_capacity(repeats);
    for repeat in 0..=repeats {
        let start = Instant::now();
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for (kernel, group, [x, y, z]) in &recorded {
                pass.set_pipeline(&kernel.pipeline);
                pass.set_bind_group(0, group, &[]);
                pass.dispatch_workgroups(*x, *y, *z);
            }
        }
        gpu.queue.submit([encoder.finish()]);
        device.finished().await?;
        if repeat > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }

    let bytes = device.read_buffer(&result, result_size).await?;
    let mut stray = changed(&bytes[output.bytes()..]);
    for ((buffer, size), &used) in scratch.iter().zip(&variant.scratch) {
        let bytes = device.read_buffer(buffer, *size).await?;
        stray += changed(bytes.get(used..).ok_or_else(|| Error::operator("scratch", "shorter than planned"))?);
    }
    let output = HostTensor::from_bytes(output, &bytes[..output.bytes()])?;
    Ok(SingleRun { output, stray_bytes: stray, seconds })
}

fn changed(guard: &[u8]) -> usize {
    guard.iter().filter(|&&b| b != SENTINEL).count()
}
