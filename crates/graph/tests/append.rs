//! Graphs of graphs, and weights that become inputs.

use pulid_graph::{Graph, NodeKind, Rate, reference};
use pulid_ops::{Binary, MatMul};
use pulid_tensor::{HostTensor, TensorType};
use std::collections::HashMap;

fn matrix(rate: f32) -> HostTensor {
    HostTensor::from_fn([3, 3], |i| (i as f32 * rate).sin())
}

/// y = x w + x.
fn layer(weight: f32) -> Graph {
    let mut g = Graph::new("layer");
    let x = g.input("x", TensorType::f32([2, 3]), Rate::Step).unwrap();
    let w = g.constant("w", matrix(weight));
    let product = g.apply(MatMul::default(), &[x, w]).unwrap();
    let y = g.apply(Binary::add(), &[product, x]).unwrap();
    g.output("y", y).unwrap();
    g
}

fn run(graph: &Graph, inputs: &[(&str, HostTensor)]) -> HostTensor {
    let inputs = inputs.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect::<HashMap<_, _>>();
    reference::run(graph, &inputs, |_, _| Ok(())).unwrap().remove("y").unwrap()
}

#[test]
fn a_graph_behind_another_computes_one_after_the_other() {
    let x = HostTensor::from_fn([2, 3], |i| i as f32 - 2.0);
    let expected = run(&layer(0.7), &[("x", run(&layer(0.3), &[("x", x.clone())]))]);
    let mut both = layer(0.3);
    let between = both.outputs()[0].1;
    let mut chained = Graph::new("both");
    let first = chained.append(&both, &[]).unwrap();
    let second = chained.append(&layer(0.7), &[("x", first[0].1)]).unwrap();
    chained.output("y", second[0].1).unwrap();
    assert_eq!(run(&chained, &[("x", x)]), expected);
    // Equal weights are one node, names of inputs stay single.
    let weights = |g: &Graph| g.nodes().iter().filter(|n| matches!(n.kind, NodeKind::Weight(_))).count();
    both.append(&layer(0.3), &[("x", between)]).unwrap();
    assert_eq!(weights(&both), 1);
    assert!(both.append(&layer(0.3), &[]).unwrap_err().to_string().contains("two inputs `x`"));
    let message = both.append(&layer(0.3), &[("z", between)]).unwrap_err().to_string();
    assert!(message.contains("has no input `z`"), "{message}");
    let narrow = both.input("narrow", TensorType::f32([2, 2]), Rate::Step).unwrap();
    let message = both.append(&layer(0.3), &[("x", narrow)]).unwrap_err().to_string();
    assert!(message.contains("[2, 3]") && message.contains("[2, 2]"), "{message}");
}

#[test]
fn a_freed_weight_is_an_input_of_its_name() {
    let x = HostTensor::from_fn([2, 3], |i| i as f32);
    let mut g = layer(0.3);
    let place = |g: &Graph| g.nodes().iter().position(|n| matches!(n.kind, NodeKind::Weight(_))).unwrap();
    let id = g.id(place(&g));
    let weight = g.free_weight(id).unwrap();
    assert_eq!(weight.load().unwrap(), matrix(0.3));
    let with = |w: f32| run(&g, &[("x", x.clone()), ("w", matrix(w))]);
    assert_eq!(with(0.3), run(&layer(0.3), &[("x", x.clone())]));
    assert_eq!(with(0.9), run(&layer(0.9), &[("x", x.clone())]));
    assert!(g.clone().free_weight(id).is_err(), "it is none any more");
    // A weight that comes later is another node.
    let again = g.constant("w", matrix(0.3));
    assert_ne!(again, id);
    assert!(g.free_weight(again).unwrap_err().to_string().contains("two inputs `w`"));
}
