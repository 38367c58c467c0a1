//! Kernels as SPIR-V, as wgpu's Vulkan backend hands them to a driver.

use crate::{Kernel, Outcome};
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid;

/// A kernel for a driver.
pub struct Spirv {
    /// The module.
    pub words: Vec<u32>,
    /// Bytes of workgroup memory that it declares.
    pub workgroup_bytes: u64,
}

/// A kernel with its constants resolved: drivers never see those.
///
/// The options are wgpu-hal's for Vulkan 1.3 and modules without runtime checks, as the engine makes them.
///
/// # Errors
/// What naga says of a shader it cannot translate.
pub fn spirv(kernel: &Kernel) -> Outcome<Spirv> {
    let info = kernel.shader_info()?;
    let at = |what: String| format!("{}: {what}", kernel.name());
    let module = pulid_engine::vulkan_module(info.wgsl).map_err(at)?;
    let validated = valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all())
        .subgroup_stages(valid::ShaderStages::COMPUTE)
        .subgroup_operations(valid::SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|e| at(e.emit_to_string(info.wgsl)))?;
    let mut constants = naga::back::PipelineConstants::default();
    for (name, value) in kernel.constants() {
        let (_, full) = info
            .overrides
            .iter()
            .find(|(short, _)| *short == name)
            .ok_or_else(|| at(format!("the shader has no constant {name}")))?;
        constants.insert((*full).to_owned(), value);
    }
    let stage = naga::ShaderStage::Compute;
    let entry = Some((stage, info.name));
    let (module, validated) = naga::back::pipeline_constants::process_overrides(&module, &validated, entry, &constants)
        .map_err(|e| at(e.to_string()))?;
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions { entry_point: info.name.to_owned(), shader_stage: stage };
    let words = spv::write_vec(&module, &validated, &options, Some(&pipeline)).map_err(|e| at(e.to_string()))?;
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let bytes = shared.map(|(_, v)| u64::from(module.types[v.ty].inner.size(module.to_ctx())));
    Ok(Spirv { words, workgroup_bytes: bytes.sum() })
}
