use crate::{Bytes, Source};
use pulid_tensor::{Error, Result};

/// Bytes that are read at a time: a vocabulary in the metadata has a hundred thousand texts.
const WINDOW: u64 = 1 << 16;

/// The longest text that is kept: GGUF's own limit of keys.
const MAX_TEXT: u64 = (1 << 16) - 1;

/// Reads a source from its beginning on. Nothing is taken for a size before the bytes are known to be there.
pub(super) struct Reader<'a> {
    source: &'a dyn Source,
    /// Bytes from `start` on.
    window: Bytes,
    start: u64,
    position: u64,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a dyn Source) -> Self {
        Reader { source, window: Bytes::new(), start: 0, position: 0 }
    }

    /// Where the next byte lies.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn fail(&self, detail: String) -> Error {
        Error::file(self.source.path(), detail)
    }

    fn left(&self) -> u64 {
        self.source.len() - self.position
    }

    /// Checks that `count` things of at least `size` bytes can follow.
    pub fn holds(&self, count: u64, size: u64, what: &str) -> Result<()> {
        if count > self.left() / size {
            let detail =
                format!("announces {count} {what} in {} bytes; the file is truncated or malformed", self.left());
            return Err(self.fail(detail));
        }
        Ok(())
    }

    pub fn skip(&mut self, count: u64) -> Result<()> {
        self.holds(count, 1, "bytes")?;
        self.position += count;
        Ok(())
    }

    fn bytes(&mut self, count: u64) -> Result<Bytes> {
        self.holds(count, 1, "bytes")?;
        let end = self.position + count;
        if self.position < self.start || end > self.start + self.window.len() as u64 {
            self.start = self.position;
            self.window = self.source.read(self.start..self.start + count.max(WINDOW).min(self.left()))?;
        }
        let from = (self.position - self.start) as usize;
        self.position = end;
        Ok(self.window.slice(from..from + count as usize))
    }

    pub fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut taken = [0; N];
        taken.copy_from_slice(&self.bytes(N as u64)?);
        Ok(taken)
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// A text, cut where it is longer than any that is of use. Other encodings than UTF-8 are shown as far as they are that.
    pub fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        let kept = self.bytes(length.min(MAX_TEXT).min(self.left()))?;
        if length > MAX_TEXT {
            self.skip(length - MAX_TEXT)?;
        } else if kept.len() as u64 != length {
            self.holds(length, 1, "bytes of text")?;
        }
        Ok(String::from_utf8_lossy(&kept).into_owned())
    }
}
