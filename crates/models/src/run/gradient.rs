//! `pulid run --gradient`: the gradients of a network's inputs and trained parameters, for whoever holds them against another
//! implementation.

use super::{GraphRun, Layout, RunOptions, Tensors};
use crate::vars::Layout as WeightLayout;
use pulid_graph::autodiff::add_gradients;
use pulid_graph::{Checkpointing, Graph, NodeId, NodeKind, replace_wide_attention};
use pulid_tensor::{DType, Error, HostTensor, Result, Shape};
use std::collections::{BTreeMap, HashMap};

/// Networks with gradient rules throughout, and the beginning of the names of what is trained in them.
const NETWORKS: [(&str, Option<&str>); 5] = [
    ("unet", Some("id_adapter_attn_layers.")),
    ("id-former", Some("")),
    ("id-encoder", Some("")),
    ("vae-decoder", None),
    ("onnx", None),
];

/// The block of a label in which values are computed again in the backward pass: a residual block, a transformer block or a layer
/// of IDFormer.
pub fn block(label: &str) -> Option<&str> {
    const BLOCKS: [&str; 3] = ["transformer_blocks.", "resnets.", "layers."];
    let begin = BLOCKS.iter().find_map(|name| label.find(name).map(|at| at + name.len()))?;
    let digits = label[begin..].bytes().take_while(u8::is_ascii_digit).count();
    label.get(..begin + digits)
}

/// Gradients among a run's outputs.
pub(super) struct Gradients {
    /// Factor of the loss: gradients in half precision would vanish without.
    scale: f32,
    /// Whether the factor may change.
    scaled: bool,
    /// How a parameter's gradient lies in the graph, by output.
    layouts: HashMap<String, WeightLayout>,
    /// Inputs that no output depends on, with their shapes in the contract.
    zeros: BTreeMap<String, Shape>,
}

impl Gradients {
    /// The contract's gradients from the graph's.
    pub(super) fn finish(&self, mut outputs: HashMap<String, HostTensor>) -> Result<HashMap<String, HostTensor>> {
        for (name, value) in &mut outputs {
            if !name.starts_with("d.") {
                continue;
            }
            let mut gradient = value.cast(DType::F32);
            if self.scale != 1.0 {
                let values = gradient.as_f32()?;
                gradient = HostTensor::from_fn(gradient.shape().clone(), |i| values[i] / self.scale);
            }
            if let Some(layout) = self.layouts.get(name) {
                gradient = layout.to_stored(gradient)?;
            }
            *value = gradient;
        }
        let zeros = self.zeros.iter().map(|(name, shape)| (format!("d.{name}"), HostTensor::zeros(shape.clone())));
        outputs.extend(zeros);
        Ok(outputs)
    }
}

/// Adds gradients to a run: see [`super::GRADIENT`].
pub(super) fn add(
    network: &str,
    run: GraphRun,
    options: &RunOptions,
    given: &Tensors,
    checkpointing: Checkpointing,
) -> Result<GraphRun> {
    let Some((_, trained)) = NETWORKS.iter().find(|(name, _)| *name == network) else {
        let names: Vec<_> = NETWORKS.iter().map(|(name, _)| *name).collect();
        return Err(Error::invalid("--gradient", format!("{network} has none; these have: {}", names.join(", "))));
    };
    let GraphRun { graph, mut inputs, layout, .. } = run;
    let mut graph = replace_wide_attention(&graph)?;
    let keys_values = if network == "unet" { keys_values(&graph) } else { Vec::new() };
    let (mut targets, mut layouts) = (inputs_of(&graph), HashMap::new());
    targets.extend(keys_values.iter().cloned());
    for (index, node) in graph.nodes().iter().enumerate() {
        let NodeKind::Weight(weight) = &node.kind else { continue };
        let (Some(prefix), Some(layout)) = (trained, WeightLayout::named(&weight.key().layout)) else { continue };
        if weight.name.starts_with(prefix) && !weight.is_constant() {
            targets.push((weight.name.clone(), graph.id(index)));
            layouts.insert(format!("d.{}", weight.name), layout);
        }
    }
    let outputs: Vec<String> = graph.outputs().iter().map(|(name, _)| name.clone()).collect();
    add_gradients(&mut graph, &targets, checkpointing)?;
    for (name, id) in keys_values {
        graph.output(name, id)?;
    }
    let has = |name: &str| graph.outputs().iter().any(|(n, _)| n == name);
    let missing = targets.iter().filter(|(name, _)| !has(&format!("d.{name}")));
    let zeros = missing.map(|(name, id)| (name.clone(), layout_of(layout, graph.shape(*id)))).collect();
    let scale = upstream(&graph, &outputs, given, layout, options, &mut inputs)?;
    let mut run = GraphRun::new(graph, inputs, layout)?;
    run.gradient = Some(Box::new(Gradients { scale, scaled: half_values(options), layouts, zeros }));
    Ok(run)
}

impl GraphRun {
    /// Lowers the factor of the loss after a run whose gradients overflowed half precision; false where that cannot help.
    pub fn lower_loss_scale(&mut self) -> bool {
        /// Steps between factors, and the smallest factor.
        const STEP: f32 = 256.0;
        const LEAST: f32 = 1.0 / 65536.0;
        let Some(gradient) = self.gradient.as_mut().filter(|g| g.scaled && g.scale > LEAST) else { return false };
        gradient.scale /= STEP;
        for (_, value) in self.inputs.iter_mut().filter(|(name, _)| name.starts_with("upstream.")) {
            let values = value.to_f32_vec();
            *value = HostTensor::from_fn(value.shape().clone(), |i| values[i] / STEP);
        }
        true
    }
}

/// Float inputs of the contract.
fn inputs_of(graph: &Graph) -> Vec<(String, NodeId)> {
    let nodes = graph.nodes().iter().enumerate();
    let named = nodes.filter_map(|(index, node)| match &node.kind {
        // A setting of `pulid run`, no input.
        NodeKind::Input { name, .. } if node.ty.dtype.is_float() && name != "id_scale" => {
            Some((name.clone(), graph.id(index)))
        }
        _ => None,
    });
    named.collect()
}

/// The identity's keys and values `k.N` and `v.N` [B, tokens, C] in a UNet's graph with its adapter.
fn keys_values(graph: &Graph) -> Vec<(String, NodeId)> {
    let nodes = graph.nodes().iter().enumerate();
    let named = nodes.filter_map(|(index, node)| {
        let (number, part) = node.label.strip_prefix("id_adapter_attn_layers.")?.split_once('.')?;
        let letter = match part {
            "id_to_k" => 'k',
            "id_to_v" => 'v',
            _ => return None,
        };
        matches!(node.kind, NodeKind::Apply { .. }).then(|| (format!("{letter}.{number}"), graph.id(index)))
    });
    named.collect()
}

fn layout_of(layout: Layout, shape: &Shape) -> Shape {
    match (layout, shape.extents()) {
        (Layout::ChannelsLast, &[n, h, w, c]) => [n, c, h, w].into(),
        _ => shape.clone(),
    }
}

fn half_values(options: &RunOptions) -> bool {
    options.precision.activations == DType::F16
}

/// Takes the upstream gradients of all outputs, brought into half precision's range where values are in half precision; gives the
/// factor.
fn upstream(
    graph: &Graph,
    outputs: &[String],
    given: &Tensors,
    layout: Layout,
    options: &RunOptions,
    inputs: &mut HashMap<String, HostTensor>,
) -> Result<f32> {
    let mut values = BTreeMap::new();
    for output in outputs {
        let name = format!("upstream.{output}");
        let Some(value) = given.get(&name) else {
            let given: Vec<_> = given.keys().map(String::as_str).collect();
            let detail = format!(
                "is missing: --gradient needs one of the shape of each output; given are: {}",
                given.join(", ")
            );
            return Err(Error::invalid(format!("input `{name}`"), detail));
        };
        let wanted = graph.inputs().find(|(n, _)| *n == name).map(|(_, ty)| layout_of(layout, &ty.shape));
        if wanted.as_ref() != Some(value.shape()) {
            let wanted = wanted.map_or_else(String::new, |shape| shape.to_string());
            let detail = format!("must have the shape of the output, {wanted}, got {}", value.shape());
            return Err(Error::invalid(format!("input `{name}`"), detail));
        }
        values.insert(name, layout.to_graph(value.cast(DType::F32))?);
    }
    let largest = values.values().flat_map(HostTensor::to_f32_vec).map(f32::abs).fold(0.0, f32::max);
    // A power of two, so that it rounds nothing.
    let scale = if half_values(options) && largest.is_normal() { (-largest.log2().ceil()).exp2() } else { 1.0 };
    for (name, value) in values {
        let numbers = value.to_f32_vec();
        inputs.insert(name, HostTensor::from_fn(value.shape().clone(), |i| numbers[i] * scale));
    }
    Ok(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_by_their_labels() {
        for (label, expected) in [
            (
                "down_blocks.1.attentions.0.transformer_blocks.12.ff.net.0",
                "down_blocks.1.attentions.0.transformer_blocks.12",
            ),
            ("decoder.up_blocks.0.resnets.1.conv1", "decoder.up_blocks.0.resnets.1"),
            ("layers.3.0.to_q", "layers.3"),
        ] {
            assert_eq!(block(label), Some(expected));
        }
        assert_eq!(block("mid_block.attentions.0.proj_in"), None);
    }
}
