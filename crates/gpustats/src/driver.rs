//! A Vulkan driver, opened without Vulkan's loader, that compiles and never runs anything.

use crate::{Kernel, Outcome};
use ash::{khr, vk};
use pulid_engine::{RuntimeChecks, Spirv};
use pulid_ops::{Capabilities, DeviceKind};
use std::ffi::{CStr, CString};
use std::path::Path;

/// What a driver's compiler says of one kernel.
#[derive(Debug)]
pub struct Compiled {
    /// Invocations of a subgroup, as it was compiled.
    pub subgroup_size: u32,
    /// Bytes of workgroup memory, as the shader declares it.
    pub workgroup_bytes: u64,
    /// Statistics by the driver's own names.
    pub statistics: Vec<(String, f64)>,
    /// Texts by the driver's own names: intermediate code and assembly.
    pub texts: Vec<(String, String)>,
}

/// An open driver and the GPU that its shim pretends there is.
pub struct Driver {
    // The functions below lie in it.
    _library: libloading::Library,
    device: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    name: String,
    capabilities: Capabilities,
    subgroup_sizes: [u32; 2],
}

/// Words for a Vulkan result.
fn failed(what: &str) -> impl FnOnce(vk::Result) -> String {
    move |result| format!("{what}: {result:?}")
}

impl Driver {
    /// Opens the driver at `path` and its first GPU.
    ///
    /// # Errors
    /// A file that is no Vulkan driver, a shim that is not preloaded, a driver without `VK_KHR_pipeline_executable_properties`.
    pub fn open(path: &Path) -> Outcome<Driver> {
        let at = |what: &str| format!("{}: {what}", path.display());
        // SAFETY: a Vulkan driver, whose initialisers are made to run in any process.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| at(&e.to_string()))?;
        type Negotiate = unsafe extern "C" fn(*mut u32) -> vk::Result;
        // SAFETY: the types are those of the interface between Vulkan's loader and its drivers.
        let (negotiate, get) = unsafe {
            let negotiate = library.get::<Negotiate>(b"vk_icdNegotiateLoaderICDInterfaceVersion\0").ok().map(|f| *f);
            let get = library.get::<vk::PFN_vkGetInstanceProcAddr>(b"vk_icdGetInstanceProcAddr\0").map(|f| *f);
            (negotiate, get.map_err(|e| at(&e.to_string()))?)
        };
        if let Some(negotiate) = negotiate {
            let mut version = 5;
            // SAFETY: it writes the one number.
            unsafe { negotiate(&mut version) }.result().map_err(failed("its interface"))?;
        }
        // SAFETY: the function is the driver's, and the library outlives all that it gives.
        let entry = unsafe { ash::Entry::from_static_fn(ash::StaticFn { get_instance_proc_addr: get }) };
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let instance = vk::InstanceCreateInfo::default().application_info(&application);
        // SAFETY: as everywhere below, the structures are complete and their handles live.
        let instance = unsafe { entry.create_instance(&instance, None) }.map_err(failed("vkCreateInstance"))?;
        let gpus = unsafe { instance.enumerate_physical_devices() }.map_err(failed("vkEnumeratePhysicalDevices"))?;
        let gpu = *gpus.first().ok_or_else(|| at("finds no GPU: is the shim preloaded?"))?;
        let extensions = unsafe { instance.enumerate_device_extension_properties(gpu) };
        let extensions = extensions.map_err(failed("vkEnumerateDeviceExtensionProperties"))?;
        let offered = |name: &CStr| extensions.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
        if !offered(khr::pipeline_executable_properties::NAME) {
            return Err(at("does not tell what it compiles"));
        }
        let wanted =
            [khr::pipeline_executable_properties::NAME, khr::cooperative_matrix::NAME, ash::ext::robustness2::NAME];
        let enabled: Vec<_> = wanted.into_iter().filter(|name| offered(name)).map(CStr::as_ptr).collect();

        let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default();
        let mut cooperative = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
        let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
        let mut v11 = vk::PhysicalDeviceVulkan11Features::default();
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut v13 = vk::PhysicalDeviceVulkan13Features::default();
        let mut features = vk::PhysicalDeviceFeatures2::default()
            .push_next(&mut executable)
            .push_next(&mut cooperative)
            .push_next(&mut robust)
            .push_next(&mut v11)
            .push_next(&mut v12)
            .push_next(&mut v13);
        unsafe { instance.get_physical_device_features2(gpu, &mut features) };
        let core = features.features;
        // Of robust accesses wgpu asks for those to buffers.
        (robust.robust_image_access2, robust.null_descriptor, v13.robust_image_access) = (0, 0, 0);
        let has_matrices = cooperative.cooperative_matrix != 0 && offered(khr::cooperative_matrix::NAME);
        let shader_f16 = v12.shader_float16 != 0
            && v11.storage_buffer16_bit_access != 0
            && v11.uniform_and_storage_buffer16_bit_access != 0;
        let memory_model = v12.vulkan_memory_model != 0 && v12.vulkan_memory_model_device_scope != 0;
        // The chain of the question is taken apart before that of the order is made.
        let none = std::ptr::null_mut();
        (executable.p_next, cooperative.p_next, robust.p_next) = (none, none, none);
        (v11.p_next, v12.p_next, v13.p_next) = (none, none, none);
        let mut features = vk::PhysicalDeviceFeatures2::default()
            .features(core)
            .push_next(&mut executable)
            .push_next(&mut v11)
            .push_next(&mut v12)
            .push_next(&mut v13);
        if has_matrices {
            features = features.push_next(&mut cooperative);
        }
        if offered(ash::ext::robustness2::NAME) {
            features = features.push_next(&mut robust);
        }
        let queue = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
        let device = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queue)
            .enabled_extension_names(&enabled)
            .push_next(&mut features);
        let device = unsafe { instance.create_device(gpu, &device, None) }.map_err(failed("vkCreateDevice"))?;

        let mut v13 = vk::PhysicalDeviceVulkan13Properties::default();
        let mut v11 = vk::PhysicalDeviceVulkan11Properties::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut v13).push_next(&mut v11);
        unsafe { instance.get_physical_device_properties2(gpu, &mut properties) };
        let (limits, kind) = (properties.properties.limits, properties.properties.device_type);
        let name = properties.properties.device_name_as_c_str().unwrap_or_default().to_string_lossy().into_owned();
        let cooperative_size = match has_matrices && memory_model && shader_f16 {
            true => cooperative_size(&khr::cooperative_matrix::Instance::new(&entry, &instance), gpu)?,
            false => 0,
        };
        let subgroup_sizes = [v13.min_subgroup_size, v13.max_subgroup_size];
        let varying = subgroup_sizes[0] != subgroup_sizes[1];
        let capabilities = Capabilities {
            shader_f16,
            max_workgroup_bytes: limits.max_compute_shared_memory_size,
            max_invocations: limits.max_compute_work_group_invocations,
            max_storage_bindings: limits.max_per_stage_descriptor_storage_buffers,
            subgroup_lanes: if varying { 0 } else { v11.subgroup_size },
            varying_lanes: if varying { subgroup_sizes } else { [0; 2] },
            cooperative_size,
            packed_matrices: cooperative_size == 16,
            ..Capabilities::baseline(match kind {
                vk::PhysicalDeviceType::CPU => DeviceKind::Cpu,
                vk::PhysicalDeviceType::INTEGRATED_GPU => DeviceKind::Integrated,
                vk::PhysicalDeviceType::DISCRETE_GPU => DeviceKind::Discrete,
                _ => DeviceKind::Other,
            })
        };
        let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);
        Ok(Driver { _library: library, device, executables, name, capabilities, subgroup_sizes })
    }

    /// The GPU's name, as the driver tells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What lowering must know of the GPU.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Least and most invocations of a subgroup.
    pub fn subgroup_sizes(&self) -> [u32; 2] {
        self.subgroup_sizes
    }

    /// Compiles a kernel.
    ///
    /// # Errors
    /// What naga or the driver refuses.
    pub fn compile(&self, kernel: &Kernel) -> Outcome<Compiled> {
        let translated = pulid_engine::spirv(kernel.shader_info()?, kernel.constants(), RuntimeChecks::None);
        let Spirv { words, workgroup_bytes, .. } = translated.map_err(|e| format!("{}: {e}", kernel.name()))?;
        let info = kernel.shader_info()?;
        let name = kernel.name();
        let device = &self.device;
        let entry = CString::new(info.name).map_err(|e| e.to_string())?;
        let types = std::iter::once(vk::DescriptorType::UNIFORM_BUFFER)
            .chain(info.writable.iter().map(|_| vk::DescriptorType::STORAGE_BUFFER));
        let slots: Vec<_> = types
            .zip(0..)
            .map(|(ty, binding)| {
                vk::DescriptorSetLayoutBinding::default()
                    .binding(binding)
                    .descriptor_count(1)
                    .descriptor_type(ty)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        // As wgpu sets it for devices with subgroup operations.
        let flags = match self.capabilities.lanes() {
            None => vk::PipelineShaderStageCreateFlags::empty(),
            Some(_) => vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE,
        };
        // SAFETY: naga validated the words; every handle is made and destroyed here, in turn.
        unsafe {
            let module = vk::ShaderModuleCreateInfo::default().code(&words);
            let module = device.create_shader_module(&module, None).map_err(failed(&name))?;
            let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&slots);
            let set = device.create_descriptor_set_layout(&set, None).map_err(failed(&name))?;
            let sets = [set];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = device.create_pipeline_layout(&layout, None).map_err(failed(&name))?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .flags(flags)
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            let capture = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let pipeline = vk::ComputePipelineCreateInfo::default().flags(capture).stage(stage).layout(layout);
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &[pipeline], None);
            let compiled = match made {
                Ok(pipelines) => {
                    let told = self.told(pipelines[0]).map_err(failed(&name));
                    let told = told.map(|compiled| Compiled { workgroup_bytes, ..compiled });
                    device.destroy_pipeline(pipelines[0], None);
                    told
                }
                Err((_, result)) => Err(failed(&name)(result)),
            };
            device.destroy_pipeline_layout(layout, None);
            device.destroy_descriptor_set_layout(set, None);
            device.destroy_shader_module(module, None);
            compiled
        }
    }

    /// What the driver tells of a pipeline of one executable.
    ///
    /// # Safety
    /// The pipeline is alive and was made with both capture flags.
    unsafe fn told(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        let pipeline_info = vk::PipelineInfoKHR::default().pipeline(pipeline);
        // SAFETY: by the caller.
        let executables = unsafe { self.executables.get_pipeline_executable_properties(&pipeline_info) }?;
        let first = executables.first().ok_or(vk::Result::INCOMPLETE)?;
        let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
        // SAFETY: by the caller.
        let statistics = unsafe { self.executables.get_pipeline_executable_statistics(&which) }?;
        let statistics = statistics.iter().map(|s| {
            // SAFETY: the format says which member is there.
            let value = unsafe {
                match s.format {
                    vk::PipelineExecutableStatisticFormatKHR::BOOL32 => f64::from(s.value.b32),
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => s.value.i64 as f64,
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => s.value.u64 as f64,
                    _ => s.value.f64,
                }
            };
            (text(s.name_as_c_str().unwrap_or_default()), value)
        });
        // SAFETY: by the caller. The sizes come first, then the texts into memory of these sizes.
        let mut parts = unsafe { self.executables.get_pipeline_executable_internal_representations(&which) }?;
        let mut buffers: Vec<Vec<u8>> = parts.iter().map(|part| vec![0; part.data_size]).collect();
        for (part, buffer) in parts.iter_mut().zip(&mut buffers) {
            part.p_data = buffer.as_mut_ptr().cast();
        }
        let mut count = parts.len() as u32;
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        // SAFETY: as above.
        unsafe { get(self.device.handle(), &which, &mut count, parts.as_mut_ptr()) }.result()?;
        let texts = parts.iter().zip(&buffers).filter(|(part, _)| part.is_text != 0).map(|(part, buffer)| {
            let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
            (text(part.name_as_c_str().unwrap_or_default()), String::from_utf8_lossy(&buffer[..end]).into_owned())
        });
        Ok(Compiled {
            subgroup_size: first.subgroup_size,
            workgroup_bytes: 0,
            statistics: statistics.collect(),
            texts: texts.collect(),
        })
    }
}

fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// Rows and columns of the matrices that kernels may use, as the engine chooses: f16 by f16 with f32 sums, the larger if there are two.
fn cooperative_size(matrices: &khr::cooperative_matrix::Instance, gpu: vk::PhysicalDevice) -> Outcome<u32> {
    // SAFETY: the GPU is the instance's.
    let offered = unsafe { matrices.get_physical_device_cooperative_matrix_properties(gpu) };
    let offered = offered.map_err(failed("vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"))?;
    let (half, full) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
    let fits = |p: &&vk::CooperativeMatrixPropertiesKHR<'_>| {
        let square = p.m_size == p.n_size && p.n_size == p.k_size && matches!(p.m_size, 8 | 16);
        let types = p.a_type == half && p.b_type == half && p.c_type == full && p.result_type == full;
        square && types && p.scope == vk::ScopeKHR::SUBGROUP && p.saturating_accumulation == 0
    };
    Ok(offered.iter().filter(fits).map(|p| p.m_size).max().unwrap_or(0))
}
