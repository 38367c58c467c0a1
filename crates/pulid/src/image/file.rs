#![cfg(not(target_arch = "wasm32"))]

use pulid_tensor::{Error, Result};
use std::path::Path;

/// [`pulid_checkpoint::write_atomically`] of bytes that are all there.
///
/// # Errors
/// [`Error::Io`] naming `path`; [`Error::File`] where something else than a regular file lies there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    pulid_checkpoint::write_atomically(path, |file| file.write_all(bytes).map_err(|e| Error::io(path, e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

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
