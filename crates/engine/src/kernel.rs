//! Compiled shaders.

use crate::DeviceOptions;
use pulid_ops::{Shader, shader};
use pulid_tensor::{Error, Result};
use std::borrow::Cow;

/// What makes two dispatches share a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KernelKey {
    pub(crate) shader: &'static str,
    pub(crate) features: Vec<&'static str>,
    /// Override values, by their bits.
    pub(crate) constants: Vec<(&'static str, u64)>,
}

impl KernelKey {
    pub(crate) fn new(shader: &'static str, features: &[&'static str], constants: &[(&'static str, f64)]) -> Self {
        let constants = constants.iter().map(|(n, v)| (*n, v.to_bits())).collect();
        KernelKey { shader, features: features.to_vec(), constants }
    }
}

#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) params_size: u32,
}

impl Kernel {
    pub(crate) fn compile(
        device: &wgpu::Device,
        key: &KernelKey,
        options: DeviceOptions,
        cache: Option<&wgpu::PipelineCache>,
    ) -> Result<Kernel> {
        Self::compile_edited(device, key, options, cache, Cow::Borrowed)
    }

    /// Compiles what `edit` makes of the shader's text.
    pub(crate) fn compile_edited(
        device: &wgpu::Device,
        key: &KernelKey,
        options: DeviceOptions,
        cache: Option<&wgpu::PipelineCache>,
        edit: impl Fn(&'static str) -> Cow<'static, str>,
    ) -> Result<Kernel> {
        let info = shader(key.shader, &key.features).ok_or_else(|| {
            Error::operator(key.shader, format!("no permutation with features {:?} was built", key.features))
        })?;
        let text = edit(info.wgsl);
        let constants = key.constants.iter().map(|(name, bits)| (*name, f64::from_bits(*bits)));
        let constants = full_names(info, constants)?;
        // What is translated here has its constants resolved.
        let (module, constants) = match info.is_packed() {
            true => (packed_module(device, info, &text, &constants, options)?, Vec::new()),
            false => (module(device, info, text, options), constants),
        };
        let uniform = wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        let storage = |writable: bool| wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !writable },
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        let types = std::iter::once(uniform).chain(info.writable.iter().map(|&w| storage(w)));
        let entries: Vec<_> = types
            .enumerate()
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty,
                count: None,
            })
            .collect();
        let layout = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(info.name), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(info.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(info.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(info.name),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Kernels write workgroup memory before they read it.
                zero_initialize_workgroup_memory: false,
            },
            cache,
        });
        Ok(Kernel { pipeline, layout, params_size: info.params_size })
    }
}

/// Constants by their names in the shader's text.
///
/// # Errors
/// A constant that the shader has not.
pub(crate) fn full_names(
    info: &Shader,
    constants: impl IntoIterator<Item = (&'static str, f64)>,
) -> Result<Vec<(&'static str, f64)>> {
    let full = |(name, value)| {
        let known = info.overrides.iter().find(|(short, _)| *short == name);
        let (_, full) =
            known.ok_or_else(|| Error::operator(info.name, format!("the shader has no constant {name}")))?;
        Ok((*full, value))
    };
    constants.into_iter().map(full).collect()
}

/// A shader as wgpu translates it.
fn module(device: &wgpu::Device, info: &Shader, text: Cow<'static, str>, options: DeviceOptions) -> wgpu::ShaderModule {
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(info.name), source: source(device, text) };
    match options.bounds_checks {
        true => device.create_shader_module(descriptor),
        // SAFETY: every shader here guards its own accesses against the sizes in its parameters, which plans derive
        // from the buffers they bind; the conformance suite checks that with guard regions, and loops are bounded.
        false => unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) },
    }
}

/// A packed shader, which wgpu cannot translate: the driver is handed the SPIR-V itself.
///
/// # Errors
/// A device that takes no SPIR-V, and what cannot be translated.
#[cfg(not(target_arch = "wasm32"))]
fn packed_module(
    device: &wgpu::Device,
    info: &Shader,
    text: &str,
    constants: &[(&'static str, f64)],
    options: DeviceOptions,
) -> Result<wgpu::ShaderModule> {
    let taken = device.features().contains(wgpu::Features::PASSTHROUGH_SHADERS);
    if !taken || device.adapter_info().backend != wgpu::Backend::Vulkan {
        return Err(no_packed(info));
    }
    let checks = match options.bounds_checks {
        true => crate::spirv::RuntimeChecks::All,
        false => crate::spirv::RuntimeChecks::None,
    };
    let translated =
        crate::spirv::edited(info, text, constants, checks).map_err(|why| Error::operator(info.name, why))?;
    let [x, y, z] = translated.workgroup_size;
    let entry_point = wgpu::PassthroughShaderEntryPoint { name: info.name.into(), workgroup_size: (x, y, z) };
    let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
        label: Some(info.name),
        entry_points: vec![entry_point].into(),
        spirv: Some(translated.words.into()),
        ..Default::default()
    };
    // SAFETY: naga made it of a module that it validated, for the bindings that `compile_edited` lays out by the same
    // module's reflection; as above, the shader guards its own accesses. Of what was changed in it, the tests of `packed` tell.
    Ok(unsafe { device.create_shader_module_passthrough(descriptor) })
}

#[cfg(target_arch = "wasm32")]
fn packed_module(
    _: &wgpu::Device,
    info: &Shader,
    _: &str,
    _: &[(&'static str, f64)],
    _: DeviceOptions,
) -> Result<wgpu::ShaderModule> {
    Err(no_packed(info))
}

fn no_packed(info: &Shader) -> Error {
    Error::operator(info.name, "kernels with packed operands run on Vulkan devices that take SPIR-V")
}

/// A shader's text in the form that the device's backend takes best.
fn source(device: &wgpu::Device, text: Cow<'static, str>) -> wgpu::ShaderSource<'static> {
    #[cfg(not(target_arch = "wasm32"))]
    if device.adapter_info().backend == wgpu::Backend::Vulkan && text.contains("subgroupBarrier") {
        // wgpu says what is wrong with a text that cannot be read.
        if let Ok(module) = crate::barriers::vulkan_module(&text) {
            return wgpu::ShaderSource::Naga(Cow::Owned(module));
        }
    }
    let _ = device;
    wgpu::ShaderSource::Wgsl(text)
}
