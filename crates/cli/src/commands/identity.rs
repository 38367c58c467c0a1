//! Flags and steps shared by the commands that read photos.

use pulid::identity::{FaceModels, MAX_PHOTOS};
use pulid::preset::Preset;
use pulid_checkpoint::Checkpoint;
use pulid_models::pulid::PulidVersion;
use pulid_tensor::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A photo is read whole; what is larger than this is no photo.
const MAX_PHOTO_BYTES: u64 = 256 << 20;

/// PuLID files, by the names they are published under.
const ADAPTERS: [(PulidVersion, &str); 3] = [
    (PulidVersion::V1_1, "pulid_v1.1.safetensors"),
    (PulidVersion::V1, "pulid_v1.safetensors"),
    (PulidVersion::V1, "pulid_v1.bin"),
];

/// Where models lie unless a flag names them one by one.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelsArgs {
    /// Folder with `antelopev2/`, `parsing_bisenet.safetensors`, `eva_clip.safetensors`, if wanted
    /// `detection_Resnet50_Final.pth`, and the defaults of --adapter and --model [default: the mini models]
    #[arg(long, env = "PULID_MODELS", value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

impl ModelsArgs {
    /// The folder of models.
    ///
    /// # Errors
    /// When none was named and the mini models are not found beside the program or the current folder.
    pub fn folder(&self) -> Result<PathBuf> {
        match &self.models_dir {
            Some(folder) => Ok(folder.clone()),
            None => mini_models().ok_or_else(|| {
                let detail = "the mini models (models/mini) are neither below this folder nor beside the program; \
                              name a folder of models";
                Error::invalid("--models-dir", detail)
            }),
        }
    }

    /// The face networks.
    pub fn face_models(&self) -> Result<FaceModels> {
        FaceModels::open(self.folder()?)
    }

    /// The adapter that was named, or the folder's own: of the preset's version, else of v1.1 before v1.
    ///
    /// # Errors
    /// When there is none, or it does not fit the preset.
    pub fn adapter(&self, named: Option<&Path>, preset: Option<Preset>) -> Result<PathBuf> {
        let adapter = match named {
            Some(path) => path.to_owned(),
            None => self.own_adapter(preset)?,
        };
        // A file without an identity encoder belongs to either.
        if let Some(preset) = preset
            && let Some(version) = PulidVersion::of(&Checkpoint::open(&adapter)?)
        {
            preset.check(&adapter.display().to_string(), version)?;
        }
        Ok(adapter)
    }

    fn own_adapter(&self, preset: Option<Preset>) -> Result<PathBuf> {
        let folder = self.folder()?;
        let wanted = preset.map(|p| p.settings().version);
        let names = ADAPTERS.iter().filter(|(version, _)| wanted.is_none_or(|w| w == *version)).map(|(_, name)| *name);
        let names: Vec<_> = names.collect();
        if let Some(found) = names.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
            return Ok(found);
        }
        let what = wanted.map_or("PuLID".into(), |version| version.to_string());
        let why = preset.map_or(String::new(), |preset| format!(", to which the preset `{preset}` belongs"));
        let looked = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
        let detail = format!("holds no {what} file{why}: looked for {looked}; --adapter names another one");
        Err(Error::file(folder, detail))
    }

    /// The model that was named, or the folder's own.
    pub fn model(&self, named: Option<&Path>) -> Result<PathBuf> {
        self.own(named, "--model", "sdxl")
    }

    fn own(&self, named: Option<&Path>, flag: &str, part: &str) -> Result<PathBuf> {
        if let Some(path) = named {
            return Ok(path.to_owned());
        }
        let path = self.folder()?.join(part);
        if path.exists() {
            Ok(path)
        } else {
            Err(Error::file(path, format!("does not exist; {flag} names another one")))
        }
    }
}

/// `models/mini` in the current folder or above it, else in the program's folder or above it.
fn mini_models() -> Option<PathBuf> {
    let program = std::env::current_exe().ok().and_then(|p| p.canonicalize().ok());
    let starts = [std::env::current_dir().ok(), program];
    starts.into_iter().flatten().find_map(|start| {
        start.ancestors().map(|folder| folder.join("models/mini")).find(|folder| folder.join("eva_clip.json").is_file())
    })
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
