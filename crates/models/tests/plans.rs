//! What the planner makes of the mini models: every dispatch, buffer and parameter, as snapshots in `tests/snapshots`.
//!
//! A change to an operator, a fusion or the memory plan shows here as a difference; `cargo xtask bless` accepts it.

#[path = "../../graph/tests/support/liveness.rs"]
mod liveness;

use pulid_checkpoint::Checkpoint;
use pulid_graph::{FirstVariant, Graph, Plan, optimize, plan};
use pulid_models::pulid::{IdFormer, IdentityAdapter, IdentitySettings};
use pulid_models::sdxl::{ClipTextModel, Unet, UnetSize, Vae};
use pulid_models::{EvaClip, EvaSettings, Precision};
use pulid_ops::{Capabilities, DeviceKind};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn mini(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini").join(path)
}

fn adapter() -> Checkpoint {
    Checkpoint::open(mini("pulid_v1.1.safetensors")).unwrap()
}

fn id_tokens(precision: Precision) -> usize {
    IdFormer::new(&adapter(), precision).unwrap().output_shape()[0]
}

/// The keys and values of both guidance passes' identities.
fn identity_adapter() -> Graph {
    let layers = Unet::open(mini("sdxl/unet"), Precision::F32).unwrap().identity_layers().unwrap();
    let adapter = IdentityAdapter::new(&adapter(), Precision::F32).unwrap();
    adapter.graph(&layers, 2, id_tokens(Precision::F32)).unwrap()
}

/// Both guidance passes of one image, with identity.
fn unet(precision: Precision) -> Graph {
    let identity = IdentitySettings::default().inputs(id_tokens(precision));
    let unet = Unet::open(mini("sdxl/unet"), precision).unwrap();
    unet.graph(UnetSize { batch: 2, height: 16, width: 16, text_tokens: 77, identity: Some(identity) }).unwrap()
}

fn vae_decoder() -> Graph {
    Vae::open(mini("sdxl/vae"), Precision::F32).unwrap().decoder(1, 16, 16).unwrap()
}

fn on(kind: DeviceKind, shader_f16: bool, graph: &Graph) -> Plan {
    let capabilities = Capabilities { shader_f16, ..Capabilities::baseline(kind) };
    let graph = optimize(graph);
    let plan = plan(&graph, &capabilities, &FirstVariant).unwrap().plan;
    // Whatever a step leaves out while an input is zero, every dispatch reads what it is meant to read.
    let inputs = plan.steps.iter().filter_map(|s| s.unless_zero).map(|i| plan.inputs[i].name.as_str());
    let zeros: Vec<&str> = inputs.collect::<BTreeSet<_>>().into_iter().collect();
    for zero in [&[], zeros.as_slice()] {
        liveness::follow(&graph, &plan, &capabilities, zero).unwrap_or_else(|e| panic!("zero {zero:?}: {e}"));
    }
    plan
}

fn hold(name: &str, plan: &Plan) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../../tests/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, plan.dump()));
}

#[test]
fn unet_on_a_gpu_and_on_a_cpu_device() {
    hold("unet_gpu_f16", &on(DeviceKind::Discrete, true, &unet(Precision::F16)));
    hold("unet_cpu_f32", &on(DeviceKind::Cpu, false, &unet(Precision::F32)));
    hold("identity_adapter_cpu", &on(DeviceKind::Cpu, false, &identity_adapter()));
}

#[test]
fn vae_decoder_on_a_gpu_and_on_a_cpu_device() {
    hold("vae_decoder_gpu", &on(DeviceKind::Discrete, false, &vae_decoder()));
    hold("vae_decoder_cpu", &on(DeviceKind::Cpu, false, &vae_decoder()));
}

#[test]
fn text_encoder_and_identity_networks() {
    let text = ClipTextModel::open(mini("sdxl/text_encoder_2"), Precision::F32).unwrap();
    hold("text_encoder_2_cpu", &on(DeviceKind::Cpu, false, &text.graph(2, 77).unwrap()));
    let tower = Checkpoint::open(mini("eva_clip.safetensors")).unwrap();
    let settings = EvaSettings { heads: Some(3), pretrained_grid: 8 };
    let tower = EvaClip::new(&tower, Precision::F32, settings).unwrap();
    hold("eva_clip_cpu", &on(DeviceKind::Cpu, false, &tower.graph(1).unwrap()));
    let former = IdFormer::new(&adapter(), Precision::F32).unwrap();
    hold("id_former_cpu", &on(DeviceKind::Cpu, false, &former.graph(1, 1, tower.tokens()).unwrap()));
}

/// Stepping needs this much beside the weights; a plan that needs more has lost reuse somewhere.
#[test]
fn working_memory_stays_small() {
    let mebibytes = |plan: &Plan| plan.summary().working_bytes as f64 / f64::from(1 << 20);
    // On CPU devices the largest convolution of the decoder holds two transformed images of 8 MiB beside its own (Winograd's).
    for (kind, most) in [(DeviceKind::Discrete, [8.0, 16.0]), (DeviceKind::Cpu, [8.0, 24.0])] {
        let [unet, decoder] = [unet(Precision::F32), vae_decoder()].map(|graph| mebibytes(&on(kind, false, &graph)));
        assert!(unet < most[0] && decoder < most[1], "{kind:?}: UNet {unet:.1} MiB, VAE decoder {decoder:.1} MiB");
    }
}
