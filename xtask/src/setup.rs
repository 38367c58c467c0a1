//! Installs what a fresh Debian or Ubuntu lacks. Everything is said before it is done.

use crate::{Outcome, output, run};
use std::path::Path;

/// A Vulkan driver: any that is there will do, else Mesa's software driver from the system's own package archive.
pub fn vulkan_driver() -> Outcome {
    let is_driver = |folder: &&str| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.path()).any(|p| p.extension().is_some_and(|e| e == "json"))
    };
    let has_driver = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"].iter().any(is_driver)
        || std::env::var_os("VK_DRIVER_FILES").is_some();
    let has_loader = output("sh", &["-c", "ldconfig -p | grep libvulkan.so.1"]).is_some();
    if !cfg!(target_os = "linux") || (has_driver && has_loader) {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err("no Vulkan driver found; install one for your GPU, or Mesa's lavapipe".into());
    }
    println!("No Vulkan driver found: installing mesa-vulkan-drivers, which runs shaders on the CPU.");
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut options = vec!["apt-get", "install", "--yes", "--no-install-recommends"];
    let backports = release.contains("bookworm") && add_bookworm_backports();
    privileged(&["apt-get", "update"])?;
    if backports {
        options.extend(["--target-release", "bookworm-backports"]);
    }
    options.extend(["mesa-vulkan-drivers", "libvulkan1"]);
    privileged(&options)
}

/// Debian 12's own Mesa lacks f16; its backports have it. Uses the archive the machine already uses. `false` when that
/// cannot be found out: the older driver then runs everything in f32.
fn add_bookworm_backports() -> bool {
    let listed = output("sh", &["-c", "grep -rhs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d"]);
    if listed.is_some_and(|text| !text.trim().is_empty()) {
        return true;
    }
    let find =
        "grep -rhsoE '(http|https)://[^ ]*/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d | head -n 1";
    let Some(archive) = output("sh", &["-c", find]).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()) else {
        return false;
    };
    println!("Adding Debian's bookworm-backports for a newer Mesa (with f16).");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let line = format!("deb [signed-by={keyring}] {archive} bookworm-backports main");
    let write = format!("echo '{line}' > /etc/apt/sources.list.d/bookworm-backports.list");
    privileged(&["sh", "-c", &write]).is_ok()
}

/// As root, or through sudo.
fn privileged(command: &[&str]) -> Outcome {
    let is_root = output("id", &["-u"]).is_some_and(|id| id.trim() == "0");
    match is_root {
        true => run(command[0], &command[1..]),
        false => run("sudo", command),
    }
}

/// `spirv-val` and `glslangValidator`, which check the SPIR-V and GLSL of every shader; without one its check is left out.
pub fn shader_validators() {
    for (program, package, language) in
        [("spirv-val", "spirv-tools", "SPIR-V"), ("glslangValidator", "glslang-tools", "GLSL")]
    {
        if let Err(e) = tool(program, &[package], &format!("{package}, which checks the shaders' {language}")) {
            println!("{e}; the shaders' {language} will not be checked");
        }
    }
}

/// `wasm-opt`; without it the page's wasm is a fifth larger.
pub fn wasm_optimiser() {
    if let Err(e) = tool("wasm-opt", &["binaryen"], "binaryen, which makes the page's wasm smaller") {
        println!("{e}; the page's wasm will be larger");
    }
}

/// Chromium and its driver, for the page's tests.
pub fn browser() -> Outcome {
    tool("chromedriver", &["chromium", "chromium-driver"], "Chromium and its driver, for the page's tests")
}

/// A program from the system's packages, installed where it is missing.
fn tool(program: &str, packages: &[&str], what: &str) -> Outcome {
    if output(program, &["--version"]).is_some() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(format!("there is no {program}; install {what}"));
    }
    println!("No {program} found: installing {what}.");
    let install = || {
        let command = ["apt-get", "install", "--yes", "--no-install-recommends"];
        privileged(&command.iter().chain(packages).copied().collect::<Vec<_>>())
    };
    install().or_else(|_| privileged(&["apt-get", "update"]).and_then(|()| install()))
}

/// The target that browser builds need.
pub fn wasm_target() -> Outcome {
    let target = "wasm32-unknown-unknown";
    let installed = output("rustc", &["--print", "sysroot"])
        .is_some_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib").join(target).is_dir());
    if installed {
        return Ok(());
    }
    println!("Installing the Rust target {target}, which browser builds need.");
    run("rustup", &["target", "add", target])
}
