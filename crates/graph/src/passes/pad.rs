//! Zeros around weights whose extents the tiled kernels cannot read: see [`pulid_ops::Operator::padded`].

use super::copy::Copy;
use crate::{Graph, NodeId, NodeKind, Weight};
use pulid_ops::{Operator, Pad, Slice};
use pulid_tensor::{Result, Shape, TensorType};

/// Pads operands where an operator asks for it and the largest of them is a weight, which costs nothing but loading.
pub(super) fn pad_products(graph: &Graph) -> Graph {
    let mut copy = Copy::of(graph);
    let mut at: Vec<NodeId> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let operands: Vec<NodeId> = node.operands().iter().map(|id| at[id.index()]).collect();
        let padded = match &node.kind {
            // What an operator refuses stays as it is.
            NodeKind::Apply { operator, inputs } => pad(&mut copy, index, operator.as_ref(), inputs, &operands).ok(),
            _ => None,
        };
        at.push(padded.flatten().unwrap_or_else(|| copy.same(index, &operands)));
    }
    copy.finish(graph.outputs.iter().map(|(_, id)| at[id.index()]))
}

/// An operator over larger operands and the part of its result that counts; `None` where it is right as it is.
fn pad(
    copy: &mut Copy<'_>,
    index: usize,
    operator: &dyn Operator,
    inputs: &[NodeId],
    operands: &[NodeId],
) -> Result<Option<NodeId>> {
    let graph = copy.old;
    let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i).clone()).collect();
    let Some(shapes) = operator.padded(&types) else { return Ok(None) };
    let is_weight = |id: NodeId| matches!(graph.nodes[id.index()].kind, NodeKind::Weight(_));
    // The first operand is what flows through the network; copies of others would cost more than they save.
    if inputs.iter().zip(&types).zip(&shapes).skip(1).any(|((&id, ty), shape)| ty.shape != *shape && !is_weight(id)) {
        return Ok(None);
    }
    let mut larger = Vec::with_capacity(operands.len());
    for ((&operand, ty), shape) in operands.iter().zip(&types).zip(&shapes) {
        larger.push(match &copy.new.nodes[operand.index()].kind {
            _ if ty.shape == *shape => operand,
            NodeKind::Weight(weight) => {
                let padded = padded_weight(weight, shape);
                copy.new.weight(padded, TensorType::new(ty.dtype, shape.clone()))
            }
            _ => {
                let after: Vec<_> = shape.iter().zip(ty.shape.iter()).map(|(to, from)| to - from).collect();
                copy.instead(index, Box::new(Pad::zeros(vec![0; after.len()], after)), &[operand])?
            }
        });
    }
    let y = copy.instead(index, operator.boxed(), &larger)?;
    let wanted = &graph.nodes[index].ty.shape;
    if copy.new.shape(y) == wanted {
        return Ok(Some(y));
    }
    let part = Slice::new(vec![0; wanted.rank()], wanted.to_vec());
    copy.instead(index, Box::new(part), &[y]).map(Some)
}

/// A weight with zeros behind its elements along each axis.
fn padded_weight(weight: &Weight, to: &Shape) -> Weight {
    let mut key = weight.key().as_ref().clone();
    key.layout = format!("{}, padded to {to}", key.layout).into();
    let (weight, to) = (weight.clone(), to.clone());
    Weight::new(weight.name.clone(), key, move || weight.load()?.zero_padded(to.clone()))
}
