//! A pinned Mesa beside the system's own: a driver of the CPU with cooperative matrices, the compilers of GPUs that need not be there,
//! and Vulkan's validation layer. The system stays as it is.

use crate::Outcome;
use crate::debian::{LIBRARIES, Packages};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that is fetched.
pub const VERSION: &str = "26.1.6-1~bpo13+1";

/// Packages whose contents results depend on: name, version, SHA-256 of the archive's file.
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
    /// Errors say why they cannot be had here, as [`Packages::fetched`] does.
    pub fn fetched() -> Outcome<Mesa> {
        let pinned = PINNED.iter().map(|(name, version, _)| format!("{name}={version}"));
        let packages = Packages {
            what: format!("Mesa {VERSION}"),
            folder: format!("mesa-{VERSION}"),
            release: Some("trixie-backports"),
            wanted: pinned.chain(["libvulkan1".into()]).collect(),
            pinned: PINNED.iter().map(|(name, _, hash)| (*name, *hash)).collect(),
        };
        let finish = |folder: &Path| {
            let layers = folder.join("layers");
            std::fs::create_dir_all(&layers).map_err(|e| format!("{}: {e}", layers.display()))?;
            manifest(folder, "icd.d/lvp_icd.json", "libvulkan_lvp.so", "lvp.json")?;
            let layer = "VkLayer_khronos_validation";
            manifest(
                folder,
                &format!("explicit_layer.d/{layer}.json"),
                &format!("lib{layer}.so"),
                "layers/validation.json",
            )
        };
        packages.fetched(finish).map(|folder| Mesa { folder })
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
}

/// Writes a manifest for Vulkan's loader that names a library where it was unpacked.
fn manifest(folder: &Path, from: &str, library: &str, to: &str) -> Outcome {
    let from = folder.join("root/usr/share/vulkan").join(from);
    let text = std::fs::read_to_string(&from).map_err(|e| format!("{}: {e}", from.display()))?;
    let named = text.split('"').find(|word| word.ends_with(library));
    let named = named.ok_or_else(|| format!("{} names no {library}", from.display()))?;
    let text = text.replace(named, &folder.join("root").join(LIBRARIES).join(library).to_string_lossy());
    let to = folder.join(to);
    std::fs::write(&to, text).map_err(|e| format!("{}: {e}", to.display()))
}
