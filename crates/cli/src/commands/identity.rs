//! Flags and steps shared by the commands that read photos.

use pulid::identity::MAX_PHOTOS;
use pulid_tensor::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A photo is read whole; what is larger than this is no photo.
const MAX_PHOTO_BYTES: u64 = 256 << 20;

/// Names and bytes of photos.
///
/// # Errors
/// [`Error::Invalid`] for another number than 1 to [`MAX_PHOTOS`]; [`Error::Photo`] for a photo that cannot be read or is
/// larger than any photo.
pub fn read_photos(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    if !(1..=MAX_PHOTOS).contains(&paths.len()) {
        let detail = format!("{} are given; 1 to {MAX_PHOTOS} photos of one person are read together", paths.len());
        return Err(Error::invalid("photos", detail));
    }
    paths.iter().map(|path| read_photo(path)).collect()
}

/// Name and bytes of a photo.
pub fn read_photo(path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    let unreadable = |e: std::io::Error| Error::photo(path.display().to_string(), format!("it cannot be read: {e}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_PHOTO_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_PHOTO_BYTES {
        let detail = format!("it is larger than {} MiB; save it smaller", MAX_PHOTO_BYTES >> 20);
        return Err(Error::photo(path.display().to_string(), detail));
    }
    Ok((name, bytes))
}

/// Checks, before any work, that a folder exists or can be made.
pub fn check_folder(path: &Path) -> Result<()> {
    match path.ancestors().find(|p| p.exists() || p.as_os_str().is_empty()) {
        Some(existing) if !existing.as_os_str().is_empty() && !existing.is_dir() => {
            Err(Error::file(existing, "is a file; a folder is needed here"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photos_are_counted_and_read_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let photo = folder.path().join("me.jpg");
        std::fs::write(&photo, b"bytes").unwrap();
        assert_eq!(read_photos(std::slice::from_ref(&photo)).unwrap(), [("me.jpg".to_owned(), b"bytes".to_vec())]);
        assert!(read_photos(&[]).is_err());
        assert!(read_photos(&vec![photo; 5]).is_err());
        let missing = read_photo(&folder.path().join("none.jpg")).unwrap_err();
        assert!(matches!(missing, Error::Photo { .. }), "{missing}");
        assert!(matches!(read_photo(folder.path()).unwrap_err(), Error::Photo { .. }));
    }

    #[test]
    fn a_folder_for_pictures_may_be_new_but_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(check_folder(&folder.path().join("new/and/deeper")).is_ok());
        assert!(check_folder(Path::new("relative-and-new")).is_ok());
        assert!(check_folder(&file).is_err());
        assert!(check_folder(&file.join("below")).is_err());
    }
}
