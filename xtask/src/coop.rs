//! Kernels with cooperative matrices, on a driver of the CPU that has them: lavapipe of Mesa 26, unpacked beside the system's own.

use crate::{Outcome, output, root, run};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version that is fetched: 16 x 16 matrices, which it computes without offering them, are held to no promise.
const MESA: &str = "26.1.6-1~bpo13+1";
const RELEASE: &str = "trixie-backports";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Holds every cooperative kernel to its reference: matrices of 8 x 8, which the driver offers, and with `every_size` also those
/// of 16 x 16, which NVIDIA and AMD have. They take five minutes, the others ten seconds.
pub fn check(every_size: bool) -> Outcome {
    let folder = match unpacked() {
        Ok(folder) => folder,
        Err(why) if every_size => return Err(why),
        Err(why) => {
            println!("cooperative kernels are not checked: {why}");
            return Ok(());
        }
    };
    // The tests' own build of the program, where they run next: another would build most of its dependencies again.
    let build: &[&str] =
        if every_size { &["build", "--package", "pulid-cli"] } else { &["test", "--workspace", "--no-run", "--quiet"] };
    run("cargo", build)?;
    let sizes: &[&str] = if every_size { &["8", "16"] } else { &["8"] };
    for size in sizes {
        let libraries = folder.join("root").join(LIBRARIES);
        let program = root().join("target/debug/pulid");
        println!("$ pulid conformance --filter cooperative --cooperative {size}   (lavapipe of Mesa {MESA})");
        // Its libraries need a newer libc than the system's, so their own loader starts the program.
        let status = Command::new(libraries.join("ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(&libraries)
            .arg(program)
            .args(["conformance", "--device", "llvmpipe", "--filter", "cooperative", "--cooperative", size])
            .env("VK_DRIVER_FILES", folder.join("lvp.json"))
            // What wider vectors compute there is not to be relied on.
            .env("LP_NATIVE_VECTOR_WIDTH", "256")
            .status()
            .map_err(|e| format!("Mesa {MESA}'s loader cannot be started: {e}"))?;
        if !status.success() {
            return Err(format!("cooperative kernels with matrices of {size} x {size} fail"));
        }
    }
    Ok(())
}

/// The folder with the unpacked driver, fetched the first time.
fn unpacked() -> Outcome<PathBuf> {
    let folder = root().join("target").join(format!("mesa-{MESA}"));
    if folder.join("lvp.json").exists() {
        return Ok(folder);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("their driver is fetched on Linux, x86-64, alone".into());
    }
    let mirror = output("sh", &["-c", "awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources"])
        .map(|m| m.trim().to_owned())
        .filter(|m| !m.is_empty())
        .ok_or("their driver comes from Debian's package archive, and apt knows none here")?;
    println!("Fetching lavapipe of Mesa {MESA} into {}; the system stays as it is.", folder.display());
    let text = |e: std::io::Error| format!("{}: {e}", folder.display());
    let _ = std::fs::remove_dir_all(&folder);
    for part in ["lists/partial", "cache/archives/partial", "root"] {
        std::fs::create_dir_all(folder.join(part)).map_err(text)?;
    }
    // An installation without packages, so that apt finds everything that the driver needs, libc included.
    std::fs::write(folder.join("status"), "").map_err(text)?;
    let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let sources = format!("deb {signed} {mirror} trixie main\ndeb {signed} {mirror} {RELEASE} main\n");
    std::fs::write(folder.join("sources.list"), sources).map_err(text)?;
    apt(&folder, &["update", "-qq"])?;
    let package = format!("mesa-vulkan-drivers={MESA}");
    apt(
        &folder,
        &["-t", RELEASE, "install", "-y", "-qq", "--no-install-recommends", "--download-only", &package, "libvulkan1"],
    )?;
    for entry in std::fs::read_dir(folder.join("cache/archives")).map_err(text)? {
        let path = entry.map_err(text)?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            let done = Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder.join("root")).status();
            if !done.is_ok_and(|s| s.success()) {
                return Err(format!("{} cannot be unpacked", path.display()));
            }
        }
    }
    let manifest = folder.join("root/usr/share/vulkan/icd.d/lvp_icd.json");
    let manifest = std::fs::read_to_string(&manifest).map_err(|e| format!("{}: {e}", manifest.display()))?;
    let library = manifest.split('"').find(|word| word.ends_with("libvulkan_lvp.so"));
    let library = library.ok_or("the driver's manifest names no library")?;
    let driver = std::path::absolute(folder.join("root").join(LIBRARIES).join("libvulkan_lvp.so")).map_err(text)?;
    // Written last: its presence says that the folder is whole.
    std::fs::write(folder.join("lvp.json"), manifest.replace(library, &driver.to_string_lossy())).map_err(text)?;
    Ok(folder)
}

/// Runs apt on the folder's own lists and packages.
fn apt(folder: &Path, arguments: &[&str]) -> Outcome {
    let folder = std::path::absolute(folder).map_err(|e| e.to_string())?;
    let at = |name: &str| folder.join(name).display().to_string();
    let options = [
        format!("Dir::State::Lists={}", at("lists")),
        format!("Dir::State::status={}", at("status")),
        format!("Dir::Cache={}", at("cache")),
        format!("Dir::Etc::sourcelist={}", at("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".into(),
        "Dir::Etc::preferencesparts=/dev/null".into(),
        "Acquire::Languages=none".into(),
        // As another user apt could not write here.
        "APT::Sandbox::User=root".into(),
    ];
    let mut command = Command::new("apt-get");
    command.args(options.iter().flat_map(|option| ["-o", option])).args(arguments).stdout(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("apt-get {} failed ({status})", arguments.join(" "))),
        Err(e) => Err(format!("apt-get cannot be started: {e}")),
    }
}
