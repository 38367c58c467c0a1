//! The folder of faces.

use pulid::identity::MAX_PHOTOS;
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// Endings of photos' names.
const PHOTOS: [&str; 6] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp"];

/// A person to make pictures of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The photo's name without its ending, or the folder's.
    pub name: String,
    /// 1 to [`MAX_PHOTOS`] photos.
    pub photos: Vec<PathBuf>,
    /// Photos of the folder beyond these, which are not read.
    pub further: usize,
}

/// The people of a folder: each photo in it is one person, and so are the photos of each folder in it. Of more than [`MAX_PHOTOS`] of
/// one person the first are taken, by name. Hidden files and other kinds of file are passed over.
///
/// # Errors
/// A folder that cannot be read or shows nobody, or two people of one name.
pub fn people(folder: &Path) -> Result<Vec<Person>> {
    let mut people = Vec::new();
    for path in entries(folder)? {
        let name = |path: &Path, whole: bool| {
            let part = if whole { path.file_name() } else { path.file_stem() };
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        if path.is_dir() {
            let mut photos: Vec<_> = entries(&path)?.into_iter().filter(|path| is_photo(path)).collect();
            let further = photos.len().saturating_sub(MAX_PHOTOS);
            photos.truncate(MAX_PHOTOS);
            if !photos.is_empty() {
                people.push(Person { name: name(&path, true), photos, further });
            }
        } else if is_photo(&path) {
            people.push(Person { name: name(&path, false), photos: vec![path], further: 0 });
        }
    }
    if people.is_empty() {
        let detail = "holds no photo; give a folder with a photo of each person (JPEG, PNG, WebP), or with a folder of photos of each";
        return Err(Error::file(folder, detail));
    }
    let twice = people.iter().enumerate().find(|(i, p)| people[..*i].iter().any(|before| before.name == p.name));
    match twice {
        Some((_, person)) => {
            let detail = format!("holds two people named `{}`; names without their endings must differ", person.name);
            Err(Error::file(folder, detail))
        }
        None => Ok(people),
    }
}

fn is_photo(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    path.is_file() && extension.is_some_and(|e| PHOTOS.contains(&e.as_str()))
}

/// What lies in a folder and is not hidden, by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut paths = Vec::new();
    for entry in read {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_photo_is_a_person_and_so_is_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        };
        assert!(people(folder.path()).unwrap_err().to_string().contains("holds no photo"));
        ["b.JPG", "notes.txt", ".hidden.png", "empty/readme.md"].into_iter().for_each(put);
        (0..6).for_each(|i| put(&format!("ada/{i}.png")));
        let found = people(folder.path()).unwrap();
        let shown: Vec<_> = found.iter().map(|p| (p.name.as_str(), p.photos.len(), p.further)).collect();
        assert_eq!(shown, [("ada", 4, 2), ("b", 1, 0)]);
        put("b.png");
        assert!(people(folder.path()).unwrap_err().to_string().contains("two people named `b`"));
        assert!(people(&folder.path().join("none")).is_err());
    }
}
