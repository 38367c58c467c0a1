//! Weights in 8-bit floats, alone and under scales, against PyTorch's own conversion and by the program's own arithmetic.

use pulid_checkpoint::{Checkpoint, ElementType, MemorySource, View, safetensors};
use pulid_tensor::{DType, HostTensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/fp8").join(name)
}

/// A tensor as a safetensors file holds it.
struct Stored {
    key: &'static str,
    element: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn stored(key: &'static str, element: &'static str, shape: &[usize], bytes: &[u8]) -> Stored {
    Stored { key, element, shape: shape.to_vec(), bytes: bytes.to_vec() }
}

fn floats(key: &'static str, shape: &[usize], values: &[f32]) -> Stored {
    stored(key, "F32", shape, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
}

fn file(tensors: &[Stored], metadata: Value) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), metadata);
    for t in tensors {
        let start = data.len();
        data.extend(&t.bytes);
        let entry = json!({"dtype": t.element, "shape": t.shape, "data_offsets": [start, data.len()]});
        header.insert(t.key.into(), entry);
    }
    let text = serde_json::to_vec(&header).unwrap();
    [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat()
}

fn open(tensors: &[Stored]) -> Result<Checkpoint, String> {
    open_with(tensors, json!({}))
}

fn open_with(tensors: &[Stored], metadata: Value) -> Result<Checkpoint, String> {
    let source = MemorySource::new("w.safetensors", file(tensors, metadata));
    Checkpoint::from_source(Arc::new(source)).map_err(|e| e.to_string())
}

/// Codes of E4M3 and what they stand for.
const CODES: [u8; 6] = [0x38, 0xc0, 0x01, 0x7e, 0x80, 0x3c];
const VALUES: [f32; 6] = [1.0, -2.0, 0.001953125, 448.0, -0.0, 1.5];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_code_is_what_pytorch_makes_of_it() {
    let want = Checkpoint::open(golden("codes.values.safetensors")).unwrap();
    for name in ["codes.safetensors", "codes.pth"] {
        let got = Checkpoint::open(golden(name)).unwrap();
        for (key, element) in [("e4m3", ElementType::F8E4M3), ("e5m2", ElementType::F8E5M2)] {
            let info = got.info(key).unwrap();
            assert_eq!((info.element, info.dtype), (element, DType::F16), "half precision holds them all");
            let (got, want) = (got.tensor(key).unwrap().to_f32_vec(), want.tensor(key).unwrap().to_f32_vec());
            for (code, (got, want)) in got.iter().zip(&want).enumerate() {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{name}: {key} {code:#x} is {got}, not {want}");
            }
        }
    }
}

#[test]
fn scales_beside_weights_are_multiplied_in_and_are_no_tensors_of_their_own() {
    let want = Checkpoint::open(golden("scaled.values.safetensors")).unwrap();
    for name in ["scaled.safetensors", "scaled.pth"] {
        let got = Checkpoint::open(golden(name)).unwrap();
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{name}");
        for key in want.keys() {
            let tensor = got.tensor(key).unwrap();
            assert_eq!(got.info(key).unwrap().dtype, tensor.dtype(), "{name}: {key}");
            let want = want.tensor(key).unwrap();
            assert_eq!(bits(&tensor.to_f32_vec()), bits(&want.to_f32_vec()), "{name}: {key}");
            let rows = got.rows(key, &[2, 0]).unwrap().to_f32_vec();
            let row = want.shape().count() / want.shape()[0];
            let [third, first] = [2, 0].map(|i| want.to_f32_vec()[i * row..(i + 1) * row].to_vec());
            assert_eq!(rows, [third, first].concat(), "{name}: rows of {key}");
        }
    }
}

#[test]
fn views_take_the_scale_of_what_they_show() {
    let c =
        open(&[stored("m.weight", "F8_E4M3", &[3, 2], &CODES), floats("m.weight_scale", &[3, 1], &[2.0, 0.5, 3.0])])
            .unwrap();
    let all: Vec<f32> = VALUES.iter().zip([2.0, 2.0, 0.5, 0.5, 3.0, 3.0]).map(|(v, s)| v * s).collect();
    assert_eq!(c.tensor("m.weight").unwrap().as_f32().unwrap(), all);
    let views = c
        .remap(|_, _| {
            let views = [("rows", View::Rows(1..3)), ("turned", View::Transposed), ("whole", View::Whole)];
            views.map(|(name, view)| (name.to_owned(), view)).into()
        })
        .unwrap();
    assert_eq!(views.tensor("rows").unwrap().as_f32().unwrap(), &all[2..]);
    let turned: Vec<f32> = [0, 2, 4, 1, 3, 5].iter().map(|&i| all[i]).collect();
    assert_eq!(views.tensor("turned").unwrap().as_f32().unwrap(), turned);
    assert_eq!(views.identity("whole").unwrap(), c.identity("m.weight").unwrap());
    assert_ne!(views.identity("rows").unwrap(), views.identity("turned").unwrap());
    let merged = open(&[floats("x", &[1], &[1.0])]).unwrap().merge(&c).unwrap();
    assert_eq!(merged.tensor("m.weight").unwrap().as_f32().unwrap(), all, "the scale's file has another number there");
}

#[test]
fn shards_may_part_a_weight_from_its_scale() {
    let folder = tempfile::tempdir().unwrap();
    let write =
        |name: &str, tensors: &[Stored]| std::fs::write(folder.path().join(name), file(tensors, json!({}))).unwrap();
    write("a.safetensors", &[stored("m.weight", "F8_E4M3", &[6], &CODES)]);
    write("b.safetensors", &[floats("m.scale_weight", &[], &[0.25])]);
    let index = json!({"weight_map": {"m.weight": "a.safetensors", "m.scale_weight": "b.safetensors"}});
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let c = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(c.tensor("m.weight").unwrap().as_f32().unwrap(), VALUES.map(|v| v * 0.25));
    assert_eq!(c.len(), 1);
}

#[test]
fn what_is_no_scale_stays_a_tensor() {
    let one = HostTensor::zeros([1]);
    let keys = ["a.weight_scale", "a.input_scale", "logit", "logit_scale", "b.weight", "b.input_scale"];
    let bytes = safetensors::to_bytes(keys.map(|key| (key, &one)), &BTreeMap::new()).unwrap();
    let c = Checkpoint::from_source(Arc::new(MemorySource::new("w", bytes))).unwrap();
    assert_eq!(c.len(), keys.len());
}

#[test]
fn formats_are_read_or_refused_by_their_name() {
    let weight = || stored("m.weight", "F8_E4M3", &[6], &CODES);
    let scale = || floats("m.weight_scale", &[], &[2.0]);
    let format = |text: &str| stored("m.comfy_quant", "U8", &[text.len()], text.as_bytes());
    // Some files keep the codes as plain bytes; then the format alone tells what they are.
    let plain = stored("m.weight", "U8", &[6], &CODES);
    let c = open(&[plain, scale(), format(r#"{"format": "float8_e4m3fn"}"#)]).unwrap();
    assert_eq!(c.tensor("m.weight").unwrap().as_f32().unwrap(), VALUES.map(|v| v * 2.0));
    let layers = |format: &str| json!({"_quantization_metadata": json!({"format_version": "1.0", "layers": {"m": {"format": format}}}).to_string()});
    let c = open_with(&[weight(), scale()], layers("float8_e4m3fn")).unwrap();
    assert_eq!(c.tensor("m.weight").unwrap().as_f32().unwrap(), VALUES.map(|v| v * 2.0));

    let refused = |result: Result<Checkpoint, String>, expected: &str| {
        let message = result.unwrap_err();
        assert!(message.contains(expected) && message.contains('m'), "{expected}: {message}");
    };
    refused(open(&[weight(), scale(), format(r#"{"format": "nvfp4"}"#)]), "`nvfp4`");
    refused(open_with(&[weight(), scale()], layers("mxfp8")), "`mxfp8`");
    refused(open(&[weight(), scale(), format(r#"{"format": "float8_e5m2"}"#)]), "F8_E4M3");
    refused(open(&[weight(), scale(), format("{")]), "text of a format");
    refused(open(&[weight(), floats("m.weight_scale_inv", &[1, 1], &[1.0])]), "square blocks");
    refused(open(&[weight(), floats("m.weight_scale", &[2], &[1.0, 2.0])]), "neither one number");
    refused(open(&[weight(), scale(), floats("m.scale_weight", &[], &[1.0])]), "two scales");
    refused(open(&[stored("m.weight", "I8", &[6], &CODES), scale()]), "I8 under a scale");
    refused(open(&[stored("m.weight", "F8_E8M0", &[6], &CODES)]), "F8_E8M0");
    let bnb = "m.weight.quant_state.bitsandbytes__nf4";
    refused(open(&[stored("m.weight", "U8", &[6], &CODES), stored(bnb, "U8", &[2], b"{}")]), "bitsandbytes");
}
