//! Kernels compiled before anything runs.

use crate::Device;
use crate::kernel::{Kernel, KernelKey};
use crate::observer::{Observer, check};
use pulid_graph::plan::Plan;
use pulid_ops::DeviceKind;
use pulid_tensor::Result;
use std::collections::HashSet;
use std::sync::Arc;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that compile at once: drivers gain little from more, and each holds a compiler's memory.
#[cfg(not(target_arch = "wasm32"))]
const MOST_THREADS: usize = 8;

impl Device {
    /// Compiles every kernel that a plan names and that was not compiled before, so that its first run finds them. On a CPU device,
    /// whose drivers compile when a kernel is first dispatched, each is dispatched over no workgroups at all.
    ///
    /// The observer counts kernels.
    ///
    /// # Errors
    /// A kernel that does not compile, a lost device, cancellation.
    pub async fn precompile(&self, plan: &Plan, observer: &dyn Observer) -> Result<()> {
        let dispatches = plan.prologue.iter().chain(&plan.steps).flat_map(|step| &step.dispatches);
        let missing = self.missing(dispatches.map(|d| KernelKey::new(d.shader, &d.features, &d.constants)));
        for (done, key) in missing.iter().enumerate() {
            check(observer)?;
            let kernel = self.kernel_scoped(key.clone()).await?;
            if self.capabilities().kind == DeviceKind::Cpu {
                self.dispatch_nothing(&kernel, key).await?;
            }
            observer.progress(done as u64 + 1, missing.len() as u64);
        }
        Ok(())
    }

    /// Compiles the kernels that were not compiled before, natively on several threads at once.
    ///
    /// # Errors
    /// A kernel that does not compile, a lost device.
    pub(crate) async fn compile_together(&self, keys: impl IntoIterator<Item = KernelKey>) -> Result<()> {
        let missing = self.missing(keys);
        #[cfg(not(target_arch = "wasm32"))]
        {
            let next = AtomicUsize::new(0);
            // Errors of wgpu reach the thread that caused them: each compiles in scopes of its own.
            let work = || -> Result<()> {
                while let Some(key) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    pollster::block_on(self.kernel_scoped(key.clone()))?;
                }
                Ok(())
            };
            let threads =
                std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS).min(missing.len());
            std::thread::scope(|scope| {
                let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
                let own = work();
                others.into_iter().fold(own, |result, thread| match thread.join() {
                    Ok(other) => result.and(other),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })
        }
        #[cfg(target_arch = "wasm32")]
        {
            for key in missing {
                self.kernel_scoped(key).await?;
            }
            Ok(())
        }
    }

    /// The kernels that were not compiled before, each once.
    fn missing(&self, keys: impl IntoIterator<Item = KernelKey>) -> Vec<KernelKey> {
        let mut seen = HashSet::new();
        keys.into_iter().filter(|key| !self.has_kernel(key) && seen.insert(key.clone())).collect()
    }

    async fn dispatch_nothing(&self, kernel: &Arc<Kernel>, key: &KernelKey) -> Result<()> {
        self.scoped(|| {
            let uniform = self.inner.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("parameters"),
                size: u64::from(kernel.params_size.max(16)),
                usage: wgpu::BufferUsages::UNIFORM,
                mapped_at_creation: false,
            });
            let bindings = pulid_ops::shader(key.shader, &key.features).map_or(0, |info| info.writable.len());
            // A buffer each: none may be read and written by one dispatch.
            let buffers: Vec<_> = (0..bindings).map(|_| self.create_buffer("empty", 16)).collect();
            let resources = std::iter::once(&uniform).chain(&buffers).enumerate();
            let entries: Vec<_> = resources
                .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.as_entire_binding() })
                .collect();
            let group = self.inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(key.shader),
                layout: &kernel.layout,
                entries: &entries,
            });
            let mut encoder = self.inner.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&kernel.pipeline);
                pass.set_bind_group(0, &group, &[]);
                pass.dispatch_workgroups(0, 0, 0);
            }
            self.inner.queue.submit([encoder.finish()]);
            Ok(())
        })
        .await?;
        self.finished().await
    }
}
