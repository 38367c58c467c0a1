//! The published networks at their real sizes: every tensor has its place, and every plan fits WebGPU's limits.
//!
//! `data/published.json` holds keys and shapes; the weights themselves are never read.

use bytes::Bytes;
use pulid_checkpoint::{Checkpoint, Source};
use pulid_graph::{FirstVariant, Graph, NodeKind, Plan, fit_bindings, optimize, plan, residency};
use pulid_models::face::{BiSeNet, RetinaFace};
use pulid_models::pulid::{IdEncoder, IdFormer, IdentityAdapter, IdentitySettings};
use pulid_models::sdxl::{ClipConfig, ClipTextModel, Unet, UnetConfig, UnetSize, Vae, VaeConfig};
use pulid_models::{EvaClip, EvaSettings, Precision};
use pulid_ops::{Capabilities, DeviceClass, DeviceKind};
use pulid_tensor::{DType, Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A safetensors file of which only the header exists.
#[derive(Debug)]
struct HeaderOnly {
    header: Bytes,
    len: u64,
}

impl Source for HeaderOnly {
    fn path(&self) -> &Path {
        Path::new("published")
    }

    fn identity(&self) -> String {
        format!("published {}", self.len)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.end > self.header.len() as u64 {
            return Err(Error::file("published", "holds no weights"));
        }
        Ok(self.header.slice(range.start as usize..range.end as usize))
    }
}

struct Published {
    config: String,
    keys: BTreeSet<String>,
    checkpoint: Checkpoint,
}

fn published(name: &str) -> Published {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/published.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let tensors = all[name]["tensors"].as_object().unwrap();
    let (mut entries, mut offset) = (Map::new(), 0u64);
    for (key, shape) in tensors {
        let count: u64 = shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        let end = offset + 2 * count;
        entries.insert(key.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let text = serde_json::to_string(&entries).unwrap();
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.as_bytes());
    let len = header.len() as u64 + offset;
    Published {
        config: all[name]["config"].to_string(),
        keys: tensors.keys().cloned().collect(),
        checkpoint: Checkpoint::from_source(Arc::new(HeaderOnly { header: header.into(), len })).unwrap(),
    }
}

/// Asserts that the graphs read exactly the file's tensors, but for those that `left_out` accepts.
fn reads_all(graphs: &[&Graph], keys: &BTreeSet<String>, left_out: impl Fn(&str) -> bool) {
    let names = graphs.iter().flat_map(|g| g.nodes()).filter_map(|n| match &n.kind {
        NodeKind::Weight(weight) => Some(weight.name.clone()),
        _ => None,
    });
    let read: BTreeSet<String> = names.filter(|n| !n.starts_with("rope.")).collect();
    let unread: Vec<_> = keys.difference(&read).filter(|key| !left_out(key)).collect();
    assert!(unread.is_empty(), "nothing reads {unread:?}");
    let unknown: Vec<_> = read.difference(keys).collect();
    assert!(unknown.is_empty(), "the file has no {unknown:?}");
}

/// Plans on a device with WebGPU's guaranteed limits, where every binding must fit 128 MiB.
fn planned(graph: &Graph, precision: Precision) -> Plan {
    let f16 = precision == Precision::F16;
    let capabilities = Capabilities { shader_f16: f16, ..Capabilities::baseline(DeviceKind::Discrete) };
    let fitting = fit_bindings(graph, capabilities.max_binding_bytes as usize).unwrap();
    let plan = plan(&optimize(&fitting), &capabilities, &FirstVariant).unwrap().plan;
    println!("{} {:?}: {:?}", graph.name(), precision.activations, plan.summary());
    plan
}

const BOTH: [Precision; 2] = [Precision::F32, Precision::F16];

#[test]
fn unet_and_adapter() {
    let (unet, adapter) = (published("unet"), published("pulid_v1.1"));
    let config = UnetConfig::parse(&unet.config, "config.json").unwrap();
    assert_eq!(config.pooled_dim(), Some(1280));
    // Latents of 1024 x 1024 pixels and of v1.1's own size, 1152 x 896; both guidance passes at once.
    // Files of f32 have the largest weights.
    let wide = Precision { weights: Some(DType::F32), ..Precision::F32 };
    let sizes = [Precision::F32, Precision::F16, wide]
        .into_iter()
        .flat_map(|precision| [(precision, 128, 128), (precision, 144, 112)]);
    for (precision, height, width) in sizes {
        let network = Unet::new(config.clone(), unet.checkpoint.clone(), precision);
        let identity = IdentitySettings::default().inputs(32);
        let size = UnetSize { batch: 2, height, width, text_tokens: 77, identity: Some(identity) };
        let graph = network.graph(size).unwrap();
        reads_all(&[&graph], &unet.keys, |_| false);
        let plan = planned(&graph, precision);
        // Keys and values of the text, 70 layers each, wait outside the step; the identity's are given.
        let hoisted = |suffix: &str| plan.prologue.iter().filter(|s| s.label.ends_with(suffix)).count();
        assert_eq!((hoisted("attn2.to_k"), hoisted("attn2.to_v")), (70, 70));
        assert_eq!(hoisted("add_embedding.linear_2"), 1);
        let layers = network.identity_layers().unwrap();
        let given: Vec<_> =
            plan.inputs.iter().filter(|p| p.name.starts_with("k.") || p.name.starts_with("v.")).collect();
        assert_eq!((layers.len(), given.len()), (70, 140));
        // Attention and projection of each layer, which strength 0 leaves out.
        let left_out = plan.steps.iter().filter(|s| s.unless_zero.is_some()).count();
        assert_eq!(left_out, 140);
        let keys = IdentityAdapter::new(&adapter.checkpoint, precision).unwrap().graph(&layers, 2, 32).unwrap();
        let own = adapter.keys.iter().filter(|k| k.starts_with("id_adapter_attn_layers.")).cloned();
        reads_all(&[&keys], &own.collect(), |_| false);
        let plan = planned(&keys, precision);
        let expected: BTreeMap<_, _> = graph.inputs().collect();
        assert!(
            plan.outputs.len() == 140 && plan.outputs.iter().all(|p| expected.get(p.name.as_str()) == Some(&&p.ty))
        );
    }
}

#[test]
fn vae() {
    let vae = published("vae");
    let config = VaeConfig::parse(&vae.config, "config.json").unwrap();
    assert_eq!(config.factor(), 8);
    for precision in BOTH {
        let network = Vae::new(config.clone(), vae.checkpoint.clone(), precision);
        let (decoder, encoder) = (network.decoder(1, 32, 32).unwrap(), network.encoder(1, 256, 256).unwrap());
        reads_all(&[&decoder, &encoder], &vae.keys, |_| false);
        planned(&decoder, precision);
        planned(&encoder, precision);
    }
    // It always computes in f32: whole images, in bands.
    let network = Vae::new(config, vae.checkpoint, Precision::F32);
    for (height, width) in [(1024, 1024), (1152, 896)] {
        planned(&network.decoder(1, height / 8, width / 8).unwrap(), Precision::F32);
        planned(&network.encoder(1, height, width).unwrap(), Precision::F32);
    }
}

#[test]
fn text_encoders() {
    for name in ["text_encoder", "text_encoder_2"] {
        let file = published(name);
        let config = ClipConfig::parse(&file.config, "config.json").unwrap();
        for precision in BOTH {
            let network = ClipTextModel::new(config.clone(), file.checkpoint.clone(), precision);
            assert_eq!(network.has_projection(), name == "text_encoder_2");
            let graph = network.graph(2, 77).unwrap();
            // Rows of the token table are looked up on the host.
            reads_all(&[&graph], &file.keys, |key| key.ends_with("token_embedding.weight"));
            planned(&graph, precision);
        }
    }
}

#[test]
fn vision_tower() {
    let file = published("eva_clip");
    for precision in BOTH {
        let tower = EvaClip::new(&file.checkpoint, precision, EvaSettings::default()).unwrap();
        assert_eq!((tower.image_size(), tower.tokens(), tower.width(), tower.output_dim()), (336, 577, 1024, 768));
        let graph = tower.graph(1).unwrap();
        reads_all(&[&graph], &file.keys, |key| key.contains("rope.freqs"));
        planned(&graph, precision);
    }
}

#[test]
fn identity_encoders() {
    let (newer, older) = (published("pulid_v1.1"), published("pulid_v1"));
    let own = |keys: &BTreeSet<String>| keys.iter().filter(|k| k.starts_with("id_adapter.")).cloned().collect();
    for precision in BOTH {
        let former = IdFormer::new(&newer.checkpoint, precision).unwrap();
        assert_eq!((former.condition_dim(), former.output_shape()), (1280, [32, 2048]));
        let graph = former.graph(1, 4, 4 * 577).unwrap();
        reads_all(&[&graph], &own(&newer.keys), |_| false);
        planned(&graph, precision);

        let encoder = IdEncoder::new(&older.checkpoint, precision).unwrap();
        assert_eq!(encoder.output_shape(), [10, 2048]);
        let graph = encoder.graph(1, 577).unwrap();
        reads_all(&[&graph], &own(&older.keys), |_| false);
        planned(&graph, precision);
        // Either file given for the other is refused by a missing tensor, not misread.
        assert!(IdFormer::new(&older.checkpoint, precision).is_err());
        assert!(IdEncoder::new(&newer.checkpoint, precision).is_err());
    }
}

/// Means and variances are folded into biases, gains into filters.
fn folded(key: &str) -> bool {
    let norm = ["bn", "downsample.1", "fpn.", "ssh"].iter().any(|part| key.contains(part));
    let filters = key.ends_with(".0.weight") || key.ends_with("conv.weight");
    key.ends_with("running_mean") || key.ends_with("running_var") || (norm && key.ends_with("weight") && !filters)
}

#[test]
fn face_networks() {
    let (parser, detector) = (published("bisenet"), published("retinaface"));
    for precision in BOTH {
        let graph = BiSeNet::new(&parser.checkpoint, precision).unwrap().graph(1, 512, 512).unwrap();
        // The auxiliary heads served training.
        let auxiliary = |key: &str| key.starts_with("conv_out16") || key.starts_with("conv_out32");
        reads_all(&[&graph], &parser.keys, |key| folded(key) || auxiliary(key));
        planned(&graph, precision);

        let graph = RetinaFace::new(&detector.checkpoint, precision).unwrap().graph(1, 480, 640).unwrap();
        reads_all(&[&graph], &detector.keys, folded);
        planned(&graph, precision);
    }
}

/// Bytes that a plan takes on the device, all of its buffers within WebGPU's guaranteed 128 MiB bindings and 256 MiB buffers.
fn peak(name: &str, plan: &Plan) -> f64 {
    let largest = plan.buffers.iter().map(|b| b.bytes).max().unwrap_or(0);
    assert!(largest <= 128 << 20, "{name} has a buffer of {largest} bytes");
    let summary = plan.summary();
    let gigabytes = |bytes: usize| bytes as f64 / 1e9;
    let (weights, working) = (gigabytes(summary.weight_bytes), gigabytes(summary.working_bytes));
    println!("{name}: weights {weights:.2} GB, values {working:.2} GB");
    weights + working
}

/// What `docs/performance.md` says of memory at 1024 x 1024, both guidance passes, with identity.
#[test]
fn the_whole_pipeline_fits_in_little_memory() {
    let (unet, vae) = (published("unet"), published("vae"));
    let unet_at = |weights: DType, identity: bool| {
        let precision = Precision { activations: DType::F16, weights: Some(weights) };
        let identity = identity.then(|| IdentitySettings::default().inputs(32));
        let config = UnetConfig::parse(&unet.config, "config.json").unwrap();
        let network = Unet::new(config, unet.checkpoint.clone(), precision);
        let graph = network.graph(UnetSize { batch: 2, height: 128, width: 128, text_tokens: 77, identity }).unwrap();
        let capabilities = Capabilities { shader_f16: true, ..Capabilities::baseline(DeviceKind::Discrete) };
        plan(&optimize(&graph), &capabilities, &FirstVariant).unwrap()
    };
    let config = VaeConfig::parse(&vae.config, "config.json").unwrap();
    let decoder = Vae::new(config, vae.checkpoint.clone(), Precision::F32).decoder(1, 128, 128).unwrap();
    let decoder = peak("vae decoder", &planned(&decoder, Precision::F32));
    assert!(decoder < 3.0, "decoding takes {decoder:.2} GB");
    for (weights, most) in [(DType::F16, 5.2), (DType::Q8, 2.9), (DType::Q4, 1.7)] {
        let alone = peak(&format!("unet {weights}"), &unet_at(weights, false).plan);
        assert!(alone < most + 1.0, "the UNet in {weights} takes {alone:.2} GB");
    }
    let eight = unet_at(DType::Q8, true);
    let whole = peak("unet q8 with identity", &eight.plan);
    assert!(whole.max(decoder) < 6.0 * 1.073_741_824, "{whole:.2} GB");
    // Half of that by streaming.
    let streamed = residency::fit(eight, 2 << 30).unwrap().plan;
    peak("unet q8 with identity in 2 GiB", &streamed);
    println!("{:?}", streamed.summary());
    for name in ["text_encoder", "text_encoder_2"] {
        let file = published(name);
        let precision = Precision { activations: DType::F16, weights: Some(DType::Q8) };
        let config = ClipConfig::parse(&file.config, "config.json").unwrap();
        let graph = ClipTextModel::new(config, file.checkpoint.clone(), precision).graph(2, 77).unwrap();
        assert!(peak(name, &planned(&graph, Precision::F16)) < 1.5);
    }
}

/// What lies between these in docs/performance.md is generated.
const TRAFFIC: [&str; 2] = ["<!-- traffic -->", "<!-- end of traffic -->"];

/// Bytes that a call of SDXL's UNet moves at 1024 x 1024, both guidance passes, in f16, on a GPU with matrix units, as a table.
fn unet_traffic() -> (String, u64) {
    let unet = published("unet");
    let config = UnetConfig::parse(&unet.config, "config.json").unwrap();
    let network = Unet::new(config, unet.checkpoint, Precision::F16);
    let size = UnetSize { batch: 2, height: 128, width: 128, text_tokens: 77, identity: None };
    let capabilities = Capabilities {
        class: DeviceClass::Nvidia,
        shader_f16: true,
        max_workgroup_bytes: 48 << 10,
        max_invocations: 1024,
        subgroup_lanes: 32,
        cooperative_size: 16,
        ..Capabilities::baseline(DeviceKind::Discrete)
    };
    let graph = optimize(&network.graph(size).unwrap());
    let plan = plan(&graph, &capabilities, &FirstVariant).unwrap().plan;
    let mut text =
        String::from("| operator | steps | dispatches | read, MB | written, MB |\n|---|---:|---:|---:|---:|\n");
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let (mut steps, mut dispatches, mut read, mut written) = (0, 0, 0, 0);
    for o in plan.traffic() {
        let t = o.traffic;
        writeln!(
            text,
            "| `{}` | {} | {} | {:.1} | {:.1} |",
            o.operator,
            o.steps,
            o.dispatches,
            mb(t.read),
            mb(t.written)
        )
        .unwrap();
        steps += o.steps;
        dispatches += o.dispatches;
        read += t.read;
        written += t.written;
    }
    writeln!(text, "| all | {steps} | {dispatches} | {:.1} | {:.1} |", mb(read), mb(written)).unwrap();
    (text, read + written)
}

#[test]
fn a_call_of_the_unet_moves_so_many_bytes() {
    let (table, total) = unet_traffic();
    println!("{table}");
    // All weights are read; values and the sums of products in parts do not make many times as much.
    assert!((5_140_000_000..40_000_000_000).contains(&total), "{total}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance.md");
    let present = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = present.split_once(TRAFFIC[0]).expect("docs/performance.md has the table's place");
    let (_, after) = rest.split_once(TRAFFIC[1]).expect("docs/performance.md has the table's end");
    let text = format!("{before}{}\n\n{table}\n{}{after}", TRAFFIC[0], TRAFFIC[1]);
    if std::env::var_os("PULID_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(present == text, "docs/performance.md is out of date; run `cargo xtask bless`");
}
