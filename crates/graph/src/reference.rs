//! The second executor: every operator's plain Rust reference, one node after another.

use crate::{Graph, NodeKind};
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::collections::HashMap;

/// Runs a graph on the CPU with f64 accumulation and f32 storage. `on_node` is told (done, of) after each node and
/// cancels by an error.
///
/// # Errors
/// A missing or misshapen input, an unreadable weight, or an operator's own.
pub fn run(
    graph: &Graph,
    inputs: &HashMap<String, HostTensor>,
    mut on_node: impl FnMut(usize, usize) -> Result<()>,
) -> Result<HashMap<String, HostTensor>> {
    let total = graph.nodes.len();
    let mut last_use = vec![0; total];
    for (index, node) in graph.nodes.iter().enumerate() {
        for id in node.operands() {
            last_use[id.index()] = index;
        }
    }
    for (_, id) in &graph.outputs {
        last_use[id.index()] = usize::MAX;
    }
    let mut values: Vec<Option<HostTensor>> = vec![None; total];
    for (index, node) in graph.nodes.iter().enumerate() {
        let value = match &node.kind {
            NodeKind::Input { name, .. } => {
                let value = inputs
                    .get(name)
                    .ok_or_else(|| Error::invalid("input", format!("{} needs `{name}` {}", graph.name, node.ty)))?;
                if value.shape() != &node.ty.shape {
                    let detail = format!("{} expects `{name}` {}, got {}", graph.name, node.ty, value.shape());
                    return Err(Error::invalid("input", detail));
                }
                widen(value)
            }
            NodeKind::Weight(weight) => {
                let value = weight.load()?;
                if value.shape() != &node.ty.shape {
                    let detail = format!("expected {}, the file gives {}", node.ty, value.shape());
                    return Err(Error::Weight { key: weight.name.clone(), source_name: graph.name.clone(), detail });
                }
                widen(&value)
            }
            NodeKind::Reshape(from) => {
                let source = values[from.index()].as_ref().ok_or_else(|| released(node))?;
                source.clone().reshape(node.ty.shape.clone())?
            }
            NodeKind::Apply { operator, inputs } => {
                let operands: Vec<&HostTensor> = inputs
                    .iter()
                    .map(|id| values[id.index()].as_ref().ok_or_else(|| released(node)))
                    .collect::<Result<_>>()?;
                operator.reference(&operands)?
            }
        };
        values[index] = Some(value);
        for id in node.operands() {
            if last_use[id.index()] == index {
                values[id.index()] = None;
            }
        }
        on_node(index + 1, total)?;
    }
    graph
        .outputs
        .iter()
        .map(|(name, id)| {
            let value = values[id.index()].clone().ok_or_else(|| released(&graph.nodes[id.index()]))?;
            Ok((name.clone(), value))
        })
        .collect()
}

fn released(node: &crate::Node) -> Error {
    Error::operator("reference", format!("a value at {} was released too early", node.label))
}

fn widen(value: &HostTensor) -> HostTensor {
    if value.dtype() == DType::U32 { value.clone() } else { value.cast(DType::F32) }
}
