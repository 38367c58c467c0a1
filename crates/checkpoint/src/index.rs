use crate::{ElementType, Source, gguf, pickle, safetensors, stranger};
use pulid_tensor::{Result, Shape};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Where one tensor lies in its source: little-endian elements, row-major unless strides say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type of the elements in the file.
    pub element: ElementType,
    /// The extents.
    pub shape: Shape,
    /// The bytes from the first element to the last, counted from the start of the source.
    pub bytes: Range<u64>,
    /// Elements from one index to the next along each axis, where the elements do not follow one another in row-major
    /// order. The last element lies at the end of `bytes`.
    pub strides: Option<Vec<u64>>,
}

/// A format of files that hold tensors by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The safetensors format.
    Safetensors,
    /// PyTorch's, a zip archive, since its version 1.6.
    PyTorch,
    /// PyTorch's before that, pickles one after another.
    PyTorchLegacy,
    /// ggml's format.
    Gguf,
}

impl Format {
    /// The format of a source, told by its first bytes. What is none of the others is taken for safetensors.
    ///
    /// # Errors
    /// When the source is empty, or plainly something else that people end up with: the message says what.
    pub fn of(source: &dyn Source) -> Result<Format> {
        let start = source.read(0..source.len().min(64))?;
        match &start[..] {
            s if s.starts_with(gguf::MAGIC) => Ok(Format::Gguf),
            // A header of the right length makes a safetensors file begin like any other format.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => Ok(Format::Safetensors),
            [b'P', b'K', 3, 4, ..] => Ok(Format::PyTorch),
            [0x80, 2..=5, ..] => Ok(Format::PyTorchLegacy),
            _ => stranger::refuse(source).map(|()| Format::Safetensors),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Safetensors => "safetensors",
            Format::PyTorch => "PyTorch (zip)",
            Format::PyTorchLegacy => "PyTorch (legacy)",
            Format::Gguf => "GGUF",
        })
    }
}

/// What a format's header tells: the tensors of one source and its free-text metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Tensors by key.
    pub entries: BTreeMap<String, Entry>,
    /// Free text by key.
    pub metadata: BTreeMap<String, String>,
}

impl Index {
    /// The index of a source in any known format, told apart by its first bytes.
    ///
    /// # Errors
    /// When the format is unknown or the header is malformed.
    pub fn read(source: &dyn Source) -> Result<Index> {
        match Format::of(source)? {
            Format::Safetensors => safetensors::read_index(source),
            Format::PyTorch => pickle::read_zip(source),
            Format::PyTorchLegacy => pickle::read_legacy(source),
            Format::Gguf => gguf::read_index(source),
        }
    }
}
