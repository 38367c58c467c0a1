//! Every permutation of every shader in the languages that drivers and browsers are handed: SPIR-V (valid by `spirv-val`), GLSL
//! (compiled by `glslangValidator`; both where they are installed), MSL and HLSL, as naga writes them. `dxc.rs` compiles the HLSL;
//! nothing outside macOS compiles MSL.
//!
//! The snapshot `tests/snapshots/shaders.snap` lists bindings, size and hash of each text, so that a change to a shader,
//! an import or the compiler shows which kernels it reaches; `cargo xtask bless` renews it. With `PULID_TRANSLATIONS` set to a
//! folder, the texts themselves are written there.

mod translation;

use naga::back::{glsl, msl, spv};
use naga::valid::ModuleInfo;
use naga::{Module, ShaderStage};
use pulid_ops::{Shader, shaders};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use translation::{Outcome, Parsed, direct3d, id};

/// For a file extension: the program that checks such files, its arguments, and Debian's package of it.
const VALIDATORS: [(&str, &str, &[&str], &str); 2] = [
    ("spv", "spirv-val", &["--target-env", "vulkan1.1"], "spirv-tools"),
    ("comp", "glslangValidator", &["-S", "comp"], "glslang-tools"),
];

/// A shader as (file extension, bytes), one for each language.
type Texts = Vec<(&'static str, Vec<u8>)>;

fn translate(shader: &Shader) -> Outcome<Texts> {
    let Parsed { module, info } = &Parsed::of(shader)?;
    let wgsl = ("wgsl", shader.wgsl.as_bytes().to_vec());
    let spirv = ("spv", spirv(module, info)?);
    // Direct3D and OpenGL have no cooperative matrices, and Metal those of 8 x 8.
    if shader.features.contains(&"coop16") {
        return Ok(vec![wgsl, spirv]);
    }
    let metal = ("metal", metal(module, info, shader.name)?);
    let Some(hlsl) = direct3d(shader)? else { return Ok(vec![wgsl, spirv, metal]) };
    let texts = vec![wgsl, spirv, metal, ("hlsl", hlsl.into_bytes())];
    // GLSL has no 16-bit floats.
    if shader.features.contains(&"f16") {
        return Ok(texts);
    }
    Ok([texts, vec![("comp", opengl(module, info, shader.name)?)]].concat())
}

fn spirv(module: &Module, info: &ModuleInfo) -> Outcome<Vec<u8>> {
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    let words = spv::write_vec(module, info, &options, None).map_err(|e| format!("SPIR-V: {e}"))?;
    Ok(words.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn metal(module: &Module, info: &ModuleInfo, name: &str) -> Outcome<Vec<u8>> {
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
    let entry_point = Some((ShaderStage::Compute, name.to_owned()));
    let pipeline = msl::PipelineOptions { entry_point, ..msl::PipelineOptions::default() };
    let (text, _) = msl::write_string(module, info, &options, &pipeline).map_err(|e| format!("MSL: {e}"))?;
    Ok(text.into_bytes())
}

fn opengl(module: &Module, info: &ModuleInfo, name: &str) -> Outcome<Vec<u8>> {
    let options = glsl::Options { version: glsl::Version::Desktop(450), ..glsl::Options::default() };
    let pipeline =
        glsl::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: name.to_owned(), multiview: None };
    let mut text = String::new();
    let policies = naga::proc::BoundsCheckPolicies::default();
    glsl::Writer::new(&mut text, module, info, &options, &pipeline, policies)
        .and_then(|mut writer| writer.write())
        .map_err(|e| format!("GLSL: {e}"))?;
    Ok(text.into_bytes())
}

fn write_texts(folder: &Path, id: &str, texts: &Texts) -> Outcome {
    texts.iter().try_for_each(|(extension, bytes)| {
        let path = folder.join(format!("{id}.{extension}"));
        std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))
    })
}

#[test]
fn every_shader_translates_and_its_spirv_and_glsl_are_valid() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("PULID_TRANSLATIONS").map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    let validators = VALIDATORS.map(|(extension, program, arguments, package)| {
        let found = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
        if !found {
            eprintln!("{program} is not installed (Debian: {package}), so .{extension} is written but not checked");
        }
        (extension, program, arguments, found)
    });
    let mut table = String::new();
    let mut failures = Vec::new();
    for shader in shaders() {
        let id = id(shader);
        let texts = match translate(shader) {
            Ok(texts) => texts,
            Err(e) => {
                failures.push(format!("{id}: {e}"));
                continue;
            }
        };
        write_texts(&folder, &id, &texts).unwrap();
        for (extension, program, arguments, _) in validators.iter().filter(|(.., found)| *found) {
            let file = folder.join(format!("{id}.{extension}"));
            // The validators of stable distributions do not know cooperative matrices.
            if !file.exists() || id.contains(".coop") {
                continue;
            }
            let checked = Command::new(program).args(*arguments).arg(file).output().unwrap();
            if !checked.status.success() {
                let [said, errors] = [&checked.stdout, &checked.stderr].map(|t| String::from_utf8_lossy(t));
                failures.push(format!("{id}: {program}: {said}{errors}"));
            }
        }
        let access: String = shader.writable.iter().map(|&w| if w { 'w' } else { 'r' }).collect();
        write!(table, "{id} [{access}] {} bytes of parameters", shader.params_size).unwrap();
        for (extension, bytes) in &texts {
            let hash = Sha256::digest(bytes).iter().take(4).map(|b| format!("{b:02x}")).collect::<String>();
            write!(table, ", {extension} {hash}").unwrap();
        }
        table.push('\n');
    }
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), shaders().len(), failures.join("\n"));
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../../tests/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| insta::assert_snapshot!("shaders", table));
}
