//! Files that people name as weights and that are something else, told by their first bytes.

use crate::Source;
use pulid_tensor::{Error, Result};

/// Bytes that are looked at: a tar archive says what it is at byte 257.
const START: u64 = 512;

/// Characters of a text that are shown of it.
const SHOWN: usize = 40;

/// Refuses a source that is plainly no weights, saying what it is.
///
/// # Errors
/// [`Error::File`] with what the file is, and what to do about it.
pub(crate) fn refuse(source: &dyn Source) -> Result<()> {
    let start = source.read(0..source.len().min(START))?;
    match what(&start, source.len() > START) {
        Some(detail) => Err(Error::file(source.path(), detail)),
        None => Ok(()),
    }
}

/// What a file is that begins so; `None` for what may be weights.
fn what(start: &[u8], goes_on: bool) -> Option<String> {
    const MAGIC: [(&[u8], usize, &str); 25] = [
        (b"\xff\xd8\xff", 0, "a JPEG image"),
        (b"\x89PNG\r\n\x1a\n", 0, "a PNG image"),
        (b"GIF8", 0, "a GIF image"),
        (b"WEBP", 8, "a WebP image"),
        (b"II\x2a\0", 0, "a TIFF image"),
        (b"MM\0\x2a", 0, "a TIFF image"),
        (b"ftypheic", 4, "a HEIC image"),
        (b"ftypheix", 4, "a HEIC image"),
        (b"ftypmif1", 4, "a HEIF image"),
        (b"ftypavif", 4, "an AVIF image"),
        (b"ftyp", 4, "a video or an image of MPEG-4's kind"),
        (b"%PDF", 0, "a PDF document"),
        (b"\x1f\x8b", 0, "a gzip archive; unpack it and name what was in it"),
        (b"\xfd7zXZ\0", 0, "an xz archive; unpack it and name what was in it"),
        (b"\x28\xb5\x2f\xfd", 0, "a zstd archive; unpack it and name what was in it"),
        (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive; unpack it and name what was in it"),
        (b"Rar!\x1a\x07", 0, "a RAR archive; unpack it and name what was in it"),
        (b"PK\x05\x06", 0, "an empty zip archive"),
        (b"ustar", 257, "a tar archive; unpack it and name what was in it"),
        (b"GGUF", 0, "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file, as Keras writes them"),
        (b"\x93NUMPY", 0, "a NumPy array"),
        (b"TFL3", 4, "a TensorFlow Lite model"),
        (b"\x7fELF", 0, "a program"),
        (b"MZ", 0, "a program"),
    ];
    if start.is_empty() {
        return Some("is empty; fetch it again".into());
    }
    if start.starts_with(b"version https://git-lfs") {
        return Some("is a Git LFS pointer, not the weights; fetch it with `git lfs pull`".into());
    }
    if let Some(text) = text(start, goes_on) {
        return Some(text);
    }
    // A safetensors file may begin with any byte, its header's length.
    if start.len() > 8 && start[4..8] == [0; 4] && start[8..].trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let found = MAGIC.iter().find(|(magic, at, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    found.map(|(.., kind)| match kind.contains(';') {
        true => format!("is {kind}"),
        false => format!("is {kind}, not weights"),
    })
}

/// What a text is; `None` for what is none.
fn text(start: &[u8], goes_on: bool) -> Option<String> {
    let bytes = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // The last character may be cut.
        Err(e) if goes_on && e.error_len().is_none() => std::str::from_utf8(&bytes[..e.valid_up_to()]).ok()?,
        // UTF-16, as Windows' editors write it.
        Err(_) if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") => {
            return Some("is text, not weights".into());
        }
        Err(_) => return wide_or_western(start).then(|| "is text, not weights".into()),
    };
    if text.contains('\0') {
        return wide_or_western(start).then(|| "is text, not weights".into());
    }
    if text.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c')) {
        return None;
    }
    let shown = text.trim_start();
    let lower: String = shown.chars().take(200).collect::<String>().to_ascii_lowercase();
    if ["<!doctype html", "<html", "<head", "<script"].iter().any(|tag| lower.starts_with(tag))
        || lower.contains("<html")
    {
        return Some("is a web page, not weights; fetch the file that the page leads to".into());
    }
    if lower.starts_with('<') {
        return Some("is a web page or XML, not weights; fetch it again".into());
    }
    let line = shown.lines().next().unwrap_or_default();
    let end = line.char_indices().nth(SHOWN).map_or(line.len(), |(end, _)| end);
    let kind = if shown.starts_with(['{', '[']) { "JSON text" } else { "text" };
    Some(match line.is_empty() {
        true => "is text without a letter, not weights".into(),
        false => format!("is {kind}, not weights; it begins with `{}`", &line[..end]),
    })
}

/// Whether these bytes are UTF-16 without a mark at its beginning, or a text in Latin-1 or Windows' Western code page: printable ones alone,
/// and of those beyond ASCII so few as European words have.
fn wide_or_western(start: &[u8]) -> bool {
    /// What is shorter may be anything.
    const LEAST: usize = 8;
    let plain = |byte: u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r' | b'\x0c');
    if start.len() < LEAST {
        return false;
    }
    let wide = |zero: usize| {
        let pairs = start.as_chunks::<2>().0;
        pairs.iter().all(|pair| pair[zero] == 0 && plain(pair[1 - zero]))
    };
    let letters = |byte: u8| byte >= 0xa0 || matches!(byte, 0x80 | 0x82..=0x8c | 0x8e | 0x91..=0x9c | 0x9e | 0x9f);
    let beyond = start.iter().filter(|&&byte| !byte.is_ascii()).count();
    let western = beyond * 3 <= start.len() && start.iter().all(|&byte| plain(byte) || letters(byte));
    western || wide(0) || wide(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, MemorySource, onnx};
    use std::sync::Arc;

    #[test]
    fn what_is_no_weights_is_called_by_its_name() {
        let tar = [&[b'a'; 257][..], b"ustar\0", &[0; 300]].concat();
        let webp = b"RIFF\x10\0\0\0WEBPVP8L";
        let cut = [&b"ab\xc3\xa9 "[..]; 200].concat();
        for (bytes, part) in [
            (&b""[..], "is empty"),
            (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "is a JPEG image"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image"),
            (webp, "is a WebP image"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip archive; unpack it"),
            (&tar, "tar archive"),
            (b"notes on a model\nand more", "is text, not weights; it begins with `notes on a model`"),
            (b"{\"a\": 1}", "is JSON text"),
            (&cut, "is text"),
            (b"\xff\xfen\0o\0", "is text"),
            (b"caf\xe9 is a nice place", "is text"),
            (b"it\x92s a \x93note\x94 in Windows' code page", "is text"),
            (b"H\0e\0l\0l\0o\0 \0y\0o\0u\0", "is text"),
            (b"\0H\0e\0l\0l\0o\0 \0y\0o\0u", "is text"),
            (b"\xef\xbb\xbf\r\n  <!DOCTYPE html><html>", "web page"),
            (b"<?xml version=\"1.0\"?><Error>", "web page or XML"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
            (b"\n\n", "text without a letter"),
        ] {
            let source = || MemorySource::new("w", bytes.to_vec());
            let as_checkpoint = Checkpoint::from_source(Arc::new(source())).unwrap_err().to_string();
            assert!(as_checkpoint.starts_with("w: ") && as_checkpoint.contains(part), "{part}: {as_checkpoint}");
            let as_onnx = onnx::Model::read(&source()).unwrap_err().to_string();
            assert_eq!(as_onnx, as_checkpoint);
        }
        let other = Checkpoint::from_source(Arc::new(MemorySource::new("w", vec![0xee; 64]))).unwrap_err().to_string();
        assert!(other.contains("no format of weights") && !other.contains("17"), "{other}");
    }

    #[test]
    fn headers_of_any_length_stay_headers() {
        for first in *b"\xffMIG7%" {
            // A length whose bytes are those of an image or an archive.
            let start = [&[first, 0xd8, 0, 0, 0, 0, 0, 0][..], b"{\"a\":"].concat();
            assert_eq!(what(&start, true), None, "{first}");
        }
        assert_eq!(what(b"GIF8\0\0\0\0{", true), None);
        for start in [&b"p\0\0\0\0\0\0\0{\"a\": "[..], b"p \0\0\0\0\0\0{\"a\": ", b"\xe9 \0\0\0\0\0\0{}"] {
            assert_eq!(what(start, true), None, "{start:?}");
        }
    }
}
