//! Kernels as SPIR-V, as wgpu's Vulkan backend hands them to a driver.

use crate::barriers::vulkan_module;
use crate::kernel::full_names;
use crate::packed::with_half_factors;
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid;
use pulid_ops::Shader;

/// A kernel for a Vulkan driver.
#[derive(Debug)]
pub struct Spirv {
    /// The module, SPIR-V 1.6.
    pub words: Vec<u32>,
    /// Invocations of a workgroup.
    pub workgroup_size: [u32; 3],
    /// Bytes of workgroup memory that it declares.
    pub workgroup_bytes: u64,
}

/// What a kernel does itself about indices out of bounds and loops without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeChecks {
    /// Nothing.
    None,
    /// Indices are restricted, loops end and divisions by zero give something.
    All,
}

/// A permutation with its constants, by their names in Rust, resolved: drivers never see those.
///
/// The options are wgpu-hal's for Vulkan 1.3. Factors of a permutation with the feature `packed` become f16 here: this is the one way
/// from such a shader to a driver.
///
/// # Errors
/// A constant that the shader has not, and what naga says of a shader that it cannot translate.
pub fn spirv(
    shader: &Shader,
    constants: impl IntoIterator<Item = (&'static str, f64)>,
    checks: RuntimeChecks,
) -> Result<Spirv, String> {
    let constants = full_names(shader, constants).map_err(|e| e.to_string())?;
    edited(shader, shader.wgsl, &constants, checks)
}

/// [`spirv`] of another text for the same permutation, with constants as the text names them.
pub(crate) fn edited(
    shader: &Shader,
    text: &str,
    constants: &[(&'static str, f64)],
    checks: RuntimeChecks,
) -> Result<Spirv, String> {
    let mut translated = translate(text, shader.name, constants, checks)?;
    if shader.is_packed() {
        translated.words = with_half_factors(&translated.words)?;
    }
    Ok(translated)
}

/// A text as naga and wgpu-hal translate it.
pub(crate) fn translate(
    text: &str,
    entry_point: &str,
    constants: &[(&str, f64)],
    checks: RuntimeChecks,
) -> Result<Spirv, String> {
    let module = vulkan_module(text)?;
    let validated = valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all())
        .subgroup_stages(valid::ShaderStages::COMPUTE)
        .subgroup_operations(valid::SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(text))?;
    let constants = constants.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let stage = naga::ShaderStage::Compute;
    let entry = Some((stage, entry_point));
    let (module, validated) = naga::back::pipeline_constants::process_overrides(&module, &validated, entry, &constants)
        .map_err(|e| e.to_string())?;
    let checked = checks == RuntimeChecks::All;
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: BoundsCheckPolicy::Unchecked,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        // Kernels pass nothing from stage to stage, and not every device has the capability.
        use_storage_input_output_16: false,
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions { entry_point: entry_point.to_owned(), shader_stage: stage };
    let words = spv::write_vec(&module, &validated, &options, Some(&pipeline)).map_err(|e| e.to_string())?;
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let bytes = shared.map(|(_, v)| u64::from(module.types[v.ty].inner.size(module.to_ctx())));
    let invocations = module.entry_points.iter().find(|e| e.name == entry_point).map(|e| e.workgroup_size);
    Ok(Spirv { words, workgroup_size: invocations.unwrap_or([1; 3]), workgroup_bytes: bytes.sum() })
}
