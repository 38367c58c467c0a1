use pulid_tensor::{Error, Result};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a file so that it is either whole or not there: under a temporary name in the same folder, then renamed.
///
/// Whatever goes wrong in `write`, the temporary file is removed and an older file at `path` stays as it was.
///
/// # Errors
/// What `write` returns, and what the operating system says about the folder or the disk.
pub fn write_atomically(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let io = |e| Error::io(path, e);
    // A rename would replace a device or a folder by a file.
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        return Err(Error::file(path, "exists and is not a regular file; choose another name"));
    }
    let folder = parent(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-").suffix(".tmp");
    // Temporary files are readable by their owner only; the finished file should have the usual permissions.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(folder).map_err(io)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
    write(&mut buffered)?;
    buffered.flush().map_err(io)?;
    drop(buffered);
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    Ok(())
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
}
