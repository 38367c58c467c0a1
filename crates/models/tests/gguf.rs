//! GGUF's blocks on the way to the device: kept as they are where kernels have the same, otherwise read as their values.

#[allow(dead_code, reason = "shared with the reader's own tests")]
#[path = "../../checkpoint/tests/support/gguf.rs"]
mod gguf;

use gguf::Gguf;
use pulid_checkpoint::{Checkpoint, ElementType};
use pulid_graph::{Graph, NodeKind, Weight};
use pulid_models::sdxl::{Part, SdxlModel, UnetSize};
use pulid_models::{Patch, Patches, Precision, Vars};
use pulid_tensor::{DType, TensorType, f16};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn mini() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini/sdxl")
}

/// Numbers of ggml's types.
const F16: u32 = 1;
const Q4_0: u32 = 2;
const Q8_0: u32 = 8;
const Q6_K: u32 = 14;

/// Any blocks of the type: what they stand for is the reader's business, not this test's.
fn blocks(kind: u32, count: usize) -> Vec<u8> {
    let (elements, size, scale) = match kind {
        Q4_0 => (32, 18, 0),
        Q8_0 => (32, 34, 0),
        _ => (256, 210, 208),
    };
    let mut bytes: Vec<u8> = (0..count / elements * size).map(|i| (i * 7919 % 251) as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
        let d = f16::from_f32(0.001 * (i % 13) as f32 - 0.004);
        block[scale..scale + 2].copy_from_slice(&d.to_le_bytes());
    }
    bytes
}

/// The mini model's UNet with its matrices of whole blocks in a type, the rest as it is.
fn write(path: &Path, kind: u32) {
    let elements = if kind == Q6_K { 256 } else { 32 };
    let unet = Checkpoint::open(mini().join("unet")).unwrap();
    let file = unet.keys().fold(Gguf::default(), |file, key| {
        let tensor = unet.tensor(key).unwrap();
        let extents: Vec<u64> = tensor.shape().iter().rev().map(|&n| n as u64).collect();
        match tensor.shape()[..] {
            [n, k] if k.is_multiple_of(elements) => file.tensor(key, &extents, kind, &blocks(kind, n * k)),
            _ => file.tensor(key, &extents, F16, tensor.bytes()),
        }
    });
    std::fs::write(path, file.bytes()).unwrap();
}

const SIZE: UnetSize = UnetSize { batch: 1, height: 64, width: 64, text_tokens: 77, identity: None };

fn model(path: &Path) -> SdxlModel {
    SdxlModel::open(mini()).unwrap().with_unet(path)
}

fn graph(path: &Path, precision: Precision) -> Graph {
    model(path).unet(precision).unwrap().graph(SIZE).unwrap()
}

fn weights(graph: &Graph) -> impl Iterator<Item = (&Weight, &TensorType)> {
    graph.nodes().iter().filter_map(|node| match &node.kind {
        NodeKind::Weight(weight) => Some((weight, &node.ty)),
        _ => None,
    })
}

/// Bytes of the weights whose tensors the file keeps in blocks.
fn bytes(graph: &Graph, file: &Checkpoint) -> usize {
    let in_blocks = |w: &Weight| matches!(file.info(&w.name).unwrap().element, ElementType::Ggml(_));
    weights(graph).filter(|(w, _)| in_blocks(w)).map(|(_, ty)| ty.bytes()).sum()
}

fn with(weights: Option<DType>, activations: DType) -> Precision {
    Precision { activations, weights }
}

#[test]
fn blocks_that_kernels_have_take_the_device_no_more_than_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, dtype, per_block) in [(Q8_0, DType::Q8, 34), (Q4_0, DType::Q4, 18)] {
        let path = folder.path().join("unet.bin");
        write(&path, kind);
        let file = model(&path).part(Part::Unet).unwrap().weights;
        let elements: usize = file
            .keys()
            .filter(|key| matches!(file.info(key).unwrap().element, ElementType::Ggml(_)))
            .map(|key| file.info(key).unwrap().shape.count())
            .sum();
        assert!(elements > 1_000_000, "{elements} elements in blocks");
        for precision in
            [Precision::F32, Precision::F16, with(Some(DType::F16), DType::F32), with(Some(dtype), DType::F32)]
        {
            let graph = graph(&path, precision);
            assert_eq!(bytes(&graph, &file), elements / 32 * per_block, "{dtype} under {precision:?}");
        }
        // Nothing is rounded on the way.
        let plain = graph(&path, Precision::F32);
        let mut seen = 0;
        for (weight, ty) in weights(&plain).filter(|(_, ty)| ty.dtype == dtype) {
            let loaded = weight.load().unwrap();
            assert_eq!(loaded.tensor_type(), *ty);
            let want = file.tensor(&weight.name).unwrap().permute(&[1, 0]).unwrap();
            assert_eq!(loaded.to_f32_vec(), want.to_f32_vec(), "{}", weight.name);
            seen += 1;
        }
        assert!(seen > 50, "{seen} matrices");
        // What is asked for otherwise is done.
        assert_eq!(bytes(&graph(&path, with(Some(DType::F32), DType::F32)), &file), elements * 4);
        let four_bits = graph(&path, with(Some(DType::Q4), DType::F32));
        // Some small layers are not brought to fewer bits than the file has.
        let halfway = elements / 32 * (18 + 34) / 2;
        assert!(bytes(&four_bits, &file) < halfway, "{} bytes", bytes(&four_bits, &file));
    }
}

#[test]
fn other_blocks_are_their_values_or_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unet.gguf");
    write(&path, Q6_K);
    let file = model(&path).part(Part::Unet).unwrap().weights;
    let whole = |precision| bytes(&graph(&path, precision), &file);
    let elements = whole(Precision::F32) / 4;
    assert!(elements > 100_000);
    assert_eq!(whole(Precision::F16), elements * 2);
    assert_eq!(whole(with(Some(DType::Q8), DType::F32)), elements / 32 * 34);
    assert_eq!(whole(with(Some(DType::Q4), DType::F32)), elements / 32 * 18);
    let plain = graph(&path, Precision::F32);
    let key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let (weight, _) = weights(&plain).find(|(w, _)| &*w.name == key).unwrap();
    assert_eq!(weight.load().unwrap(), file.tensor(key).unwrap().permute(&[1, 0]).unwrap());
}

/// Adds one to every element.
#[derive(Debug)]
struct One;

impl Patches for One {
    fn of(&self, _: &str) -> Option<Patch> {
        Some(Patch::new("one", |tensor| {
            *tensor = pulid_tensor::HostTensor::from_f32(
                tensor.shape().clone(),
                tensor.as_f32()?.iter().map(|v| v + 1.0).collect(),
            )?;
            Ok(())
        }))
    }
}

#[test]
fn blocks_that_a_patch_changes_become_halves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.gguf");
    std::fs::write(&path, Gguf::default().tensor("w", &[64, 4], Q8_0, &blocks(Q8_0, 256)).bytes()).unwrap();
    let file = Checkpoint::open(&path).unwrap();
    let mut g = Graph::new("g");
    let vars = Vars::new(file.clone(), Precision::F32);
    vars.matrix(&mut g, "w", 64, 4).unwrap();
    vars.with_patches(Arc::new(One)).matrix(&mut g, "w", 64, 4).unwrap();
    let types: Vec<DType> = weights(&g).map(|(_, ty)| ty.dtype).collect();
    assert_eq!(types, [DType::Q8, DType::F16]);
    let (patched, _) = weights(&g).nth(1).unwrap();
    let want: Vec<f32> = file.tensor("w").unwrap().permute(&[1, 0]).unwrap().to_f32_vec();
    let want: Vec<f32> = want.iter().map(|v| f16::from_f32(v + 1.0).to_f32()).collect();
    assert_eq!(patched.load().unwrap().to_f32_vec(), want);
}
