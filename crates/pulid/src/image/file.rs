#![cfg(not(target_arch = "wasm32"))]

use pulid_tensor::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file so that other programs see either the old one or the whole new one, whatever happens meanwhile.
///
/// The bytes go to a temporary file beside `path`, which then takes its name; on failure it is removed again.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let (temporary, mut file) = create_beside(path).map_err(|e| Error::io(path, e))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    drop(file);
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|e| {
        // The first error is the one to report; a leftover file is only untidy.
        let _ = fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

fn create_beside(path: &Path) -> std::io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "this is no file name"));
    };
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{number}.tmp", std::process::id()));
        let temporary = path.with_file_name(hidden);
        match File::create_new(&temporary) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => return result.map(|file| (temporary, file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pulid-file-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_behind() {
        let folder = folder("replace");
        let path = folder.join("a.png");
        write_atomically(&path, b"old").unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(&folder), ["a.png"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn failures_name_the_file_and_clean_up() {
        let folder = folder("failure");
        let missing = folder.join("no/such/folder/a.png");
        assert!(write_atomically(&missing, b"x").unwrap_err().to_string().contains("a.png"));
        let taken = folder.join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        assert!(write_atomically(&taken, b"x").is_err());
        assert_eq!(names(&folder), ["taken"]);
        assert!(write_atomically(Path::new("/"), b"x").is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
