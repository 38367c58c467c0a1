//! Gradients of whole networks against PyTorch's autograd in float64 (`tests/goldens/gradients`), computed by the CPU reference;
//! the command line's goldens hold devices to the same.

use pulid_graph::{optimize, reference};
use pulid_models::golden::Golden;
use pulid_models::run::{Checkpointing, Prepared, Tensors, block, prepare};
use std::path::Path;

/// Standard deviations of the answer by which a value may be off. Each operator of the reference rounds its result to f32, which adds
/// up over some fifty layers there and back: measured are 6e-7 for the decoder, 2.5e-6 for the recogniser.
const LIMIT: f64 = 5e-6;

fn golden(name: &str) -> Golden {
    Golden::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/gradients").join(name)).unwrap()
}

fn run(golden: &Golden, checkpointing: Checkpointing) -> Tensors {
    let mut options = golden.options.clone();
    options.gradient = Some(checkpointing);
    let Prepared::Graph(run) = prepare(&golden.network, &options, &golden.inputs().unwrap()).unwrap() else {
        panic!("{} computes nothing", golden.name());
    };
    run.finish(reference::run(&optimize(&run.graph), &run.inputs, |_, _| Ok(())).unwrap()).unwrap()
}

fn check(name: &str) {
    let golden = golden(name);
    assert!(golden.options.gradient.is_some(), "{name} asks for no gradient");
    let (got, want) = (run(&golden, Checkpointing::Off), golden.outputs().unwrap());
    assert!(got.keys().eq(want.keys()), "{name}: {:?}, expected {:?}", got.keys(), want.keys());
    assert!(want.keys().any(|key| key.starts_with("d.")), "{name} has no gradient");
    for (key, want) in &want {
        let error = got[key].deviation_from(want);
        println!("{name}: {key} {error:.2e}");
        assert!(error <= LIMIT, "{name}: {key} differs by {error:.2e} standard deviations");
    }
}

#[test]
fn decoders_gradient_in_the_latent_is_pytorch_s() {
    check("vae-decoder");
}

#[test]
fn decoders_blocks_computed_again_change_no_bit() {
    let golden = golden("vae-decoder");
    assert_eq!(run(&golden, Checkpointing::Off), run(&golden, Checkpointing::Blocks(block)));
}

#[test]
fn recognisers_gradient_in_the_face_is_pytorch_s() {
    check("recogniser");
}
