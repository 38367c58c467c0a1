//! Files by path, in a browser too.
//!
//! Natively these are the operating system's. In a browser there is none to ask: whoever has a file there, from the network, from
//! storage or from a person's hand, [`mount`]s it under a path, and whatever reads models by path works as it is.

use crate::Source;
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(target_arch = "wasm32")]
use mounted as system;
#[cfg(target_arch = "wasm32")]
pub use mounted::{mount, unmount};
#[cfg(not(target_arch = "wasm32"))]
use native as system;

/// Largest file that is read as a text: some hundred times the largest tokenizer's.
const MAX_TEXT: u64 = 256 << 20;

/// Whether there is a file at `path`.
pub fn is_file(path: impl AsRef<Path>) -> bool {
    system::is_file(path.as_ref())
}

/// Whether there is a folder at `path`.
pub fn is_dir(path: impl AsRef<Path>) -> bool {
    system::is_dir(path.as_ref())
}

/// Opens a file for reading at any offset.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn open(path: impl AsRef<Path>) -> Result<Arc<dyn Source>> {
    system::open(path.as_ref())
}

/// The files and folders in a folder, in no particular order.
///
/// # Errors
/// When there is no such folder.
pub fn list(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    system::list(folder.as_ref())
}

/// Reads a text.
///
/// # Errors
/// When there is no such file, or it is not UTF-8 or far larger than any text of a model.
pub fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let file = open(path)?;
    if file.len() > MAX_TEXT {
        return Err(Error::file(path, format!("has {} bytes, too many for a text", file.len())));
    }
    let bytes = file.read(0..file.len())?;
    let text = std::str::from_utf8(&bytes).map_err(|e| Error::file(path, format!("is no text in UTF-8: {e}")))?;
    Ok(text.to_owned())
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use super::*;
    use crate::MappedFile;

    pub fn is_file(path: &Path) -> bool {
        path.is_file()
    }

    pub fn is_dir(path: &Path) -> bool {
        path.is_dir()
    }

    pub fn open(path: &Path) -> Result<Arc<dyn Source>> {
        Ok(Arc::new(MappedFile::open(path)?))
    }

    pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
        let io = |e| Error::io(folder, e);
        std::fs::read_dir(folder).map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path())).collect()
    }
}

#[cfg(target_arch = "wasm32")]
mod mounted {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        static FILES: RefCell<Mounts> = RefCell::default();
    }

    /// Makes a source the file at `path`, in place of one that may be there.
    pub fn mount(path: impl Into<PathBuf>, source: Arc<dyn Source>) {
        FILES.with_borrow_mut(|files| files.0.insert(path.into(), source));
    }

    /// Forgets the file at `path` and those below it. What is open stays open.
    pub fn unmount(path: impl AsRef<Path>) {
        FILES.with_borrow_mut(|files| files.0.retain(|file, _| !file.starts_with(path.as_ref())));
    }

    pub fn is_file(path: &Path) -> bool {
        FILES.with_borrow(|files| files.0.contains_key(path))
    }

    pub fn is_dir(path: &Path) -> bool {
        FILES.with_borrow(|files| files.is_dir(path))
    }

    pub fn open(path: &Path) -> Result<Arc<dyn Source>> {
        FILES.with_borrow(|files| files.0.get(path).cloned()).ok_or_else(|| not_found(path))
    }

    pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
        FILES.with_borrow(|files| files.list(folder)).ok_or_else(|| not_found(folder))
    }

    fn not_found(path: &Path) -> Error {
        Error::file(path, "is not among the model's files")
    }
}

/// Sources by path. Folders are what the paths imply.
#[cfg(any(target_arch = "wasm32", test))]
#[derive(Debug, Default)]
struct Mounts(std::collections::BTreeMap<PathBuf, Arc<dyn Source>>);

#[cfg(any(target_arch = "wasm32", test))]
impl Mounts {
    fn is_dir(&self, path: &Path) -> bool {
        self.0.keys().any(|file| file != path && file.starts_with(path))
    }

    /// `None` where there is no such folder.
    fn list(&self, folder: &Path) -> Option<Vec<PathBuf>> {
        let inside = self.0.keys().filter_map(|file| file.strip_prefix(folder).ok()?.components().next());
        let mut entries: Vec<PathBuf> = inside.map(|name| folder.join(name)).collect();
        entries.dedup();
        (!entries.is_empty()).then_some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemorySource;

    #[test]
    fn mounted_paths_imply_their_folders() {
        let source = || Arc::new(MemorySource::new("m", vec![1u8])) as Arc<dyn Source>;
        let paths = ["mini/sdxl/unet/a", "mini/sdxl/unet/b", "mini/sdxl/vae/a", "mini/c"];
        let mounts = Mounts(paths.iter().map(|p| (PathBuf::from(p), source())).collect());
        for folder in ["mini", "mini/sdxl", "mini/sdxl/unet"] {
            assert!(mounts.is_dir(Path::new(folder)), "{folder}");
        }
        for other in ["mini/sdxl/unet/a", "mini/sd", "min", "x"] {
            assert!(!mounts.is_dir(Path::new(other)), "{other}");
        }
        let list = |folder: &str| mounts.list(Path::new(folder));
        assert_eq!(list("mini/sdxl").unwrap(), [PathBuf::from("mini/sdxl/unet"), PathBuf::from("mini/sdxl/vae")]);
        assert_eq!(list("mini/sdxl/vae").unwrap(), [PathBuf::from("mini/sdxl/vae/a")]);
        assert!(list("mini/unet").is_none());
    }

    #[test]
    fn texts_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        std::fs::write(&path, "né").unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "né");
        std::fs::write(&path, [0xffu8]).unwrap();
        assert!(read_to_string(&path).unwrap_err().to_string().contains("UTF-8"));
        assert!(read_to_string(folder.path().join("absent")).is_err());
        assert_eq!(list(folder.path()).unwrap(), [path]);
    }
}
