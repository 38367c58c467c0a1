//! What PuLID is trained by: its losses as graphs, and their gradients where the adapter ends, at the identity's keys and values.
//!
//! Every loss is f32 [B], one number for each sample. How samples are averaged, weighed and left out is said by the upstream gradient
//! [B] that [`with_gradients`] declares for each loss: see [`sample_weights`].

mod alignment;
mod diffusion;
mod identity;
mod muon;

pub use alignment::{AlignmentNorm, alignment_graph};
pub use diffusion::diffusion_graph;
pub use identity::{IdentityLossSize, identity_graph};
pub use muon::{MuonRate, MuonStep, muon_graph};

use pulid_graph::autodiff::differentiate;
use pulid_graph::{Checkpointing, Graph, NodeId, Rate, replace_wide_attention};
use pulid_ops::{Activation, Binary, Reduce, Unary};
use pulid_tensor::{Error, HostTensor, Result};

/// A graph with the gradients of losses among its outputs: for each of `losses`, outputs of `graph`, an input `upstream.LOSS` of its
/// type, and for each of `targets`, inputs of `graph`, an output `d.TARGET` of its type, the gradient of the sum of upstream times loss.
/// A target that no loss depends on has no such output.
///
/// # Errors
/// When there is no such output or input, or an operator on the way has no gradient rule.
pub fn with_gradients<L: AsRef<str>, T: AsRef<str>>(
    graph: &Graph,
    losses: &[L],
    targets: &[T],
    checkpointing: Checkpointing,
) -> Result<Graph> {
    let mut graph = replace_wide_attention(graph)?;
    let mut upstream = Vec::new();
    for loss in losses {
        let loss = loss.as_ref();
        let output = graph.outputs().iter().find(|(name, _)| name == loss).map(|(_, id)| *id);
        let id = output.ok_or_else(|| Error::invalid("loss", format!("{} has no output `{loss}`", graph.name())))?;
        let ty = graph.ty(id).clone();
        upstream.push((id, graph.input(format!("upstream.{loss}"), ty, Rate::Step)?));
    }
    let inputs = targets.iter().map(|target| input(&graph, target.as_ref())).collect::<Result<Vec<_>>>()?;
    let gradients = differentiate(&mut graph, &upstream, &inputs, checkpointing)?;
    for (target, gradient) in targets.iter().zip(gradients) {
        if let Some(gradient) = gradient {
            graph.output(format!("d.{}", target.as_ref()), gradient)?;
        }
    }
    Ok(graph)
}

/// The upstream gradients of a loss [B] whose mean over the samples that are `present` is multiplied by `weight` and by `scale`, the
/// factor that keeps gradients within half precision. The other samples, such as pictures without a face, have no part in it; where
/// none is present there is nothing to learn.
pub fn sample_weights(present: &[bool], weight: f32, scale: f32) -> HostTensor {
    let count = present.iter().filter(|present| **present).count().max(1);
    let each = weight * scale / count as f32;
    HostTensor::from_fn([present.len()], |i| if present[i] { each } else { 0.0 })
}

fn input(graph: &Graph, wanted: &str) -> Result<NodeId> {
    let found = graph.input_named(wanted);
    found.ok_or_else(|| Error::invalid("target", format!("{} has no input `{wanted}`", graph.name())))
}

/// An output of a graph that was inlined.
fn part(outputs: &std::collections::HashMap<String, NodeId>, name: &str) -> Result<NodeId> {
    outputs.get(name).copied().ok_or_else(|| Error::invalid("loss", format!("the network gives no `{name}`")))
}

/// The mean of x² for each sample: f32 x [B, ..] to [B].
fn mean_square(g: &mut Graph, x: NodeId) -> Result<NodeId> {
    let square = g.apply(Binary::mul(), &[x, x])?;
    let axes: Vec<usize> = (1..g.shape(x).rank()).collect();
    g.apply(Reduce { keep_dims: false, ..Reduce::mean(axes) }, &[square])
}

/// scale · x + offset.
fn affine(g: &mut Graph, x: NodeId, scale: f32, offset: f32) -> Result<NodeId> {
    g.apply(Unary(Activation::Affine(scale, offset)), &[x])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_average_over_who_is_present() {
        let weights = sample_weights(&[true, false, true, true], 0.6, 1024.0);
        assert_eq!(weights.to_f32_vec(), [204.8, 0.0, 204.8, 204.8]);
        assert_eq!(sample_weights(&[false; 2], 1.0, 1.0).to_f32_vec(), [0.0; 2]);
    }

    #[test]
    fn unknown_losses_and_targets_are_named() {
        let mut g = Graph::new("small");
        let x = g.input("x", pulid_tensor::TensorType::f32([2, 3]), Rate::Step).unwrap();
        let y = mean_square(&mut g, x).unwrap();
        g.output("y", y).unwrap();
        for (loss, target, named) in [("z", "x", "no output `z`"), ("y", "w", "no input `w`")] {
            let error = with_gradients(&g, &[loss], &[target], Checkpointing::Off).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
