//! Passes over graphs. Each keeps what the graph computes.

mod bands;
mod copy;
mod pad;
mod substitute;

use crate::{Graph, Node, NodeId, NodeKind};
use pulid_tensor::Result;

/// Puts zeros around weights that the tiled kernels cannot read as they are, fuses epilogues into their producers, then removes what
/// no output needs.
pub fn optimize(graph: &Graph) -> Graph {
    remove_dead_nodes(&fuse_epilogues(&pad::pad_products(graph)))
}

/// Computes values of more than `limit` bytes, which do not fit a binding, in bands of rows, and attention of heads that are too wide
/// for the fused kernels by products. Comes before [`optimize`]. What cannot be cut stays as it is; the planner then names it.
///
/// # Errors
/// An operator's own, which would be a mistake of that operator.
pub fn fit_bindings(graph: &Graph, limit: usize) -> Result<Graph> {
    bands::cut(&substitute::replace(graph, limit)?, limit)
}

/// Puts products in the place of attention whose heads are too wide for the fused kernels, as [`fit_bindings`] does, with scores
/// of all queries at once. Gradients are taken of these.
///
/// # Errors
/// An operator's own, which would be a mistake of that operator.
pub fn replace_wide_attention(graph: &Graph) -> Result<Graph> {
    substitute::replace(graph, usize::MAX)
}

/// Lets producers apply a following activation, gate or residual addition before they store, where the value between
/// has no other reader. Repeats on each producer, so a convolution can take an activation and then a residual. What the
/// prologue computes once is left there: it takes no epilogue that belongs to a step.
fn fuse_epilogues(graph: &Graph) -> Graph {
    let unchanging = graph.unchanging();
    let mut graph = graph.clone();
    let mut readers = vec![0usize; graph.nodes.len()];
    for node in &graph.nodes {
        for id in node.operands() {
            readers[id.index()] += 1;
        }
    }
    for (_, id) in &graph.outputs {
        readers[id.index()] += 1;
    }
    // The first operand an epilogue may belong to is tried first; for an addition the later operand was usually
    // computed last, so that the residual already exists: look at operands from the back.
    for index in 0..graph.nodes.len() {
        let NodeKind::Apply { operator, inputs } = &graph.nodes[index].kind else { continue };
        let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i).clone()).collect();
        let fused = (0..inputs.len()).rev().find_map(|operand| {
            let epilogue = operator.as_epilogue(operand, &types)?;
            let producer = inputs[operand];
            let apart = graph.nodes[index].unfused || graph.nodes[producer.index()].unfused;
            if apart || readers[producer.index()] != 1 || unchanging[producer.index()] != unchanging[index] {
                return None;
            }
            let NodeKind::Apply { operator: first, inputs: first_inputs } = &graph.nodes[producer.index()].kind else {
                return None;
            };
            let merged = first.with_epilogue(epilogue)?;
            let mut operands = first_inputs.clone();
            operands.extend(inputs.iter().enumerate().filter(|(i, _)| *i != operand).map(|(_, id)| *id));
            let types: Vec<_> = operands.iter().map(|&i| graph.ty(i).clone()).collect();
            // The merged operator must agree; a refusal (a residual of another type, say) leaves the graph as it was.
            (merged.infer(&types).is_ok_and(|ty| ty == graph.nodes[index].ty)).then_some((merged, operands))
        });
        if let Some((operator, inputs)) = fused {
            graph.nodes[index].kind = NodeKind::Apply { operator, inputs };
        }
    }
    graph
}

/// Keeps inputs (they are the contract) and everything an output depends on.
fn remove_dead_nodes(graph: &Graph) -> Graph {
    let mut live = vec![false; graph.nodes.len()];
    for (_, id) in &graph.outputs {
        live[id.index()] = true;
    }
    for index in (0..graph.nodes.len()).rev() {
        if matches!(graph.nodes[index].kind, NodeKind::Input { .. }) {
            live[index] = true;
        }
        if live[index] {
            for id in graph.nodes[index].operands() {
                live[id.index()] = true;
            }
        }
    }
    let mut renamed = vec![NodeId(0); graph.nodes.len()];
    let mut result = Graph::new(graph.name.clone());
    for (index, node) in graph.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        let Node { mut kind, ty, label, unfused } = node.clone();
        match &mut kind {
            NodeKind::Reshape(from) => *from = renamed[from.index()],
            NodeKind::Apply { inputs, .. } => inputs.iter_mut().for_each(|i| *i = renamed[i.index()]),
            _ => {}
        }
        renamed[index] = result.add(kind, ty, label);
        result.nodes[renamed[index].index()].unfused = unfused;
    }
    result.transient = graph.transient.clone();
    result.outputs = graph.outputs.iter().map(|(name, id)| (name.clone(), renamed[id.index()])).collect();
    result
}
