use crate::{Bytes, Source};
use pulid_tensor::{Error, Result};
use std::ops::Range;

/// Bytes fetched at once.
const WINDOW: u64 = 64 << 10;

/// Reads a part of a source from its start to its end, a window at a time.
pub(super) struct Reader<'a> {
    source: &'a dyn Source,
    position: u64,
    end: u64,
    window: Bytes,
    window_start: u64,
}

impl<'a> Reader<'a> {
    /// A reader of these bytes of the source.
    pub fn new(source: &'a dyn Source, range: Range<u64>) -> Self {
        let (position, end) = (range.start, range.end.min(source.len()));
        Reader { source, position, end, window: Bytes::new(), window_start: position }
    }

    pub fn source(&self) -> &'a dyn Source {
        self.source
    }

    /// Where the next byte lies in the source.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: u64) -> Result<Bytes> {
        let end = self.reach(count)?;
        let window_end = self.window_start + self.window.len() as u64;
        if self.position < self.window_start || end > window_end {
            self.window_start = self.position;
            self.window = self.source.read(self.position..self.end.min(self.position + WINDOW.max(count)))?;
        }
        let start = (self.position - self.window_start) as usize;
        self.position = end;
        Ok(self.window.slice(start..start + count as usize))
    }

    /// Passes over `count` bytes.
    pub fn skip(&mut self, count: u64) -> Result<()> {
        self.position = self.reach(count)?;
        Ok(())
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.take(N as u64)?);
        Ok(array)
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A text up to the next line break, which is passed over.
    pub fn line(&mut self) -> Result<String> {
        // Names of modules and functions.
        const LONGEST: usize = 256;
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                _ if line.len() == LONGEST => return Err(self.malformed("a name is too long")),
                byte => line.push(byte),
            }
        }
        String::from_utf8(line).map_err(|_| self.malformed("a name is no text"))
    }

    /// The error that something before the current byte is not as it should be.
    pub fn malformed(&self, detail: impl std::fmt::Display) -> Error {
        Error::file(self.source.path(), format!("is a malformed pickle: {detail} (before byte {})", self.position))
    }

    /// Where `count` more bytes end.
    fn reach(&self, count: u64) -> Result<u64> {
        match self.position.checked_add(count) {
            Some(end) if end <= self.end => Ok(end),
            _ => {
                let detail = format!("is truncated: its pickle ends at byte {} in the middle of a value", self.end);
                Err(Error::file(self.source.path(), detail))
            }
        }
    }
}
