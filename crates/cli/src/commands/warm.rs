//! Compiling an image's kernels while its photo is being read.

use super::DeviceArgs;
use crate::progress::cancelled;
use pulid::pipeline::{GenerateOptions, Pipeline, SdxlModel, Storage};
use pulid::runtime::Runtime;
use pulid_checkpoint::Checkpoint;
use pulid_engine::{DeviceKind, Observer};
use pulid_models::sdxl::Part;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Parameters of a UNet up to which a step of it is cheap on a CPU: the mini models have some five million.
const SMALL: usize = 50_000_000;

/// Kernels that are being compiled. Dropped, it stops as soon as it can, and is waited for: a device must not outlive
/// the program's main thread.
pub struct Warming {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Warming {
    /// Waits until every kernel is compiled.
    pub fn finish(mut self) {
        self.join();
    }

    fn join(&mut self) {
        // What a panic there would tell, the real run tells too.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.join();
    }
}

/// Passes cancellation on and reports nothing.
struct CancelOnly(Arc<AtomicBool>);

impl Observer for CancelOnly {
    fn cancelled(&self) -> bool {
        cancelled() || self.0.load(Ordering::Relaxed)
    }
}

/// Compiles the kernels of an image's networks on a device of its own, where that pays.
///
/// On a CPU device the first run of a kernel compiles it, on the one thread that runs the device's work, which takes most of a
/// small model's first image; the driver keeps what it compiled and finds it again for the other device. On the same device the
/// compilation would only stand in the way of the photo's networks. Any error is thrown away: the real run meets it again and
/// reports it. `None` on GPUs, for large models, and where there is no second core.
pub fn start(device: &DeviceArgs, pipeline: &Pipeline, storage: Storage, options: GenerateOptions) -> Option<Warming> {
    let on_cpu =
        matches!(pipeline.runtime(), Runtime::Gpu { device, .. } if device.capabilities().kind == DeviceKind::Cpu);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    if !on_cpu || cores < 2 || !is_small(pipeline.model()) {
        return None;
    }
    let (device, model) = (device.clone(), pipeline.model().clone());
    let stop = Arc::new(AtomicBool::new(false));
    let observer = CancelOnly(stop.clone());
    let work = move || {
        let compile =
            async { Pipeline::open(device.open().await?, model, storage)?.precompile(&options, &observer).await };
        let _ = pollster::block_on(compile);
    };
    let thread = std::thread::Builder::new().name("pulid-warm".into()).spawn(work).ok()?;
    Some(Warming { stop, thread: Some(thread) })
}

fn is_small(model: &SdxlModel) -> bool {
    let parameters = |weights: Checkpoint| {
        weights.keys().filter_map(|key| weights.info(key).ok()).map(|info| info.shape.count()).sum::<usize>()
    };
    model.part(Part::Unet).is_ok_and(|files| parameters(files.weights) <= SMALL)
}
