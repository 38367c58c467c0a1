use crate::Outcome;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// What a model's folder holds, for those who fetch it: `manifest.json`.
#[derive(Debug, Serialize)]
pub struct Manifest {
    /// Every file, in the order of the paths.
    pub files: Vec<ManifestFile>,
}

/// A file of a [`Manifest`].
#[derive(Debug, Serialize)]
pub struct ManifestFile {
    /// Below the manifest's folder, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// Of the files in a folder that models need: JSON, texts and weights.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(folder: &Path) -> Outcome<Manifest> {
        let mut files = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(inside) = folders.pop() {
            let say = |e: std::io::Error| format!("{}: {e}", inside.display());
            for entry in std::fs::read_dir(&inside).map_err(say)? {
                let path = entry.map_err(say)?.path();
                let known = ["json", "txt", "safetensors", "onnx"];
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| known.contains(&e)) {
                    files.push(entry_of(folder, &path)?);
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Manifest { files })
    }
}

fn entry_of(root: &Path, path: &Path) -> Outcome<ManifestFile> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let inside = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = inside.components().map(|c| c.as_os_str().to_string_lossy()).collect();
    let sha256 = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    Ok(ManifestFile { path: parts.join("/"), bytes: bytes.len() as u64, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_with_their_hashes_and_others_left_out() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("unet")).unwrap();
        std::fs::write(folder.path().join("unet/config.json"), b"abc").unwrap();
        std::fs::write(folder.path().join("a.txt"), b"").unwrap();
        std::fs::write(folder.path().join("CARD.md"), b"words").unwrap();
        let files = Manifest::of(folder.path()).unwrap().files;
        assert_eq!(
            files.iter().map(|f| (f.path.as_str(), f.bytes)).collect::<Vec<_>>(),
            [("a.txt", 0), ("unet/config.json", 3)]
        );
        assert!(files[1].sha256.starts_with("ba7816bf8f01cfea"));
    }
}
