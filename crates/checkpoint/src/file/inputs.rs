//! What a command reads, so that none of it is written over.

use super::target::Target;
use super::{key, place};
use pulid_tensor::{Error, Result};
use same_file::Handle;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders within folders that are looked into; models have two.
const MAX_DEPTH: usize = 6;

/// Files and folders that are read.
#[derive(Debug, Default)]
pub(super) struct Inputs(Vec<PathBuf>);

impl Inputs {
    pub(super) fn add(&mut self, path: &Path) {
        if !self.0.iter().any(|known| known == path) {
            self.0.push(path.to_owned());
        }
    }

    /// Refuses an output that is one of the inputs, or lies in a folder of them, under whatever name, or as a descriptor that is
    /// open on one.
    ///
    /// # Errors
    /// [`Error::File`] that names both.
    pub(super) fn check(&self, output: &Path, target: &Target) -> Result<()> {
        let wanted = match target {
            Target::File(place) | Target::Stream(place) => Wanted::of(place),
            Target::Stdout => Wanted::of_stdout(),
        };
        let wanted = match (wanted, target) {
            (Some(wanted), _) => wanted,
            (None, Target::File(place)) => return self.check_new(output, place),
            (None, _) => return Ok(()),
        };
        for input in &self.0 {
            if let Some(found) = wanted.find(input, 0) {
                let detail = format!(
                    "is also read, as {}; an output must not take an input's place: name another file",
                    found.display()
                );
                return Err(Error::file(output, detail));
            }
        }
        Ok(())
    }
}

impl Inputs {
    /// Refuses a standard output that is open on one of the inputs that are files.
    ///
    /// # Errors
    /// [`Error::File`] that names it.
    pub(super) fn check_printing(&self) -> Result<()> {
        let Some(wanted) = Wanted::of_stdout() else { return Ok(()) };
        match self.0.iter().find_map(|input| wanted.find(input, MAX_DEPTH)) {
            None => Ok(()),
            Some(found) => Err(Error::file(
                "standard output",
                format!("is also read, as {}: send what is printed to another file", found.display()),
            )),
        }
    }

    /// Refuses a new file that would be read from then on: within a folder of the inputs, or where an input would be that is missing.
    fn check_new(&self, output: &Path, real: &Path) -> Result<()> {
        for input in &self.0 {
            let Ok(place) = place(input) else { continue };
            let (place, real) = (key(&place), key(real));
            if place == real {
                let detail = "would be read by the next run as a part of the model; name another file";
                return Err(Error::file(output, detail));
            }
            if input.is_dir() && real.starts_with(&place) && !is_picture(&real) {
                let detail = format!(
                    "would lie in the folder {}, which is read, and become a part of it; name a file in another folder",
                    input.display()
                );
                return Err(Error::file(output, detail));
            }
        }
        Ok(())
    }
}

/// A file that is there, whatever its names are.
struct Wanted {
    bytes: u64,
    handle: Handle,
}

impl Wanted {
    fn of(path: &Path) -> Option<Wanted> {
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Wanted { bytes: found.len(), handle: Handle::from_path(path).ok()? })
    }

    /// Where the standard output goes, if that is a file.
    fn of_stdout() -> Option<Wanted> {
        let handle = Handle::stdout().ok()?;
        let found = handle.as_file().metadata().ok().filter(fs::Metadata::is_file)?;
        Some(Wanted { bytes: found.len(), handle })
    }

    fn find(&self, input: &Path, depth: usize) -> Option<PathBuf> {
        let found = fs::metadata(input).ok()?;
        if found.is_dir() && depth < MAX_DEPTH {
            let entries = fs::read_dir(input).ok()?.filter_map(|entry| entry.ok().map(|e| e.path()));
            // Pictures in a model's folder are no part of the model: whoever keeps them there makes them anew.
            return entries.filter(|entry| !is_picture(entry)).find_map(|entry| self.find(&entry, depth + 1));
        }
        // Opening is for those that may be it: a pipe would wait for its writer.
        let may_be = found.is_file() && found.len() == self.bytes;
        (may_be && Handle::from_path(input).is_ok_and(|handle| handle == self.handle)).then(|| input.to_owned())
    }
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    ["png", "jpg", "jpeg", "webp"].contains(&extension.as_str())
}

#[cfg(test)]
mod tests {
    use crate::FileSet;
    use std::fs;

    #[cfg(target_os = "linux")]
    #[test]
    fn an_input_is_known_as_an_open_descriptor() {
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["me.jpg", "other.jpg"] {
            fs::write(at(name), "same bytes").unwrap();
        }
        let open = |name: &str| fs::OpenOptions::new().append(true).open(at(name)).unwrap();
        let (input, other) = (open("me.jpg"), open("other.jpg"));
        let names = |file: &fs::File| {
            let number = file.as_raw_fd();
            ["/proc/self/fd", "/dev/fd", "/proc/thread-self/fd"].map(|folder| format!("{folder}/{number}"))
        };
        for name in names(&input) {
            let mut inputs_first = FileSet::new();
            inputs_first.reads(at("me.jpg")).unwrap();
            let mut outputs_first = FileSet::new();
            outputs_first.claim(&name).unwrap();
            for refused in [inputs_first.claim(&name), outputs_first.reads(at("me.jpg"))] {
                let message = refused.unwrap_err().to_string();
                assert!(message.contains("is also read, as ") && message.starts_with(&name), "{message}");
            }
        }
        let mut set = FileSet::new();
        set.reads(at("me.jpg")).unwrap();
        names(&other).iter().take(1).for_each(|name| set.claim(name).unwrap());
    }

    #[test]
    fn nothing_new_becomes_a_part_of_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("model/unet")).unwrap();
        fs::write(at("model.safetensors"), "weights").unwrap();
        let claim = |name: &str| {
            let mut set = FileSet::new();
            for input in ["model", "model.safetensors", "defaults.json"] {
                set.reads(at(input)).unwrap();
            }
            set.claim(at(name)).map_err(|e| e.to_string())
        };
        for name in ["model/generation_defaults.json", "model/unet/latents.safetensors", "model/unet/../x.json"] {
            let message = claim(name).unwrap_err();
            assert!(message.contains("become a part of it") && message.contains("/model"), "{name}: {message}");
        }
        assert!(claim("defaults.json").unwrap_err().contains("would be read by the next run"));
        for name in ["model/new.png", "latents.safetensors", "models.json"] {
            claim(name).unwrap();
        }
    }

    #[test]
    fn an_input_is_known_under_each_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("model/unet")).unwrap();
        for name in ["me.jpg", "other.jpg", "model/unet/weights", "model/picture.png"] {
            fs::write(at(name), "same bytes").unwrap();
        }
        fs::hard_link(at("me.jpg"), at("hard.jpg")).unwrap();
        let mut names = vec!["me.jpg", "./me.jpg", "model/../me.jpg", "hard.jpg", "model/unet/weights"];
        if cfg!(unix) {
            #[cfg(unix)]
            std::os::unix::fs::symlink(at("me.jpg"), at("soft.jpg")).unwrap();
            names.push("soft.jpg");
        }
        if at("ME.JPG").exists() {
            names.push("ME.JPG");
        }
        for name in names {
            let mut inputs_first = FileSet::new();
            inputs_first.reads(at("me.jpg")).unwrap();
            inputs_first.reads(at("model")).unwrap();
            inputs_first.claim(at("other.jpg")).unwrap();
            inputs_first.claim(at("model/picture.png")).unwrap();
            let mut outputs_first = FileSet::new();
            outputs_first.claim(at(name)).unwrap();
            outputs_first.reads(at("missing.jpg")).unwrap();
            let both = [
                inputs_first.claim(at(name)),
                outputs_first.reads(at("me.jpg")).and_then(|()| outputs_first.reads(at("model"))),
            ];
            for refused in both {
                let message = refused.unwrap_err().to_string();
                let input = if name.starts_with("model/unet") { "weights" } else { "me.jpg" };
                assert!(message.contains("is also read, as ") && message.contains(input), "{name}: {message}");
                assert!(message.starts_with(&at(name).display().to_string()), "{name}: {message}");
            }
        }
    }
}
