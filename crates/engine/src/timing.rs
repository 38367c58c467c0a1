//! How long work takes on the device itself: by its own clock where it has one, many executions in one submission where not.

use crate::Device;
use crate::kernel::KernelKey;
use crate::single::{Bound, Guarded, bind, encode, upload};
use crate::time::Instant;
use pulid_ops::{DeviceKind, Variant};
use pulid_tensor::{HostTensor, Result, TensorType};

/// What a variant took.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Seconds of one execution, the mean of each sample.
    pub seconds: Vec<f64>,
    /// Executions in a sample.
    pub executions: usize,
    /// Whether the device's own clock was read: else submission and the wait for it count, shared by a sample's executions.
    pub timestamps: bool,
}

/// Seconds that a sample on a GPU shall fill: enough for clocks to rise, and for what a submission costs to be little.
const SAMPLE_SECONDS: f64 = 0.015;
/// Most executions in a sample.
const MOST_EXECUTIONS: usize = 500;
/// Executions longer than this are not repeated.
const LONG_SECONDS: f64 = 0.3;
/// Bytes that executions go through before they meet the same operands again: more than caches hold.
const ROTATED_BYTES: usize = 160 << 20;
/// Most copies of the operands.
const MOST_SETS: usize = 8;

/// Times a variant on operands, in samples of as many executions as fill some time on a GPU, one on a CPU device. Executions take
/// turns among copies of operands and results, so that caches hold no more of them than in a network. Results are not looked at.
///
/// # Errors
/// A kernel that does not compile, or a lost device.
pub async fn time_single(
    device: &Device,
    variant: &Variant,
    inputs: &[HostTensor],
    output: &TensorType,
    samples: usize,
) -> Result<Timing> {
    let bytes = inputs.iter().map(|t| t.bytes().len()).sum::<usize>() + output.bytes();
    let on_gpu = device.capabilities().kind != DeviceKind::Cpu;
    let copies = if on_gpu { (ROTATED_BYTES / bytes.max(1)).clamp(1, MOST_SETS) } else { 1 };
    let keys = variant.dispatches.iter().map(|d| KernelKey::new(d.shader, &d.features, &d.constants));
    let sets = device.scoped_compiling(keys, || {
        let first = upload(device, inputs);
        let mut sets = Vec::with_capacity(copies);
        for copy in 0..copies {
            let operands = if copy == 0 { first.clone() } else { copied(device, &first) };
            let result = Guarded::new(device, output.bytes());
            let scratch: Vec<_> = variant.scratch.iter().map(|&b| Guarded::new(device, b)).collect();
            sets.push(bind(device, variant, &operands, &result, &scratch, &|key| device.kernel(key))?);
        }
        device.inner.queue.submit([]);
        Ok(sets)
    });
    let sets = sets.await?;
    device.finished().await?;
    time_sets(device, &sets, samples).await
}

/// Times dispatches that are bound already: each execution runs the next of the sets.
pub(crate) async fn time_sets(device: &Device, sets: &[Vec<Bound>], samples: usize) -> Result<Timing> {
    let on_gpu = device.capabilities().kind != DeviceKind::Cpu;
    // On a CPU device the clock is read while work is only being recorded.
    let clock = if on_gpu { Clock::new(device, 2).await? } else { None };
    let timestamps = clock.is_some();
    let of = async |executions: usize| sample(device, sets, executions, clock.as_ref()).await;

    let mut executions = 1;
    // Compiles what the driver left for the first run.
    of(1).await?;
    let mut total = of(1).await?;
    while on_gpu && total < SAMPLE_SECONDS * 0.7 && executions < MOST_EXECUTIONS {
        let factor = (SAMPLE_SECONDS / total.max(1e-9)).clamp(1.5, 8.0);
        executions = ((executions as f64 * factor).ceil() as usize).min(MOST_EXECUTIONS);
        total = of(executions).await?;
    }
    let mut seconds = vec![total / executions as f64];
    while seconds.len() < samples && total < LONG_SECONDS {
        seconds.push(of(executions).await? / executions as f64);
    }
    Ok(Timing { seconds, executions, timestamps })
}

/// Buffers of the same contents elsewhere.
fn copied(device: &Device, buffers: &[wgpu::Buffer]) -> Vec<wgpu::Buffer> {
    let mut encoder = device.inner.device.create_command_encoder(&Default::default());
    let copies = buffers.iter().map(|from| {
        let to = device.create_buffer("operand", from.size() as usize);
        encoder.copy_buffer_to_buffer(from, 0, &to, 0, from.size());
        to
    });
    let copies = copies.collect();
    device.inner.queue.submit([encoder.finish()]);
    copies
}

/// Seconds of so many executions in one submission.
async fn sample(device: &Device, sets: &[Vec<Bound>], executions: usize, clock: Option<&Clock>) -> Result<f64> {
    let start = Instant::now();
    let submission = device.scoped(|| {
        let mut encoder = device.inner.device.create_command_encoder(&Default::default());
        {
            let timestamp_writes = clock.map(|c| c.around(0));
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            let mut pass = encoder.begin_compute_pass(&descriptor);
            for set in sets.iter().cycle().take(executions) {
                encode(&mut pass, set);
            }
        }
        if let Some(clock) = clock {
            clock.resolve(&mut encoder, 1);
        }
        device.inner.queue.submit([encoder.finish()]);
        Ok(())
    });
    submission.await?;
    device.finished().await?;
    let wall = start.elapsed().as_secs_f64();
    match clock {
        Some(clock) => Ok(clock.read(device, 1).await?[0]),
        None => Ok(wall),
    }
}

/// Times that the device writes down where passes begin and end.
pub(crate) struct Clock {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    /// Seconds of a tick.
    tick: f64,
}

impl Clock {
    /// Most passes that one clock can time.
    pub const MOST: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

    /// For so many passes; `None` where the device tells no times, or was not opened for it.
    pub async fn new(device: &Device, passes: usize) -> Result<Option<Clock>> {
        let gpu = &device.inner;
        if !gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Ok(None);
        }
        let made = device.scoped(|| {
            let count = 2 * passes.clamp(1, Clock::MOST) as u32;
            let set = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("times"),
                ty: wgpu::QueryType::Timestamp,
                count,
            });
            let resolved = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("times"),
                size: u64::from(count) * 8,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            Ok(Clock { set, resolved, tick: f64::from(gpu.queue.get_timestamp_period()) * 1e-9 })
        });
        made.await.map(Some)
    }

    /// What makes a pass write its times.
    pub fn around(&self, pass: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(2 * pass as u32),
            end_of_pass_write_index: Some(2 * pass as u32 + 1),
        }
    }

    /// Makes the times of the first passes readable.
    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder, passes: usize) {
        encoder.resolve_query_set(&self.set, 0..2 * passes as u32, &self.resolved, 0);
    }

    /// Seconds of each of the first passes.
    pub async fn read(&self, device: &Device, passes: usize) -> Result<Vec<f64>> {
        let bytes = device.read_buffer(&self.resolved, passes * 16).await?;
        let ticks: Vec<u64> =
            bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default())).collect();
        Ok(ticks.chunks_exact(2).map(|t| t[1].saturating_sub(t[0]) as f64 * self.tick).collect())
    }
}
