//! SDXL at its real size in a browser's tab, with random weights of 4 bits.

use crate::setup::Setup;
use crate::{Outcome, random_model, root, run, web};
use std::process::Command;

/// `cargo xtask page-sdxl DIR`: makes the model in a folder, unless it is there, and has headless Chromium load it from loopback and call
/// its UNet once.
pub fn command(setup: &Setup, arguments: &[String]) -> Outcome {
    let [folder] = arguments else {
        return Err("usage: cargo xtask page-sdxl DIR\n\nDIR gets 9 GB: SDXL's shapes with random weights, and the same in 4 bits".into());
    };
    let folder = std::path::absolute(folder).map_err(|e| format!("{folder}: {e}"))?;
    let quantised = folder.join("sdxl-q4");
    if !quantised.join("unet").is_dir() {
        if !folder.join("sdxl/tokenizer").is_dir() {
            random_model::make(&["sdxl".into(), folder.display().to_string()])?;
        }
        let [from, to] = [folder.join("sdxl"), quantised.clone()].map(|path| path.display().to_string());
        let quantise = ["quantize", "--model", &from, "--to", "q4", "--output", &to];
        run("cargo", &[&["run", "--package", "pulid-cli", "--"][..], &quantise].concat())?;
    }
    web(setup, Some("build"))?;
    setup.browser()?;
    println!(
        "$ PULID_PAGE_SDXL={} cargo test --package pulid-site --test page -- sdxl --nocapture",
        quantised.display()
    );
    let mut test = Command::new("cargo");
    test.args(["test", "--package", "pulid-site", "--test", "page", "--", "sdxl", "--nocapture"]);
    match test.env("PULID_PAGE_SDXL", &quantised).current_dir(root()).status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err("the model does not run in the page as it should; see above".into()),
    }
}
