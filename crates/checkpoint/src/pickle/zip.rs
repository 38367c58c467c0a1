//! `torch.save` since version 1.6: a zip archive of `NAME/data.pkl`, `NAME/data/KEY` for each storage, not compressed, and
//! `NAME/byteorder`.

use super::collect;
use super::reader::Reader;
use super::unpickler::unpickle;
use super::value::{Arena, Node};
use crate::{Index, Source};
use pulid_tensor::{Error, Result};
use rawzip::{CompressionMethod, ReaderAt, ZipArchiveEntryWayfinder, ZipLocator};
use std::collections::HashMap;
use std::io;
use std::ops::Range;

/// Longest comment after the archive's directory that is searched for the directory's place.
const MAX_COMMENT: u64 = 1 << 16;

pub(crate) fn read_index(source: &dyn Source) -> Result<Index> {
    let archive = Archive::open(source)?;
    let missing = |name: &str| Error::file(source.path(), format!("is a zip archive without `{name}`, not weights"));
    if let Some(order) = archive.bytes("byteorder")?
        && order.end - order.start <= 16
        && &source.read(order)?[..] != b"little"
    {
        return Err(Error::file(source.path(), "was written by a big-endian machine; save it again on another"));
    }
    let pickle = archive.bytes("data.pkl")?.ok_or_else(|| {
        let detail = "is a zip archive without `data.pkl`, not weights; unpack it and name what was in it";
        Error::file(source.path(), detail)
    })?;
    let mut arena = Arena::default();
    let root = unpickle(&mut Reader::new(source, pickle), &mut arena)?;
    let mut storages: HashMap<Box<str>, Range<u64>> = HashMap::new();
    for node in arena.nodes() {
        if let Node::Storage(storage) = node
            && !storages.contains_key(&storage.key)
        {
            let name = format!("data/{}", storage.key);
            storages.insert(storage.key.clone(), archive.bytes(&name)?.ok_or_else(|| missing(&name))?);
        }
    }
    collect::index(source, &arena, root, &storages)
}

/// The directory of an archive whose files lie in one folder.
struct Archive<'a> {
    source: &'a dyn Source,
    archive: rawzip::ZipArchive<At<'a>>,
    /// Files by their names inside the folder.
    files: HashMap<String, File>,
}

struct File {
    place: ZipArchiveEntryWayfinder,
    stored: bool,
}

impl<'a> Archive<'a> {
    fn open(source: &'a dyn Source) -> Result<Self> {
        let fail = |e: rawzip::Error| {
            Error::file(source.path(), format!("is a malformed or truncated zip archive ({e}); fetch it again"))
        };
        let mut buffer = vec![0; rawzip::RECOMMENDED_BUFFER_SIZE];
        let locator = ZipLocator::new().max_search_space(MAX_COMMENT);
        let archive =
            locator.locate_in_reader(At(source), &mut buffer, source.len()).map_err(|(_, error)| fail(error))?;
        let mut files = HashMap::new();
        let mut folder: Option<String> = None;
        let mut entries = archive.entries(&mut buffer);
        while let Some(entry) = entries.next_entry().map_err(fail)? {
            let Ok(name) = std::str::from_utf8(entry.file_path().as_bytes()) else { continue };
            let Some((first, rest)) = name.split_once('/') else { continue };
            // The first folder is the archive's own; torch.save makes no other.
            if folder.get_or_insert_with(|| first.to_owned()) != first {
                continue;
            }
            let stored = entry.compression_method() == CompressionMethod::STORE && !entry.flags().is_encrypted();
            if files.insert(rest.to_owned(), File { place: entry.wayfinder(), stored }).is_some() {
                let detail = format!("is a malformed zip archive: it holds `{name}` twice");
                return Err(Error::file(source.path(), detail));
            }
        }
        Ok(Archive { source, archive, files })
    }

    /// Where a file's bytes lie in the source.
    fn bytes(&self, name: &str) -> Result<Option<Range<u64>>> {
        let fail = |detail: String| Error::file(self.source.path(), format!("`{name}` in the archive {detail}"));
        let Some(file) = self.files.get(name) else { return Ok(None) };
        if !file.stored {
            return Err(fail("is compressed or encrypted, which torch.save never does; save the weights again".into()));
        }
        let entry = self.archive.get_entry(file.place);
        let entry = entry.map_err(|e| fail(format!("is malformed or cut off ({e}); fetch the file again")))?;
        let (start, end) = entry.compressed_data_range();
        if start > end || end > self.source.len() {
            return Err(fail("ends past the end of the file, which is truncated; fetch it again".into()));
        }
        Ok(Some(start..end))
    }
}

/// A source as the zip reader takes it.
struct At<'a>(&'a dyn Source);

impl ReaderAt for At<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = offset.min(self.0.len());
        let end = self.0.len().min(start.saturating_add(buffer.len() as u64));
        let bytes = self.0.read(start..end).map_err(io::Error::other)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}
