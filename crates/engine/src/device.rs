use crate::kernel::{Kernel, KernelKey};
use crate::memory::{Counters, Weights};
use crate::poller::Poller;
use crate::portion::Portion;
use crate::session::Profiler;
use crate::time::Instant;
use futures_channel::oneshot;
use pulid_ops::{Capabilities, DeviceClass, DeviceKind, LARGEST_BINDING};
use pulid_tensor::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a person sees of an adapter.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterSummary {
    /// Name given by the driver.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// `vulkan`, `metal`, `dx12`, `gl` or `webgpu`.
    pub backend: String,
    /// What executes shaders on it.
    pub kind: DeviceKind,
}

impl AdapterSummary {
    /// Name, kind and backend, for messages.
    fn in_words(&self) -> String {
        format!("{} ({:?}, {})", self.name, self.kind, self.backend)
    }
}

/// How to open a device.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Let the driver clamp indices and bound loops. Our shaders guard themselves, so this is for debugging only.
    pub bounds_checks: bool,
    /// Use `shader-f16` when present; switch off to see how a device without it behaves.
    pub shader_f16: bool,
    /// Use matrices that a subgroup multiplies together when present; switch off to see how a device without them behaves.
    pub cooperative_matrices: bool,
    /// Take it that cooperative matrices of this size work, though the driver does not list it: for checks of kernels on drivers
    /// that are known to compute more than they promise.
    pub unlisted_cooperative_size: Option<u32>,
    /// Let matrices of 16 x 16 lie in memory as units of 16 bytes where the device takes such kernels; switch off to see how one without
    /// them behaves.
    pub packed_matrices: bool,
    /// Take it that subgroups have so many lanes, least and most, whatever the driver says: for checks of kernels that are made for
    /// sizes that vary, on drivers where they do not. The driver's own must lie between.
    pub assumed_lanes: Option<[u32; 2]>,
    /// Most bytes of one binding, where the adapter offers as many. WebGPU's guarantee unless set, so that a plan that was made on
    /// one device fits every other.
    pub max_binding_bytes: u64,
    /// Let the device tell times of its own, where the adapter can, for [`time_single`](crate::time_single) and
    /// [`Session::profile`](crate::Session::profile).
    pub timestamps: bool,
    /// Floating-point operations of each submission of a session, of which three are under way at a time. By the kind of the device
    /// and by measured time unless set: for tests, and for drivers that stop what takes long.
    pub submission_flops: Option<u64>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        DeviceOptions {
            bounds_checks: false,
            shader_f16: true,
            cooperative_matrices: true,
            unlisted_cooperative_size: None,
            packed_matrices: true,
            assumed_lanes: None,
            max_binding_bytes: LARGEST_BINDING as u64,
            timestamps: false,
            submission_flops: None,
        }
    }
}

/// An open device: cheap to clone, shared by all sessions.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) uniform_alignment: u32,
    pub(crate) storage_alignment: u32,
    capabilities: Capabilities,
    summary: AdapterSummary,
    choice: Option<String>,
    memory_bytes: Option<u64>,
    options: DeviceOptions,
    kernels: Mutex<HashMap<KernelKey, Arc<Kernel>>>,
    pub(crate) pipeline_cache: OnceLock<wgpu::PipelineCache>,
    pub(crate) adapter_info: wgpu::AdapterInfo,
    pub(crate) weights: Weights,
    pub(crate) counters: Arc<Counters>,
    pub(crate) portion: Portion,
    pub(crate) profiler: Profiler,
    failure: Arc<Mutex<Option<String>>>,
    poller: Poller,
}

/// Commands under way.
#[derive(Debug)]
pub(crate) struct Submission {
    pub begun: Instant,
    over: oneshot::Receiver<Instant>,
}

fn kind(of: wgpu::DeviceType) -> DeviceKind {
    match of {
        wgpu::DeviceType::Cpu => DeviceKind::Cpu,
        wgpu::DeviceType::IntegratedGpu => DeviceKind::Integrated,
        wgpu::DeviceType::DiscreteGpu => DeviceKind::Discrete,
        wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => DeviceKind::Other,
    }
}

/// The place of a device in the list, the best first: GPUs before software, what says what it is before what does not, and Vulkan, Metal
/// and Direct3D before OpenGL.
fn rank(of: wgpu::DeviceType, backend: wgpu::Backend) -> (u8, bool) {
    let kind = match of {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Cpu => 3,
        wgpu::DeviceType::Other => 4,
    };
    (kind, backend == wgpu::Backend::Gl)
}

pub(crate) fn summary(adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let kind = kind(info.device_type);
    let driver = format!("{} {}", info.driver, info.driver_info).trim().to_owned();
    // Browsers keep it to themselves.
    let name = match (info.name.is_empty(), kind) {
        (false, _) => info.name,
        (true, DeviceKind::Cpu) => "software adapter without a name".into(),
        (true, _) => "adapter without a name".into(),
    };
    AdapterSummary { name, driver, backend: info.backend.to_string(), kind }
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

pub(crate) async fn all_adapters() -> Vec<wgpu::Adapter> {
    let adapters = instance().enumerate_adapters(wgpu::Backends::PRIMARY | wgpu::Backends::GL).await;
    // Compute is not universal on OpenGL.
    let computes = |a: &wgpu::Adapter| {
        a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
            && a.limits().max_compute_invocations_per_workgroup >= 64
    };
    let mut adapters: Vec<_> = adapters.into_iter().filter(computes).collect();
    adapters.sort_by_key(|adapter| {
        let info = adapter.get_info();
        rank(info.device_type, info.backend)
    });
    adapters
}

/// Every adapter that can run shaders, best first.
pub async fn adapters() -> Vec<AdapterSummary> {
    all_adapters().await.iter().map(summary).collect()
}

/// How a system without any device gets one.
pub fn driver_advice() -> &'static str {
    if cfg!(target_arch = "wasm32") {
        "use a current Chrome, Edge, Safari or Firefox, switch hardware acceleration on in its settings, and update the graphics driver"
    } else if cfg!(windows) {
        "install the driver of the graphics card's maker; Windows brings one that runs on the CPU (WARP) with Direct3D 12"
    } else if cfg!(any(target_os = "macos", target_os = "ios")) {
        "Metal is part of the system; a virtual machine must be given a GPU"
    } else {
        "install the graphics card's Vulkan driver, or Mesa's, which also runs on the CPU: `apt install mesa-vulkan-drivers` on Debian \
         and Ubuntu, `dnf install mesa-vulkan-drivers` on Fedora, `pacman -S vulkan-swrast` on Arch"
    }
}

/// What is said where there is no device at all.
fn no_adapter() -> String {
    let what = if cfg!(target_arch = "wasm32") {
        "this browser offers no WebGPU"
    } else {
        "no GPU and no driver that computes on the CPU was found"
    };
    format!("{what}; {}", driver_advice())
}

/// The first device, of a list with the best first, that `selector` asks for: `auto` is the best, the kinds that are listed
/// (`cpu`, `integrated`, `discrete`, `other`) are devices of that kind, anything else is a part of a name, a driver or a backend.
///
/// # Errors
/// [`Error::Device`] where `auto` finds none; [`Error::Invalid`] with what there is where a name fits none.
fn select(selector: &str, devices: &[AdapterSummary]) -> Result<usize> {
    let wanted = selector.trim().to_lowercase();
    let of_kind = |kind: DeviceKind| wanted == format!("{kind:?}").to_lowercase();
    let kind = [DeviceKind::Cpu, DeviceKind::Integrated, DeviceKind::Discrete, DeviceKind::Other]
        .into_iter()
        .find(|k| of_kind(*k));
    let matches = |s: &AdapterSummary| match kind {
        Some(kind) => s.kind == kind,
        None => format!("{} {} {}", s.name, s.driver, s.backend).to_lowercase().contains(&wanted),
    };
    if wanted == "auto" {
        return if devices.is_empty() { Err(Error::Device(no_adapter())) } else { Ok(0) };
    }
    if let Some(found) = devices.iter().position(matches).filter(|_| !wanted.is_empty()) {
        return Ok(found);
    }
    let there: Vec<_> = devices.iter().map(AdapterSummary::in_words).collect();
    let there = if there.is_empty() { no_adapter() } else { format!("there are: {}", there.join(", ")) };
    let why = match kind {
        Some(DeviceKind::Cpu) => {
            "no device that runs shaders on the CPU; `reference` computes there without one".to_owned()
        }
        Some(kind) => format!("no device is of the kind {kind:?}"),
        None if wanted.is_empty() => "names no device; `auto` takes the best".to_owned(),
        None => format!("no device matches `{selector}`"),
    };
    Err(Error::invalid("device", format!("{why}; {there}")))
}

/// The devices that `auto` does not take: those of other names, since one may be there under several drivers.
fn others(devices: &[AdapterSummary], taken: usize) -> Vec<String> {
    let Some(own) = devices.get(taken) else { return Vec::new() };
    devices.iter().filter(|other| other.name != own.name).map(AdapterSummary::in_words).collect()
}

/// [`Device::choice`] among these, the best first.
fn choice(devices: &[AdapterSummary]) -> Option<String> {
    let best = devices.first()?;
    let gpus = devices.iter().filter(|other| other.name != best.name && other.kind != DeviceKind::Cpu).count();
    let others = others(devices, 0);
    let odd = best.kind == DeviceKind::Other && !others.is_empty();
    (gpus > 0 || odd).then(|| {
        format!("{} is taken; there are also: {}; `device` names another one", best.in_words(), others.join(", "))
    })
}

/// An error of wgpu's, with what to do where it is the memory.
fn explain(error: &wgpu::Error) -> String {
    let advice = match error {
        wgpu::Error::OutOfMemory { .. } => {
            "the device is out of memory; try a smaller image, `dtype` f16, `quantize` q8 or a budget of `memory`: "
        }
        _ => "",
    };
    format!("{advice}{error}")
}

/// An error of wgpu's as one of ours.
pub(crate) fn explained(error: &wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory(explain(error)),
        _ => Error::Device(explain(error)),
    }
}

/// What to say of a device that went away.
fn lost(why: &str) -> String {
    format!("the device was lost ({why}); start again, with a smaller image if it happens again")
}

/// Notes a failure. The first one explains the rest.
fn keep(failure: &Mutex<Option<String>>, text: String) {
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
}

/// Most of the largest heap that is the device's own, by Vulkan. Other programs, the driver and the display want some of it.
#[cfg(all(unix, not(target_vendor = "apple"), not(target_arch = "wasm32")))]
fn memory_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handle is asked for its memory's size and not kept.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = vulkan.shared_instance().raw_instance();
    // SAFETY: the physical device belongs to this instance, and both live as long as the adapter.
    let memory = unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
    let heaps = memory.memory_heaps_as_slice().iter();
    // Bit 0 is VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
    let own = heaps.filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size);
    own.max().map(|bytes| bytes / 10 * 8)
}

#[cfg(not(all(unix, not(target_vendor = "apple"), not(target_arch = "wasm32"))))]
fn memory_bytes(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Bytes of the largest binding that plans may have.
fn largest_binding(limits: &wgpu::Limits, options: DeviceOptions) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(options.max_binding_bytes)
}

/// What kernels with cooperative matrices use besides f16 and subgroups.
const COOPERATIVE: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SUBGROUP_BARRIER);

/// Least and most lanes of a subgroup, powers of two, where there are subgroup operations.
fn lanes(adapter: &wgpu::Adapter, options: DeviceOptions) -> Option<[u32; 2]> {
    let info = adapter.get_info();
    let sizes = options.assumed_lanes.unwrap_or([info.subgroup_min_size, info.subgroup_max_size]);
    let known = sizes[0] <= sizes[1] && sizes.iter().all(|n| n.is_power_of_two());
    (known && adapter.features().contains(wgpu::Features::SUBGROUP)).then_some(sizes)
}

/// Rows and columns of the matrices that kernels may use: f16 by f16 with f32 sums, the larger if there are two; 0 if none, and where
/// half precision or subgroup operations cannot be used.
pub(crate) fn cooperative_size(adapter: &wgpu::Adapter, options: DeviceOptions) -> u32 {
    let needed = COOPERATIVE | wgpu::Features::SHADER_F16;
    let wanted = options.cooperative_matrices && options.shader_f16;
    if !wanted || !adapter.features().contains(needed) || lanes(adapter, options).is_none() {
        return 0;
    }
    let (half, full) = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
    let listed = adapter.cooperative_matrix_properties().into_iter().filter(|p| {
        p.m_size == p.n_size
            && p.n_size == p.k_size
            && p.ab_type == half
            && p.cr_type == full
            && !p.saturating_accumulation
    });
    let largest = listed.map(|p| p.m_size).filter(|size| matches!(size, 8 | 16)).max();
    options.unlisted_cooperative_size.or(largest).unwrap_or(0)
}

/// Whether kernels with the feature `packed` can be handed to the driver: in SPIR-V 1.6, which is Vulkan 1.3's.
#[cfg(not(any(target_vendor = "apple", target_arch = "wasm32")))]
fn packed_matrices(adapter: &wgpu::Adapter, cooperative_size: u32, options: DeviceOptions) -> bool {
    const VULKAN_1_3: u32 = 1 << 22 | 3 << 12;
    // SAFETY: the handle is asked for its versions and not kept.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() };
    let new = vulkan.is_some_and(|vulkan| {
        let device = vulkan.physical_device_capabilities().properties().api_version;
        device.min(vulkan.shared_instance().instance_api_version()) >= VULKAN_1_3
    });
    options.packed_matrices
        && cooperative_size == 16
        && new
        && adapter.features().contains(wgpu::Features::PASSTHROUGH_SHADERS)
}

#[cfg(any(target_vendor = "apple", target_arch = "wasm32"))]
fn packed_matrices(_: &wgpu::Adapter, _: u32, _: DeviceOptions) -> bool {
    false
}

/// Whose device an adapter is.
fn class(info: &wgpu::AdapterInfo) -> DeviceClass {
    match (info.backend, info.device_type) {
        (_, wgpu::DeviceType::Cpu) => DeviceClass::Cpu,
        (wgpu::Backend::BrowserWebGpu, _) => DeviceClass::Browser,
        // Metal names no vendor.
        (wgpu::Backend::Metal, _) if info.vendor == 0 => DeviceClass::Apple,
        _ => DeviceClass::of_vendor(info.vendor),
    }
}

impl Device {
    /// Opens the best device whose name, driver or backend contains `selector` (any case), or that is of this kind (`cpu`); `auto`
    /// takes the best.
    ///
    /// # Errors
    /// When there is none; the message lists what there is.
    pub async fn open(selector: &str, options: DeviceOptions) -> Result<Device> {
        let adapters = all_adapters().await;
        let summaries: Vec<_> = adapters.iter().map(summary).collect();
        let taken = select(selector, &summaries)?;
        let choice = if selector.trim().eq_ignore_ascii_case("auto") { choice(&summaries) } else { None };
        let opened = Self::from_adapter(&adapters[taken], options, choice).await;
        let others = others(&summaries, taken);
        opened.map_err(|error| match error {
            Error::Device(text) if !others.is_empty() => {
                Error::Device(format!("{text}; `device` may name another one: {}", others.join(", ")))
            }
            error => error,
        })
    }

    /// What to say of the device where `auto` took it from several GPUs, or where it does not say what it is: which it is, and what else
    /// there is. One GPU beside a driver that computes on the CPU is no choice.
    pub fn choice(&self) -> Option<&str> {
        self.inner.choice.as_deref()
    }

    async fn from_adapter(adapter: &wgpu::Adapter, options: DeviceOptions, choice: Option<String>) -> Result<Device> {
        let summary = summary(adapter);
        let offered = adapter.features();
        let mut features = wgpu::Features::empty();
        let shader_f16 = options.shader_f16 && offered.contains(wgpu::Features::SHADER_F16);
        features.set(wgpu::Features::SHADER_F16, shader_f16);
        let info = adapter.get_info();
        features.set(wgpu::Features::PIPELINE_CACHE, offered.contains(wgpu::Features::PIPELINE_CACHE));
        features.set(
            wgpu::Features::TIMESTAMP_QUERY,
            options.timestamps && offered.contains(wgpu::Features::TIMESTAMP_QUERY),
        );
        let cooperative_size = cooperative_size(adapter, options);
        features.set(COOPERATIVE, cooperative_size > 0);
        let packed_matrices = packed_matrices(adapter, cooperative_size, options);
        features.set(wgpu::Features::PASSTHROUGH_SHADERS, packed_matrices);
        // Where the size varies, only cooperative kernels read it while they run.
        let lanes = lanes(adapter, options).filter(|[least, most]| least == most || cooperative_size > 0);
        features.set(wgpu::Features::SUBGROUP, lanes.is_some());
        let (subgroup_lanes, varying_lanes) = match lanes {
            None => (0, [0; 2]),
            Some([least, most]) if least == most => (least, [0; 2]),
            Some(sizes) => (0, sizes),
        };
        let experimental_features = match cooperative_size {
            0 => wgpu::ExperimentalFeatures::disabled(),
            // SAFETY: wgpu does not check what cooperative matrices load and store; the kernels pad or stage all of it, as they
            // guard every other access.
            _ => unsafe { wgpu::ExperimentalFeatures::enabled() },
        };
        // The adapter's own limits, which plans check sizes against, but for bindings: the device itself refuses larger ones.
        let mut limits = adapter.limits();
        let binding = largest_binding(&limits, options);
        limits.max_storage_buffer_binding_size = binding;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("pulid"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::Device(format!("{} cannot be opened: {e}", summary.name)))?;

        let failure = Arc::new(Mutex::new(None));
        let slot = failure.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| keep(&slot, explain(&e))));
        let slot = failure.clone();
        device.set_device_lost_callback(move |_, text| keep(&slot, lost(&text)));

        let capabilities = Capabilities {
            kind: summary.kind,
            class: class(&info),
            shader_f16,
            max_binding_bytes: binding,
            max_buffer_bytes: limits.max_buffer_size,
            max_workgroups: limits.max_compute_workgroups_per_dimension,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_storage_bindings: limits.max_storage_buffers_per_shader_stage,
            subgroup_lanes,
            varying_lanes,
            cooperative_size,
            packed_matrices,
        };
        let portion = Portion::new(summary.kind, &options);
        let poller = Poller::new(device.clone()).map_err(|e| Error::Device(format!("no thread for callbacks: {e}")))?;
        Ok(Device {
            inner: Arc::new(Inner {
                device,
                queue,
                uniform_alignment: limits.min_uniform_buffer_offset_alignment,
                storage_alignment: limits.min_storage_buffer_offset_alignment,
                capabilities,
                summary,
                choice,
                memory_bytes: memory_bytes(adapter),
                options,
                kernels: Mutex::new(HashMap::new()),
                pipeline_cache: OnceLock::new(),
                adapter_info: info,
                weights: Weights::default(),
                counters: Arc::default(),
                profiler: Profiler::default(),
                portion,
                failure,
                poller,
            }),
        })
    }

    /// What plans must respect.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Bytes that may be held on the device: most of its own memory, where the driver tells how much that is.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.inner.memory_bytes
    }

    /// Name, driver and backend.
    pub fn summary(&self) -> &AdapterSummary {
        &self.inner.summary
    }

    /// Ends the device, as a driver that resets it would; what uses it afterwards fails. For tests of just that.
    pub fn destroy(&self) {
        self.inner.device.destroy();
        // wgpu tells of it with the next poll, after work that is then over without having been done.
        keep(&self.inner.failure, lost("it was destroyed"));
        self.inner.poller.wake();
    }

    /// Reports an error that wgpu delivered outside a call.
    pub(crate) fn check(&self) -> Result<()> {
        match self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(text) => Err(Error::Device(text.clone())),
            None => Ok(()),
        }
    }

    /// Waits until everything submitted so far has finished.
    pub(crate) async fn finished(&self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.inner.queue.on_submitted_work_done(move || {
            let _ = sender.send(());
        });
        self.inner.poller.wake();
        receiver.await.map_err(|_| Error::Device("the device stopped answering; start again".into()))?;
        self.check()
    }

    /// Submits commands. For work within [`Device::scoped`], before anything is written to buffers for what comes next.
    pub(crate) fn submit(&self, commands: wgpu::CommandBuffer) -> Submission {
        let begun = Instant::now();
        let index = self.inner.queue.submit([commands]);
        let (sender, over) = oneshot::channel();
        let called = Arc::new(AtomicBool::new(false));
        let flag = called.clone();
        // Called by the thread that polls, so that the time is right however late the caller looks.
        self.inner.queue.on_submitted_work_done(move || {
            let _ = sender.send(Instant::now());
            flag.store(true, Release);
        });
        self.inner.poller.wake_after(index, called);
        Submission { begun, over }
    }

    /// Waits for a submission, and not for later ones; tells when it was over.
    pub(crate) async fn over(&self, submission: Submission) -> Result<Instant> {
        let over = submission.over.await;
        self.check()?;
        over.map_err(|_| Error::Device("the device stopped answering; start again".into()))
    }

    /// Reads the first `bytes` of a buffer back.
    pub(crate) async fn read_buffer(&self, buffer: &wgpu::Buffer, bytes: usize) -> Result<Vec<u8>> {
        self.read_buffer_at(buffer, 0, bytes).await
    }

    /// Reads bytes of a buffer back, from an offset that is a multiple of four.
    pub(crate) async fn read_buffer_at(&self, buffer: &wgpu::Buffer, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let size = (bytes as u64).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
        let copied = self.scoped(|| {
            let staging = self.inner.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("read back"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let mut encoder = self.inner.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
            self.inner.queue.submit([encoder.finish()]);
            Ok(staging)
        });
        let staging = copied.await?;
        let (sender, receiver) = oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = sender.send(result);
        });
        self.inner.poller.wake();
        let mapped = receiver.await.map_err(|_| Error::Device("the device stopped answering; start again".into()))?;
        self.check()?;
        mapped.map_err(|e| Error::Device(format!("a result could not be read back: {e}")))?;
        let view =
            staging.get_mapped_range(..).map_err(|e| Error::Device(format!("a result could not be read back: {e}")))?;
        Ok(view[..bytes].to_vec())
    }

    pub(crate) fn has_kernel(&self, key: &KernelKey) -> bool {
        self.inner.kernels.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// The compiled kernel, from the cache where it was used before. For work within
    /// [`Device::scoped_compiling`].
    pub(crate) fn kernel(&self, key: KernelKey) -> Result<Arc<Kernel>> {
        if let Some(kernel) = self.inner.kernels.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(kernel.clone());
        }
        // Not under the lock: threads may compile different kernels at once.
        let kernel =
            Arc::new(Kernel::compile(&self.inner.device, &key, self.inner.options, self.inner.pipeline_cache.get())?);
        self.inner.counters.compiled.fetch_add(1, Relaxed);
        let mut kernels = self.inner.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(kernels.entry(key).or_insert(kernel).clone())
    }

    /// [`Device::kernel`] in a scope of its own.
    pub(crate) async fn kernel_scoped(&self, key: KernelKey) -> Result<Arc<Kernel>> {
        self.scoped_compiling([key.clone()], || self.kernel(key)).await
    }

    /// [`Device::scoped`] for work that takes these kernels. Where it fails, those that it compiled are forgotten: each may be what
    /// failed.
    pub(crate) async fn scoped_compiling<T>(
        &self,
        keys: impl IntoIterator<Item = KernelKey>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let unknown: Vec<_> = keys.into_iter().filter(|key| !self.has_kernel(key)).collect();
        let result = self.scoped(work).await;
        if result.is_err() {
            let mut kernels = self.inner.kernels.lock().unwrap_or_else(PoisonError::into_inner);
            unknown.iter().for_each(|key| drop(kernels.remove(key)));
        }
        result
    }

    /// A buffer for storage bindings. For work within [`Device::scoped`], which reports what fails.
    pub(crate) fn create_buffer(&self, label: &str, bytes: usize) -> wgpu::Buffer {
        self.inner.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: (bytes as u64).div_ceil(16).max(1) * 16,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        })
    }

    /// Writes bytes to the start of a buffer, padded to the copy granularity.
    pub(crate) fn write_buffer(&self, buffer: &wgpu::Buffer, bytes: &[u8]) {
        let whole = bytes.len() / 4 * 4;
        self.inner.queue.write_buffer(buffer, 0, &bytes[..whole]);
        if whole < bytes.len() {
            let mut tail = [0u8; 4];
            tail[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.inner.queue.write_buffer(buffer, whole as u64, &tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_stay_within_the_guarantee_unless_more_is_asked_for() {
        let of = |binding, buffer, options| {
            let limits = wgpu::Limits {
                max_storage_buffer_binding_size: binding,
                max_buffer_size: buffer,
                ..wgpu::Limits::default()
            };
            largest_binding(&limits, options) >> 20
        };
        let (usual, all) =
            (DeviceOptions::default(), DeviceOptions { max_binding_bytes: u64::MAX, ..Default::default() });
        assert_eq!(of(2 << 30, 4 << 30, usual), 128);
        assert_eq!(of(2 << 30, 4 << 30, all), 2048);
        assert_eq!(of(2 << 30, 1 << 30, all), 1024);
        assert_eq!(of(64 << 20, 256 << 20, usual), 64);
    }

    #[test]
    fn exhausted_memory_comes_with_advice() {
        let error = wgpu::Error::OutOfMemory { source: "no more".into() };
        assert!(explain(&error).contains("out of memory") && explain(&error).contains("`memory`"));
        let other = wgpu::Error::Internal { source: "x".into(), description: "odd".into() };
        assert!(!explain(&other).contains("memory"));
    }

    #[test]
    fn gpus_come_before_software_and_what_says_nothing_of_itself_comes_last() {
        use wgpu::{Backend, DeviceType};
        let ranked = [
            (DeviceType::DiscreteGpu, Backend::Vulkan),
            (DeviceType::DiscreteGpu, Backend::Gl),
            (DeviceType::IntegratedGpu, Backend::Metal),
            (DeviceType::VirtualGpu, Backend::Vulkan),
            (DeviceType::Cpu, Backend::Vulkan),
            (DeviceType::Cpu, Backend::Gl),
            (DeviceType::Other, Backend::Vulkan),
        ];
        assert!(ranked.is_sorted_by(|a, b| rank(a.0, a.1) < rank(b.0, b.1)));
    }

    #[test]
    fn a_choice_among_several_devices_is_said() {
        let device = |name: &str, kind| AdapterSummary {
            name: name.into(),
            driver: String::new(),
            backend: "vulkan".into(),
            kind,
        };
        let large = device("large", DeviceKind::Discrete);
        let small = device("small", DeviceKind::Integrated);
        let software = device("software", DeviceKind::Cpu);
        let odd = device("odd", DeviceKind::Other);
        for silent in [&[][..], std::slice::from_ref(&odd), &[large.clone(), large.clone(), software.clone()]] {
            assert_eq!(choice(silent), None);
        }
        let said = choice(&[large.clone(), small, software.clone()]).unwrap();
        for part in ["large (Discrete, vulkan) is taken", "small (Integrated", "software (Cpu", "`device`"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(choice(&[software, odd.clone()]).is_some_and(|said| said.contains("odd (Other, vulkan)")));
        assert_eq!(others(&[large, odd], 1), ["large (Discrete, vulkan)"]);
    }

    #[test]
    fn a_device_is_asked_for_by_kind_or_by_a_part_of_its_name() {
        let device = |name: &str, driver: &str, kind| AdapterSummary {
            name: name.into(),
            driver: driver.into(),
            backend: "vulkan".into(),
            kind,
        };
        let named = device("CPU-like GPU 7", "acme 1", DeviceKind::Discrete);
        let software = device("llvmpipe (LLVM 15)", "llvmpipe Mesa", DeviceKind::Cpu);
        let both = [named.clone(), software];
        for (selector, index) in [
            ("auto", 0),
            ("AUTO", 0),
            ("cpu", 1),
            ("CPU", 1),
            ("discrete", 0),
            ("LLVM", 1),
            ("mesa", 1),
            ("gpu 7", 0),
            ("vulkan", 0),
        ] {
            assert_eq!(select(selector, &both).unwrap(), index, "{selector}");
        }
        for (selector, devices, part) in [
            ("cpu", &[named.clone()][..], "`reference`"),
            ("integrated", &both, "of the kind Integrated"),
            ("nosuch", &both, "no device matches `nosuch`; there are: CPU-like GPU 7 (Discrete, vulkan), llvmpipe"),
            ("", &both, "names no device; `auto` takes the best; there are: CPU-like GPU 7"),
            ("nosuch", &[], "no GPU and no driver"),
        ] {
            let error = select(selector, devices).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(part), "{part}: {error}");
        }
        assert!(matches!(select("auto", &[]), Err(Error::Device(_))), "nothing that a person named");
    }
}
