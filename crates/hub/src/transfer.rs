//! Brings one file over, in as many pieces as the connection breaks it into.

use crate::Client;
use crate::client::header;
use crate::retry::{ATTEMPTS, Failure, broken, exhausted};
use pulid_tensor::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes between two looks at progress and Ctrl-C.
const PORTION: usize = 256 << 10;

/// A file to be.
pub(crate) struct Target<'t> {
    /// Where it lies once it is whole.
    pub path: &'t Path,
    /// What people call it.
    pub name: &'t str,
    /// Its size, where it is promised.
    pub size: Option<u64>,
    /// Its hash, where it is known.
    pub sha256: Option<&'t str>,
}

/// What has arrived, under a name of its own until it is whole and right. It stays when a connection breaks for good, so
/// that the next run goes on there.
struct Partial {
    path: PathBuf,
    file: File,
    done: u64,
    hash: Sha256,
}

impl Partial {
    fn open(target: &Target<'_>) -> Result<Partial> {
        let mut name = target.path.as_os_str().to_owned();
        name.push(".incomplete");
        let path = PathBuf::from(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let options = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            // Some network file systems know no locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(path, "another program is fetching this file; wait for it"));
            }
        }
        let mut hash = Sha256::new();
        let done = std::io::copy(&mut file, &mut Sink(&mut hash)).map_err(|e| Error::io(&path, e))?;
        let mut partial = Partial { path, file, done, hash };
        if target.size.is_some_and(|size| partial.done > size) {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> Result<()> {
        let begin = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        begin.map_err(|e| Error::io(&self.path, e))?;
        (self.done, self.hash) = (0, Sha256::new());
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))?;
        self.hash.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn discard(self, detail: String) -> Error {
        drop(self.file);
        let _ = std::fs::remove_file(&self.path);
        Error::file(self.path, detail)
    }
}

/// Fetches `url`; the file is there, whole and right, or not at all.
pub(crate) fn fetch_into(client: &Client<'_>, url: &str, target: &Target<'_>) -> Result<()> {
    let mut partial = Partial::open(target)?;
    let mut size = target.size;
    match pieces(client, url, target, &mut partial, &mut size) {
        Ok(()) => complete(partial, url, target, size),
        Err(error) => {
            if partial.done == 0 {
                let _ = std::fs::remove_file(&partial.path);
            }
            Err(error)
        }
    }
}

fn pieces(
    client: &Client<'_>,
    url: &str,
    target: &Target<'_>,
    partial: &mut Partial,
    size: &mut Option<u64>,
) -> Result<()> {
    client.watch.begin(target.name, partial.done, *size);
    // What was fetched twice is no progress, or a body that is always short would be fetched for ever.
    let (mut failed, mut furthest) = (0, partial.done);
    while partial.done == 0 || size.is_none_or(|size| partial.done < size) {
        let (why, wait) = match receive(client, url, target, partial, size) {
            Ok(()) if size.is_none_or(|size| partial.done >= size) => break,
            Ok(()) => ("the body ended early".to_owned(), None),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(why, wait)) => (why, wait),
        };
        failed = if partial.done > furthest { 1 } else { failed + 1 };
        furthest = furthest.max(partial.done);
        if failed >= ATTEMPTS {
            return Err(exhausted(url, &why, &client.settings));
        }
        client.rest(&format!("{}: {why}", target.name), wait, failed)?;
    }
    Ok(())
}

/// Checks what has arrived and gives it its name.
fn complete(partial: Partial, url: &str, target: &Target<'_>, size: Option<u64>) -> Result<()> {
    if let Some(size) = size.filter(|size| *size != partial.done) {
        let detail = format!("{} bytes came from {url} where {size} were promised; try again", partial.done);
        return Err(partial.discard(detail));
    }
    let found: String = partial.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(wanted) = target.sha256.filter(|wanted| *wanted != found) {
        let detail = format!(
            "what came from {url} has the SHA-256 {found}, not {wanted}, and was thrown away; try again, and without a mirror \
             if it stays so"
        );
        return Err(partial.discard(detail));
    }
    partial.file.sync_all().map_err(|e| Error::io(&partial.path, e))?;
    std::fs::rename(&partial.path, target.path).map_err(|e| Error::io(target.path, e))
}

/// One connection.
fn receive(
    client: &Client<'_>,
    url: &str,
    target: &Target<'_>,
    partial: &mut Partial,
    size: &mut Option<u64>,
) -> std::result::Result<(), Failure> {
    let mut response = client.get(url, partial.done)?;
    let status = response.status().as_u16();
    if status == 416 {
        partial.restart()?;
        return Err(Failure::Passing("the server has no such range".into(), None));
    }
    client.accept(&response, url)?;
    let begins = |text: &str| text.trim_start_matches("bytes ").split('-').next().and_then(|start| start.parse().ok());
    match status {
        200 => partial.restart()?,
        206 if header(&response, "content-range").and_then(begins) == Some(partial.done) => {}
        _ => {
            partial.restart()?;
            return Err(Failure::Passing(format!("status {status} without the range that was asked for"), None));
        }
    }
    let length: Option<u64> = header(&response, "content-length").and_then(|length| length.parse().ok());
    if size.is_none() {
        *size = length.map(|length| partial.done + length);
    }
    client.watch.begin(target.name, partial.done, *size);
    let mut body = response.body_mut().as_reader();
    let mut portion = vec![0; PORTION];
    loop {
        if client.watch.cancelled() {
            return Err(Error::Cancelled.into());
        }
        let read = body.read(&mut portion).map_err(broken)?;
        if read == 0 {
            return Ok(());
        }
        partial.push(&portion[..read])?;
        client.watch.arrived(partial.done);
        if size.is_some_and(|size| partial.done > size) {
            return Ok(());
        }
    }
}

/// Hashes what is copied into it.
struct Sink<'h>(&'h mut Sha256);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
