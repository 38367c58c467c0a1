//! Where training images lie: folders, JSONL, webdataset tars.
//!
//! A listing reads names, captions and archive headers; images are read when they are prepared.

use pulid_tensor::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Endings of images, in lower case.
const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// An image file or a caption that is larger is none.
const MOST_IMAGE_BYTES: u64 = 256 << 20;
const MOST_CAPTION_BYTES: u64 = 1 << 20;

/// Folders in folders, beyond which a link leads in a circle.
const MOST_DEPTH: usize = 16;

/// An image and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name within the data, by which it is known in caches and lists.
    pub id: String,
    /// Whom it shows, where that is told: images of one name show one person.
    pub person: Option<String>,
    /// Its caption; empty where there is none.
    pub caption: String,
    /// Where its bytes lie.
    pub place: Place,
}

/// Where an image's bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file.
    File(PathBuf),
    /// A part of an archive.
    Archive {
        /// The archive.
        path: PathBuf,
        /// Of its first byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// What lies in the data, and what is no use of it.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Images, in an order that depends on nothing but names.
    pub items: Vec<Item>,
    /// What cannot be used, by name, and why.
    pub rejected: Vec<(String, String)>,
}

impl Item {
    /// The image's bytes.
    ///
    /// # Errors
    /// When they cannot be read or are larger than any image.
    pub fn read(&self) -> Result<Vec<u8>> {
        let failed = |e: std::io::Error| Error::photo(&self.id, format!("it cannot be read: {e}"));
        let too_large = || Error::photo(&self.id, format!("it is larger than {} MiB", MOST_IMAGE_BYTES >> 20));
        let mut bytes = Vec::new();
        match &self.place {
            Place::File(path) => {
                let file = File::open(path).map_err(failed)?;
                file.take(MOST_IMAGE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
            }
            Place::Archive { length, .. } if *length > MOST_IMAGE_BYTES => return Err(too_large()),
            Place::Archive { path, offset, length } => {
                let mut file = File::open(path).map_err(failed)?;
                file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                file.take(*length).read_to_end(&mut bytes).map_err(failed)?;
                if (bytes.len() as u64) < *length {
                    return Err(Error::photo(&self.id, "the archive ends within it"));
                }
            }
        }
        if bytes.len() as u64 > MOST_IMAGE_BYTES { Err(too_large()) } else { Ok(bytes) }
    }
}

/// Lists the images of a folder, a `.jsonl` file or a `.tar`.
///
/// A folder: images at any depth, each with a caption in a `.txt` of its name; what lies in a subfolder shows the person that the
/// subfolder is named after. Archives in it are read too. JSONL: a line an image, `{"image_file": .., "text": ..}`, with `"person"` where it
/// is known; names are relative to the file. A tar in webdataset's way: files of one name up to the first dot make a sample.
///
/// # Errors
/// When there is no such file or folder, a list is malformed, or nothing in it is an image.
pub fn list(data: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    if data.is_dir() {
        folder(data, data, 0, &mut listing)?;
    } else if ends_in(data, &["jsonl"]) {
        json_lines(data, &mut listing)?;
    } else if ends_in(data, &["tar"]) {
        archive(data, "", &mut listing)?;
    } else if !data.exists() {
        return Err(Error::file(
            data,
            "there is no such file or folder; training data is a folder, a .jsonl or a .tar",
        ));
    } else {
        return Err(Error::file(data, "is no training data: a folder, a .jsonl file or a .tar is expected"));
    }
    if listing.items.is_empty() {
        let detail = match listing.rejected.first() {
            Some((name, why)) => format!("holds no image that can be used; {name}: {why}"),
            None => {
                format!("holds no image: files ending in {} are looked for", IMAGES.map(|e| format!(".{e}")).join(", "))
            }
        };
        return Err(Error::file(data, detail));
    }
    Ok(listing)
}

fn ends_in(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|e| endings.contains(&e.to_string_lossy().to_lowercase().as_str()))
}

/// A path below a root, with slashes.
fn name_below(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn folder(root: &Path, here: &Path, depth: usize, listing: &mut Listing) -> Result<()> {
    if depth > MOST_DEPTH {
        return Err(Error::file(
            here,
            format!("lies more than {MOST_DEPTH} folders deep; does a link lead in a circle?"),
        ));
    }
    let entries = std::fs::read_dir(here).map_err(|e| Error::io(here, e))?;
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>();
    let paths = paths.as_mut().map_err(|e| Error::file(here, format!("cannot be listed: {e}")))?;
    paths.sort();
    for path in paths.iter() {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            folder(root, path, depth + 1, listing)?;
        } else if ends_in(path, &["tar"]) {
            archive(path, &name_below(root, path), listing)?;
        } else if ends_in(path, &IMAGES) {
            let id = name_below(root, path);
            match caption_beside(path) {
                Ok(caption) => listing.items.push(Item {
                    person: (here != root).then(|| name_below(root, here)),
                    caption,
                    place: Place::File(path.clone()),
                    id,
                }),
                Err(why) => listing.rejected.push((id, why)),
            }
        }
    }
    Ok(())
}

/// The caption in a `.txt` of the image's name.
fn caption_beside(image: &Path) -> std::result::Result<String, String> {
    let path = image.with_extension("txt");
    match File::open(&path) {
        Ok(file) => caption(file),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(format!("its caption {} cannot be read: {e}", path.display())),
    }
}

fn caption(reader: impl Read) -> std::result::Result<String, String> {
    let mut bytes = Vec::new();
    let read = reader.take(MOST_CAPTION_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| format!("its caption cannot be read: {e}"))?;
    if bytes.len() as u64 > MOST_CAPTION_BYTES {
        return Err(format!("its caption is larger than {} MiB", MOST_CAPTION_BYTES >> 20));
    }
    let text = String::from_utf8(bytes).map_err(|_| "its caption is no UTF-8 text".to_owned())?;
    Ok(text.trim().to_owned())
}

#[derive(serde::Deserialize)]
struct Line {
    image_file: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    person: Option<String>,
}

fn json_lines(path: &Path, listing: &mut Listing) -> Result<()> {
    let root = path.parent().unwrap_or(Path::new(""));
    let mut reader = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let mut seen = std::collections::HashSet::new();
    for number in 1.. {
        let mut bytes = Vec::new();
        let mut limited = (&mut reader).take(MOST_CAPTION_BYTES + 1);
        if limited.read_until(b'\n', &mut bytes).map_err(|e| Error::io(path, e))? == 0 {
            break;
        }
        let wrong = |why: String| Error::file(path, format!("line {number} {why}"));
        if bytes.len() as u64 > MOST_CAPTION_BYTES {
            return Err(wrong(format!("is longer than {} MiB", MOST_CAPTION_BYTES >> 20)));
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let expected = r#"is not {"image_file": "..", "text": ".."}"#;
        let line: Line = serde_json::from_slice(&bytes).map_err(|e| wrong(format!("{expected}: {e}")))?;
        if !seen.insert(line.image_file.clone()) {
            listing.rejected.push((line.image_file, format!("line {number} names it again")));
            continue;
        }
        listing.items.push(Item {
            place: Place::File(root.join(&line.image_file)),
            id: line.image_file,
            person: line.person,
            caption: line.text.trim().to_owned(),
        });
    }
    Ok(())
}

/// What a sample of a tar says of itself.
#[derive(Default)]
struct Sample {
    image: Option<(String, u64, u64)>,
    caption: Option<std::result::Result<String, String>>,
    person: Option<String>,
}

fn archive(path: &Path, below: &str, listing: &mut Listing) -> Result<()> {
    let broken = |e: std::io::Error| Error::file(path, format!("is no whole tar: {e}"));
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut archive = tar::Archive::new(file);
    let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
    for entry in archive.entries_with_seek().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        // webdataset: the key is the path up to the first dot of the file's own name.
        let start = name.rfind('/').map_or(0, |at| at + 1);
        let Some(dot) = name[start..].find('.').map(|at| start + at) else { continue };
        let (key, ending) = (name[..dot].to_owned(), name[dot + 1..].to_lowercase());
        let (offset, length) = (entry.raw_file_position(), entry.size());
        let sample = samples.entry(key).or_default();
        match ending.as_str() {
            "txt" => sample.caption = Some(caption(&mut entry)),
            "json" => {
                let value: Option<serde_json::Value> =
                    caption(&mut entry).ok().and_then(|text| serde_json::from_str(&text).ok());
                let text = |key: &str| value.as_ref()?.get(key)?.as_str().map(str::to_owned);
                sample.person = text("person");
                if let (None, Some(text)) = (&sample.caption, text("text").or_else(|| text("caption"))) {
                    sample.caption = Some(Ok(text.trim().to_owned()));
                }
            }
            ending if IMAGES.contains(&ending) => sample.image = Some((name, offset, length)),
            _ => {}
        }
    }
    for Sample { image, caption, person } in samples.into_values() {
        let Some((name, offset, length)) = image else { continue };
        let id = if below.is_empty() { name } else { format!("{below}/{name}") };
        match caption.unwrap_or_else(|| Ok(String::new())) {
            Ok(caption) => listing.items.push(Item {
                id,
                person,
                caption,
                place: Place::Archive { path: path.to_owned(), offset, length },
            }),
            Err(why) => listing.rejected.push((id, why)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn brief(listing: &Listing) -> Vec<(&str, Option<&str>, &str)> {
        listing.items.iter().map(|i| (i.id.as_str(), i.person.as_deref(), i.caption.as_str())).collect()
    }

    #[test]
    fn a_folder_gives_images_captions_and_people() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("ada/old")).unwrap();
        for name in ["b.PNG", "a.jpg", "ada/1.webp", "ada/old/2.jpeg", "note.md", ".hidden.png"] {
            fs::write(at(name), name).unwrap();
        }
        fs::write(at("a.txt"), " a man\n").unwrap();
        fs::write(at("ada/1.txt"), "Ada").unwrap();
        let found = list(folder.path()).unwrap();
        let expected = [
            ("a.jpg", None, "a man"),
            ("ada/1.webp", Some("ada"), "Ada"),
            ("ada/old/2.jpeg", Some("ada/old"), ""),
            ("b.PNG", None, ""),
        ];
        assert_eq!(brief(&found), expected);
        assert_eq!(found.items[1].read().unwrap(), b"ada/1.webp");
        // A caption that is no text costs its image alone.
        fs::write(at("b.txt"), [0xff, 0xfe]).unwrap();
        let found = list(folder.path()).unwrap();
        assert_eq!(found.items.len(), 3);
        assert_eq!(found.rejected, [("b.PNG".to_owned(), "its caption is no UTF-8 text".to_owned())]);
    }

    #[test]
    fn json_lines_name_images_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        let text = "{\"image_file\": \"x/1.png\", \"text\": \"one\", \"person\": \"p\"}\n\n{\"image_file\": \"2.png\"}\n\
                    {\"image_file\": \"2.png\", \"text\": \"again\"}";
        fs::write(&path, text).unwrap();
        let found = list(&path).unwrap();
        assert_eq!(brief(&found), [("x/1.png", Some("p"), "one"), ("2.png", None, "")]);
        assert_eq!(found.rejected[0].1, "line 4 names it again");
        assert!(found.items[0].read().unwrap_err().to_string().contains("x/1.png"));
        fs::write(&path, "{\"image\": 1}").unwrap();
        let message = list(&path).unwrap_err().to_string();
        assert!(message.contains("line 1 is not {\"image_file\""), "{message}");
    }

    fn tar_of(path: &Path, files: &[(&str, &[u8])]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.finish().unwrap();
    }

    #[test]
    fn a_webdataset_s_files_of_one_name_are_a_sample() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        tar_of(
            &path,
            &[
                ("a/0001.jpg", b"first"),
                ("a/0001.txt", b"one"),
                ("a/0002.json", br#"{"text": "two", "person": "ada"}"#),
                ("a/0002.png", b"second"),
                ("a/0003.cls", b"3"),
            ],
        );
        let found = list(&path).unwrap();
        assert_eq!(brief(&found), [("a/0001.jpg", None, "one"), ("a/0002.png", Some("ada"), "two")]);
        assert_eq!(found.items[0].read().unwrap(), b"first");
        assert_eq!(found.items[1].read().unwrap(), b"second");
        // In a folder the shard's name tells equal keys apart.
        assert_eq!(list(folder.path()).unwrap().items[1].id, "shard.tar/a/0002.png");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..700]).unwrap();
        let message = list(&path).map(|l| l.items.first().map(Item::read)).err().map(|e| e.to_string());
        assert!(message.is_none_or(|m| m.contains("shard.tar")));
    }

    #[test]
    fn what_is_no_data_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path, part: &str| {
            let message = list(path).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused(folder.path(), "holds no image");
        refused(&folder.path().join("none"), "no such file or folder");
        let file = folder.path().join("a.zip");
        fs::write(&file, "x").unwrap();
        refused(&file, "is no training data");
        let tar = folder.path().join("a.tar");
        fs::write(&tar, [b'x'; 1024]).unwrap();
        refused(&tar, "a.tar");
    }
}
