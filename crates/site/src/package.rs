use crate::{Manifest, Outcome};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crate that becomes the site's wasm.
const CRATE: &str = "pulid-wasm";

/// Builds the site into `out`, which is made anew.
///
/// `root` is the repository. The wasm is optimised by `wasm-opt` (Debian's `binaryen`) where that is installed.
///
/// # Errors
/// When a part cannot be built or copied; `out` is then as it was before.
pub fn build(root: &Path, out: &Path) -> Outcome {
    let unfinished = out.with_extension("unfinished");
    remove(&unfinished)?;
    copy(&root.join("web"), &unfinished)?;
    let package = unfinished.join("pulid");
    compile(root)?;
    bind(&optimised(&root.join("target/wasm32-unknown-unknown/page/pulid_wasm.wasm")), &package)?;
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        std::fs::copy(root.join(licence), package.join(licence)).map_err(|e| format!("{licence}: {e}"))?;
    }
    let models = unfinished.join("models/mini");
    copy(&root.join("models/mini"), &models)?;
    let manifest = serde_json::to_string_pretty(&Manifest::of(&models)?).map_err(|e| e.to_string())?;
    std::fs::write(models.join("manifest.json"), manifest).map_err(|e| format!("manifest.json: {e}"))?;
    copy(&root.join("examples/faces"), &unfinished.join("faces"))?;
    remove(out)?;
    std::fs::rename(&unfinished, out).map_err(|e| format!("{}: {e}", out.display()))
}

fn compile(root: &Path) -> Outcome {
    let arguments =
        ["build", "--profile", "page", "--lib", "--target", "wasm32-unknown-unknown", "--package", CRATE, "--locked"];
    println!("$ cargo {}", arguments.join(" "));
    let status = Command::new("cargo").args(arguments).current_dir(root).status();
    match status.map_err(|e| format!("cargo cannot be started: {e}"))?.success() {
        true => Ok(()),
        false => Err(format!("{CRATE} does not build for wasm; see above")),
    }
}

/// Writes the JavaScript that goes with the wasm.
fn bind(wasm: &Path, package: &Path) -> Outcome {
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    let made = bindgen
        .input_path(wasm)
        .omit_default_module_path(false)
        .web(true)
        .and_then(|b| b.typescript(false).generate(package));
    made.map_err(|e| format!("wasm-bindgen: {e:#}"))
}

/// A smaller and faster file, if the tool is there and understands this one; else the file as it is.
///
/// It comes before wasm-bindgen, whose table of JavaScript's values the `wasm-opt` of Debian 12 mixes up with that of functions.
fn optimised(wasm: &Path) -> PathBuf {
    let smaller = wasm.with_file_name("pulid_wasm.optimised").join("pulid_wasm.wasm");
    let folder = smaller.parent().unwrap_or(Path::new(""));
    // What rustc makes for this target.
    let features =
        ["bulk-memory", "multivalue", "mutable-globals", "nontrapping-float-to-int", "reference-types", "sign-ext"];
    let features = features.map(|f| format!("--enable-{f}"));
    let mut command = Command::new("wasm-opt");
    command.arg("-Os").args(features).arg(wasm).arg("-o").arg(&smaller);
    match std::fs::create_dir_all(folder).and_then(|()| command.status()) {
        Ok(s) if s.success() => {
            println!("wasm-opt: {} bytes became {}", length(wasm), length(&smaller));
            smaller
        }
        Ok(_) => {
            println!("wasm-opt does not understand the file, which is served as it is");
            wasm.to_owned()
        }
        Err(_) => {
            println!("no wasm-opt found (Debian's package binaryen); the wasm is served as it is");
            wasm.to_owned()
        }
    }
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |m| m.len())
}

fn remove(folder: &Path) -> Outcome {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", folder.display())),
        _ => Ok(()),
    }
}

fn copy(from: &Path, to: &Path) -> Outcome {
    let say = |e: std::io::Error| format!("{}: {e}", from.display());
    std::fs::create_dir_all(to).map_err(say)?;
    for entry in std::fs::read_dir(from).map_err(say)? {
        let path = entry.map_err(say)?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            std::fs::copy(&path, &target).map_err(say)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_npm_package_has_this_version_and_ships_what_it_needs() {
        let text = include_str!("../../../web/pulid/package.json");
        let package: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
        let files: Vec<_> = package["files"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
        for needed in [
            "index.js",
            "index.d.ts",
            "settings.js",
            "worker.js",
            "store.js",
            "photos.js",
            "memory.js",
            "pulid_wasm.js",
            "pulid_wasm_bg.wasm",
        ] {
            assert!(files.contains(&needed), "{needed}");
        }
    }
}
