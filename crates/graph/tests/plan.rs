//! Fusion, hoisting and memory planning on small graphs.

use pulid_graph::plan::BufferKind;
use pulid_graph::{FirstVariant, Graph, Rate, optimize, plan, reference};
use pulid_ops::{Activation, Capabilities, DeviceKind, MatMul, Unary};
use pulid_tensor::{HostTensor, TensorType};
use std::collections::HashMap;

fn linear(g: &mut Graph, name: &str, x: pulid_graph::NodeId, k: usize, n: usize) -> pulid_graph::NodeId {
    let weight =
        g.constant(format!("{name}.weight"), HostTensor::from_fn([k, n], |i| ((i * 7 % 11) as f32 - 5.0) * 0.1));
    g.scoped(name, |g| g.apply(MatMul::default(), &[x, weight])).unwrap()
}

fn chain(length: usize) -> Graph {
    let mut g = Graph::new("chain");
    let context = g.input("context", TensorType::f32([3, 8]), Rate::Run).unwrap();
    let mut x = g.input("x", TensorType::f32([3, 8]), Rate::Step).unwrap();
    let keys = linear(&mut g, "to_k", context, 8, 8);
    let _unused = linear(&mut g, "unused", context, 8, 8);
    for i in 0..length {
        x = linear(&mut g, &format!("layer.{i}"), x, 8, 8);
        x = g.apply(Unary(Activation::Silu), &[x]).unwrap();
    }
    let y = g.apply(MatMul { transpose_b: true, ..MatMul::default() }, &[x, keys]).unwrap();
    g.output("y", y).unwrap();
    g
}

#[test]
fn fuses_hoists_and_reuses_buffers() {
    let graph = optimize(&chain(6));
    let planned = plan(&graph, &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap();
    let plan = &planned.plan;
    assert_eq!(plan.prologue.len(), 1, "the keys, not the unused layer:\n{}", plan.dump());
    assert_eq!(plan.steps.len(), 7, "each activation is an epilogue:\n{}", plan.dump());
    let scratch = plan.buffers.iter().filter(|b| b.kind == BufferKind::Scratch).count();
    assert_eq!(scratch, 2, "a chain needs two buffers, however long:\n{}", plan.dump());
    assert!(plan.dump().contains("f=silu"));
}

#[test]
fn live_values_never_share_a_buffer() {
    let planned = plan(&optimize(&chain(5)), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap();
    for step in planned.plan.prologue.iter().chain(&planned.plan.steps) {
        for d in &step.dispatches {
            let (result, operands) = d.buffers.split_last().unwrap();
            assert!(!operands.contains(result), "{} writes what it reads", step.label);
        }
    }
}

#[test]
fn optimized_graph_computes_the_same() {
    let graph = chain(3);
    let tensor = |seed: usize| HostTensor::from_fn([3, 8], |i| ((i * 13 + seed) % 17) as f32 / 17.0 - 0.5);
    let inputs = HashMap::from([("context".to_owned(), tensor(1)), ("x".to_owned(), tensor(5))]);
    let plain = reference::run(&graph, &inputs, |_, _| Ok(())).unwrap();
    let optimized = reference::run(&optimize(&graph), &inputs, |_, _| Ok(())).unwrap();
    for (a, b) in plain["y"].as_f32().unwrap().iter().zip(optimized["y"].as_f32().unwrap()) {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn a_tensor_over_the_binding_limit_is_an_error() {
    let mut g = Graph::new("large");
    let x = g.input("x", TensorType::f32([64 << 20]), Rate::Step).unwrap();
    let y = g.apply(Unary(Activation::Relu), &[x]).unwrap();
    g.output("y", y).unwrap();
    let error = plan(&g, &Capabilities::baseline(DeviceKind::Other), &FirstVariant).unwrap_err();
    assert!(error.to_string().contains("binding"), "{error}");
}
