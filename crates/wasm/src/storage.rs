//! Files of the origin's private file system as sources of weights.

use pulid_checkpoint::{Bytes, Source, unique_identity};
use pulid_tensor::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use wasm_bindgen::JsValue;
use web_sys::{FileSystemReadWriteOptions, FileSystemSyncAccessHandle};

/// A stored file, read a range at a time: what is not asked for never enters memory. Workers alone have such handles.
#[derive(Debug)]
pub struct StoredFile {
    path: PathBuf,
    identity: String,
    handle: FileSystemSyncAccessHandle,
    bytes: u64,
}

impl StoredFile {
    /// The file behind a handle; `path` is for messages and tells the format.
    ///
    /// # Errors
    /// When the browser does not tell its size.
    pub fn new(path: &str, handle: FileSystemSyncAccessHandle) -> Result<StoredFile> {
        let bytes = handle.get_size().map_err(|e| refused(Path::new(path), &e))?;
        let path = PathBuf::from(path);
        Ok(StoredFile { identity: unique_identity(&path), path, handle, bytes: bytes as u64 })
    }
}

impl Source for StoredFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn len(&self) -> u64 {
        self.bytes
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let length = range.end.checked_sub(range.start).filter(|_| range.end <= self.bytes);
        let Some(length) = length.and_then(|l| usize::try_from(l).ok()) else {
            let detail = format!(
                "bytes {} to {} are wanted but the file has {}; delete the kept weights and fetch them again",
                range.start, range.end, self.bytes
            );
            return Err(Error::file(&self.path, detail));
        };
        let mut bytes = vec![0; length];
        let at = FileSystemReadWriteOptions::new();
        at.set_at(range.start as f64);
        let read = self.handle.read_with_u8_array_and_options(&mut bytes, &at);
        let read = read.map_err(|e| refused(&self.path, &e))?;
        if read as usize != length {
            return Err(Error::file(&self.path, "ended early; delete the kept weights and fetch them again"));
        }
        Ok(bytes.into())
    }
}

impl Drop for StoredFile {
    /// Other tabs may want the file.
    fn drop(&mut self) {
        self.handle.close();
    }
}

fn refused(path: &Path, error: &JsValue) -> Error {
    let text = js_sys::Error::from(error.clone()).message().as_string().unwrap_or_default();
    Error::file(path, format!("the browser's storage could not be read: {text}"))
}
