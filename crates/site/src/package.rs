use crate::{Manifest, Outcome};
use std::path::Path;
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
    bind(&root.join("target/wasm32-unknown-unknown/web/pulid_wasm.wasm"), &package)?;
    optimise(&package.join("pulid_wasm_bg.wasm"));
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
        ["build", "--profile", "web", "--lib", "--target", "wasm32-unknown-unknown", "--package", CRATE, "--locked"];
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
    let made = bindgen.input_path(wasm).web(true).and_then(|b| b.typescript(false).generate(package));
    made.map_err(|e| format!("wasm-bindgen: {e:#}"))
}

/// A smaller and faster file, if the tool is there and understands this one.
fn optimise(wasm: &Path) {
    let smaller = wasm.with_extension("smaller");
    let status = Command::new("wasm-opt").arg("-Os").arg("--all-features").arg(wasm).arg("-o").arg(&smaller).status();
    match status {
        Ok(s) if s.success() => {
            let (before, after) = (length(wasm), length(&smaller));
            if std::fs::rename(&smaller, wasm).is_ok() {
                println!("wasm-opt: {before} bytes became {after}");
            }
        }
        Ok(_) => println!("wasm-opt does not understand the file, which is served as it is"),
        Err(_) => println!("no wasm-opt found (Debian's package binaryen); the wasm is served as it is"),
    }
    let _ = std::fs::remove_file(smaller);
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
