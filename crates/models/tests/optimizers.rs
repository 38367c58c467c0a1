//! Optimisers that are graphs, against PyTorch (`tests/goldens/optimizers`), computed by the CPU reference.

use pulid_checkpoint::Checkpoint;
use pulid_graph::{optimize, reference};
use pulid_models::training::{MuonRate, MuonStep, muon_graph};
use pulid_tensor::HostTensor;
use std::collections::HashMap;
use std::path::Path;

/// Standard deviations of the answer: each operator of the reference rounds to f32, and every one of the five iterations multiplies
/// what was lost by up to 3.4445, its slope at zero.
const LIMIT: f64 = 1e-5;

const STEP: MuonStep = MuonStep { rate: 0.02, adjust: MuonRate::Original, decay: 0.1, momentum: 0.95, factor: 1.0 };

fn golden() -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/optimizers/muon.safetensors"))
        .unwrap()
}

/// The state after a step: parameter and momentum.
fn step(state: [HostTensor; 2], gradient: HostTensor, step: MuonStep) -> [HostTensor; 2] {
    let &[rows, columns] = gradient.shape().extents() else { panic!("no matrix") };
    let graph = optimize(&muon_graph([rows, columns]).unwrap());
    let [parameter, momentum] = state;
    let mut inputs: HashMap<String, HostTensor> =
        [("parameter", parameter), ("momentum", momentum), ("gradient", gradient)]
            .into_iter()
            .chain(step.inputs([rows, columns]))
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
    let mut outputs = reference::run(&graph, &inputs, |_, _| Ok(())).unwrap();
    inputs.clear();
    ["parameter", "momentum"].map(|name| outputs.remove(name).unwrap())
}

#[test]
fn three_steps_of_muon_are_pytorch_s() {
    let file = golden();
    for (name, adjust) in [
        ("wide", MuonRate::Original),
        ("tall", MuonRate::Original),
        ("square", MuonRate::MatchRmsAdamW),
        ("rms", MuonRate::MatchRmsAdamW),
    ] {
        let read = |key: &str| file.tensor(&format!("{name}.{key}")).unwrap();
        let parameter = read("parameter");
        let mut state = [parameter.clone(), HostTensor::zeros(parameter.shape().clone())];
        for number in 1..=3 {
            // The loss was scaled by 8.
            let gradient = read(&format!("gradient.{number}"));
            let values = gradient.to_f32_vec();
            let scaled = HostTensor::from_fn(gradient.shape().clone(), |i| values[i] * 8.0);
            state = step(state, scaled, MuonStep { adjust, factor: 0.125, ..STEP });
            for (part, found) in ["parameter", "momentum"].iter().zip(&state) {
                let error = found.deviation_from(&read(&format!("{part}.{number}")));
                println!("{name}: {part} after step {number} {error:.2e}");
                assert!(error <= LIMIT, "{name}: {part} differs by {error:.2e} after step {number}");
            }
        }
    }
}

#[test]
fn a_skipped_step_leaves_the_state_to_the_bit() {
    let file = golden();
    let state = ["wide.parameter.1", "wide.momentum.1"].map(|key| file.tensor(key).unwrap());
    let broken = HostTensor::from_fn(state[0].shape().clone(), |i| if i == 3 { f32::NAN } else { f32::INFINITY });
    assert!(step(state.clone(), broken, MuonStep { factor: 0.0, ..STEP }) == state);
}
