//! The safetensors format: eight bytes of header length, a JSON header, then the tensors one after another.
//!
//! The `safetensors` crate keeps offsets in `usize` and wants the whole file as one slice; neither works for an SDXL
//! UNet in a browser, where `usize` has 32 bits. So the header is read here, and the crate is the tests' witness.

use crate::{ElementType, Entry, Index, Source};
use pulid_tensor::{DType, Error, HostTensor, Result, Shape};
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
    if header_len > MAX_HEADER || header_len > source.len() - 8 {
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
    Ok(Index { entries, metadata: header.metadata })
}

/// The header of a file of these tensors, and the tensors in the order of their bytes.
fn header<'a>(
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<&'a HostTensor>)> {
    let mut sorted: Vec<(String, &HostTensor)> = tensors.into_iter().map(|(k, t)| (k.into(), t)).collect();
    // Wide elements first keeps every tensor aligned, as the format's own writer does.
    sorted.sort_by(|(a, t), (b, u)| u.dtype().size().cmp(&t.dtype().size()).then_with(|| a.cmp(b)));
    let mut entries = BTreeMap::new();
    let mut offset = 0u64;
    for (key, tensor) in &sorted {
        let dtype = match tensor.dtype() {
            DType::F32 => ElementType::F32,
            DType::F16 => ElementType::F16,
            DType::U32 => ElementType::U32,
        };
        let end = offset + tensor.bytes().len() as u64;
        let entry = HeaderEntry {
            dtype: dtype.name().into(),
            shape: tensor.shape().extents().to_vec(),
            data_offsets: [offset, end],
        };
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
    let mut json = serde_json::to_vec(&Written { metadata, tensors: entries })
        .map_err(|e| Error::invalid("safetensors", format!("the header cannot be written: {e}")))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok((header, sorted.into_iter().map(|(_, t)| t).collect()))
}

/// A safetensors file in memory. Equal tensors and metadata give equal bytes.
///
/// # Errors
/// When a key is given twice or is `__metadata__`.
pub fn to_bytes<'a>(
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a HostTensor)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let (mut bytes, tensors) = header(tensors, metadata)?;
    bytes.reserve(tensors.iter().map(|t| t.bytes().len()).sum());
    for tensor in tensors {
        bytes.extend_from_slice(tensor.bytes());
    }
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
    let path = path.as_ref();
    let (header, tensors) = header(tensors, metadata)?;
    crate::write_atomically(path, |file| {
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(|e| Error::io(path, e));
        write(&header)?;
        tensors.iter().try_for_each(|t| write(t.bytes()))
    })
}
