//! What an output's name stands for, before anything is written there.

use super::{parent, place};
use pulid_tensor::{Error, Result};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// How often one link may lead to another, as in Linux.
const MAX_LINKS: usize = 40;

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A file, which is written under another name and renamed. Links are followed to it and stay; on Windows the path is
    /// verbatim, which has no limit of 260 characters.
    File(PathBuf),
    /// A device, a pipe or an open descriptor: written, never replaced.
    Stream(PathBuf),
    /// The program's own standard output.
    Stdout,
}

impl Target {
    /// What `path` stands for.
    ///
    /// # Errors
    /// [`Error::File`] for a folder, a disk, a socket, links in a circle, and a name that the system keeps for itself.
    pub(super) fn of(path: &Path) -> Result<Target> {
        let mut at = path.to_owned();
        for _ in 0..=MAX_LINKS {
            if let Some(open) = descriptor(&at) {
                return Ok(open);
            }
            match fs::read_link(&at) {
                Ok(next) => at = parent(&at).join(next),
                Err(_) => return Target::at(path, &at),
            }
        }
        Err(Error::file(path, "cannot be written: it is a link that leads back to itself; choose another name"))
    }

    /// [`Target::of`] where no link is left to follow.
    fn at(path: &Path, at: &Path) -> Result<Target> {
        match fs::metadata(at) {
            Ok(found) if found.is_dir() => Err(Error::file(path, "cannot be written: it is a folder")),
            Ok(found) if found.is_file() => {
                let place = file_place(path, at)?;
                // There a file that exists may be named by its short name, or in other letters; it keeps its own.
                Ok(Target::File(if cfg!(windows) { place.canonicalize().unwrap_or(place) } else { place }))
            }
            Ok(found) if is_stream(&found) => Ok(Target::Stream(at.to_owned())),
            Ok(_) => Err(Error::file(path, "exists and is neither a file, a pipe nor a terminal; choose another name")),
            Err(_) => Ok(Target::File(file_place(path, at)?)),
        }
    }
}

/// [`place`] of a file, which need not exist.
pub(super) fn file_place(path: &Path, at: &Path) -> Result<PathBuf> {
    if cfg!(windows) && at.as_os_str().as_encoded_bytes().starts_with(br"\\.\") {
        return Err(Error::file(path, "cannot be written: it is a device of Windows; name a file"));
    }
    let separator_ends = at.to_string_lossy().ends_with(std::path::is_separator);
    let name = at.file_name().filter(|_| !separator_ends);
    let name = name.ok_or_else(|| Error::file(path, "cannot be written: it names a folder, not a file"))?;
    check_name(path, name, "written")?;
    Ok(place(parent(at))?.join(name))
}

/// Refuses names that the system keeps for itself or would change, of something new at `path` that is to be `done`.
///
/// # Errors
/// [`Error::File`] that names `path`.
pub(super) fn check_name(path: &Path, name: &OsStr, done: &str) -> Result<()> {
    match refused_by_windows(&name.to_string_lossy()).filter(|_| cfg!(windows)) {
        Some(why) => Err(Error::file(path, format!("cannot be {done}: {why}; choose another name"))),
        None => Ok(()),
    }
}

/// The verbatim form, which has no limit of 260 characters, of a whole path on a disk or a server of Windows.
pub(super) fn verbatim(whole: &Path) -> Option<PathBuf> {
    let text = whole.to_str()?;
    if text.starts_with(r"\\?\") {
        return Some(whole.to_owned());
    }
    if let Some(server) = text.strip_prefix(r"\\").filter(|rest| !rest.starts_with('.')) {
        return Some(format!(r"\\?\UNC\{server}").into());
    }
    let disk = text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) && text.get(1..3) == Some(r":\");
    disk.then(|| format!(r"\\?\{text}").into())
}

/// Why Windows would not have a file of this name, or would give it another one.
fn refused_by_windows(name: &str) -> Option<String> {
    const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_uppercase();
    let port = ["COM", "LPT"].iter().any(|kind| {
        stem.strip_prefix(kind)
            .is_some_and(|n| matches!(n, "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³"))
    });
    if port || DEVICES.contains(&stem.as_str()) {
        return Some(format!("`{stem}` is a device on Windows, with any extension"));
    }
    if name.ends_with(['.', ' ']) {
        return Some("Windows takes dots and spaces off the end of a name".into());
    }
    let character =
        name.chars().find(|c| matches!(c, '<' | '>' | ':' | '"' | '|' | '?' | '*') || u32::from(*c) < 32)?;
    Some(format!("a name on Windows may not hold {character:?}"))
}

/// A terminal, `/dev/null` and the like, or a pipe with a name. A disk is none: no image is meant to lie across its partitions.
#[cfg(unix)]
fn is_stream(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_char_device() || found.file_type().is_fifo()
}

#[cfg(not(unix))]
fn is_stream(_: &fs::Metadata) -> bool {
    false
}

/// `/dev/stdout` and its like lead to a link in a folder of open descriptors. Following that would give the name of the file that
/// the descriptor had once, which is not what was opened.
#[cfg(unix)]
fn descriptor(at: &Path) -> Option<Target> {
    let number: u32 = at.file_name()?.to_str()?.parse().ok()?;
    at.symlink_metadata().ok()?;
    let folder = parent(at).canonicalize().ok()?;
    let parts: Vec<_> = folder.iter().filter_map(|part| part.to_str()).collect();
    let own = match parts[..] {
        ["/", "dev", "fd"] => true,
        ["/", "proc", process, "fd"] | ["/", "proc", process, "task", _, "fd"] => {
            process == std::process::id().to_string()
        }
        _ => return None,
    };
    Some(if own && number == 1 { Target::Stdout } else { Target::Stream(at.to_owned()) })
}

#[cfg(not(unix))]
fn descriptor(_: &Path) -> Option<Target> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_windows_keeps_are_known() {
        for name in [
            "NUL",
            "nul",
            "con.png",
            "Aux",
            "aux.tar.gz",
            "COM1.jpg",
            "lpt9",
            "COM¹",
            "prn .png",
            "CONIN$",
            "a.png.",
            "a ",
            "a?.png",
            "a:b.png",
            "tab\t.png",
        ] {
            assert!(refused_by_windows(name).is_some(), "{name}");
        }
        for name in ["pulid.png", "console.png", "com.png", "COM10.png", "null.png", ".png", "ä b.png", "a.con"] {
            assert_eq!(refused_by_windows(name), None, "{name}");
        }
    }

    #[test]
    fn windows_whole_paths_have_a_verbatim_form() {
        for (whole, expected) in [
            (r"C:\a\b", Some(r"\\?\C:\a\b")),
            (r"\\server\share\a", Some(r"\\?\UNC\server\share\a")),
            (r"\\?\C:\a", Some(r"\\?\C:\a")),
            (r"\\.\pipe\a", None),
            (r"C:a", None),
            (r"\a", None),
            ("é:\\a", None),
            ("", None),
        ] {
            assert_eq!(verbatim(Path::new(whole)), expected.map(PathBuf::from), "{whole}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_files_devices_and_descriptors() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        fs::create_dir(at("sub")).unwrap();
        for (target, link) in [
            ("file", "to-file"),
            ("sub/../to-file", "twice"),
            ("/dev/null", "nothing"),
            ("/dev/stdout", "out"),
            ("circle", "circle"),
            ("sub", "to-sub"),
            ("missing/file", "astray"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        let file = Target::File(at("file"));
        assert_eq!(Target::of(&at("twice")).unwrap(), file, "to where nothing is yet");
        fs::write(at("file"), "").unwrap();
        assert_eq!(Target::of(&at("sub/../twice")).unwrap(), file);
        assert_eq!(Target::of(&at("nothing")).unwrap(), Target::Stream("/dev/null".into()));
        assert_eq!(Target::of(&at("out")).unwrap(), Target::Stdout);
        assert_eq!(Target::of(Path::new("/dev/fd/1")).unwrap(), Target::Stdout);
        assert!(matches!(Target::of(Path::new("/dev/stderr")).unwrap(), Target::Stream(_)));
        assert_eq!(Target::of(&at("astray")).unwrap(), Target::File(at("missing/file")));
        for (name, part) in [("circle", "back to itself"), ("to-sub", "is a folder"), ("new/", "names a folder")] {
            let message = Target::of(&at(name)).unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}
