//! Turns `shaders/**/*.wgsl` into validated WGSL, one text per permutation, with what reflection knows of each.
//!
//! A shader names its permutations in its header, one feature set a line: `// permutation: f16` (an empty set is
//! built too, unless the lines say `// only permutation: f16`). Imports and `@if` are resolved by WESL, and cooperative
//! matrices get variables of their own (`build/matrices.rs`); naga validates every result and reflects bindings, parameter
//! layout, overrides and workgroup size, so that Rust never repeats what the shader says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[path = "build/matrices.rs"]
mod matrices;

fn main() {
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = shaders(&manifest);
    println!("cargo::rerun-if-changed={}", root.display());

    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let mut rust = String::from("pub(crate) static SHADERS: &[Shader] = &[\n");
    let mut failures = Vec::new();
    let mut stems = BTreeMap::new();
    for path in files {
        println!("cargo::rerun-if-changed={}", path.display());
        let relative = path.strip_prefix(&root).expect("collected below root").with_extension("");
        let name = relative.to_string_lossy().replace('\\', "/");
        if name.starts_with("shared/") {
            continue;
        }
        let stem = relative.file_name().expect("a file").to_string_lossy().into_owned();
        if let Some(other) = stems.insert(stem.clone(), name.clone()) {
            failures.push(format!("{name} and {other} share one name"));
        }
        let text = std::fs::read_to_string(&path).expect("shader is readable");
        for permutation in permutations(&text) {
            match translate(&root, &name, &permutation).and_then(|wgsl| reflect(&stem, &wgsl).map(|r| (wgsl, r))) {
                Ok((wgsl, reflection)) => entry(&mut rust, &stem, &permutation, &wgsl, &reflection),
                Err(e) => failures.push(format!("shader {name} {permutation:?}:\n{e}")),
            }
        }
    }
    rust.push_str("];\n");
    if !failures.is_empty() {
        for failure in &failures {
            eprintln!("{failure}\n");
        }
        panic!("{} shader permutation(s) failed; see above", failures.len());
    }
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("shaders.rs"), rust).expect("OUT_DIR is writable");
}

/// `shaders` in this crate: a link to the repository's folder, and the folder itself in a published crate. A checkout
/// without links (Windows) has a small text file there, so the repository's folder comes second.
fn shaders(manifest: &Path) -> PathBuf {
    let places = ["shaders", "../../shaders"].map(|place| manifest.join(place));
    let folder = places.iter().find(|place| place.is_dir()).expect("the shaders stand in this crate or beside crates/");
    folder.canonicalize().expect("a folder that is there has a path")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("shader folder is readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "wgsl") {
            files.push(path);
        }
    }
}

/// The feature sets a shader's header asks for; the empty set comes first, unless the header says `// only permutation:`.
fn permutations(text: &str) -> Vec<Vec<String>> {
    let sets = |prefix: &str| {
        let lists = text.lines().filter_map(|line| line.trim().strip_prefix(prefix));
        let set = |list: &str| {
            let mut set: Vec<String> = list.split_whitespace().map(str::to_owned).collect();
            set.sort();
            set
        };
        lists.map(set).collect::<Vec<_>>()
    };
    let only = sets("// only permutation:");
    if only.is_empty() { [vec![Vec::new()], sets("// permutation:")].concat() } else { only }
}

/// Every feature any shader uses; WESL wants each named, set or not.
const FEATURES: &[&str] =
    &["coop16", "coop8", "f16", "left_transposed", "packed", "split", "transposed", "vec4", "w16", "w4", "w8", "wide"];

fn translate(root: &Path, name: &str, features: &[String]) -> Result<String, String> {
    for feature in features {
        if !FEATURES.contains(&feature.as_str()) {
            return Err(format!("unknown feature `{feature}`; known are {FEATURES:?}"));
        }
    }
    if features.iter().any(|f| f == "packed") && !features.iter().any(|f| f == "coop16") {
        return Err("`packed` is for matrices of 16 x 16: `coop16`".into());
    }
    let mut compiler = wesl::Wesl::new(root);
    // WESL does not know the names of cooperative matrices; naga, which does, checks the result.
    let validate = !features.iter().any(|f| f.starts_with("coop"));
    compiler.set_options(wesl::CompileOptions { validate, ..Default::default() });
    for feature in FEATURES {
        compiler.set_feature(feature, features.iter().any(|f| f == feature));
    }
    let module = format!("package::{}", name.replace('/', "::"));
    let module = module.parse().map_err(|e| format!("{module}: {e}"))?;
    let mut resolved = compiler.compile(&module).map_err(|e| e.to_string())?;
    matrices::name(&mut resolved.syntax)?;
    Ok(resolved.to_string())
}

struct Reflection {
    workgroup_size: [u32; 3],
    /// (binding, is storage, is writable)
    bindings: Vec<(u32, bool, bool)>,
    /// (name, offset, WGSL type) of the fields of the uniform at binding 0.
    params: Vec<(String, u32, String)>,
    params_size: u32,
    overrides: Vec<String>,
}

fn reflect(stem: &str, wgsl: &str) -> Result<Reflection, String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    // `unpack2x16float` is core WGSL; naga asks for a capability because some old GLSL lacks it.
    let capabilities = naga::valid::Capabilities::SHADER_FLOAT16
        | naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | naga::valid::Capabilities::SUBGROUP
        | naga::valid::Capabilities::SUBGROUP_BARRIER
        | naga::valid::Capabilities::COOPERATIVE_MATRIX;
    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
        .validate(&module)
        .map_err(|e| e.emit_to_string(wgsl))?;
    let [entry] = module.entry_points.as_slice() else {
        return Err("expected exactly one entry point".into());
    };
    if entry.name != stem {
        return Err(format!("entry point `{}` must be named like its file, `{stem}`", entry.name));
    }
    let mut reflection = Reflection {
        workgroup_size: entry.workgroup_size,
        bindings: Vec::new(),
        params: Vec::new(),
        params_size: 0,
        overrides: module.overrides.iter().filter_map(|(_, o)| o.name.clone()).collect(),
    };
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        match variable.space {
            naga::AddressSpace::Uniform => {
                let naga::TypeInner::Struct { members, span } = &module.types[variable.ty].inner else {
                    return Err("the uniform at binding 0 must be a struct".into());
                };
                reflection.params_size = *span;
                for member in members {
                    let name = member.name.clone().unwrap_or_default();
                    let ty = match &module.types[member.ty].inner {
                        naga::TypeInner::Scalar(s) => scalar(*s),
                        naga::TypeInner::Vector { size, scalar: s } => format!("vec{}<{}>", *size as u32, scalar(*s)),
                        other => return Err(format!("parameter {name} has an unsupported type {other:?}")),
                    };
                    reflection.params.push((name, member.offset, ty));
                }
                reflection.bindings.push((binding.binding, false, false));
            }
            naga::AddressSpace::Storage { access } => {
                let writable = access.contains(naga::StorageAccess::STORE);
                reflection.bindings.push((binding.binding, true, writable));
            }
            other => return Err(format!("unsupported address space {other:?}")),
        }
    }
    reflection.bindings.sort();
    for (expected, (binding, storage, _)) in reflection.bindings.iter().enumerate() {
        if *binding as usize != expected || *storage == (expected == 0) {
            return Err("bindings must be 0 (uniform params), then storage 1, 2, ... without gaps".into());
        }
    }
    Ok(reflection)
}

fn scalar(s: naga::Scalar) -> String {
    match s.kind {
        naga::ScalarKind::Float => format!("f{}", s.width * 8),
        naga::ScalarKind::Sint => format!("i{}", s.width * 8),
        _ => format!("u{}", s.width * 8),
    }
}

/// `package_shared_activation_ACTIVATION` is known to Rust as `ACTIVATION`: overrides are upper case, without underscores
/// (WESL escapes those).
fn short(name: &str) -> &str {
    let start = name.rfind(|c: char| c.is_ascii_lowercase()).map_or(0, |i| i + 1);
    name[start..].trim_start_matches('_')
}

fn entry(rust: &mut String, stem: &str, features: &[String], wgsl: &str, r: &Reflection) {
    let params: Vec<_> = r.params.iter().map(|(n, o, t)| format!("({n:?}, {o}, {t:?})")).collect();
    let writable: Vec<_> = r.bindings.iter().skip(1).map(|b| b.2).collect();
    let overrides: Vec<_> = r.overrides.iter().map(|o| format!("({:?}, {o:?})", short(o))).collect();
    let _ = writeln!(
        rust,
        "Shader {{ name: {stem:?}, features: &{features:?}, wgsl: {wgsl:?}, workgroup_size: {:?}, writable: &{writable:?}, \
         params: &[{}], params_size: {}, overrides: &[{}] }},",
        r.workgroup_size,
        params.join(", "),
        r.params_size,
        overrides.join(", "),
    );
}
