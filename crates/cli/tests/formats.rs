//! Weights as others publish them: GGUF, 8-bit floats and Stability's names make the image that the folder's weights make.

#[allow(dead_code, reason = "shared with the reader's own tests")]
#[path = "../../checkpoint/tests/support/gguf.rs"]
mod gguf;
#[path = "../../models/tests/support/original.rs"]
mod original;
mod support;

use gguf::{Gguf, text};
use pulid_checkpoint::{Checkpoint, write_safetensors};
use pulid_tensor::{DType, HostTensor, f16};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use support::{program, repository};

const ARGUMENTS: [&str; 17] = [
    "generate",
    "--prompt",
    "a comic picture of a person",
    "--steps",
    "2",
    "--width",
    "128",
    "--height",
    "128",
    "--guidance",
    "1.8",
    "--no-metadata",
    "--autotune",
    "off",
    "--save-latents",
    "latents.safetensors",
    "--output",
];

fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = program(folder, arguments).output().expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The file of the mini model's image and its latents.
fn image(folder: &Path, more: &[&str]) -> (Vec<u8>, HostTensor) {
    run(folder, &[&ARGUMENTS[..], &["x.png"], more].concat());
    let latents = Checkpoint::open(folder.join("latents.safetensors")).unwrap().tensor("latents").unwrap();
    (std::fs::read(folder.join("x.png")).unwrap(), latents)
}

/// The mini model's UNet by Stability's names.
fn unet() -> BTreeMap<String, HostTensor> {
    let unet = Checkpoint::open(repository("models/mini/sdxl/unet")).unwrap();
    let name = |key: &str| original::unet_key(key, 1, |level| level < 2);
    unet.keys().map(|key| (name(key), unet.tensor(key).unwrap())).collect()
}

/// Blocks of 32 numbers of 8 bits: each block's largest is 127.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in values.chunks_exact(32) {
        let peak = block.iter().fold(0f32, |peak, v| peak.max(v.abs()));
        let scale = f16::from_f32(peak / 127.0);
        let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
        bytes.extend(scale.to_le_bytes());
        bytes.extend(block.iter().map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
    }
    bytes
}

/// What a file's tensors stand for, in f32.
fn write_values(from: &Path, to: &Path) {
    let file = Checkpoint::open(from).unwrap();
    let values: Vec<_> = file.keys().map(|key| (key, file.tensor(key).unwrap().into_dtype(DType::F32))).collect();
    write_safetensors(to, values.iter().map(|(key, tensor)| (*key, tensor)), &BTreeMap::new()).unwrap();
}

fn extents(tensor: &HostTensor) -> Vec<u64> {
    tensor.shape().iter().rev().map(|&n| n as u64).collect()
}

#[test]
fn a_gguf_makes_the_image_of_its_values() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (plain, latents) = image(folder.path(), &[]);

    // In half precision nothing is lost: the same image by other names in another format.
    let halves = unet().iter().fold(Gguf::default(), |file, (key, tensor)| {
        assert_eq!(tensor.dtype(), DType::F16);
        file.tensor(key, &extents(tensor), 1, tensor.bytes())
    });
    std::fs::write(at("halves.gguf"), halves.bytes()).unwrap();
    assert!(plain == image(folder.path(), &["--unet", "halves.gguf"]).0, "halves in GGUF");

    // As ComfyUI's converter writes them: matrices in blocks, the rest in half precision.
    let eight = Gguf::default().value("general.architecture", 8, &text("sdxl"));
    let eight = unet().iter().fold(eight, |file, (key, tensor)| match tensor.shape()[..] {
        [_, k] if k.is_multiple_of(32) => file.tensor(key, &extents(tensor), 8, &q8_0(&tensor.to_f32_vec())),
        _ => file.tensor(key, &extents(tensor), 1, tensor.bytes()),
    });
    std::fs::write(at("eight.gguf"), eight.bytes()).unwrap();
    write_values(&at("eight.gguf"), &at("values.safetensors"));
    let (_, got) = image(folder.path(), &["--unet", "eight.gguf"]);
    let (_, want) = image(folder.path(), &["--unet", "values.safetensors"]);
    assert!(got.deviation_from(&want) < 1e-3, "{}", got.deviation_from(&want));
    assert!(got.deviation_from(&latents) > 1e-3, "8 bits change something");

    let found: Value = serde_json::from_str(&run(folder.path(), &["inspect", "eight.gguf", "--json"])).unwrap();
    assert_eq!((&found["format"], &found["family"]), (&json!("GGUF"), &json!("UNet by Stability's names")));
    assert_eq!(found["metadata"]["general.architecture"], "sdxl");
    assert!(found["elements"]["Q8_0"]["tensors"].as_u64().unwrap() > 50, "{}", found["elements"]);
}

#[test]
fn scaled_8_bit_floats_make_the_image_of_their_values() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // E5M2 is the upper half of half precision: cut, so that no rounding of the test's own is needed.
    let mut entries: Vec<(String, &str, Vec<usize>, Vec<u8>)> = vec![("scaled_fp8".into(), "F8_E5M2", vec![0], vec![])];
    for (key, tensor) in unet() {
        let shape = tensor.shape().to_vec();
        match (key.strip_suffix(".weight"), shape.len()) {
            (Some(layer), 2) => {
                let bytes = tensor.bytes().iter().skip(1).step_by(2).copied().collect();
                entries.push((format!("{layer}.scale_weight"), "F32", vec![], 0.9f32.to_le_bytes().to_vec()));
                entries.push((key, "F8_E5M2", shape, bytes));
            }
            _ => entries.push((key, "F16", shape, tensor.bytes().to_vec())),
        }
    }
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (key, element, shape, bytes) in entries {
        let start = data.len();
        data.extend(bytes);
        header.insert(key, json!({"dtype": element, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(at("fp8.safetensors"), file).unwrap();
    write_values(&at("fp8.safetensors"), &at("values.safetensors"));
    let (got, _) = image(folder.path(), &["--unet", "fp8.safetensors"]);
    assert!(got == image(folder.path(), &["--unet", "values.safetensors"]).0);
    assert!(got != image(folder.path(), &[]).0);
}
