use pulid_tensor::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// Files that appear together or not at all.
///
/// Names are claimed before the work, so that one that cannot be written is known then. At the end each file is written
/// under a temporary name beside its own, and [`FileSet::commit`] renames them all. Whatever goes wrong before or in it,
/// or where the set is dropped, everything is as it was: no new file, no new folder, older files in place.
#[derive(Debug, Default)]
pub struct FileSet {
    /// Where every claimed file will lie, by [`place`].
    claimed: BTreeSet<PathBuf>,
    /// Folders to be made, as they were named, and where they will lie.
    folders: Vec<(PathBuf, PathBuf)>,
    /// Final names of what is written so far, where that is, and the temporary files.
    written: Vec<(PathBuf, PathBuf, TempPath)>,
}

impl FileSet {
    /// No files.
    pub fn new() -> Self {
        FileSet::default()
    }

    /// Checks that a file can be written at `path` later, as far as can be told now: its folder takes new files, no folder or
    /// device has its name, and nothing else of this set will lie there.
    ///
    /// # Errors
    /// [`Error::File`] that names `path` and says what is in the way.
    pub fn claim(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.add(path)?;
        check_writable(path, existing(parent(path)).0)
    }

    /// Checks that there is a folder at `path` or that one can be made; [`FileSet::commit`] makes it. Files in it are claimed
    /// after it.
    ///
    /// # Errors
    /// [`Error::File`] that names what is in the way.
    pub fn claim_folder(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (folder, _) = existing(path);
        if !folder.is_dir() {
            return Err(Error::file(folder, "is a file; a folder is needed here"));
        }
        let place = place(path)?;
        if self.claimed.iter().any(|file| place.starts_with(file)) {
            return Err(both_kinds(path));
        }
        self.folders.push((path.to_owned(), place));
        check_writable(path, folder)
    }

    /// Writes a file under a temporary name; what was not claimed before is claimed now.
    ///
    /// # Errors
    /// As [`FileSet::claim`]; what `write` returns; what the operating system says about the folder or the disk.
    pub fn write(&mut self, path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let path = path.as_ref();
        let place = file_place(path)?;
        if !self.claimed.contains(&place) {
            self.add(path)?;
        } else if self.written.iter().any(|(_, other, _)| *other == place) {
            return Err(named_twice(path));
        }
        let io = |e| Error::io(path, e);
        let mut temporary = readable(temporaries()).tempfile_in(existing(parent(path)).0).map_err(io)?;
        let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        write(&mut buffered)?;
        buffered.flush().map_err(io)?;
        drop(buffered);
        temporary.as_file().sync_all().map_err(io)?;
        self.written.push((path.to_owned(), place, temporary.into_temp_path()));
        Ok(())
    }

    /// [`FileSet::write`] of bytes that are all there.
    ///
    /// # Errors
    /// As [`FileSet::write`].
    pub fn write_bytes(&mut self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.write(path, |file| file.write_all(bytes).map_err(|e| Error::io(path, e)))
    }

    /// Makes the claimed folders and gives every written file its name. Claims that nothing was written for lapse.
    ///
    /// # Errors
    /// What the operating system says, with the file or folder that it would not have; everything is as it was then.
    pub fn commit(self) -> Result<()> {
        let mut undo = Undo::default();
        for (folder, _) in &self.folders {
            undo.make_folder(folder)?;
        }
        let count = self.written.len();
        for (i, (path, _, temporary)) in self.written.into_iter().enumerate() {
            // Much may have happened since it was claimed.
            check_replaceable(&path)?;
            // Nothing can fail after the last one.
            if i + 1 < count {
                undo.set_aside(&path)?;
            }
            temporary.persist(&path).map_err(|e| Error::io(&path, e.error))?;
            undo.steps.push(Step::Named(path));
        }
        undo.steps.clear();
        Ok(())
    }

    /// [`FileSet::claim`] without trying the folder.
    fn add(&mut self, path: &Path) -> Result<()> {
        let place = file_place(path)?;
        let folder = parent(path);
        let to_be_made = |place: &Path| self.folders.iter().any(|(_, own)| place.parent() == Some(own));
        if !folder.is_dir() && !to_be_made(&place) {
            return Err(Error::file(path, format!("cannot be written: there is no folder {}", folder.display())));
        }
        check_replaceable(path)?;
        if self.folders.iter().any(|(_, folder)| folder.starts_with(&place)) {
            return Err(both_kinds(path));
        }
        if self.claimed.insert(place) { Ok(()) } else { Err(named_twice(path)) }
    }
}

/// A rename would replace a device by a file, and may move a folder away.
fn check_replaceable(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(found) if found.is_dir() => Err(Error::file(path, "cannot be written: it is a folder")),
        Ok(found) if !found.is_file() => {
            Err(Error::file(path, "exists and is not a regular file; choose another name"))
        }
        _ => Ok(()),
    }
}

fn named_twice(path: &Path) -> Error {
    Error::file(path, "is named for two outputs; give each a name of its own")
}

fn both_kinds(path: &Path) -> Error {
    Error::file(path, "is named as a file and as a folder; give each a name of its own")
}

/// What [`FileSet::commit`] has done; dropped, it takes that back, the last step first.
#[derive(Default)]
struct Undo {
    steps: Vec<Step>,
}

enum Step {
    /// A folder was made.
    Made(PathBuf),
    /// The file that had the name got a temporary one, beside its own or in place of it.
    SetAside(PathBuf, TempPath),
    /// A new file got its name.
    Named(PathBuf),
}

impl Undo {
    fn make_folder(&mut self, folder: &Path) -> Result<()> {
        let missing: Vec<_> = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.is_dir()).collect();
        for folder in missing.into_iter().rev() {
            match fs::create_dir(folder) {
                Ok(()) => self.steps.push(Step::Made(folder.to_owned())),
                Err(error) if !folder.is_dir() => return Err(Error::io(folder, error)),
                // Somebody else was quicker.
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn set_aside(&mut self, path: &Path) -> Result<()> {
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        // With a second name the file keeps its own meanwhile; not every file system has that.
        let linked = temporaries().make_in(parent(path), |aside| fs::hard_link(path, aside));
        let moved = linked.or_else(|_| temporaries().make_in(parent(path), |aside| fs::rename(path, aside)));
        let former = moved.map_err(|e| Error::io(path, e))?.into_temp_path();
        self.steps.push(Step::SetAside(path.to_owned(), former));
        Ok(())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // The error that led here is the one to report; more than trying is not to be had.
        while let Some(step) = self.steps.pop() {
            match step {
                Step::Made(folder) => drop(fs::remove_dir(folder)),
                Step::Named(path) => drop(fs::remove_file(path)),
                // Two names of one file cannot be renamed into each other: the spare one goes when it is dropped.
                Step::SetAside(path, former) if path.symlink_metadata().is_err() => {
                    // Where even that fails, the old file keeps its temporary name.
                    drop(former.persist(path).map_err(|e| e.path.keep()));
                }
                Step::SetAside(..) => {}
            }
        }
    }
}

/// Writes a file so that it is either whole or not there: a [`FileSet`] of one.
///
/// Whatever goes wrong in `write`, the temporary file is removed and an older file at `path` stays as it was.
///
/// # Errors
/// As [`FileSet::write`] and [`FileSet::commit`].
pub fn write_atomically(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut files = FileSet::new();
    files.write(path, write)?;
    files.commit()
}

/// Makes a folder so that it is either whole or not there: `write` fills one under a temporary name beside it, which is then
/// renamed.
///
/// # Errors
/// When there is something at `path` already, what `write` returns, and what the operating system says.
pub fn write_folder_atomically<T>(path: impl AsRef<Path>, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let path = path.as_ref();
    if path.exists() {
        return Err(Error::file(path, "exists already; name a new folder"));
    }
    let folder = parent(path);
    let temporary = tempfile::Builder::new().prefix(".writing-").tempdir_in(folder);
    let temporary = temporary.map_err(|e| Error::io(folder, e))?;
    let written = write(temporary.path())?;
    let kept = temporary.keep();
    std::fs::rename(&kept, path).map_err(|e| {
        // The finished folder could not get its name: nothing may be left under the temporary one.
        let _ = std::fs::remove_dir_all(&kept);
        Error::io(path, e)
    })?;
    Ok(written)
}

/// The folder in which `path` lies.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The part of `path` that exists, in which the rest would have to be made, and the rest.
fn existing(path: &Path) -> (&Path, &Path) {
    let found = path.ancestors().find(|p| p.as_os_str().is_empty() || p.symlink_metadata().is_ok());
    let found = found.unwrap_or(Path::new(""));
    let rest = path.strip_prefix(found).unwrap_or(path);
    (if found.as_os_str().is_empty() { Path::new(".") } else { found }, rest)
}

/// Where a folder lies or will lie, whatever way it is named: two ways to one place compare equal.
fn place(folder: &Path) -> Result<PathBuf> {
    let (found, rest) = existing(folder);
    let mut place = found.canonicalize().map_err(|e| Error::io(found, e))?;
    rest.components().for_each(|part| place.push(letter_case(part.as_os_str())));
    Ok(place)
}

/// [`place`] of a file. A link is not followed: the new file takes its name, not that of what it leads to.
fn file_place(path: &Path) -> Result<PathBuf> {
    let separator_ends = path.to_string_lossy().ends_with(std::path::is_separator);
    let name = path.file_name().filter(|_| !separator_ends);
    let name = name.ok_or_else(|| Error::file(path, "cannot be written: it names a folder, not a file"))?;
    Ok(place(parent(path))?.join(letter_case(name)))
}

/// Names that differ in case alone are one file where systems usually have it so.
fn letter_case(name: &OsStr) -> OsString {
    if cfg!(any(windows, target_os = "macos")) { name.to_string_lossy().to_lowercase().into() } else { name.to_owned() }
}

/// Whether a folder takes new files; only trying tells.
fn check_writable(path: &Path, folder: &Path) -> Result<()> {
    let tried = tempfile::tempfile_in(folder).map(drop);
    tried.map_err(|e| {
        Error::file(path, format!("cannot be written: the folder {} takes no files: {e}", folder.display()))
    })
}

fn temporaries() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-").suffix(".tmp");
    builder
}

/// Temporary files are readable by their owner only; the finished file should have the usual permissions.
#[cfg(unix)]
fn readable(mut builder: tempfile::Builder<'static, 'static>) -> tempfile::Builder<'static, 'static> {
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

/// Elsewhere they have them from the start.
#[cfg(not(unix))]
fn readable(builder: tempfile::Builder<'static, 'static>) -> tempfile::Builder<'static, 'static> {
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made");
        let fill = |root: &Path| std::fs::write(root.join("a"), b"a").map_err(|e| Error::io(root, e));
        let failed = write_folder_atomically(&path, |root| fill(root).and(Err::<(), _>(Error::Cancelled)));
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        write_folder_atomically(&path, fill).unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"a");
        assert!(write_folder_atomically(&path, fill).unwrap_err().to_string().contains("exists already"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing_and_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.bin");
        std::fs::write(&path, b"old").unwrap();
        let failed = write_atomically(&path, |w| {
            w.write_all(b"half").map_err(|e| Error::io("x", e))?;
            Err(Error::Cancelled)
        });
        assert!(matches!(failed, Err(Error::Cancelled)));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        write_atomically(&path, |w| w.write_all(b"new").map_err(|e| Error::io("x", e))).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_and_missing_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_atomically(folder.path(), |_| Ok(())).is_err());
        assert!(write_atomically(folder.path().join("missing/out"), |_| Ok(())).is_err());
    }

    /// Every file below a folder with its text, by name.
    fn files(folder: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match entry.is_dir() {
                true => found.extend(files(&entry).into_iter().map(|(name, text)| (format!("sub/{name}"), text))),
                false => found.push((name_of(&entry), fs::read_to_string(&entry).unwrap())),
            }
        }
        found.sort();
        found
    }

    fn name_of(path: &Path) -> String {
        path.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn pairs<const N: usize>(list: [(&str, &str); N]) -> Vec<(String, String)> {
        list.map(|(name, text)| (name.to_owned(), text.to_owned())).into()
    }

    #[test]
    fn a_set_appears_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "old").unwrap();
        let mut set = FileSet::new();
        set.claim(at("a")).unwrap();
        set.claim_folder(at("new/deeper")).unwrap();
        set.claim(at("new/deeper/b")).unwrap();
        set.claim(at("new/deeper/never")).unwrap();
        set.write_bytes(at("a"), b"A").unwrap();
        set.write_bytes(at("new/deeper/b"), b"B").unwrap();
        set.write_bytes(at("c"), b"C").unwrap();
        assert!(!at("new").exists() && !at("c").exists());
        assert_eq!(fs::read_to_string(at("a")).unwrap(), "old");
        set.commit().unwrap();
        assert_eq!(files(folder.path()), pairs([("a", "A"), ("c", "C"), ("sub/sub/b", "B")]));
    }

    #[test]
    fn a_set_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut set = FileSet::new();
        set.claim_folder(folder.path().join("new")).unwrap();
        set.write_bytes(folder.path().join("new/a"), b"A").unwrap();
        let failed = set.write(folder.path().join("b"), |_| Err(Error::Cancelled));
        assert!(matches!(failed, Err(Error::Cancelled)));
        drop(set);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_that_cannot_be_had_takes_everything_back() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("replaced"), "old").unwrap();
        let mut set = FileSet::new();
        set.claim_folder(at("new")).unwrap();
        for name in ["replaced", "fresh", "new/inside", "taken", "last"] {
            set.write_bytes(at(name), b"new").unwrap();
        }
        // Between the check and the end somebody makes a folder of that name.
        fs::create_dir(at("taken")).unwrap();
        let message = set.commit().unwrap_err().to_string();
        assert!(message.contains("taken"), "{message}");
        assert_eq!(files(folder.path()), pairs([("replaced", "old")]));
        assert!(!at("new").exists() && at("taken").is_dir());
    }

    #[test]
    fn a_file_set_aside_comes_back_by_either_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let old = || pairs([("a", "old")]);
        fs::write(&path, "old").unwrap();
        // Nothing took its name yet.
        let mut undo = Undo::default();
        undo.set_aside(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        drop(undo);
        assert_eq!(files(folder.path()), old());
        // Something did.
        let mut undo = Undo::default();
        undo.set_aside(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
        undo.steps.push(Step::Named(path.clone()));
        drop(undo);
        assert_eq!(files(folder.path()), old());
        // It was moved, as where there are no links.
        let moved = temporaries().make_in(folder.path(), |aside| fs::rename(&path, aside)).unwrap();
        let undo = Undo { steps: vec![Step::SetAside(path.clone(), moved.into_temp_path())] };
        assert!(!path.exists());
        drop(undo);
        assert_eq!(files(folder.path()), old());
    }

    #[test]
    fn names_in_each_other_s_way_are_known_when_they_are_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("file"), "").unwrap();
        let refused = |claimed: Result<()>, part: &str| {
            let message = claimed.unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        };
        let mut set = FileSet::new();
        set.claim(at("a")).unwrap();
        refused(set.claim(at("a")), "two outputs");
        refused(set.claim(at("sub/../a")), "two outputs");
        refused(set.claim(at("sub")), "is a folder");
        refused(set.claim(at("b/")), "names a folder");
        refused(set.claim(at("sub/..")), "names a folder");
        refused(set.claim(at("missing/a")), "there is no folder");
        refused(set.claim(at("file/a")), "there is no folder");
        refused(set.claim_folder(at("file")), "is a file");
        refused(set.claim_folder(at("file/below")), "is a file");
        refused(set.claim_folder(at("a/below")), "as a file and as a folder");
        set.claim_folder(at("pictures/today")).unwrap();
        refused(set.claim(at("pictures")), "as a file and as a folder");
        set.claim(at("pictures/today/1.png")).unwrap();
        refused(set.claim(at("sub/../pictures/today/1.png")), "two outputs");
        set.write_bytes(at("a"), b"").unwrap();
        refused(set.write_bytes(at("a"), b""), "two outputs");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "a claim makes nothing; one file waits");
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_refused_and_links_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let message = FileSet::new().claim("/dev/null").unwrap_err().to_string();
        assert!(message.contains("not a regular file"), "{message}");
        fs::write(at("target"), "kept").unwrap();
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("here")).unwrap();
        let mut set = FileSet::new();
        set.claim(at("target")).unwrap();
        set.claim(at("link")).unwrap();
        assert!(set.claim(at("here/target")).unwrap_err().to_string().contains("two outputs"));
        write_atomically(at("link"), |w| w.write_all(b"new").map_err(|e| Error::io("x", e))).unwrap();
        assert_eq!(fs::read_to_string(at("target")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(at("link")).unwrap(), "new");
    }
}
