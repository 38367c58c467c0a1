//! An adapter to start from where none is given: the extents of another, values drawn as PuLID's modules draw them.

use crate::random::Keyed;
use pulid_checkpoint::{Checkpoint, write_safetensors};
use pulid_models::pulid::{IdentityLayer, TrainedAdapter};
use pulid_tensor::{HostTensor, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes an untrained adapter with the extents of `like`.
///
/// As PyTorch and PuLID's modules have it: linear layers uniform within 1 / sqrt(inputs), biases too; norms 1 and 0; latents and the last
/// projection normal, divided by the root of the width. The identity's values (`id_to_v`) are zeros, so that training starts at the base
/// model.
///
/// # Errors
/// When `like` is no whole PuLID file, or the file cannot be written.
pub fn write_untrained(like: &Path, layers: &[IdentityLayer], seed: u64, path: &Path) -> Result<()> {
    let adapter = TrainedAdapter::new(&Checkpoint::open(like)?)?;
    let (graph, parameters) = adapter.graph(layers, 1, 2)?;
    let mut shapes = BTreeMap::new();
    for parameter in &parameters {
        // Only the extents count.
        let stored = parameter.to_stored(HostTensor::zeros(graph.shape(parameter.node).clone()))?;
        shapes.insert(parameter.name.clone(), stored.shape().clone());
    }
    let mut tensors = BTreeMap::new();
    for (i, (name, shape)) in shapes.iter().enumerate() {
        let drawn = |deviation: f32| {
            let values = Keyed::new(seed).normal(0, i, "initial", shape.count());
            HostTensor::from_fn(shape.clone(), |at| deviation * values[at])
        };
        let uniform = |inputs: usize| {
            let bound = 1.0 / (inputs as f64).sqrt();
            let mut generator =
                pulid::random::TorchGenerator::new(Keyed::new(seed).below(0, i, "linear", 1 << 32) as u64);
            HostTensor::from_fn(shape.clone(), |_| (bound * (2.0 * generator.uniform_f64() - 1.0)) as f32)
        };
        let weight_of_bias = name.strip_suffix("bias").map(|stem| format!("{stem}weight"));
        let tensor = if name.ends_with(".id_to_v.weight") {
            HostTensor::zeros(shape.clone())
        } else if name.ends_with("latents") {
            drawn((shape.last() as f32).powf(-0.5))
        } else if name.ends_with("proj_out") {
            drawn((shape[0] as f32).powf(-0.5))
        } else if let Some(weight) = weight_of_bias.and_then(|name| shapes.get(&name)) {
            if weight.rank() == 2 { uniform(weight[1]) } else { HostTensor::zeros(shape.clone()) }
        } else if shape.rank() == 2 {
            uniform(shape[1])
        } else {
            HostTensor::from_fn(shape.clone(), |_| 1.0)
        };
        tensors.insert(name.clone(), tensor);
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &metadata)
}
