//! Training's losses and their gradients against PyTorch's autograd in float64 (`tests/goldens/losses`), computed by the CPU
//! reference; `crates/pulid/tests/losses.rs` holds devices to the same.

#[path = "support/losses.rs"]
mod losses;

use losses::Case;
use pulid_graph::{Checkpointing, Graph, optimize, reference};
use pulid_models::run::block;
use pulid_tensor::{HostTensor, Result};
use std::collections::HashMap;

fn run(graph: &Graph, inputs: &HashMap<String, HostTensor>) -> Result<HashMap<String, HostTensor>> {
    reference::run(&optimize(graph), inputs, |_, _| Ok(()))
}

/// Standard deviations by which a gradient may be off, and parts of a loss. Each operator of the reference rounds its result to f32,
/// which adds up over the layers there and back: PyTorch's own f32 runs differ by up to 6.4e-5, this reference by 5.9e-5, both in
/// `d.k.19` of `alignment-relative`.
const LIMIT: f64 = 8e-5;

fn check(name: &str) {
    let case = Case::open(name, Checkpointing::Off);
    case.check(name, &run(&case.graph, &case.inputs).unwrap(), LIMIT);
    case.check_reference(name, run, LIMIT);
}

#[test]
fn diffusion_of_noise_is_pytorch_s() {
    check("diffusion-noise");
}

#[test]
fn diffusion_of_velocity_is_pytorch_s() {
    check("diffusion-velocity");
}

#[test]
fn alignment_by_root_mean_square_is_pytorch_s() {
    check("alignment-rms");
}

#[test]
fn alignment_by_relative_distance_is_pytorch_s() {
    check("alignment-relative");
}

#[test]
fn identity_loss_is_pytorch_s_and_leaves_out_who_is_masked() {
    check("identity");
    let case = Case::open("identity", Checkpointing::Off);
    let gradient = &case.answers["d.latent"];
    // The second picture has no face; both others have one.
    let each = gradient.shape().count() / 3;
    let moved: Vec<_> = gradient.to_f32_vec().chunks(each).map(|g| g.iter().any(|v| *v != 0.0)).collect();
    assert_eq!(moved, [true, false, true]);
}

#[test]
fn checkpoints_change_no_bit_of_a_loss() {
    let [all, blocks] = [Checkpointing::Off, Checkpointing::Blocks(block)].map(|checkpointing| {
        let case = Case::open("alignment-relative", checkpointing);
        run(&case.graph, &case.inputs).unwrap()
    });
    assert!(all == blocks);
}
