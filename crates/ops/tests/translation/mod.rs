//! Shaders as naga reads them, and in HLSL.

use naga::back::hlsl;
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use pulid_ops::Shader;

pub type Outcome<T = ()> = Result<T, String>;

const CAPABILITIES: Capabilities = Capabilities::SHADER_FLOAT16
    .union(Capabilities::SHADER_FLOAT16_IN_FLOAT32)
    .union(Capabilities::SUBGROUP)
    .union(Capabilities::SUBGROUP_BARRIER)
    .union(Capabilities::COOPERATIVE_MATRIX);

/// A shader with the defaults of its overrides.
pub struct Parsed {
    pub module: Module,
    pub info: ModuleInfo,
}

impl Parsed {
    pub fn of(shader: &Shader) -> Outcome<Parsed> {
        let module = naga::front::wgsl::parse_str(shader.wgsl).map_err(|e| e.emit_to_string(shader.wgsl))?;
        let mut validator = Validator::new(ValidationFlags::all(), CAPABILITIES);
        let info = validator.validate(&module).map_err(|e| e.emit_to_string(shader.wgsl))?;
        let entry = (ShaderStage::Compute, shader.name);
        let (module, info) =
            process_overrides(&module, &info, Some(entry), &Default::default()).map_err(|e| e.to_string())?;
        Ok(Parsed { module: module.into_owned(), info: info.into_owned() })
    }
}

/// A shader in HLSL, or nothing where Direct3D has no such kernels: those of cooperative matrices.
pub fn direct3d(shader: &Shader) -> Outcome<Option<String>> {
    if shader.features.iter().any(|feature| feature.starts_with("coop")) {
        return Ok(None);
    }
    let Parsed { module, info } = Parsed::of(shader)?;
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        fake_missing_bindings: true,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, shader.name.to_owned())) };
    let mut text = String::new();
    hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None).map_err(|e| format!("HLSL: {e}"))?;
    defined_once(&text)?;
    Ok(Some(text))
}

/// naga writes a function for the zero value of each type and names it by the type's HLSL, so that the zero values of an alias and of what
/// it stands for are one function defined twice, which no compiler of HLSL takes.
fn defined_once(text: &str) -> Outcome {
    let mut names: Vec<&str> =
        text.lines().filter(|line| line.contains(" ZeroValue") && line.ends_with("() {")).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(format!("HLSL: `{}` is defined twice: write the zero value of one spelling of the type", pair[0]))
        }
        None => Ok(()),
    }
}

/// Name and features: `matmul.f16.w16`.
pub fn id(shader: &Shader) -> String {
    if shader.features.is_empty() {
        shader.name.into()
    } else {
        format!("{}.{}", shader.name, shader.features.join("."))
    }
}
