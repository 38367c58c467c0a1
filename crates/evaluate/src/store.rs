//! The folder of an evaluation: finished pictures, and the list of them that lets it go on.

use pulid::image::{RgbImage, write_atomically};
use pulid_checkpoint::sha256_file;
use pulid_tensor::{Error, Result, io_message};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A list is not larger than this: some million pictures.
const MOST_BYTES: u64 = 1 << 30;

/// Characters of a prompt that stand in its picture's name.
const SLUG: usize = 40;

/// A finished picture, one line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    /// SHA-256 of all that makes the picture what it is.
    key: String,
    /// Where it lies in the folder, with `/` between parts.
    picture: String,
    /// SHA-256 of its file.
    sha256: String,
    /// For people: what it shows.
    prompt: String,
    seed: u64,
}

/// Pictures in a folder, `pictures/` in it, and `pictures.jsonl`, a line for each that is finished.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    done: BTreeMap<String, Line>,
    /// Opened with the first picture, so that an evaluation which comes to none leaves no folder.
    list: Option<File>,
}

impl Store {
    /// The list's name.
    pub const LIST: &str = "pictures.jsonl";

    /// Looks at a folder, which is made with the first picture if it is not there. A line that was not finished, as when the power went,
    /// counts for nothing.
    ///
    /// # Errors
    /// A folder that holds something else, or that cannot be read.
    pub fn open(folder: &Path) -> Result<Store> {
        let path = folder.join(Self::LIST);
        let mut text = String::new();
        if path.is_file() {
            if std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len() > MOST_BYTES {
                return Err(Error::file(&path, "is too large for a list of pictures"));
            }
            text = std::fs::read_to_string(&path)
                .map_err(|e| Error::file(&path, format!("cannot be read: {}", io_message(&e))))?;
        } else if folder.is_dir() {
            if std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.next().is_some() {
                let detail = format!("holds something, and no evaluation ({}); name a new folder", Self::LIST);
                return Err(Error::file(folder, detail));
            }
        } else if folder.exists() {
            return Err(Error::file(folder, "is no folder; name one for the pictures and their measures"));
        }
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let done = lines.map(|line: Line| (line.key.clone(), line)).collect();
        Ok(Store { folder: folder.to_owned(), done, list: None })
    }

    /// The list, to be added to; what is broken in it is taken out first.
    fn list(&mut self) -> Result<&mut File> {
        let opened = match self.list.take() {
            Some(list) => list,
            None => {
                std::fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
                let path = self.folder.join(Self::LIST);
                let whole: String = self.done.values().map(line_text).collect::<Result<_>>()?;
                write_atomically(&path, whole.as_bytes())?;
                File::options().append(true).open(&path).map_err(|e| Error::io(&path, e))?
            }
        };
        Ok(self.list.insert(opened))
    }

    /// Whether the picture of a key is there as it was written.
    pub fn has(&self, key: &str) -> bool {
        self.done.get(key).is_some_and(|line| {
            let path = self.folder.join(&line.picture);
            // Names come from a file that anybody may have changed.
            inside(&line.picture) && path.is_file() && sha256_file(&path).is_ok_and(|found| found == line.sha256)
        })
    }

    /// Where a finished picture lies in the folder, with `/` between parts.
    ///
    /// # Errors
    /// When there is none of that key.
    pub fn picture(&self, key: &str) -> Result<&str> {
        let line = self.done.get(key).ok_or_else(|| Error::file(&self.folder, "lacks a picture that was made"))?;
        Ok(&line.picture)
    }

    /// The pixels of a finished picture.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn read(&self, key: &str) -> Result<RgbImage> {
        self.read_named(self.picture(key)?)
    }

    /// The pixels of a picture by its name in the folder.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn read_named(&self, picture: &str) -> Result<RgbImage> {
        let path = self.folder.join(picture);
        let image = image::open(&path).map_err(|e| Error::file(&path, format!("cannot be read as a picture: {e}")))?;
        Ok(image.to_rgb8())
    }

    /// Keeps a picture: first its file, then its line.
    ///
    /// # Errors
    /// When the folder takes neither.
    pub fn keep(&mut self, key: &str, folders: &[&str], prompt: &str, seed: u64, png: &[u8]) -> Result<()> {
        self.list()?;
        let names = folders.iter().map(|name| slug(name, 80));
        let folders = std::iter::once("pictures".to_owned()).chain(names).collect::<Vec<_>>().join("/");
        let picture = format!("{folders}/{}-{}-{seed}.png", slug(prompt, SLUG), &key[..key.len().min(8)]);
        let path = self.folder.join(&picture);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        }
        write_atomically(&path, png)?;
        let line = Line { key: key.to_owned(), picture, sha256: sha256(&[png]), prompt: prompt.to_owned(), seed };
        let list = self.folder.join(Self::LIST);
        let text = line_text(&line)?;
        let file = self.list()?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(|e| Error::io(list, e))?;
        self.done.insert(key.to_owned(), line);
        Ok(())
    }
}

fn line_text(line: &Line) -> Result<String> {
    let text = serde_json::to_string(line).map_err(|e| Error::invalid("pictures", e.to_string()))?;
    Ok(text + "\n")
}

/// Whether a name stays below the folder it is joined to.
fn inside(name: &str) -> bool {
    let parts = Path::new(name).components();
    parts.into_iter().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// SHA-256 of parts, each with its length before it, in hexadecimal digits; of one part alone it is that of its bytes.
pub(crate) fn sha256(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        if parts.len() > 1 {
            hasher.update((part.len() as u64).to_le_bytes());
        }
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text as a part of a file's name on every system.
fn slug(text: &str, most: usize) -> String {
    let mut slug = String::new();
    for c in text.chars().take(4 * most) {
        match c {
            c if c.is_alphanumeric() || c == '_' || c == '.' && !slug.is_empty() => slug.push(c),
            _ if slug.ends_with('-') || slug.is_empty() => {}
            _ => slug.push('-'),
        }
    }
    let slug: String = slug.chars().take(most).collect();
    let slug = slug.trim_end_matches(['-', '.']);
    if slug.is_empty() { "_".to_owned() } else { slug.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_after_a_torn_line_and_not_after_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("out");
        let png = |shade: u8| {
            let image = RgbImage::from_pixel(4, 4, image::Rgb([shade; 3]));
            pulid::image::encode_png(&image, &Default::default()).unwrap()
        };
        let mut store = Store::open(&at).unwrap();
        assert!(!at.exists());
        store.keep("0123456789", &["own", "Ada L."], "a person, oil/painting", 7, &png(9)).unwrap();
        store.keep("abcdefghij", &["own"], "", 8, &png(10)).unwrap();
        assert_eq!(store.picture("0123456789").unwrap(), "pictures/own/Ada-L/a-person-oil-painting-01234567-7.png");
        drop(store);
        let list = at.join(Store::LIST);
        let whole = std::fs::read_to_string(&list).unwrap();
        std::fs::write(&list, format!("{whole}{{\"key\": \"torn")).unwrap();
        let mut store = Store::open(&at).unwrap();
        assert!(store.has("0123456789") && store.has("abcdefghij") && !store.has("torn"));
        assert_eq!(store.read("0123456789").unwrap().get_pixel(0, 0).0, [9; 3]);
        store.keep("more", &[], "x", 1, &png(1)).unwrap();
        let lines = std::fs::read_to_string(&list).unwrap();
        assert!(
            lines.lines().count() == 3 && !lines.contains("torn") && whole.lines().all(|line| lines.contains(line))
        );
        std::fs::write(at.join(store.picture("abcdefghij").unwrap()), png(11)).unwrap();
        let store = Store::open(&at).unwrap();
        assert!(store.has("more") && !store.has("abcdefghij"));
    }

    #[test]
    fn other_folders_and_names_that_lead_out_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.txt"), b"mine").unwrap();
        assert!(Store::open(folder.path()).unwrap_err().to_string().contains("name a new folder"));
        for (name, holds) in
            [("pictures/a.png", true), ("../a.png", false), ("/etc/passwd", false), ("a/../../b", false)]
        {
            assert_eq!(inside(name), holds, "{name}");
        }
        assert_eq!(
            (slug("../..", 9), slug("a  b!", 9), slug("ärger.x", 9)),
            ("_".into(), "a-b".into(), "ärger.x".into())
        );
    }
}
