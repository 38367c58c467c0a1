//! ONNX files that are broken in one place: every node test with one operand, attribute, constant or extent changed is
//! built or refused, never a panic and never a hang.

#[path = "support/nodes.rs"]
#[allow(dead_code)]
mod nodes;

use pulid_checkpoint::ElementType;
use pulid_checkpoint::onnx::{Attribute, Model, Tensor};
use pulid_models::Precision;
use pulid_models::onnx::{OnnxInput, OnnxNetwork};
use pulid_tensor::HostTensor;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

type Inputs = BTreeMap<String, OnnxInput>;

const STRANGE: [i64; 10] = [0, 1, -1, 2, 7, -9, 1 << 31, 1 << 40, i64::MAX, i64::MIN];

/// Numbers of a fixed sequence.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn strange(&mut self) -> i64 {
        STRANGE[self.below(STRANGE.len())]
    }
}

fn strange_attribute(random: &mut Random, old: &Attribute) -> Attribute {
    match (random.below(6), old) {
        (0, _) => Attribute::Int(random.strange()),
        (1, _) => Attribute::Float([0.0, -1.0, f32::NAN, f32::INFINITY, 1e30][random.below(5)]),
        (2, _) => Attribute::String("strange".into()),
        (3, Attribute::Ints(values)) => {
            let mut values = values.clone();
            let at = random.below(values.len());
            match values.get_mut(at) {
                Some(value) => *value = random.strange(),
                None => values.push(random.strange()),
            }
            Attribute::Ints(values)
        }
        (4, Attribute::Ints(values)) => Attribute::Ints(values[..random.below(values.len())].to_vec()),
        (_, Attribute::Int(_)) => Attribute::Int(random.strange()),
        _ => Attribute::Ints((0..random.below(5)).map(|_| random.strange()).collect()),
    }
}

/// Changes one thing.
fn mutate(random: &mut Random, model: &mut Model, inputs: &mut Inputs) {
    let count = model.graph.nodes.len();
    let node = &mut model.graph.nodes[random.below(count)];
    match random.below(7) {
        0 => {
            let at = random.below(node.inputs.len());
            if at < node.inputs.len() {
                node.inputs.remove(at);
            }
        }
        1 => {
            let (a, b) = (random.below(node.inputs.len()), random.below(node.inputs.len()));
            if a < node.inputs.len() {
                node.inputs[a] = node.inputs[b].clone();
            }
        }
        2 => {
            let keys: Vec<String> = node.attributes.keys().cloned().collect();
            if let Some(key) = keys.get(random.below(keys.len())) {
                let new = strange_attribute(random, &node.attributes[key]);
                node.attributes.insert(key.clone(), new);
            }
        }
        3 => {
            let keys: Vec<String> = model.graph.initializers.keys().cloned().collect();
            if let Some(key) = keys.get(random.below(keys.len())) {
                let values: Vec<i64> = (0..random.below(6)).map(|_| random.strange()).collect();
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let tensor = Tensor::new(key.clone(), ElementType::I64, [values.len()], bytes).unwrap();
                model.graph.initializers.insert(key.clone(), tensor);
            }
        }
        4 => node.outputs.push("further".into()),
        5 => model.opset = [1, 6, 9, 10, 11, 13, 17, 18, 21][random.below(9)],
        _ => {}
    }
    // The file no longer says what its inputs are.
    model.graph.inputs.iter_mut().for_each(|info| info.dims = None);
    let keys: Vec<String> = inputs.keys().cloned().collect();
    let Some(key) = keys.get(random.below(keys.len())) else { return };
    let new = match (&inputs[key], random.below(3)) {
        (OnnxInput::Integers(dims, values), 0 | 1) => {
            let values = values.iter().map(|&v| if random.below(2) == 0 { random.strange() } else { v }).collect();
            OnnxInput::Integers(dims.clone(), values)
        }
        (OnnxInput::Floats(value), 0) => {
            let mut dims = value.shape().to_vec();
            match random.below(3) {
                0 => drop(dims.pop()),
                1 => dims.push(1 + random.below(3)),
                _ => dims.iter_mut().for_each(|n| *n = 1 + random.below(5)),
            }
            OnnxInput::Floats(HostTensor::from_fn(dims, |i| i as f32))
        }
        (old, _) => old.clone(),
    };
    inputs.insert(key.clone(), new);
}

#[test]
fn broken_node_tests_are_refused() {
    // Where it panics, and the first graph that makes it.
    static PANICS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    std::panic::set_hook(Box::new(|info| {
        // A message with arguments is a String, one without a literal.
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        let place = format!("{}: {text:?}", info.location().unwrap());
        PANICS.lock().unwrap().entry(place).or_default();
    }));
    let mut random = Random(1);
    let (mut built, mut refused) = (0, 0);
    for case in nodes::cases() {
        for _ in 0..60 {
            let (mut model, mut inputs) = (case.model().unwrap(), case.inputs.clone());
            mutate(&mut random, &mut model, &mut inputs);
            let build = || OnnxNetwork::new(model.clone()).build_for(&inputs, Precision::F32).is_ok();
            match std::panic::catch_unwind(AssertUnwindSafe(build)) {
                Ok(true) => built += 1,
                Ok(false) => refused += 1,
                Err(_) => {
                    let mut panics = PANICS.lock().unwrap();
                    if let Some(graph) = panics.values_mut().find(|graph| graph.is_empty()) {
                        *graph = format!("{}: {:?}, {inputs:?}", case.name, model.graph.nodes);
                    }
                }
            }
        }
    }
    drop(std::panic::take_hook());
    println!("{built} are built, {refused} refused");
    let panics = PANICS.lock().unwrap();
    assert!(panics.is_empty(), "panics: {panics:#?}");
    assert!(refused > 1000 && built > 1000, "{built} are built, {refused} refused");
}
