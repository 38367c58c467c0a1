//! Several operators in the place of one that no fused kernel computes well: see [`pulid_ops::Operator::substitutes`].

use super::copy::Copy;
use crate::{Graph, NodeId, NodeKind};
use pulid_ops::Argument;
use pulid_tensor::Result;

/// Replaces every operator that knows substitutes, with no value between them over `limit` bytes as far as that can be.
pub(super) fn replace(graph: &Graph, limit: usize) -> Result<Graph> {
    let mut copy = Copy::of(graph);
    let mut at: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let operands: Vec<NodeId> = node.operands().iter().map(|id| at[id.index()]).collect();
        let substitutes = match &node.kind {
            NodeKind::Apply { operator, inputs } => {
                let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i).clone()).collect();
                operator.substitutes(&types, limit).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let mut results: Vec<NodeId> = Vec::new();
        for substitute in substitutes {
            let of = |argument: &Argument| match *argument {
                Argument::Operand(i) => operands[i],
                Argument::Result(i) => results[i],
            };
            let operands: Vec<_> = substitute.operands.iter().map(of).collect();
            results.push(copy.instead(index, substitute.operator, &operands)?);
        }
        at.push(results.last().copied().unwrap_or_else(|| copy.same(index, &operands)));
    }
    Ok(copy.finish(graph.outputs.iter().map(|(_, id)| at[id.index()])))
}
