use bytes::Bytes;
use pulid_tensor::{Error, MaybeSendSync, Result};
use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes with random access.
///
/// Offsets are 64 bits wide on every target: an SDXL UNet in half precision is larger than wasm can address.
pub trait Source: Debug + MaybeSendSync {
    /// What error messages call this source; a path where there is one.
    fn path(&self) -> &Path;

    /// What tells these bytes from all others that the program reads: equal for sources of the same unchanged file.
    fn identity(&self) -> String;

    /// Number of bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of `range`, without a copy where the source allows it.
    ///
    /// # Errors
    /// When the range ends past [`Source::len`] or the bytes cannot be fetched.
    fn read(&self, range: Range<u64>) -> Result<Bytes>;
}

/// An identity for bytes that are like no others, as far as is known; `path` is for people.
pub fn unique_identity(path: &Path) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{} #{}", path.display(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The part `range` of `bytes`, or an error that names the file.
fn slice(path: &Path, bytes: &Bytes, range: Range<u64>) -> Result<Bytes> {
    let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
    match bounds {
        Some((start, end)) if start <= end && end <= bytes.len() => Ok(bytes.slice(start..end)),
        _ => Err(Error::file(
            path,
            format!(
                "bytes {} to {} are wanted but the file has {}; it is probably truncated, fetch it again",
                range.start,
                range.end,
                bytes.len()
            ),
        )),
    }
}

/// Bytes held in memory: embedded models, browser downloads, tests.
#[derive(Clone, Debug)]
pub struct MemorySource {
    path: PathBuf,
    identity: String,
    bytes: Bytes,
}

impl MemorySource {
    /// A source over `bytes`; `name` is used in messages and its extension tells the format.
    pub fn new(name: impl Into<PathBuf>, bytes: impl Into<Bytes>) -> Self {
        let path = name.into();
        MemorySource { identity: unique_identity(&path), path, bytes: bytes.into() }
    }
}

impl Source for MemorySource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        slice(&self.path, &self.bytes, range)
    }
}

/// A file mapped into memory; only the pages that are read are ever loaded.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Clone, Debug)]
pub struct MappedFile {
    path: PathBuf,
    bytes: Bytes,
    file: std::sync::Arc<std::fs::File>,
    identity: String,
    /// When it was last changed, where the file system knows.
    changed: Option<std::time::SystemTime>,
}

/// Reads up to this length are no reads of the map: the system maps many pages around each that is touched, which adds up
/// over the thousands of small headers in an archive.
#[cfg(unix)]
const SMALL: u64 = 512;

#[cfg(not(target_arch = "wasm32"))]
impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// Replacing the file by a rename, as [`crate::write_atomically`] does, is safe: the old one stays mapped. One that is
    /// written over or cut short meanwhile is noticed before each read. In the moment between that look and the use of
    /// the bytes nothing can be noticed: there the operating system answers a read past a new end with a bus error.
    ///
    /// # Errors
    /// When the file is missing, is not a regular file or cannot be mapped.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(&path, e))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "is not a regular file"));
        }
        let bytes = if metadata.len() == 0 {
            Bytes::new()
        } else {
            // SAFETY: the map is read-only and private to us. What it cannot rule out, another process truncating
            // the file, is documented above and shared with every reader of mapped weights.
            let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(&path, e))?;
            Bytes::from_owner(map)
        };
        let changed = metadata.modified().ok();
        let identity = match (path.canonicalize(), changed) {
            (Ok(whole), Some(time)) => format!("{} {} {time:?}", whole.display(), metadata.len()),
            _ => unique_identity(&path),
        };
        Ok(MappedFile { path, bytes, file: std::sync::Arc::new(file), identity, changed })
    }

    /// Checks that the file is the one that was mapped, as it was.
    fn unchanged(&self) -> Result<()> {
        let now = self.file.metadata().map_err(|e| Error::io(&self.path, e))?;
        if now.len() == self.len() && now.modified().ok() == self.changed {
            return Ok(());
        }
        let detail = format!(
            "was changed while it was being read ({} bytes became {}); start again once it is complete",
            self.len(),
            now.len()
        );
        Err(Error::file(&self.path, detail))
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Source for MappedFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.unchanged()?;
        #[cfg(unix)]
        if range.end <= self.len() && range.start <= range.end && range.end - range.start <= SMALL {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            let read = std::os::unix::fs::FileExt::read_exact_at(&*self.file, &mut bytes, range.start);
            return read.map(|()| bytes.into()).map_err(|e| Error::io(&self.path, e));
        }
        slice(&self.path, &self.bytes, range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let s = MemorySource::new("m", vec![1u8, 2, 3]);
        assert_eq!(&s.read(1..3).unwrap()[..], &[2, 3]);
        assert!(s.read(3..3).unwrap().is_empty());
        for bad in [2..4, 4..4, u64::MAX - 1..u64::MAX] {
            assert!(s.read(bad).unwrap_err().to_string().contains("truncated"));
        }
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = s.read(2..1);
        assert!(backwards.is_err());
    }

    #[cfg(windows)]
    #[test]
    fn windows_keeps_a_mapped_file_from_being_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        std::fs::write(&path, [7u8; 4096]).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert!(std::fs::File::options().write(true).open(&path).unwrap().set_len(100).is_err());
        assert_eq!(file.read(0..4096).unwrap()[4095], 7);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_changes_under_the_map_is_an_error_and_a_renamed_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let fresh = || {
            std::fs::write(&path, [7u8; 4096]).unwrap();
            MappedFile::open(&path).unwrap()
        };
        let message = |file: &MappedFile| file.read(0..4096).unwrap_err().to_string();
        let file = fresh();
        assert_eq!(file.read(0..4096).unwrap()[4095], 7);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert!(message(&file).contains("4096 bytes became 100"), "{}", message(&file));
        assert!(file.read(0..8).is_err(), "small reads go another way");
        let file = fresh();
        let hour = std::time::Duration::from_secs(3600);
        let later = std::time::SystemTime::now() + hour;
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(message(&file).contains("was changed"), "{}", message(&file));
        let file = fresh();
        std::fs::write(folder.path().join("new"), [8u8; 10]).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(file.read(0..4096).unwrap()[0], 7);
        let file = MappedFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.read(0..10).unwrap()[9], 8);
    }

    #[test]
    fn folders_are_not_mapped() {
        let folder = tempfile::tempdir().unwrap();
        assert!(MappedFile::open(folder.path()).is_err());
        let empty = folder.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        assert!(MappedFile::open(empty).unwrap().is_empty());
    }
}
