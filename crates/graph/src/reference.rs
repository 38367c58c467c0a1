//! The second executor: every operator's plain Rust reference, one node after another.

use crate::{Graph, Node, NodeKind};
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::collections::HashMap;

/// Runs a graph on the CPU with f64 accumulation and f32 storage. `on_node` is told (done, of) after each node and
/// cancels by an error.
///
/// # Errors
/// A missing or mismatched input, an unreadable weight, or an operator's own.
pub fn run(
    graph: &Graph,
    inputs: &HashMap<String, HostTensor>,
    on_node: impl FnMut(usize, usize) -> Result<()>,
) -> Result<HashMap<String, HostTensor>> {
    execute(graph, inputs, on_node, |_, _| {})
}

/// [`run`], where NaN and infinity in an output are an error. They are looked for on the way, so that nothing runs twice.
///
/// # Errors
/// As [`run`]; [`Error::NotFinite`] naming the first operator that produced NaN or infinity, in the words of a device's
/// session.
pub fn run_finite(
    graph: &Graph,
    inputs: &HashMap<String, HostTensor>,
    on_node: impl FnMut(usize, usize) -> Result<()>,
) -> Result<HashMap<String, HostTensor>> {
    // Not at once an error: what later operators do not let through (a mask's infinity) does no harm.
    let mut first = None;
    let outputs = execute(graph, inputs, on_node, |node, value| {
        if let (None, NodeKind::Apply { operator, .. }) = (&first, &node.kind) {
            let place = || format!("{} {}({})", node.label, operator.name(), operator.attributes());
            first = not_finite(graph, value, place);
        }
    })?;
    for (name, _) in &graph.outputs {
        if let Some(error) = not_finite(graph, &outputs[name], || format!("output `{name}`")) {
            // Without an operator that did it, it came from an input or a weight.
            return Err(first.unwrap_or(error));
        }
    }
    Ok(outputs)
}

fn not_finite(graph: &Graph, value: &HostTensor, place: impl FnOnce() -> String) -> Option<Error> {
    // Integers are finite.
    let values = value.as_f32().unwrap_or_default();
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    (bad > 0).then(|| Error::NotFinite {
        network: graph.name.clone(),
        operator: place(),
        detail: format!("{bad} of {} values; check the weights and inputs", values.len()),
    })
}

/// Runs every node; `on_value` sees each value once.
fn execute(
    graph: &Graph,
    inputs: &HashMap<String, HostTensor>,
    mut on_node: impl FnMut(usize, usize) -> Result<()>,
    mut on_value: impl FnMut(&Node, &HostTensor),
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
        on_value(node, &value);
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

fn released(node: &Node) -> Error {
    Error::operator("reference", format!("a value at {} was released too early", node.label))
}

fn widen(value: &HostTensor) -> HostTensor {
    if value.dtype() == DType::U32 { value.clone() } else { value.cast(DType::F32) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, Rate};
    use pulid_ops::{Activation, Binary, Unary};
    use pulid_tensor::TensorType;

    fn input(value: f32) -> HashMap<String, HostTensor> {
        HashMap::from([("x".to_owned(), HostTensor::from_fn([4], |i| if i == 2 { value } else { 1.0 }))])
    }

    /// `first`, `second` and `third`, which multiply by `factor` each.
    fn chain(factor: f32) -> (Graph, NodeId) {
        let mut g = Graph::new("chain");
        let mut x = g.input("x", TensorType::f32([4]), Rate::Step).unwrap();
        let by = g.constant("by", HostTensor::from_fn([4], |_| factor));
        for name in ["first", "second", "third"] {
            x = g.scoped(name, |g| g.apply(Binary::mul(), &[x, by])).unwrap();
        }
        (g, x)
    }

    #[test]
    fn the_first_operator_that_gave_infinity_is_named() {
        let (mut g, x) = chain(1e15);
        g.output("y", x).unwrap();
        // 1e10 becomes 1e25, then 1e40, which f32 does not hold; the others get there with the third.
        let error = run_finite(&g, &input(1e10), |_, _| Ok(())).unwrap_err();
        let Error::NotFinite { network, operator, detail } = &error else { panic!("{error}") };
        assert_eq!(network, "chain");
        assert!(operator.starts_with("second binary("), "{operator}");
        assert!(detail.starts_with("1 of 4 values"), "{detail}");
        // Whoever wants to see such values may.
        let outputs = run(&g, &input(1e10), |_, _| Ok(())).unwrap();
        assert!(outputs["y"].as_f32().unwrap().iter().all(|v| v.is_infinite()));
    }

    #[test]
    fn infinity_that_nothing_passes_on_is_no_error() {
        let (mut g, x) = chain(-1e20);
        let positive = g.apply(Unary(Activation::Relu), &[x]).unwrap();
        g.output("y", positive).unwrap();
        let outputs = run_finite(&g, &input(1.0), |_, _| Ok(())).unwrap();
        assert_eq!(outputs["y"].as_f32().unwrap(), [0.0; 4]);
    }

    #[test]
    fn an_input_s_own_infinity_is_its_output_s() {
        let mut g = Graph::new("wire");
        let x = g.input("x", TensorType::f32([4]), Rate::Step).unwrap();
        g.output("y", x).unwrap();
        let message = run_finite(&g, &input(f32::NAN), |_, _| Ok(())).unwrap_err().to_string();
        assert!(message.contains("wire") && message.contains("output `y`"), "{message}");
    }
}
