//! The layout that every client of the hub shares: `models--OWNER--NAME/{blobs,refs,snapshots}`.

use pulid_tensor::{Error, Result};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// A repository of models, `owner/name`, at its branch `main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo(String);

impl Repo {
    /// A repository known to be well written.
    pub(crate) fn known(name: &str) -> Repo {
        Repo(name.to_owned())
    }

    fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repo {
    type Err = Error;
    fn from_str(text: &str) -> Result<Repo> {
        let plain = |part: &str| plain(part) && !part.contains("--");
        match text.split_once('/') {
            Some((owner, name)) if plain(owner) && plain(name) => Ok(Repo(text.to_owned())),
            _ => Err(Error::invalid(text, "is no repository of the hub; one is written OWNER/NAME")),
        }
    }
}

/// Whether this text from a server or a user can be one file name, and nothing else.
pub(crate) fn plain(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= 200 && !text.starts_with('.') && text.chars().all(fine)
}

/// Whether this path from a server stays within its folder.
pub(crate) fn within(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && !path.contains('\\') && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The hub's cache, or a folder of that layout.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in this folder, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Cache {
        Cache { root: root.into() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Whether a folder has this layout.
    pub fn is_cache(folder: &Path) -> bool {
        let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().starts_with("models--"))
    }

    pub(crate) fn folder(&self, repo: &Repo) -> PathBuf {
        self.root.join(repo.folder())
    }

    /// The snapshot that holds all of these files: the one that `main` stands at, else any other.
    pub fn snapshot(&self, repo: &Repo, files: &[&str]) -> Option<PathBuf> {
        let folder = self.folder(repo);
        let snapshots = folder.join("snapshots");
        let main = std::fs::read_to_string(folder.join("refs/main")).ok();
        let main = main.map(|commit| commit.trim().to_owned()).filter(|commit| plain(commit));
        let mut others: Vec<_> =
            std::fs::read_dir(&snapshots).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        others.sort();
        let mut all = main.map(|commit| snapshots.join(commit)).into_iter().chain(others);
        all.find(|snapshot| snapshot.is_dir() && files.iter().all(|file| snapshot.join(file).is_file()))
    }

    /// A file of a repository.
    pub fn find(&self, repo: &Repo, file: &str) -> Option<PathBuf> {
        Some(self.snapshot(repo, &[file])?.join(file))
    }

    /// Lets a snapshot's file show the blob.
    pub(crate) fn link(&self, repo: &Repo, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let folder = self.folder(repo);
        let pointer = folder.join("snapshots").join(commit).join(file);
        let blob = folder.join("blobs").join(etag);
        let parent = pointer.parent().unwrap_or(&folder);
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
        if std::fs::symlink_metadata(&pointer).is_ok() {
            std::fs::remove_file(&pointer).map_err(|e| Error::io(&pointer, e))?;
        }
        // Wine says that it made one, and did not.
        let linked = symlink(&blob_from(file, etag), &pointer).is_ok() && pointer.is_file();
        if !linked {
            let _ = std::fs::remove_file(&pointer);
            // Systems without links for everybody: the same file under both names, else under one.
            std::fs::hard_link(&blob, &pointer)
                .or_else(|_| std::fs::rename(&blob, &pointer))
                .map_err(|e| Error::io(&pointer, e))?;
        }
        Ok(pointer)
    }

    /// Notes where `main` stands.
    pub(crate) fn set_main(&self, repo: &Repo, commit: &str) -> Result<()> {
        let refs = self.folder(repo).join("refs");
        let path = refs.join("main");
        std::fs::create_dir_all(&refs).map_err(|e| Error::io(&refs, e))?;
        let mut file = tempfile::NamedTempFile::new_in(&refs).map_err(|e| Error::io(&refs, e))?;
        std::io::Write::write_all(&mut file, commit.as_bytes()).map_err(|e| Error::io(&path, e))?;
        file.persist(&path).map_err(|e| Error::io(&path, e.error))?;
        Ok(())
    }
}

/// Where a blob lies, as seen from the folder of a snapshot's file. Joined part by part: Windows follows no link that holds its
/// foreign separator.
fn blob_from(file: &str, etag: &str) -> PathBuf {
    let up = std::iter::repeat_n("..", 1 + file.split('/').count());
    up.chain(["blobs", etag]).collect()
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_stay_within_their_folder() {
        assert!("guozinan/PuLID".parse::<Repo>().is_ok());
        for wrong in ["PuLID", "../x", "a/b/c", "/etc", "a/..", "a b/c", "a--b/c"] {
            assert!(wrong.parse::<Repo>().is_err(), "{wrong}");
        }
        assert!(within("unet/config.json") && !within("../x") && !within("/x") && !within("a/../../x") && !within(""));
        assert!(plain("0a1b") && !plain("..") && !plain("a/b") && !plain(""));
    }

    #[test]
    fn links_hold_the_systems_own_separator() {
        let text = |file: &str| blob_from(file, "e1").to_str().unwrap().replace(std::path::MAIN_SEPARATOR, "|");
        assert_eq!((text("x"), text("a/b/x")), ("..|..|blobs|e1".into(), "..|..|..|..|blobs|e1".into()));
    }

    #[test]
    fn the_snapshot_of_main_comes_first_and_links_are_relative() {
        let root = tempfile::tempdir().unwrap();
        let (cache, repo) = (Cache::new(root.path()), Repo::known("a/b"));
        assert!(cache.find(&repo, "x/y").is_none() && !Cache::is_cache(root.path()));
        std::fs::create_dir_all(root.path().join("models--a--b/blobs")).unwrap();
        for (commit, etag) in [("111", "e1"), ("222", "e2")] {
            std::fs::write(root.path().join("models--a--b/blobs").join(etag), etag).unwrap();
            cache.link(&repo, commit, "x/y", etag).unwrap();
        }
        cache.set_main(&repo, "222").unwrap();
        assert_eq!(std::fs::read_to_string(cache.find(&repo, "x/y").unwrap()).unwrap(), "e2");
        assert!(Cache::is_cache(root.path()) && cache.snapshot(&repo, &["x/y", "z"]).is_none());
    }
}
