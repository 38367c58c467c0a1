//! onnx's own backend node tests (`tests/goldens/onnx-nodes`), whoever executes the graphs.

use pulid_checkpoint::Checkpoint;
use pulid_checkpoint::onnx::Model;
use pulid_graph::Graph;
use pulid_models::Precision;
use pulid_models::onnx::{OnnxInput, OnnxNetwork};
use pulid_tensor::{DType, HostTensor, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Cases that do not pass, and why. One that begins to pass must leave this list.
const FAILING: &[(&str, &str)] = &[
    ("test_causal_conv_with_state_kernel_size_one_expanded", NOTHING),
    ("test_convtranspose_3d", "transposed convolutions over three axes are not supported"),
    ("test_reduce_sum_empty_set_non_reduced_axis_zero", NOTHING),
    ("test_reshape_allowzero_reordered", NOTHING),
    ("test_slice_start_out_of_bounds", NOTHING),
    ("test_split_zero_size_splits_opset13", NOTHING),
    ("test_split_zero_size_splits_opset18", NOTHING),
    ("test_training_dropout", TRAINING),
    ("test_training_dropout_default", TRAINING),
];

const NOTHING: &str = "results of no elements are not supported";
const TRAINING: &str = "the training mode of Dropout is not supported";

/// Part of the cases that must pass.
const REQUIRED: f64 = 0.95;

/// onnx's own limits.
const RELATIVE: f32 = 1e-3;
const ABSOLUTE: f32 = 1e-7;

/// A case: a model, its inputs and the answers.
pub struct Case {
    pub name: String,
    model: Vec<u8>,
    pub inputs: BTreeMap<String, OnnxInput>,
    answers: BTreeMap<String, HostTensor>,
}

/// Every case of the file.
pub fn cases() -> Vec<Case> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/onnx-nodes/cases.safetensors");
    // A larger file of `generate.py --all`.
    let path = std::env::var_os("PULID_ONNX_NODES").map_or(own, Into::into);
    let file = Checkpoint::open(path).unwrap();
    let names: BTreeSet<&str> = file.keys().filter_map(|key| key.split_once('/')).map(|(name, _)| name).collect();
    let mut cases: BTreeMap<&str, Case> = names
        .into_iter()
        .map(|name| {
            let model = file.bytes(&format!("{name}/model")).unwrap().to_vec();
            (name, Case { name: name.into(), model, inputs: BTreeMap::new(), answers: BTreeMap::new() })
        })
        .collect();
    for key in file.keys() {
        let (name, rest) = key.split_once('/').unwrap();
        let case = cases.get_mut(name).unwrap();
        let info = file.info(key).unwrap();
        if let Some(input) = rest.strip_prefix("in/") {
            let value = match info.element.is_float() {
                true => OnnxInput::Floats(file.tensor(key).unwrap()),
                false => OnnxInput::Integers(info.shape.to_vec(), file.integers(key).unwrap()),
            };
            case.inputs.insert(input.to_owned(), value);
        } else if let Some(output) = rest.strip_prefix("out/") {
            case.answers.insert(output.to_owned(), file.tensor(key).unwrap());
        }
    }
    cases.into_values().collect()
}

impl Case {
    /// The file.
    pub fn model(&self) -> Result<Model> {
        Model::read(&pulid_checkpoint::MemorySource::new(&self.name, self.model.clone()))
    }

    /// The graph and its inputs.
    pub fn graph(&self) -> Result<(Graph, HashMap<String, HostTensor>)> {
        let network = OnnxNetwork::new(self.model()?);
        let graph = network.build_for(&self.inputs, Precision::F32)?;
        let given = graph.inputs().filter_map(|(name, _)| match &self.inputs[name] {
            OnnxInput::Floats(value) => Some((name.to_owned(), value.cast(DType::F32))),
            _ => None,
        });
        let given = given.collect();
        Ok((graph, given))
    }

    /// What is wrong with the outputs, if anything.
    pub fn check(&self, outputs: &HashMap<String, HostTensor>) -> std::result::Result<(), String> {
        for (name, want) in &self.answers {
            let got = outputs.get(name).ok_or_else(|| format!("no output `{name}`"))?;
            if got.shape() != want.shape() {
                return Err(format!("`{name}` is {}, not {}", got.shape(), want.shape()));
            }
            let same =
                |g: f32, w: f32| g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= ABSOLUTE + RELATIVE * w.abs();
            let (got, want) = (got.to_f32_vec(), want.to_f32_vec());
            if let Some(i) = (0..want.len()).find(|&i| !same(got[i], want[i])) {
                return Err(format!("`{name}`[{i}] is {}, not {}", got[i], want[i]));
            }
        }
        Ok(())
    }
}

/// Holds what came of every case against the list of those that fail.
pub fn assert_passing(outcomes: &[(String, std::result::Result<(), String>)], also_failing: &[(&str, &str)]) {
    let passed = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    println!("{passed} of {} node tests pass", outcomes.len());
    let listed: BTreeMap<&str, &str> = FAILING.iter().chain(also_failing).copied().collect();
    let mut surprises = Vec::new();
    for (name, outcome) in outcomes {
        match (outcome, listed.get(name.as_str())) {
            (Err(error), None) => surprises.push(format!("{name}: {error}")),
            (Ok(()), Some(reason)) => surprises.push(format!("{name} passes now, though: {reason}")),
            _ => {}
        }
    }
    for name in listed.keys().filter(|name| !outcomes.iter().any(|(n, _)| n == **name)) {
        surprises.push(format!("{name} is listed, but there is no such case"));
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    assert!(passed as f64 >= REQUIRED * outcomes.len() as f64, "only {passed} of {} pass", outcomes.len());
}
