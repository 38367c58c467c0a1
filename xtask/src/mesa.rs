//! A pinned Mesa beside the system's own: a driver of the CPU with cooperative matrices, the compilers of GPUs that need not be there,
//! and Vulkan's validation layer. The system stays as it is.

use crate::{Outcome, output, root};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version that is fetched.
pub const VERSION: &str = "26.1.6-1~bpo13+1";
const RELEASE: &str = "trixie-backports";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Packages whose contents results depend on: name, version, SHA-256 of the archive's file. apt takes what these need, libc included,
/// as the release signs it.
const PINNED: [(&str, &str, &str); 3] = [
    ("mesa-vulkan-drivers", VERSION, "e2d4a843b8c55ed17c1e8856805f67b553b013b6ce5f15faeec4db7d4d38ff90"),
    ("mesa-drm-shim", VERSION, "0c42b1487521f09a0fbfe155c5758a419d9372336d0998e46ffb3adfe609a736"),
    ("vulkan-validationlayers", "1.4.309.0-1", "ff7e18ef011ff448ac799daf16134a676ccf9c5987e1a9f4b779611ed5fc3b0d"),
];

/// The unpacked packages.
pub struct Mesa {
    folder: PathBuf,
}

impl Mesa {
    /// Fetches and unpacks the packages the first time.
    ///
    /// Errors say why they cannot be had here: another system, no package archive, no network, a file that is not the pinned one.
    pub fn fetched() -> Outcome<Mesa> {
        let mesa = Mesa { folder: std::path::absolute(root()).map_err(|e| e.to_string())?.join("target").join(name()) };
        if !mesa.folder.join("complete").exists() {
            mesa.fetch()?;
        }
        Ok(mesa)
    }

    /// The folder of shared libraries, drivers among them.
    pub fn libraries(&self) -> PathBuf {
        self.folder.join("root").join(LIBRARIES)
    }

    /// A program on the unpacked libraries and the driver of the CPU. They need a newer libc than the system's, so their own loader
    /// starts it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(self.libraries().join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(self.libraries()).arg(program);
        command.env("VK_DRIVER_FILES", self.folder.join("lvp.json"));
        // What wider vectors compute there is not to be relied on.
        command.env("LP_NATIVE_VECTOR_WIDTH", "256");
        command
    }

    /// Has Vulkan's validation layer watch a program and write what it objects to into `log`.
    pub fn validated(&self, command: &mut Command, log: &Path) -> Outcome {
        let settings = log.with_extension("settings");
        let text = format!(
            "khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG\nkhronos_validation.report_flags = error\n\
             khronos_validation.enable_message_limit = false\nkhronos_validation.log_filename = {}\n",
            log.display()
        );
        std::fs::write(&settings, text).map_err(|e| format!("{}: {e}", settings.display()))?;
        command.env("VK_LAYER_PATH", self.folder.join("layers"));
        command.env("VK_INSTANCE_LAYERS", "VK_LAYER_KHRONOS_validation");
        command.env("VK_LAYER_SETTINGS_PATH", settings);
        Ok(())
    }

    fn fetch(&self) -> Outcome {
        let folder = &self.folder;
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(format!("Mesa {VERSION} is fetched on Linux, x86-64, alone"));
        }
        let mirror = output("sh", &["-c", "awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources"])
            .map(|m| m.trim().to_owned())
            .filter(|m| !m.is_empty())
            .ok_or_else(|| format!("Mesa {VERSION} comes from Debian's package archive, and apt knows none here"))?;
        println!("Fetching Mesa {VERSION} into {}; the system stays as it is.", folder.display());
        let text = |e: std::io::Error| format!("{}: {e}", folder.display());
        let _ = std::fs::remove_dir_all(folder);
        for part in ["lists/partial", "cache/archives/partial", "root", "layers"] {
            std::fs::create_dir_all(folder.join(part)).map_err(text)?;
        }
        // An installation without packages, so that apt finds everything that the drivers need, libc included.
        std::fs::write(folder.join("status"), "").map_err(text)?;
        let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let sources = format!("deb {signed} {mirror} trixie main\ndeb {signed} {mirror} {RELEASE} main\n");
        std::fs::write(folder.join("sources.list"), sources).map_err(text)?;
        self.apt(&["update", "-qq"])?;
        let wanted: Vec<String> = PINNED.iter().map(|(name, version, _)| format!("{name}={version}")).collect();
        let install =
            ["-t", RELEASE, "install", "-y", "-qq", "--no-install-recommends", "--download-only", "libvulkan1"];
        self.apt(&install.into_iter().chain(wanted.iter().map(String::as_str)).collect::<Vec<_>>())?;
        for entry in std::fs::read_dir(folder.join("cache/archives")).map_err(text)? {
            let path = entry.map_err(text)?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                verify(&path)?;
                let done = Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder.join("root")).status();
                if !done.is_ok_and(|s| s.success()) {
                    return Err(format!("{} cannot be unpacked", path.display()));
                }
            }
        }
        self.manifest("icd.d/lvp_icd.json", "libvulkan_lvp.so", "lvp.json")?;
        let layer = "VkLayer_khronos_validation";
        self.manifest(&format!("explicit_layer.d/{layer}.json"), &format!("lib{layer}.so"), "layers/validation.json")?;
        // Written last: its presence says that the folder is whole.
        std::fs::write(folder.join("complete"), "").map_err(text)
    }

    /// Writes a manifest for Vulkan's loader that names a library where it was unpacked.
    fn manifest(&self, from: &str, library: &str, to: &str) -> Outcome {
        let from = self.folder.join("root/usr/share/vulkan").join(from);
        let text = std::fs::read_to_string(&from).map_err(|e| format!("{}: {e}", from.display()))?;
        let named = text.split('"').find(|word| word.ends_with(library));
        let named = named.ok_or_else(|| format!("{} names no {library}", from.display()))?;
        let text = text.replace(named, &self.libraries().join(library).to_string_lossy());
        let to = self.folder.join(to);
        std::fs::write(&to, text).map_err(|e| format!("{}: {e}", to.display()))
    }

    /// Runs apt on the folder's own lists and packages.
    fn apt(&self, arguments: &[&str]) -> Outcome {
        let at = |name: &str| self.folder.join(name).display().to_string();
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
}

fn name() -> String {
    format!("mesa-{VERSION}")
}

/// Holds a package's file to its pinned hash, if it is one of those.
fn verify(path: &Path) -> Outcome {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((_, _, pinned)) = PINNED.iter().find(|(name, _, _)| file.starts_with(&format!("{name}_"))) else {
        return Ok(());
    };
    let sum = output("sha256sum", &[&path.to_string_lossy()]).ok_or_else(|| format!("sha256sum cannot read {file}"))?;
    match sum.split_whitespace().next() {
        Some(sum) if sum == *pinned => Ok(()),
        sum => Err(format!("{file} has the SHA-256 {}, not the pinned {pinned}", sum.unwrap_or("of nothing"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_package_with_other_contents_is_refused() {
        let folder = std::env::temp_dir().join(format!("pulid-pinned-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str| {
            let path = folder.join(name);
            std::fs::write(&path, "something else").unwrap();
            verify(&path)
        };
        let pinned = write(&format!("mesa-drm-shim_{VERSION}_amd64.deb"));
        let other = write("libc6_2.41-12_amd64.deb");
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(pinned.unwrap_err().contains("not the pinned"));
        other.unwrap();
    }
}
