//! The safetensors format: eight bytes of header length, a JSON header, then the tensors one after another.
//!
//! The `safetensors` crate keeps offsets in `usize` and wants the whole file as one slice; neither works for an SDXL
//! UNet in a browser, where `usize` has 32 bits. So the header is read here, and the crate is the tests' reference.

use crate::{ElementType, Entry, Index, Source};
use pulid_tensor::{DType, Error, HostTensor, Result, Shape, TensorType};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The longest header that is read, the limit of the format's own implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Key of the free text in the header.
const METADATA: &str = "__metadata__";

#[derive(Deserialize, Serialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, HeaderEntry>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header::default();
                let mut metadata = None;
                while let Some(key) = map.next_key::<String>()? {
                    // A map would silently keep the last of two equal keys.
                    let duplicate = if key == METADATA {
                        metadata.replace(map.next_value::<Option<BTreeMap<String, String>>>()?).is_some()
                    } else {
                        header.tensors.contains_key(&key)
                            || header.tensors.insert(key.clone(), map.next_value()?).is_some()
                    };
                    if duplicate {
                        return Err(serde::de::Error::custom(format!("key `{key}` is there twice")));
                    }
                }
                header.metadata = metadata.flatten().unwrap_or_default();
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Reads the header of a safetensors source.
///
/// # Errors
/// When the header is too long, is not the JSON it should be, names an unknown element type, or places a tensor outside
/// the file, over another tensor or in a space that is not its size; when a key is there twice; or when bytes at the
/// end belong to no tensor.
pub fn read_index(source: &dyn Source) -> Result<Index> {
    let fail = |detail: String| Error::file(source.path(), detail);
    let length: [u8; 8] = source
        .read(0..source.len().min(8))?
        .as_ref()
        .try_into()
        .map_err(|_| fail("is no safetensors file: it has fewer than 8 bytes".into()))?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER {
        return Err(fail("is of no format of weights that is read: safetensors, GGUF, PyTorch's, or ONNX".into()));
    }
    if header_len > source.len() - 8 {
        return Err(fail(format!(
            "is no safetensors file, or is truncated: it announces a header of {header_len} bytes in {} bytes",
            source.len()
        )));
    }
    let data_start = 8 + header_len;
    let data_len = source.len() - data_start;
    let header: Header = serde_json::from_slice(&source.read(8..data_start)?)
        .map_err(|e| fail(format!("is no safetensors file: its header is malformed ({e})")))?;

    let mut entries = BTreeMap::new();
    let mut ranges = Vec::with_capacity(header.tensors.len());
    for (key, HeaderEntry { dtype, shape, data_offsets: [start, end] }) in header.tensors {
        let element = ElementType::from_name(&dtype).ok_or_else(|| {
            fail(format!("tensor `{key}` has elements of type {dtype}, which is not read; use a file in F16 or F32"))
        })?;
        let shape = Shape::new(shape);
        if start > end || end > data_len {
            return Err(fail(format!(
                "tensor `{key}` lies at bytes {start} to {end} of {data_len}; the file is truncated or malformed"
            )));
        }
        if element.bytes(&shape) != Some(end - start) {
            return Err(fail(format!("tensor `{key}` of type {element}{shape} does not fill {} bytes", end - start)));
        }
        ranges.push((start, end, key.clone()));
        entries.insert(key, Entry { element, shape, bytes: data_start + start..data_start + end, strides: None });
    }
    ranges.sort();
    let mut filled = 0;
    for (start, end, key) in ranges {
        if start != filled {
            let what = if start < filled { "overlaps another tensor" } else { "follows bytes of no tensor" };
            return Err(fail(format!("tensor `{key}` at byte {start} {what}; the file is malformed")));
        }
        filled = end;
    }
    if filled != data_len {
        return Err(fail(format!("{} bytes at the end belong to no tensor; the file is malformed", data_len - filled)));
    }
    let mut metadata = header.metadata;
    if let Some(text) = metadata.remove(QUANTIZED) {
        name_quantized(&text, &mut entries).map_err(fail)?;
    }
    Ok(Index { entries, metadata })
}

/// Metadata key under which quantised tensors are listed: JSON of [`Quantized`] by tensor key. Their words are stored as U32.
const QUANTIZED: &str = "pulid.quantized";

/// What the words of a quantised tensor stand for.
#[derive(Serialize, Deserialize)]
struct Quantized {
    #[serde(rename = "type")]
    dtype: DType,
    shape: Vec<usize>,
}

/// Gives the entries of words their quantised types. The error is the text of what is wrong.
fn name_quantized(text: &str, entries: &mut BTreeMap<String, Entry>) -> std::result::Result<(), String> {
    let list: BTreeMap<String, Quantized> =
        serde_json::from_str(text).map_err(|e| format!("has a malformed list of quantised tensors ({e})"))?;
    for (key, Quantized { dtype, shape }) in list {
        let element = match dtype {
            DType::Q8 => ElementType::Q8,
            DType::Q4 => ElementType::Q4,
            other => return Err(format!("lists tensor `{key}` as quantised to {other}; known are q8 and q4")),
        };
        let shape = Shape::new(shape);
        let entry = entries.get_mut(&key).ok_or_else(|| format!("lists a quantised tensor `{key}` that it lacks"))?;
        if entry.element != ElementType::U32 || element.bytes(&shape) != Some(entry.bytes.end - entry.bytes.start) {
            return Err(format!("tensor `{key}` does not hold the words of {element}{shape}"));
        }
        (entry.element, entry.shape) = (element, shape);
    }
    Ok(())
}

/// The header of a file of tensors of these types, and their places in the list in the order of their bytes.
fn header(tensors: &[(String, TensorType)], metadata: &BTreeMap<String, String>) -> Result<(Vec<u8>, Vec<usize>)> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    // Wide elements first keeps every tensor aligned, as the format's own writer does.
    order.sort_by_key(|&i| (tensors[i].1.dtype == DType::F16, &tensors[i].0));
    let mut entries = BTreeMap::new();
    let mut quantized = BTreeMap::new();
    let mut offset = 0u64;
    for (key, ty) in order.iter().map(|&i| &tensors[i]) {
        let dtype = match ty.dtype {
            DType::F32 => ElementType::F32,
            DType::F16 => ElementType::F16,
            DType::U32 | DType::Q8 | DType::Q4 => ElementType::U32,
        };
        let end = offset + ty.bytes() as u64;
        let mut shape = ty.shape.extents().to_vec();
        if ty.dtype.is_quantized() {
            quantized.insert(key, Quantized { dtype: ty.dtype, shape });
            shape = vec![ty.bytes() / dtype.size()];
        }
        let entry = HeaderEntry { dtype: dtype.name().into(), shape, data_offsets: [offset, end] };
        offset = end;
        if key == METADATA || entries.insert(key.as_str(), entry).is_some() {
            return Err(Error::invalid("safetensors", format!("key `{key}` is given twice or reserved")));
        }
    }

    #[derive(Serialize)]
    struct Written<'a> {
        #[serde(rename = "__metadata__", skip_serializing_if = "BTreeMap::is_empty")]
        metadata: &'a BTreeMap<String, String>,
        #[serde(flatten)]
        tensors: BTreeMap<&'a str, HeaderEntry>,
    }
    let unwritten = |e: serde_json::Error| Error::invalid("safetensors", format!("the header cannot be written: {e}"));
    let mut metadata = metadata.clone();
    if !quantized.is_empty() {
        metadata.insert(QUANTIZED.into(), serde_json::to_string(&quantized).map_err(unwritten)?);
    }
    let mut json = serde_json::to_vec(&Written { metadata: &metadata, tensors: entries }).map_err(unwritten)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok((header, order))
}

/// Tensors and their types, as [`header`] takes them.
type Listed<'a> = (Vec<(String, TensorType)>, Vec<&'a HostTensor>);

fn listed<'a>(tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>) -> Listed<'a> {
    tensors.into_iter().map(|(key, tensor)| ((key.into(), tensor.tensor_type()), tensor)).unzip()
}

/// A safetensors file in memory. Equal tensors and metadata give equal bytes.
///
/// # Errors
/// When a key is given twice or is `__metadata__`.
pub fn to_bytes<'a>(
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let (types, tensors) = listed(tensors);
    let (mut bytes, order) = header(&types, metadata)?;
    bytes.reserve(tensors.iter().map(|t| t.bytes().len()).sum());
    order.into_iter().for_each(|i| bytes.extend_from_slice(tensors[i].bytes()));
    Ok(bytes)
}

/// Writes a safetensors file, whole or not at all. Equal tensors and metadata give equal bytes.
///
/// # Errors
/// When a key is given twice or is `__metadata__`, or the file cannot be written.
#[cfg(not(target_arch = "wasm32"))]
pub fn write_safetensors<'a>(
    path: impl AsRef<std::path::Path>,
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let (types, tensors) = listed(tensors);
    write_safetensors_one_by_one(path, &types, metadata, |i, write| write(tensors[i].bytes()))
}

/// [`write_safetensors`] for tensors that need not fit memory together: `produce(i, write)` is called once for each tensor
/// of the list, in the order of the file, and writes its bytes.
///
/// # Errors
/// As [`write_safetensors`], those of `produce`, and when it writes another number of bytes than the type takes.
#[cfg(not(target_arch = "wasm32"))]
pub fn write_safetensors_one_by_one(
    path: impl AsRef<std::path::Path>,
    tensors: &[(String, TensorType)],
    metadata: &BTreeMap<String, String>,
    mut produce: impl FnMut(usize, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let (header, order) = header(tensors, metadata)?;
    crate::write_atomically(path, |file| {
        file.write_all(&header).map_err(|e| Error::io(path, e))?;
        for i in order {
            let mut written = 0;
            produce(i, &mut |bytes| {
                written += bytes.len();
                file.write_all(bytes).map_err(|e| Error::io(path, e))
            })?;
            let (key, ty) = &tensors[i];
            if written != ty.bytes() {
                return Err(Error::invalid("safetensors", format!("`{key}` {ty} was given {written} bytes")));
            }
        }
        Ok(())
    })
}
