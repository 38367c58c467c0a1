//! Gradients of the UNet with identity and of both identity encoders against PyTorch's autograd in float64
//! (`tests/goldens/gradients-identity`), computed by the CPU reference; the command line's goldens hold devices to the same.

use pulid_graph::{optimize, reference};
use pulid_models::golden::Golden;
use pulid_models::run::{Checkpointing, Prepared, Tensors, block, prepare};
use std::path::Path;

/// Standard deviations of the answer by which a value may be off. Each operator of the reference rounds its result to f32, which adds
/// up over the layers there and back: PyTorch's own f32 runs of the UNet differ by 2.6e-5 and 5.9e-5. Measured are 2e-5, and 3e-6
/// for the encoders.
const LIMIT: f64 = 4e-5;

fn golden(name: &str) -> Golden {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/gradients-identity");
    Golden::read(folder.join(name)).unwrap()
}

fn run(golden: &Golden, checkpointing: Checkpointing) -> Tensors {
    let mut options = golden.options.clone();
    options.gradient = Some(checkpointing);
    let Prepared::Graph(run) = prepare(&golden.network, &options, &golden.inputs().unwrap()).unwrap() else {
        panic!("{} computes nothing", golden.name());
    };
    run.finish(reference::run(&optimize(&run.graph), &run.inputs, |_, _| Ok(())).unwrap()).unwrap()
}

/// Holds a case to its answers, among which the given gradients must be.
fn check(name: &str, among: &[&str]) {
    let golden = golden(name);
    let (got, want) = (run(&golden, Checkpointing::Off), golden.outputs().unwrap());
    assert!(got.keys().eq(want.keys()), "{name}: {:?}, expected {:?}", got.keys(), want.keys());
    for key in among {
        assert!(want.contains_key(*key), "{name} has no {key}");
    }
    let mut errors: Vec<_> = want.iter().map(|(key, want)| (got[key].deviation_from(want), key)).collect();
    errors.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (error, key) in errors.iter().take(5) {
        println!("{name}: {key} {error:.2e}");
    }
    let (error, key) = errors[0];
    assert!(error <= LIMIT, "{name}: {key} differs by {error:.2e} standard deviations");
}

/// What a UNet with identity must give: layer 1 is its first with identity, 33 one of its middle.
const UNET: [&str; 8] = [
    "d.sample",
    "d.timestep",
    "d.encoder_hidden_states",
    "d.id_embedding",
    "d.k.1",
    "d.v.33",
    "d.id_adapter_attn_layers.1.id_to_k.weight",
    "d.id_adapter_attn_layers.33.id_to_v.weight",
];

#[test]
fn unet_with_identity_v2_is_pytorch_s() {
    check("unet-v2", &UNET);
}

#[test]
fn unet_with_identity_v1_is_pytorch_s() {
    check("unet-v1", &UNET);
}

#[test]
fn id_former_is_pytorch_s() {
    check("id-former", &["d.id_cond", "d.hidden_4", "d.latents", "d.proj_out", "d.layers.0.0.norm1.weight"]);
}

#[test]
fn id_encoder_is_pytorch_s() {
    check("id-encoder", &["d.id_cond", "d.hidden_0", "d.body.6.weight", "d.mapping_patch_4.1.bias"]);
}

/// A transformer block holds the identity's attention: what is computed again must be the same to the bit.
#[test]
fn checkpoints_change_no_bit() {
    let golden = golden("unet-v2");
    let (all, blocks) = (run(&golden, Checkpointing::Off), run(&golden, Checkpointing::Blocks(block)));
    assert!(all == blocks);
}
