//! The page that times kernels beside ONNX Runtime Web, which is fetched for it and lies in no package of ours.

use crate::fetch::fetch;
use crate::setup::Setup;
use crate::{Outcome, root, run, web};
use std::path::{Path, PathBuf};
use std::process::Command;

/// npm's package, MIT.
const VERSION: &str = "1.30.0";
const HASH: &str = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71";

/// What the page loads of it: the WebGPU build, and the wasm that this loads.
const FILES: [&str; 3] =
    ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"];

/// `cargo xtask bench-page [serve [PORT]]`: times the small sizes in headless Chromium and prints the table, or serves the page for a
/// browser with a GPU.
pub fn command(setup: &Setup, arguments: &[String]) -> Outcome {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let port = match words.as_slice() {
        [] => None,
        ["serve"] => Some("8080"),
        ["serve", port] => Some(*port),
        _ => return Err("usage: cargo xtask bench-page [serve [PORT]]".into()),
    };
    web(setup, Some("build"))?;
    match unpacked().and_then(|folder| place(&folder)) {
        Ok(()) => println!("ONNX Runtime Web {VERSION} is in target/web, until the site is built again"),
        Err(why) => println!("The page times our kernels alone, without ONNX Runtime Web: {why}"),
    }
    if let Some(port) = port {
        println!("http://127.0.0.1:{port}/bench.html times the kernels");
        return run("cargo", &["run", "--quiet", "--package", "pulid-site", "--", "open", port]);
    }
    setup.browser()?;
    println!("$ PULID_BENCH_PAGE=small cargo test --package pulid-site --test page -- times --nocapture");
    let mut test = Command::new("cargo");
    test.args(["test", "--package", "pulid-site", "--test", "page", "--", "times", "--nocapture"]);
    match test.env("PULID_BENCH_PAGE", "small").current_dir(root()).status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err("the page did not time the kernels; see above".into()),
    }
}

/// The package's files, fetched the first time.
fn unpacked() -> Outcome<PathBuf> {
    let folder = root().join("target").join(format!("onnxruntime-web-{VERSION}"));
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let package = folder.join("package.tgz");
    let url = format!("https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz");
    fetch(&url, HASH, &package)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--strip-components=2", "--file"]).arg(&package).arg("--directory").arg(&folder);
    match tar.args(FILES.map(|file| format!("package/dist/{file}"))).status() {
        Ok(status) if status.success() => Ok(folder),
        _ => Err(format!("{} cannot be unpacked; this needs tar", package.display())),
    }
}

/// Copies the files beside the built page.
fn place(folder: &Path) -> Outcome {
    let to = root().join("target/web/onnxruntime-web");
    std::fs::create_dir_all(&to).map_err(|e| format!("{}: {e}", to.display()))?;
    for file in FILES {
        std::fs::copy(folder.join(file), to.join(file)).map_err(|e| format!("{file}: {e}"))?;
    }
    Ok(())
}
