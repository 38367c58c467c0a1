//! Fusion, hoisting and memory planning on small graphs.

use pulid_graph::plan::BufferKind;
use pulid_graph::{FirstVariant, Graph, PlannedGraph, Rate, Stage, optimize, plan, reference, residency};
use pulid_ops::{Activation, Binary, Capabilities, DeviceKind, GeGlu, MatMul, Unary};
use pulid_tensor::{HostTensor, TensorType};
use std::collections::HashMap;

fn linear(g: &mut Graph, name: &str, x: pulid_graph::NodeId, k: usize, n: usize) -> pulid_graph::NodeId {
    // Every layer its own values: equal constants are one weight.
    let own: f32 = name.bytes().enumerate().map(|(i, b)| (i + 1) as f32 * f32::from(b) * 1e-7).sum();
    let fill = |i: usize| ((i * 7 % 11) as f32 - 5.0) * 0.1 + own;
    let weight = g.constant(format!("{name}.weight"), HostTensor::from_fn([k, n], fill));
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

/// A feed-forward with gates, `inner` wide.
fn gated(inner: usize) -> Graph {
    let mut g = Graph::new("gated");
    let x = g.input("x", TensorType::f32([3, 8]), Rate::Step).unwrap();
    let h = linear(&mut g, "up", x, 8, 2 * inner);
    let h = g.apply(GeGlu, &[h]).unwrap();
    let h = linear(&mut g, "down", h, inner, 8);
    let y = g.apply(Binary::add(), &[x, h]).unwrap();
    g.output("y", y).unwrap();
    g
}

#[test]
fn gates_are_applied_before_anything_is_stored() {
    for inner in [16, 6, 5] {
        let graph = gated(inner);
        let optimized = optimize(&graph);
        let plan = plan(&optimized, &Capabilities::baseline(DeviceKind::Discrete), &FirstVariant).unwrap().plan;
        assert_eq!(plan.steps.len(), 2, "inner {inner}:\n{}", plan.dump());
        assert_eq!(plan.steps[0].output, TensorType::f32([3, inner]));
        let inputs = HashMap::from([("x".to_owned(), HostTensor::from_fn([3, 8], |i| (i as f32 * 0.7).sin()))]);
        let plain = reference::run(&graph, &inputs, |_, _| Ok(())).unwrap();
        let fused = reference::run(&optimized, &inputs, |_, _| Ok(())).unwrap();
        for (a, b) in plain["y"].as_f32().unwrap().iter().zip(fused["y"].as_f32().unwrap()) {
            assert!((a - b).abs() < 1e-6, "inner {inner}: {a} and {b}");
        }
    }
}

#[test]
fn a_projection_that_others_read_keeps_its_gates_apart() {
    let mut g = Graph::new("shared");
    let x = g.input("x", TensorType::f32([3, 8]), Rate::Step).unwrap();
    let h = linear(&mut g, "up", x, 8, 32);
    let y = g.apply(GeGlu, &[h]).unwrap();
    g.output("h", h).unwrap();
    g.output("y", y).unwrap();
    let plan = plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap().plan;
    assert_eq!(plan.steps.len(), 2, "{}", plan.dump());
}

#[test]
fn what_is_computed_once_takes_no_part_of_a_step() {
    for once_comes_last in [false, true] {
        let mut g = Graph::new("rates");
        let context = g.input("context", TensorType::f32([3, 8]), Rate::Run).unwrap();
        let x = g.input("x", TensorType::f32([3, 8]), Rate::Step).unwrap();
        let mut both = [linear(&mut g, "each_step", x, 8, 8), linear(&mut g, "once", context, 8, 8)];
        if !once_comes_last {
            both.reverse();
        }
        let y = g.apply(Binary::add(), &both).unwrap();
        g.output("y", y).unwrap();
        let plan = plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap().plan;
        let dump = plan.dump();
        assert_eq!((plan.prologue.len(), plan.steps.len()), (1, 1), "last: {once_comes_last}\n{dump}");
        assert_eq!(plan.prologue[0].label, "once", "{dump}");
        assert!(plan.steps[0].operator.contains("residual=true"), "{dump}");
    }
    // Where the sum cannot be an epilogue of the step's own work, it stays apart.
    let mut g = Graph::new("rates");
    let context = g.input("context", TensorType::f32([3, 8]), Rate::Run).unwrap();
    let x = g.input("x", TensorType::f32([3, 8]), Rate::Step).unwrap();
    let once = linear(&mut g, "once", context, 8, 8);
    let y = g.apply(Binary::add(), &[x, once]).unwrap();
    g.output("y", y).unwrap();
    let plan = plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap().plan;
    assert_eq!((plan.prologue.len(), plan.steps.len()), (1, 1), "{}", plan.dump());
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

/// A chain of layers of 256 KiB each behind keys that the prologue computes.
fn long_chain() -> PlannedGraph {
    let mut g = Graph::new("long");
    let context = g.input("context", TensorType::f32([4, 256]), Rate::Run).unwrap();
    let mut x = g.input("x", TensorType::f32([4, 256]), Rate::Step).unwrap();
    for i in 0..24 {
        let key = linear(&mut g, &format!("key.{i}"), context, 256, 256);
        x = linear(&mut g, &format!("layer.{i}"), x, 256, 256);
        x = g.apply(Binary::add(), &[key, x]).unwrap();
    }
    g.output("y", x).unwrap();
    plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap()
}

#[test]
fn what_does_not_fit_streams_through_slots_that_no_neighbour_uses() {
    let whole = long_chain();
    let full = whole.plan.summary();
    let total = (full.weight_bytes + full.working_bytes) as u64;
    let same = residency::fit(whole.clone(), total).unwrap();
    assert!(same.plan.streamed().next().is_none(), "everything fits");
    for budget in [total - 1, total * 2 / 3, total / 3] {
        let plan = residency::fit(whole.clone(), budget).unwrap().plan;
        let summary = plan.summary();
        assert!((summary.weight_bytes + summary.working_bytes) as u64 <= budget, "{budget}: {summary:?}");
        assert_eq!(summary.step_dispatches, full.step_dispatches);
        let mut order: Vec<&Stage> = plan.prologue_stages.iter().chain(&plan.stages).collect();
        let slots = |stage: &Stage| -> Vec<usize> { stage.weights.iter().map(|&w| plan.weights[w].buffer).collect() };
        // Also from the last stage of a run to the first of the next, and where the prologue is left out.
        order.push(&plan.stages[0]);
        for pair in order.windows(2) {
            let mut used = slots(pair[0]);
            used.extend(if std::ptr::eq(pair[0], pair[1]) { Vec::new() } else { slots(pair[1]) });
            let distinct: std::collections::BTreeSet<_> = used.iter().collect();
            let last_to_first = std::ptr::eq(pair[1], &plan.stages[0]) && plan.stages.len() > 1;
            assert!(distinct.len() == used.len() || last_to_first, "two neighbours share a slot: {used:?}");
        }
        // Every step finds its streamed weights in its own stage.
        for (stages, steps) in [(&plan.prologue_stages, &plan.prologue), (&plan.stages, &plan.steps)] {
            assert_eq!(stages[0].first, 0);
            for (i, step) in steps.iter().enumerate() {
                let stage = stages.iter().rev().find(|s| s.first <= i).unwrap();
                for &b in step.dispatches.iter().flat_map(|d| &d.buffers) {
                    assert!(b < plan.buffers.len());
                    let streams = plan.buffers[b].kind == BufferKind::Slot;
                    assert!(!streams || slots(stage).contains(&b), "{} reads a slot that nothing filled", step.label);
                }
            }
        }
        assert!(plan.dump().contains("streams"), "the dump says so");
    }
    let message = residency::fit(whole, 100_000).unwrap_err().to_string();
    assert!(message.contains("long") && message.contains("`memory`"), "{message}");
}
