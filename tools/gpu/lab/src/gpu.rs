//! The device: kernels compiled, run and timed by its own timestamps.

use crate::case::Case;
use half::f16;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What kernels may need, where the device has it.
const WANTED: wgpu::Features = wgpu::Features::SHADER_F16
    .union(wgpu::Features::SUBGROUP)
    .union(wgpu::Features::SUBGROUP_BARRIER)
    .union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
/// What nothing can be measured without.
const NEEDED: wgpu::Features = wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::PASSTHROUGH_SHADERS);
/// Bytes of two timestamps.
const TIMESTAMPS: u64 = 16;
/// Threads that compile.
const THREADS: usize = 14;
/// Seconds that the dispatches of one measurement take together.
const MEASURED_SECONDS: f64 = 0.01;
/// Measurements, of which the median counts.
const REPEATS: usize = 5;

/// A compiled kernel.
pub struct Kernel {
    pipeline: wgpu::ComputePipeline,
    /// Seconds of the translation and the driver's compiler.
    pub compile_seconds: f64,
}

/// What a kernel computed, and how fast.
pub struct Outcome {
    /// Seconds of one dispatch.
    pub seconds: f64,
    /// The whole of binding 2.
    pub result: Vec<f16>,
}

/// An open Vulkan device.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    bindings: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
}

impl Gpu {
    /// Opens the first Vulkan device whose name or driver has `name` as a part, and tells what it is on standard error.
    ///
    /// # Errors
    /// None is called so, it has no timestamps or takes no SPIR-V, or cannot be opened.
    pub fn open(name: &str) -> Result<Self, String> {
        let backends = wgpu::Backends::VULKAN;
        let descriptor =
            wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() };
        let adapters = pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
        let called = |info: &wgpu::AdapterInfo| format!("{} ({} {})", info.name, info.driver, info.driver_info);
        let names: Vec<String> = adapters.iter().map(|a| called(&a.get_info())).collect();
        let place = names.iter().position(|n| n.to_lowercase().contains(&name.to_lowercase()));
        let there = if names.is_empty() { "none".to_owned() } else { names.join("; ") };
        let place = place.ok_or_else(|| format!("no Vulkan device's name holds `{name}`; there are: {there}"))?;
        let adapter = &adapters[place];
        if !adapter.features().contains(NEEDED) {
            return Err(format!("{} lacks {:?}", names[place], NEEDED - adapter.features()));
        }
        let limits = adapter.limits();
        eprintln!("{}, {} bytes of workgroup memory", names[place], limits.max_compute_workgroup_storage_size);
        for properties in adapter.cooperative_matrix_properties() {
            eprintln!("{properties:?}");
        }
        let features = (WANTED & adapter.features()) | NEEDED;
        let descriptor = wgpu::DeviceDescriptor {
            required_features: features,
            required_limits: limits,
            // SAFETY: cooperative matrices are what is tried out here, and texts are the caller's own.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| format!("{} cannot be opened: {e}", names[place]))?;
        let entries = [0, 1, 2].map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: binding < 2 },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        });
        let bindings =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            bind_group_layouts: &[Some(&bindings)],
            ..Default::default()
        });
        Ok(Self { device, queue, bindings, layout })
    }

    /// Compiles all cases on several threads: drivers take up to seconds for one.
    pub fn compile(&self, cases: &[Case]) -> Vec<Result<Kernel, String>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let threads = std::thread::available_parallelism().map_or(4, |n| n.get()).min(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((at, case)) = {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        cases.get(at).map(|case| (at, case))
                    } {
                        let kernel = self.kernel(case);
                        done.lock().expect("no thread panics while it holds this").push((at, kernel));
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("no thread panics while it holds this");
        done.sort_by_key(|(at, _)| *at);
        done.into_iter().map(|(_, kernel)| kernel).collect()
    }

    fn kernel(&self, case: &Case) -> Result<Kernel, String> {
        let begin = Instant::now();
        let spirv = case.translated()?;
        let most = self.device.limits().max_compute_workgroup_storage_size;
        if spirv.workgroup_bytes > u64::from(most) {
            // Drivers of the CPU do not mind.
            let bytes = spirv.workgroup_bytes;
            eprintln!("warning: {} needs {bytes} bytes of workgroup memory, and the device promises {most}", case.name);
        }
        let pipeline = self.scoped(|| {
            let entry_point =
                wgpu::PassthroughShaderEntryPoint { name: "main".into(), workgroup_size: spirv.workgroup_size.into() };
            let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                entry_points: vec![entry_point].into(),
                spirv: Some(spirv.words.into()),
                ..Default::default()
            };
            // SAFETY: naga made it of a module that it validated, but for what the engine and `Case::translated` change; that it stays
            // within its bindings is up to the script that wrote it.
            let module = unsafe { self.device.create_shader_module_passthrough(descriptor) };
            self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: Some(&self.layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: Default::default(),
                cache: None,
            })
        })?;
        Ok(Kernel { pipeline, compile_seconds: begin.elapsed().as_secs_f64() })
    }

    /// Runs a kernel on its case's operands: once if it is to be `quick`, otherwise until the time of one dispatch is known.
    ///
    /// # Errors
    /// What the device says: no memory, or lost.
    pub fn run(&self, case: &Case, kernel: &Kernel, quick: bool) -> Result<Outcome, String> {
        let bytes = |elements: usize| (elements * size_of::<f16>()) as u64;
        let storage = wgpu::BufferUsages::STORAGE;
        let (result, timer, group) = self.scoped(|| {
            let operands = case.operands().map(|values| {
                let buffer = self.buffer(bytes(values.len()), storage | wgpu::BufferUsages::COPY_DST);
                self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&values));
                buffer
            });
            let result = self.buffer(bytes(case.output), storage | wgpu::BufferUsages::COPY_SRC);
            let buffers = [&operands[0], &operands[1], &result];
            let entry = |i: usize| wgpu::BindGroupEntry { binding: i as u32, resource: buffers[i].as_entire_binding() };
            let entries = [0, 1, 2].map(entry);
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &self.bindings, entries: &entries };
            let group = self.device.create_bind_group(&descriptor);
            let queries = wgpu::QuerySetDescriptor { label: None, ty: wgpu::QueryType::Timestamp, count: 2 };
            (result, self.device.create_query_set(&queries), group)
        })?;
        let measure = |times: u32| self.measure(case, kernel, &group, &timer, times);
        let mut seconds = vec![measure(1)?];
        if !quick {
            let times = ((MEASURED_SECONDS / seconds[0].max(1e-7)) as u32).clamp(1, 200);
            seconds = (0..REPEATS).map(|_| measure(times)).collect::<Result<_, _>>()?;
        }
        seconds.sort_by(f64::total_cmp);
        let seconds = seconds[seconds.len() / 2];
        Ok(Outcome { seconds, result: self.read(&result, bytes(case.output))? })
    }

    /// Seconds of one of `times` dispatches.
    fn measure(
        &self,
        case: &Case,
        kernel: &Kernel,
        group: &wgpu::BindGroup,
        timer: &wgpu::QuerySet,
        times: u32,
    ) -> Result<f64, String> {
        let stamps = self.scoped(|| {
            let stamps = self.buffer(TIMESTAMPS, wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: timer,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }),
            });
            pass.set_pipeline(&kernel.pipeline);
            pass.set_bind_group(0, group, &[]);
            let [x, y, z] = case.workgroups;
            (0..times).for_each(|_| pass.dispatch_workgroups(x, y, z));
            drop(pass);
            encoder.resolve_query_set(timer, 0..2, &stamps, 0);
            self.queue.submit([encoder.finish()]);
            stamps
        })?;
        let ticks: Vec<u64> = self.read(&stamps, TIMESTAMPS)?;
        let nanoseconds = ticks[1].saturating_sub(ticks[0]) as f64 * f64::from(self.queue.get_timestamp_period());
        Ok(nanoseconds * 1e-9 / f64::from(times))
    }

    fn buffer(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// A buffer's contents, when all that was submitted is done.
    fn read<T: bytemuck::Pod>(&self, from: &wgpu::Buffer, bytes: u64) -> Result<Vec<T>, String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let copy = self.scoped(|| {
            let copy = self.buffer(bytes, wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(from, 0, &copy, 0, bytes);
            self.queue.submit([encoder.finish()]);
            copy.slice(..).map_async(wgpu::MapMode::Read, move |done| drop(sender.send(done)));
            copy
        })?;
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| format!("the device does not answer: {e}"))?;
        receiver.recv().map_err(|e| e.to_string())?.map_err(|e| format!("a result cannot be read: {e}"))?;
        let mapped = copy.slice(..).get_mapped_range().map_err(|e| e.to_string())?;
        Ok(bytemuck::pod_collect_to_vec(&mapped))
    }

    /// What `work` gives, unless the device objects to it.
    fn scoped<T>(&self, work: impl FnOnce() -> T) -> Result<T, String> {
        let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let made = work();
        // The last one pushed is the first to go.
        let [internal, memory, validation] = scopes;
        let errors = [validation.pop(), memory.pop(), internal.pop()].map(|e| pollster::block_on(Box::pin(e)));
        errors.into_iter().flatten().next().map_or(Ok(made), |error| Err(error.to_string()))
    }
}
