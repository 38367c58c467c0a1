//! Safetensors: what the format's own implementation writes and reads, and files that are broken on purpose.

use ::safetensors::tensor::{Dtype, SafeTensors, TensorView};
use proptest::prelude::*;
use pulid_checkpoint::{Checkpoint, ElementType, MemorySource, safetensors, write_safetensors};
use pulid_tensor::{DType, HostTensor, Shape};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

fn open(bytes: impl Into<Vec<u8>>) -> Result<Checkpoint, String> {
    Checkpoint::from_source(Arc::new(MemorySource::new("w.safetensors", bytes.into()))).map_err(|e| e.to_string())
}

/// A file of this header and this many zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn two_tensors() -> Vec<u8> {
    let tensors = [("a", HostTensor::from_fn([2, 2], |i| i as f32)), ("b", HostTensor::zeros([3]).cast(DType::F16))];
    safetensors::to_bytes(tensors.iter().map(|(k, t)| (*k, t)), &BTreeMap::from([("k".into(), "v".into())])).unwrap()
}

#[test]
fn the_formats_own_files_are_read() {
    let types = [
        (Dtype::BOOL, ElementType::Bool),
        (Dtype::U8, ElementType::U8),
        (Dtype::I8, ElementType::I8),
        (Dtype::U16, ElementType::U16),
        (Dtype::I16, ElementType::I16),
        (Dtype::U32, ElementType::U32),
        (Dtype::I32, ElementType::I32),
        (Dtype::U64, ElementType::U64),
        (Dtype::I64, ElementType::I64),
        (Dtype::F16, ElementType::F16),
        (Dtype::BF16, ElementType::Bf16),
        (Dtype::F32, ElementType::F32),
        (Dtype::F64, ElementType::F64),
        (Dtype::F8_E4M3, ElementType::F8E4M3),
        (Dtype::F8_E5M2, ElementType::F8E5M2),
    ];
    assert_eq!(types.len(), ElementType::ALL.len());
    let data: Vec<Vec<u8>> = types.iter().map(|(_, e)| (0..6 * e.size()).map(|i| i as u8 % 2).collect()).collect();
    let views =
        types.iter().zip(&data).map(|((d, e), bytes)| (e.name(), TensorView::new(*d, vec![2, 3], bytes).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let c = open(::safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    assert_eq!(c.metadata()["format"], "pt");
    assert_eq!(c.len(), types.len());
    for ((_, element), bytes) in types.iter().zip(&data) {
        let info = c.info(element.name()).unwrap();
        assert_eq!((info.element, info.dtype, info.shape.extents()), (*element, element.dtype(), &[2, 3][..]));
        assert_eq!(&c.bytes(element.name()).unwrap()[..], &bytes[..]);
    }
    assert_eq!(c.tensor("BOOL").unwrap().as_u32().unwrap(), [0, 1, 0, 1, 0, 1]);
    assert_eq!(c.integers("U16").unwrap(), [256; 6]);
}

#[test]
fn the_format_reads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let tensors = [
        ("half", HostTensor::from_fn([3], |i| i as f32 + 0.5).cast(DType::F16)),
        ("single", HostTensor::from_fn([2, 3], |i| -(i as f32))),
        ("index", HostTensor::from_u32([1], vec![u32::MAX]).unwrap()),
        ("scalar", HostTensor::from_f32(Shape::default(), vec![7.0]).unwrap()),
        ("empty", HostTensor::zeros([0, 4])),
    ];
    let metadata = BTreeMap::from([("photos".to_owned(), "a \"quoted\" näme.jpg".to_owned())]);
    write_safetensors(&path, tensors.iter().map(|(k, t)| (*k, t)), &metadata).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes, safetensors::to_bytes(tensors.iter().rev().map(|(k, t)| (*k, t)), &metadata).unwrap());

    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["photos"], metadata["photos"]);
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let c = Checkpoint::open(&path).unwrap();
    assert_eq!(reference.len(), tensors.len());
    for (key, tensor) in &tensors {
        let view = reference.tensor(key).unwrap();
        assert_eq!((view.shape(), view.data()), (tensor.shape().extents(), tensor.bytes()), "{key}");
        assert_eq!(&c.tensor(key).unwrap(), tensor);
    }
    let twice = [("x", &tensors[0].1), ("x", &tensors[1].1)];
    assert!(write_safetensors(&path, twice, &metadata).is_err());
    assert!(write_safetensors(&path, [("__metadata__", &tensors[0].1)], &metadata).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "a refused write leaves the old file");
}

#[test]
fn broken_headers_are_refused() {
    let f32x2 = |start: u64, end: u64| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":[{start},{end}]}}"#);
    let max = u64::MAX;
    for (header, data, expected) in [
        ("".to_owned(), 0, "malformed"),
        ("[]".into(), 0, "malformed"),
        ("{\"a\":".into(), 0, "malformed"),
        ("{}{}".into(), 0, "malformed"),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#.into(), 8, "malformed"),
        (r#"{"a":{"dtype":"F32","shape":[2]}}"#.into(), 8, "malformed"),
        (r#"{"a":{"dtype":"F32","shape":[1e9],"data_offsets":[0,8]}}"#.into(), 8, "malformed"),
        (r#"{"__metadata__":{"k":1}}"#.into(), 0, "malformed"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "twice"),
        (format!(r#"{{"a":{},"a":{}}}"#, f32x2(0, 8), f32x2(0, 8)), 8, "`a` is there twice"),
        (r#"{"a":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[0,2]}}"#.into(), 2, "type F8_E8M0"),
        (format!(r#"{{"a":{}}}"#, f32x2(0, 8)), 7, "truncated"),
        (format!(r#"{{"a":{}}}"#, f32x2(8, 0)), 8, "truncated or malformed"),
        (format!(r#"{{"a":{}}}"#, f32x2(max - 8, max)), 8, "truncated or malformed"),
        (format!(r#"{{"a":{}}}"#, f32x2(0, 4)), 4, "does not fill 4 bytes"),
        (format!(r#"{{"a":{}}}"#, f32x2(0, 8)), 9, "1 bytes at the end"),
        (format!(r#"{{"a":{}}}"#, f32x2(4, 12)), 12, "follows bytes of no tensor"),
        (format!(r#"{{"a":{},"b":{}}}"#, f32x2(0, 8), f32x2(4, 12)), 12, "overlaps"),
        (format!(r#"{{"a":{},"b":{}}}"#, f32x2(0, 8), f32x2(0, 8)), 8, "overlaps"),
        (format!(r#"{{"a":{{"dtype":"F64","shape":[{max},{max}],"data_offsets":[0,8]}}}}"#), 8, "does not fill"),
        (r#"{"a":{"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]}}"#.into(), 8, "does not fill"),
    ] {
        let message = open(file(&header, data)).unwrap_err();
        assert!(message.starts_with("w.safetensors: ") && message.contains(expected), "{header}: {message}");
    }
    let not_utf8 = [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat();
    assert!(open(not_utf8).unwrap_err().contains("malformed"));
    // Nested far deeper than any header: refused, and not by the stack.
    assert!(open(file(&"[".repeat(100_000), 0)).is_err());
    assert!(open(file(&format!("{{\"a\":{}", "{\"x\":".repeat(100_000)), 0)).is_err());
}

#[test]
fn announced_lengths_are_not_believed() {
    for (length, part) in [
        (1, "announces a header"),
        (1000, "announces a header"),
        (100_000_001, "no format of weights"),
        (u64::MAX - 7, "no format of weights"),
        (u64::MAX, "no format of weights"),
    ] {
        let bytes = [&length.to_le_bytes()[..], b""].concat();
        assert!(open(bytes).unwrap_err().contains(part), "{length}");
    }
    assert!(open([1, 2, 3]).unwrap_err().contains("fewer than 8 bytes"));
}

#[test]
fn empty_files_of_the_format_are_fine() {
    assert!(open(file("{}", 0)).unwrap().is_empty());
    assert!(open(file(r#"{"__metadata__":null}      "#, 0)).unwrap().is_empty());
    let empty = open(file("{}", 0)).unwrap().tensor("x").unwrap_err().to_string();
    assert!(empty.contains("no tensors at all"));
}

/// Header text that is almost right, so that the checks behind the JSON parser are reached.
fn entry() -> impl Strategy<Value = String> {
    let size = prop_oneof![0u64..20, any::<u64>()];
    (
        prop_oneof!["[ab]", Just("__metadata__".to_owned())],
        prop_oneof![Just("F32"), Just("F16"), Just("I64"), Just("BOOL"), Just("F4")],
        proptest::collection::vec(size.clone(), 0..4),
        size.clone(),
        size,
    )
        .prop_map(|(key, dtype, shape, start, end)| {
            format!(r#""{key}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_header_is_a_checkpoint_or_an_error(entries in proptest::collection::vec(entry(), 0..4), data in 0usize..64) {
        if let Ok(c) = open(file(&format!("{{{}}}", entries.join(",")), data)) {
            let bytes: usize = c.keys().map(|k| c.bytes(k).unwrap().len()).sum();
            prop_assert_eq!(bytes, data);
            for key in c.keys() {
                c.tensor(key).unwrap();
            }
        }
    }

    #[test]
    fn any_bytes_are_a_checkpoint_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(bytes);
    }

    #[test]
    fn a_truncated_file_is_an_error(end in 0usize..200) {
        let bytes = two_tensors();
        let end = end % bytes.len();
        prop_assert!(open(&bytes[..end]).is_err());
    }

    #[test]
    fn a_changed_file_agrees_with_the_formats_own_reader(at in any::<usize>(), to in any::<u8>()) {
        let mut bytes = two_tensors();
        let at = at % bytes.len();
        bytes[at] = to;
        // What the format refuses is refused here; the reverse need not hold, since twice the same key is refused only here.
        if let Ok(c) = open(bytes.clone()) {
            let reference = SafeTensors::deserialize(&bytes);
            prop_assert!(reference.is_ok(), "{:?}", reference.err());
            prop_assert_eq!(reference.unwrap().len(), c.len());
        }
    }

    #[test]
    fn tensors_round_trip(shape in proptest::collection::vec(0usize..5, 0..4), seed in any::<u32>(), half in any::<bool>()) {
        let tensor = HostTensor::from_fn(shape, |i| (i as u32 ^ seed) as f32 / 1e9);
        let tensor = if half { tensor.cast(DType::F16) } else { tensor };
        let c = open(safetensors::to_bytes([("t", &tensor)], &BTreeMap::new()).unwrap()).unwrap();
        prop_assert_eq!(c.tensor("t").unwrap(), tensor);
    }
}
