mod inputs;
mod target;

use inputs::Inputs;
use pulid_tensor::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Component, Path, PathBuf};
use target::Target;
use tempfile::TempPath;

/// The name that stands for the standard output in a set that was told so, see [`FileSet::with_stdout`].
const STDOUT: &str = "-";

/// Files that appear together or not at all.
///
/// Names are claimed before the work, so that one that cannot be written is known then. At the end each file is written
/// under a temporary name beside its own, and [`FileSet::commit`] renames them all. Whatever goes wrong before or in it,
/// or where the set is dropped, everything is as it was: no new file, no new folder, older files in place.
///
/// A name that is a link stands for what it leads to, and stays. Of a file with several names (hard links) the new one takes the name
/// that was given, as in editors that save by renaming: the others keep the old bytes. Devices, pipes and open descriptors (`/dev/stdout`) are
/// written at the very end, and cannot be taken back. What the set was told of by [`FileSet::reads`] is never written over, be it by its
/// name or through a descriptor that is open on it.
#[derive(Debug, Default)]
pub struct FileSet {
    inputs: Inputs,
    stdout: Stdout,
    prints: bool,
    /// Every claimed file, as it was named, and where it will lie.
    claimed: Vec<(PathBuf, Target)>,
    /// Folders to be made, as they were named, and where they will lie.
    folders: Vec<(PathBuf, PathBuf)>,
    written: Vec<Written>,
}

/// Whether a name stands for the standard output, and how that was when the program started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stdout {
    #[default]
    Unnamed,
    Open,
    Closed,
}

/// What is written so far.
#[derive(Debug)]
enum Written {
    /// Its name, where it will lie, and where it lies until then.
    File(PathBuf, PathBuf, TempPath),
    /// For what cannot be renamed.
    Stream(PathBuf, Target, Vec<u8>),
}

impl Written {
    fn is_at(&self, target: &Target) -> bool {
        match (self, target) {
            (Written::File(_, place, _), Target::File(other)) => key(place) == key(other),
            (Written::Stream(_, own, _), other) => own == other,
            _ => false,
        }
    }
}

impl FileSet {
    /// No files.
    pub fn new() -> Self {
        FileSet::default()
    }

    /// A set in which the name `-` stands for the standard output.
    ///
    /// `open` says whether that was open when the program started. Rust's runtime opens `/dev/null` in place of a closed one, so that it
    /// is known only before, and looks then as it does where somebody else sends it there.
    pub fn with_stdout(open: bool) -> Self {
        FileSet { stdout: if open { Stdout::Open } else { Stdout::Closed }, ..FileSet::default() }
    }

    /// Whether a claimed file goes to the standard output, on which nothing else may appear then.
    pub fn takes_stdout(&self) -> bool {
        self.claimed.iter().any(|(_, target)| *target == Target::Stdout)
    }

    /// Whether what is written to `path` goes to a device, a pipe or the standard output, where only one file can go and no folder is.
    ///
    /// # Errors
    /// As [`FileSet::claim`], for what the name alone tells.
    pub fn is_stream(&self, path: impl AsRef<Path>) -> Result<bool> {
        Ok(!matches!(self.target(path.as_ref())?, Target::File(_)))
    }

    /// The file in which `path` ends, where links lead to one; `None` for a stream, and where nothing leads elsewhere.
    ///
    /// # Errors
    /// As [`FileSet::claim`], for what the name alone tells.
    pub fn led_to(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let path = path.as_ref();
        Ok(match self.target(path)? {
            Target::File(place) if path.is_symlink() => Some(place),
            _ => None,
        })
    }

    /// Notes that the work reads the file or the folder at `path`: neither it nor what lies in it may be an output, under whatever
    /// name. Pictures in a folder are no part of it.
    ///
    /// # Errors
    /// [`Error::File`] that names both, where it was claimed already.
    pub fn reads(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.inputs.add(path.as_ref());
        if self.prints {
            self.inputs.check_printing()?;
        }
        self.claimed.iter().try_for_each(|(path, target)| self.inputs.check(path, target))
    }

    /// Notes that the work prints on the standard output, which may then be no file that is read, be it to append or to write over it
    /// (`1<>` and `>>` of shells). What lies beside in a folder that is read may be.
    ///
    /// # Errors
    /// [`Error::File`] that names what is read.
    pub fn prints(&mut self) -> Result<()> {
        self.prints = true;
        self.inputs.check_printing()
    }

    /// Checks that a file can be written at `path` later, as far as can be told now: its folder takes new files, no folder
    /// has its name, it is nothing that is read, and nothing else of this set will lie there.
    ///
    /// # Errors
    /// [`Error::File`] that names `path` and says what is in the way.
    pub fn claim(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match self.add(path)? {
            Target::File(place) => check_writable(path, existing(parent(&place)).0),
            Target::Stream(_) => Ok(()),
            Target::Stdout if path == Path::new(STDOUT) && std::io::stdout().is_terminal() => Err(Error::file(
                path,
                "is the terminal, which shows no such file; name a file, or send the output to one",
            )),
            Target::Stdout if self.stdout == Stdout::Closed => Err(Error::file(
                path,
                "is closed: what is written there is lost; name a file, or send the output to one",
            )),
            Target::Stdout => Ok(()),
        }
    }

    /// Checks that there is a folder at `path` or that one can be made; [`FileSet::commit`] makes it. Files in it are claimed
    /// after it.
    ///
    /// # Errors
    /// [`Error::File`] that names what is in the way.
    pub fn claim_folder(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (folder, new) = existing(path);
        if !folder.is_dir() {
            return Err(Error::file(folder, "is a file; a folder is needed here"));
        }
        let mut names = new.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        names.try_for_each(|name| target::check_name(path, name, "made"))?;
        let place = place(path)?;
        let inside = |target: &Target| matches!(target, Target::File(file) if key(&place).starts_with(key(file)));
        if self.claimed.iter().any(|(_, target)| inside(target)) {
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
        let target = self.target(path)?;
        if !self.claimed.iter().any(|(_, other)| same(other, &target)) {
            self.add(path)?;
        } else if !is_sink(&target) && self.written.iter().any(|other| other.is_at(&target)) {
            return Err(named_twice(path));
        }
        let place = match target {
            Target::File(place) => place,
            stream => {
                let mut bytes = Vec::new();
                write(&mut bytes)?;
                self.written.push(Written::Stream(path.to_owned(), stream, bytes));
                return Ok(());
            }
        };
        let io = |e| Error::io(path, e);
        let mut temporary = readable(temporaries()).tempfile_in(existing(parent(&place)).0).map_err(io)?;
        let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        write(&mut buffered)?;
        buffered.flush().map_err(io)?;
        drop(buffered);
        temporary.as_file().sync_all().map_err(io)?;
        self.written.push(Written::File(path.to_owned(), place, temporary.into_temp_path()));
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

    /// Makes the claimed folders and gives every written file its name; then writes to what is no file. Claims that nothing was
    /// written for lapse.
    ///
    /// # Errors
    /// What the operating system says, with the file or folder that it would not have; everything is as it was then, but
    /// for what a device or a pipe has taken already.
    pub fn commit(self) -> Result<()> {
        let mut undo = Undo::default();
        for (_, place) in &self.folders {
            undo.make_folder(place)?;
        }
        let count = self.written.len();
        let (files, streams): (Vec<_>, Vec<_>) =
            self.written.into_iter().partition(|written| matches!(written, Written::File(..)));
        for (i, written) in files.into_iter().chain(streams).enumerate() {
            match written {
                Written::File(path, place, temporary) => {
                    // Much may have happened since it was claimed.
                    if place.is_dir() {
                        return Err(Error::file(path, "cannot be written: it is a folder"));
                    }
                    // Nothing can fail after the last one.
                    if i + 1 < count {
                        undo.set_aside(&path, &place)?;
                    }
                    // Who may read and write it stays as it was.
                    if let Ok(former) = place.metadata() {
                        fs::set_permissions(&temporary, former.permissions()).map_err(|e| Error::io(&path, e))?;
                    }
                    temporary.persist(&place).map_err(|e| Error::io(&path, e.error))?;
                    undo.steps.push(Step::Named(place));
                }
                Written::Stream(path, target, bytes) => pour(&target, &bytes).map_err(|e| Error::io(&path, e))?,
            }
        }
        undo.steps.clear();
        Ok(())
    }

    fn target(&self, path: &Path) -> Result<Target> {
        if self.stdout != Stdout::Unnamed && path == Path::new(STDOUT) { Ok(Target::Stdout) } else { Target::of(path) }
    }

    /// [`FileSet::claim`] without trying the folder.
    fn add(&mut self, path: &Path) -> Result<Target> {
        let target = self.target(path)?;
        if let Target::File(place) = &target {
            let folder = parent(place);
            if !folder.is_dir() && !self.folders.iter().any(|(_, own)| key(folder) == key(own)) {
                // As it was named, unless a link leads elsewhere.
                let named = parent(path);
                let folder = if named.is_dir() { folder } else { named };
                return Err(Error::file(path, format!("cannot be written: there is no folder {}", folder.display())));
            }
            if self.folders.iter().any(|(_, folder)| key(folder).starts_with(key(place))) {
                return Err(both_kinds(path));
            }
        }
        self.inputs.check(path, &target)?;
        if !is_sink(&target) && self.claimed.iter().any(|(_, other)| same(other, &target)) {
            return Err(named_twice(path));
        }
        self.claimed.push((path.to_owned(), target.clone()));
        Ok(target)
    }
}

/// Whether two names stand for one place.
fn same(a: &Target, b: &Target) -> bool {
    match (a, b) {
        (Target::File(a), Target::File(b)) => key(a) == key(b),
        (a, b) => a == b,
    }
}

/// What takes any number of files, one after another, as `/dev/null` does.
fn is_sink(target: &Target) -> bool {
    matches!(target, Target::Stream(path) if path == Path::new("/dev/null"))
}

/// Writes to what cannot be replaced.
fn pour(target: &Target, bytes: &[u8]) -> std::io::Result<()> {
    match target {
        Target::Stdout => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        }
        // Appending leaves what a redirected descriptor's file holds already.
        Target::Stream(path) | Target::File(path) => fs::OpenOptions::new().append(true).open(path)?.write_all(bytes),
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

    /// `path` is the name for messages of what lies at `place`.
    fn set_aside(&mut self, path: &Path, place: &Path) -> Result<()> {
        if place.symlink_metadata().is_err() {
            return Ok(());
        }
        // With a second name the file keeps its own meanwhile; not every file system has that.
        let linked = temporaries().make_in(parent(place), |aside| fs::hard_link(place, aside));
        let moved = linked.or_else(|_| temporaries().make_in(parent(place), |aside| fs::rename(place, aside)));
        let former = moved.map_err(|e| Error::io(path, e))?.into_temp_path();
        self.steps.push(Step::SetAside(place.to_owned(), former));
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
    // A link that leads nowhere is something too.
    if path.symlink_metadata().is_ok() {
        return Err(Error::file(path, "exists already; name a new folder"));
    }
    let folder = parent(path);
    if !folder.is_dir() {
        return Err(Error::file(path, format!("cannot be made: there is no folder {}", folder.display())));
    }
    let place = target::file_place(path, path)?;
    let temporary = tempfile::Builder::new().prefix(".writing-").tempdir_in(parent(&place));
    let temporary = temporary.map_err(|e| Error::io(folder, e))?;
    let written = write(temporary.path())?;
    let kept = temporary.keep();
    std::fs::rename(&kept, &place).map_err(|e| {
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

/// Where a folder lies or will lie, whatever way it is named.
fn place(folder: &Path) -> Result<PathBuf> {
    let (found, rest) = existing(folder);
    // Not every disk on Windows tells a folder's whole name, and Wine tells none of more than 260 characters.
    let by_name =
        || std::path::absolute(found).ok().filter(|_| cfg!(windows)).and_then(|whole| target::verbatim(&whole));
    let whole = found.canonicalize().or_else(|e| by_name().ok_or(e));
    let mut place = whole.map_err(|e| Error::io(found, e))?;
    place.extend(rest);
    Ok(place)
}

/// By which two places compare: names that differ in case alone are one file where systems usually have it so.
fn key(place: &Path) -> PathBuf {
    let lower = |part: &OsStr| -> OsString { part.to_string_lossy().to_lowercase().into() };
    if cfg!(any(windows, target_os = "macos")) { place.iter().map(lower).collect() } else { place.to_owned() }
}

/// Whether a folder takes new files; only trying tells.
fn check_writable(path: &Path, folder: &Path) -> Result<()> {
    let tried = tempfile::tempfile_in(folder).map(drop);
    tried.map_err(|e| {
        // As it was named, unless a link leads elsewhere.
        let named = existing(parent(path)).0;
        let folder = if same_file::is_same_file(named, folder).unwrap_or(false) { named } else { folder };
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
        undo.set_aside(&path, &path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        drop(undo);
        assert_eq!(files(folder.path()), old());
        // Something did.
        let mut undo = Undo::default();
        undo.set_aside(&path, &path).unwrap();
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
        refused(set.claim(at("sub/..")), "is a folder");
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
    fn links_are_followed_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, at(name)).unwrap();
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("sub/target"), "old").unwrap();
        link(Path::new("sub/target"), "link");
        link(Path::new("sub/fresh"), "dangling");
        link(&at("missing/fresh"), "astray");
        link(folder.path(), "here");
        let mut set = FileSet::new();
        set.claim(at("sub/target")).unwrap();
        for name in ["link", "here/link", "here/sub/target"] {
            assert!(set.claim(at(name)).unwrap_err().to_string().contains("two outputs"), "{name}");
        }
        let message = set.claim(at("astray")).unwrap_err().to_string();
        assert!(
            message.contains("astray: cannot be written: there is no folder") && message.contains("missing"),
            "{message}"
        );
        drop(set);
        let mut set = FileSet::new();
        set.write_bytes(at("link"), b"new").unwrap();
        assert!(fs::read_dir(at("sub")).unwrap().count() == 2, "it is written beside what the link leads to");
        set.write_bytes(at("here/dangling"), b"fresh").unwrap();
        set.commit().unwrap();
        for (name, text) in [("link", "new"), ("dangling", "fresh")] {
            assert!(at(name).is_symlink(), "{name}");
            assert_eq!(fs::read_to_string(at(name)).unwrap(), text);
        }
        assert!(!at("sub/target").is_symlink() && fs::read_dir(at("sub")).unwrap().count() == 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_and_pipes_are_written_and_stay() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |path: &Path, text: &str| {
            write_atomically(path, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io(path, e)))
        };
        write(Path::new("/dev/null"), "x").unwrap();
        assert!(Path::new("/dev/null").metadata().unwrap().file_type().is_char_device());
        let mut set = FileSet::new();
        set.claim("/dev/null").unwrap();
        set.claim("/dev/null").unwrap();
        assert!(set.is_stream("/dev/null").unwrap() && !set.is_stream(at("file")).unwrap());
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = at("pipe");
            move || fs::read_to_string(pipe).unwrap()
        });
        write(&at("pipe"), "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(at("pipe").metadata().unwrap().file_type().is_fifo());
        // An open file is written on, not replaced, and not from its start.
        let mut open = fs::File::create(at("open")).unwrap();
        open.write_all(b"before ").unwrap();
        let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
        write(Path::new(&descriptor), "after").unwrap();
        assert_eq!(fs::read_to_string(at("open")).unwrap(), "before after");
        // What is full takes the others back.
        fs::write(at("older"), "older").unwrap();
        let mut set = FileSet::new();
        set.write_bytes("/dev/full", b"x").unwrap();
        set.write_bytes(at("older"), b"newer").unwrap();
        set.write_bytes(at("fresh"), b"fresh").unwrap();
        assert!(set.commit().unwrap_err().to_string().contains("/dev/full"));
        assert_eq!(fs::read_to_string(at("older")).unwrap(), "older");
        assert!(!at("fresh").exists());
    }

    #[test]
    fn the_standard_output_has_one_name_where_it_is_wanted() {
        let mut closed = FileSet::with_stdout(false);
        assert!(closed.claim("-").unwrap_err().to_string().contains("is closed"));
        let mut set = FileSet::with_stdout(true);
        assert!(!set.takes_stdout() && set.is_stream("-").unwrap());
        let _ = set.claim("-");
        assert!(set.takes_stdout());
        assert!(set.claim("-").unwrap_err().to_string().contains("two outputs"));
        assert!(!FileSet::new().is_stream("-").unwrap(), "a file of that name elsewhere");
    }
}
