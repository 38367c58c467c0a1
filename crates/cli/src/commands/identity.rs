//! Flags and steps shared by the commands that read photos.

use pulid::identity::{DebugImage, FaceChoice, MAX_PHOTOS, debug_image_names};
use pulid_checkpoint::FileSet;
use pulid_tensor::{Error, Result, io_message};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A photo is read whole; what is larger than this is no photo.
const MAX_PHOTO_BYTES: u64 = 256 << 20;

/// Which face of each photo counts.
#[derive(clap::Args)]
pub struct FaceArgs {
    /// The person's face in photos that show several: largest, centre, left, right, or its number in the list of `pulid faces`
    /// [default: the largest that is clearly a face; see `pulid faces --help`]
    #[arg(long, value_name = "FACE")]
    face: Option<FaceChoice>,
}

impl FaceArgs {
    /// Refuses a choice where no photo is read.
    pub fn check(&self, photos: &[PathBuf]) -> Result<()> {
        match self.face {
            Some(_) if photos.is_empty() => {
                Err(Error::invalid("--face", "chooses a face in photos, and none is given; name them as --id"))
            }
            _ => Ok(()),
        }
    }

    /// The choice that is given, or the official pipelines' own.
    pub fn choice(&self) -> FaceChoice {
        self.face.unwrap_or_default()
    }
}

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

/// Refuses a folder in a photo's place.
pub fn check_no_folder(path: &Path) -> Result<()> {
    match path.is_dir() {
        true => Err(Error::photo(path.display().to_string(), "it is a folder; name a photo in it")),
        false => Ok(()),
    }
}

/// Name and bytes of a photo.
pub fn read_photo(path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    check_no_folder(path)?;
    let unreadable =
        |e: std::io::Error| Error::photo(path.display().to_string(), format!("it cannot be read: {}", io_message(&e)));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_PHOTO_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_PHOTO_BYTES {
        let detail = format!("it is larger than {} MiB; save it smaller", MAX_PHOTO_BYTES >> 20);
        return Err(Error::photo(path.display().to_string(), detail));
    }
    Ok((name, bytes))
}

/// Claims every image that `--debug-dir` may hold in the end.
pub fn claim_debug_images(files: &mut FileSet, folder: &Path, photos: usize) -> Result<()> {
    files.claim_folder(folder)?;
    debug_image_names(photos).iter().try_for_each(|name| files.claim(folder.join(name)))
}

/// Puts the images among the files to be written.
pub fn write_debug_images(files: &mut FileSet, folder: &Path, images: &[DebugImage]) -> Result<()> {
    images.iter().try_for_each(|image| files.write_bytes(folder.join(&image.name), &image.to_png()?))
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
        assert!(missing.to_string().ends_with("it cannot be read: there is no such file or folder"), "{missing}");
        let given = read_photo(folder.path()).unwrap_err();
        assert!(matches!(given, Error::Photo { .. }), "{given}");
        assert!(given.to_string().contains("it is a folder; name a photo in it"), "{given}");
    }

    #[test]
    fn pictures_may_go_to_a_new_folder_but_not_over_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(claim_debug_images(&mut FileSet::new(), &at("new/and/deeper"), 4).is_ok());
        std::fs::write(at("file"), b"").unwrap();
        assert!(claim_debug_images(&mut FileSet::new(), &at("file"), 1).is_err());
        std::fs::create_dir_all(at("there/2_mask.png")).unwrap();
        assert!(claim_debug_images(&mut FileSet::new(), &at("there"), 1).is_ok());
        let message = claim_debug_images(&mut FileSet::new(), &at("there"), 2).unwrap_err().to_string();
        assert!(message.contains("2_mask.png"), "{message}");
        assert!(!at("new").exists());
    }
}
