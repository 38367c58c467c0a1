//! GGUF, versions 2 and 3, as ggml's specification describes it: a header, free metadata, where each tensor lies, then the tensors
//! at offsets that are multiples of an alignment. Everything is little-endian here.
//!
//! Extents are stored the other way round, the fastest first. ComfyUI's converter reshapes what is no whole blocks and keeps the
//! first shape in the metadata, as `comfy.gguf.orig_shape.NAME`.

mod blocks;
mod reader;

pub use blocks::BlockType;

use crate::{ElementType, Entry, Index, Source};
use pulid_tensor::{Error, Result, Shape};
use reader::Reader;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What a GGUF file begins with.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// Most axes of a tensor; ggml itself has 4.
const MAX_RANK: u32 = 8;

/// Where offsets are multiples of nothing else.
const ALIGNMENT: u64 = 32;

/// Elements of an array that its text shows.
const SHOWN: u64 = 16;

/// Arrays within arrays that are followed.
const MAX_DEPTH: usize = 4;

/// The key under which ComfyUI's converter keeps a tensor's shape.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// The key of another alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The type of this number in ggml's list, or the name of one that is not read.
fn element_type(number: u32) -> std::result::Result<ElementType, String> {
    let block = |block| Ok(ElementType::Ggml(block));
    match number {
        0 => Ok(ElementType::F32),
        1 => Ok(ElementType::F16),
        2 => block(BlockType::Q4_0),
        3 => block(BlockType::Q4_1),
        6 => block(BlockType::Q5_0),
        7 => block(BlockType::Q5_1),
        8 => block(BlockType::Q8_0),
        10 => block(BlockType::Q2K),
        11 => block(BlockType::Q3K),
        12 => block(BlockType::Q4K),
        13 => block(BlockType::Q5K),
        14 => block(BlockType::Q6K),
        24 => Ok(ElementType::I8),
        25 => Ok(ElementType::I16),
        26 => Ok(ElementType::I32),
        27 => Ok(ElementType::I64),
        28 => Ok(ElementType::F64),
        30 => Ok(ElementType::Bf16),
        _ => Err(match number {
            4 => "Q4_2",
            5 => "Q4_3",
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            29 => "IQ1_M",
            31 => "Q4_0_4_4",
            32 => "Q4_0_4_8",
            33 => "Q4_0_8_8",
            34 => "TQ1_0",
            35 => "TQ2_0",
            36 => "IQ4_NL_4_4",
            37 => "IQ4_NL_4_8",
            38 => "IQ4_NL_8_8",
            39 => "MXFP4",
            40 => "NVFP4",
            41 => "Q1_0",
            _ => return Err(format!("number {number}")),
        }
        .to_owned()),
    }
}

/// What is known of a tensor before its shape is settled.
struct Listed {
    name: String,
    /// Fastest last.
    shape: Vec<usize>,
    element: ElementType,
    offset: u64,
}

/// Reads the header of a GGUF source.
///
/// # Errors
/// When it is of another version or byte order, is truncated, counts more than it can hold, has elements of a type that is not
/// read, or places a tensor outside the file, over another one or off the alignment; when a key is there twice.
pub(crate) fn read_index(source: &dyn Source) -> Result<Index> {
    let fail = |detail: String| Error::file(source.path(), detail);
    let mut reader = Reader::new(source);
    if reader.take::<4>()? != *MAGIC {
        return Err(fail("is no GGUF file".into()));
    }
    match reader.u32()? {
        2 | 3 => {}
        // A small number, with its bytes the other way round.
        version if version > 0xffff => {
            let detail =
                "is a GGUF file in big-endian byte order, which is not read; convert it on a little-endian machine";
            return Err(fail(detail.into()));
        }
        version => return Err(fail(format!("is a GGUF file of version {version}; versions 2 and 3 are read"))),
    }
    let (tensors, values) = (reader.u64()?, reader.u64()?);
    // A tensor takes a name's length, a number of axes, a type and an offset; a value a key's length, a type and a byte.
    reader.holds(tensors, 24, "tensors")?;
    reader.holds(values, 13, "values of metadata")?;

    let mut metadata = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    let mut alignment = ALIGNMENT;
    for _ in 0..values {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = value(&mut reader, kind, 0)?;
        if key == ALIGNMENT_KEY {
            alignment = match value.numbers.as_slice() {
                [n] if n.is_power_of_two() && *n <= 1 << 20 => *n,
                _ => return Err(fail(format!("has an alignment of {}, which is no power of two", value.text))),
            };
        }
        let twice = match key.strip_prefix(ORIGINAL_SHAPE) {
            Some(name) => shapes.insert(name.to_owned(), value.numbers).is_some(),
            None => metadata.insert(key.clone(), value.text).is_some(),
        };
        if twice {
            return Err(fail(format!("has the metadata `{key}` twice; the file is malformed")));
        }
    }

    let mut listed = Vec::new();
    for _ in 0..tensors {
        listed.push(tensor(&mut reader)?);
    }
    let data = reader.position().next_multiple_of(alignment);
    let mut ranges = Vec::with_capacity(listed.len());
    let mut entries = BTreeMap::new();
    for Listed { name, shape, element, offset } in listed {
        let wrong = |detail: String| fail(format!("tensor `{name}` {detail}; the file is truncated or malformed"));
        let stored = Shape::new(shape);
        let bytes = element.bytes(&stored).filter(|_| match element {
            ElementType::Ggml(block) => stored.last().is_multiple_of(block.elements()),
            _ => true,
        });
        let bytes = bytes.ok_or_else(|| wrong(format!("of shape {stored} is no whole blocks of {element}")))?;
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!("lies at byte {offset}, which is no multiple of {alignment}")));
        }
        let start = data.checked_add(offset).filter(|start| *start <= source.len() || bytes == 0);
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|end| *end <= source.len() || bytes == 0);
        let Some((start, end)) = start.zip(end) else {
            return Err(wrong(format!("takes {bytes} bytes from {offset}, past the end")));
        };
        let shape = match shapes.get(&name) {
            None => stored,
            Some(first) => {
                let first: Option<Vec<usize>> = first.iter().map(|&n| usize::try_from(n).ok()).collect();
                let first = first.filter(|first| !first.is_empty()).map(Shape::new);
                let same = |s: &Shape| s.checked_count().ok() == stored.checked_count().ok();
                first
                    .filter(same)
                    .ok_or_else(|| wrong(format!("of shape {stored} is not of its original shape's size")))?
            }
        };
        if bytes > 0 {
            ranges.push((start, end, name.clone()));
        }
        // An empty tensor at the very end may lie in the padding that nothing follows.
        let place = if bytes == 0 { 0..0 } else { start..end };
        if entries.insert(name.clone(), Entry { element, shape, bytes: place, strides: None }).is_some() {
            return Err(fail(format!("holds two tensors `{name}`; the file is malformed")));
        }
    }
    ranges.sort();
    if let Some(pair) = ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        return Err(fail(format!("tensors `{}` and `{}` overlap; the file is malformed", pair[0].2, pair[1].2)));
    }
    Ok(Index { entries, metadata })
}

fn tensor(reader: &mut Reader) -> Result<Listed> {
    let name = reader.text()?;
    let rank = reader.u32()?;
    if rank > MAX_RANK {
        return Err(reader.fail(format!("tensor `{name}` has {rank} axes; the file is malformed")));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let extent = reader.u64()?;
        let extent = usize::try_from(extent)
            .map_err(|_| reader.fail(format!("tensor `{name}` has an extent of {extent}; the file is malformed")))?;
        shape.insert(0, extent);
    }
    let element = element_type(reader.u32()?).map_err(|found| {
        let read = BlockType::ALL.map(BlockType::name).join(", ");
        let detail = format!("has elements of type {found}, which is not read; read are F32, F16, BF16, {read}");
        reader.fail(format!("tensor `{name}` {detail}"))
    })?;
    Ok(Listed { name, shape, element, offset: reader.u64()? })
}

/// A value of the metadata.
#[derive(Default)]
struct Value {
    /// For people; of a long array its beginning.
    text: String,
    /// What it holds of whole numbers that are not negative, up to [`MAX_RANK`].
    numbers: Vec<u64>,
}

impl Value {
    fn of(text: impl ToString, number: Option<u64>) -> Value {
        Value { text: text.to_string(), numbers: number.into_iter().collect() }
    }
}

fn value(reader: &mut Reader, kind: u32, depth: usize) -> Result<Value> {
    fn signed(n: i64) -> Value {
        Value::of(n, u64::try_from(n).ok())
    }
    Ok(match kind {
        0 => Value::of(reader.take::<1>()?[0], None),
        1 => signed(i8::from_le_bytes(reader.take()?).into()),
        2 => Value::of(u16::from_le_bytes(reader.take()?), None),
        3 => signed(i16::from_le_bytes(reader.take()?).into()),
        4 => {
            let n = reader.u32()?;
            Value::of(n, Some(n.into()))
        }
        5 => signed(i32::from_le_bytes(reader.take()?).into()),
        6 => Value::of(f32::from_le_bytes(reader.take()?), None),
        7 => Value::of(reader.take::<1>()?[0] != 0, None),
        8 => Value::of(reader.text()?, None),
        9 => array(reader, depth)?,
        10 => {
            let n = reader.u64()?;
            Value::of(n, Some(n))
        }
        11 => signed(i64::from_le_bytes(reader.take()?)),
        12 => Value::of(f64::from_le_bytes(reader.take()?), None),
        other => return Err(reader.fail(format!("has metadata of unknown type {other}; the file is malformed"))),
    })
}

fn array(reader: &mut Reader, depth: usize) -> Result<Value> {
    if depth == MAX_DEPTH {
        return Err(reader.fail("has arrays nested too deeply; the file is malformed".into()));
    }
    let (kind, count) = (reader.u32()?, reader.u64()?);
    let size = match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    };
    // Texts begin with their length, arrays with their type and length.
    reader.holds(count, size.unwrap_or(if kind == 8 { 8 } else { 12 }), "values of an array")?;
    let mut all = Value { text: "[".into(), numbers: Vec::new() };
    for i in 0..count {
        if let (SHOWN, Some(size)) = (i, size) {
            reader.skip((count - i) * size)?;
            break;
        }
        let element = value(reader, kind, depth + 1)?;
        if i < SHOWN {
            all.text += if i == 0 { "" } else { ", " };
            all.text += &element.text;
        }
        if all.numbers.len() < MAX_RANK as usize {
            all.numbers.extend(element.numbers);
        }
    }
    if count > SHOWN {
        // Writing to a text cannot fail.
        let _ = write!(all.text, ", ... {count} in all");
    }
    all.text.push(']');
    Ok(all)
}
