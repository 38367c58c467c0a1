//! Compiled shaders.

use crate::DeviceOptions;
use pulid_ops::shader;
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
        let source = source(device, edit(info.wgsl));
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(info.name), source };
        let module = match options.bounds_checks {
            true => device.create_shader_module(descriptor),
            // SAFETY: every shader here guards its own accesses against the sizes in its parameters, which plans derive
            // from the buffers they bind; the conformance suite checks that with guard regions, and loops are bounded.
            false => unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) },
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
        let mut constants = Vec::with_capacity(key.constants.len());
        for (name, bits) in &key.constants {
            let (_, full) = info
                .overrides
                .iter()
                .find(|(short, _)| short == name)
                .ok_or_else(|| Error::operator(info.name, format!("the shader has no constant {name}")))?;
            constants.push((*full, f64::from_bits(*bits)));
        }
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
