//! Packages of Debian's archive, unpacked in a folder of `target/`: the system stays as it is.

use crate::{Outcome, output, root};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where libraries lie below the unpacked root.
pub const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Packages and all that they depend on, libc included.
pub struct Packages {
    /// What is fetched, for people.
    pub what: String,
    /// The folder's name in `target/`, which holds the version.
    pub folder: String,
    /// The release whose packages are preferred, where that is not trixie itself.
    pub release: Option<&'static str>,
    /// Packages by name, or by `name=version`.
    pub wanted: Vec<String>,
    /// Packages whose contents results depend on: name and SHA-256 of the archive's file. apt takes the others as the release
    /// signs them.
    pub pinned: Vec<(&'static str, &'static str)>,
}

impl Packages {
    /// The folder, whose `root` holds the unpacked packages. The first time they are fetched, and `finish` does what remains.
    ///
    /// Errors say why they cannot be had here: another system, no package archive, no network, a file that is not the pinned one.
    pub fn fetched(&self, finish: impl FnOnce(&Path) -> Outcome) -> Outcome<PathBuf> {
        let folder = std::path::absolute(root()).map_err(|e| e.to_string())?.join("target").join(&self.folder);
        if !folder.join("complete").exists() {
            self.fetch(&folder)?;
            finish(&folder)?;
            // Written last: its presence says that the folder is whole.
            std::fs::write(folder.join("complete"), "").map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        Ok(folder)
    }

    fn fetch(&self, folder: &Path) -> Outcome {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(format!("{} is fetched on Linux, x86-64, alone", self.what));
        }
        let mirror = output("sh", &["-c", "awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources"])
            .map(|m| m.trim().to_owned())
            .filter(|m| !m.is_empty())
            .ok_or_else(|| format!("{} comes from Debian's package archive, and apt knows none here", self.what))?;
        println!("Fetching {} into {}; the system stays as it is.", self.what, folder.display());
        let text = |e: std::io::Error| format!("{}: {e}", folder.display());
        let _ = std::fs::remove_dir_all(folder);
        for part in ["lists/partial", "cache/archives/partial", "root"] {
            std::fs::create_dir_all(folder.join(part)).map_err(text)?;
        }
        // An installation without packages, so that apt finds everything that is needed, libc included.
        std::fs::write(folder.join("status"), "").map_err(text)?;
        let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        let releases = ["trixie"].into_iter().chain(self.release);
        let sources: String = releases.map(|release| format!("deb {signed} {mirror} {release} main\n")).collect();
        std::fs::write(folder.join("sources.list"), sources).map_err(text)?;
        apt(folder, &["update", "-qq"])?;
        let preferred = self.release.map(|release| ["-t", release]);
        let install = ["install", "-y", "-qq", "--no-install-recommends", "--download-only"];
        let arguments =
            preferred.iter().flatten().copied().chain(install).chain(self.wanted.iter().map(String::as_str));
        apt(folder, &arguments.collect::<Vec<_>>())?;
        for entry in std::fs::read_dir(folder.join("cache/archives")).map_err(text)? {
            let path = entry.map_err(text)?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                self.verify(&path)?;
                let done = Command::new("dpkg-deb").arg("-x").arg(&path).arg(folder.join("root")).status();
                if !done.is_ok_and(|s| s.success()) {
                    return Err(format!("{} cannot be unpacked", path.display()));
                }
                // What was unpacked is not needed twice.
                std::fs::remove_file(&path).map_err(text)?;
            }
        }
        Ok(())
    }

    /// Holds a package's file to its pinned hash, if it is one of those.
    fn verify(&self, path: &Path) -> Outcome {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self.pinned.iter().find(|(name, _)| file.starts_with(&format!("{name}_"))) {
            Some((_, hash)) => verify(path, hash),
            None => Ok(()),
        }
    }
}

/// Holds a file to the SHA-256 that it must have.
pub fn verify(path: &Path, pinned: &str) -> Outcome {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sum = output("sha256sum", &[&path.to_string_lossy()]).ok_or_else(|| format!("sha256sum cannot read {file}"))?;
    match sum.split_whitespace().next() {
        Some(sum) if sum == pinned => Ok(()),
        sum => Err(format!("{file} has the SHA-256 {}, not the pinned {pinned}", sum.unwrap_or("of nothing"))),
    }
}

/// Runs apt on a folder's own lists and packages.
fn apt(folder: &Path, arguments: &[&str]) -> Outcome {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_package_with_other_contents_is_refused() {
        let packages = Packages {
            what: "a test".into(),
            folder: "nowhere".into(),
            release: None,
            wanted: vec![],
            pinned: vec![("mesa-drm-shim", "0c42b1487521f09a0fbfe155c5758a419d9372336d0998e46ffb3adfe609a736")],
        };
        let folder = std::env::temp_dir().join(format!("pulid-pinned-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str| {
            let path = folder.join(name);
            std::fs::write(&path, "something else").unwrap();
            packages.verify(&path)
        };
        let pinned = write("mesa-drm-shim_26.1.6_amd64.deb");
        let other = write("libc6_2.41-12_amd64.deb");
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(pinned.unwrap_err().contains("not the pinned"));
        other.unwrap();
    }
}
