//! Values that are still needed keep their buffers, and a plan in which one does not is noticed.

#[path = "support/liveness.rs"]
mod liveness;

use liveness::follow;
use pulid_graph::{FirstVariant, Graph, NodeId, Plan, Rate, optimize, plan};
use pulid_ops::{
    Activation, Binary, Capabilities, DeviceKind, GroupNorm, IdentityProjection, MatMul, Ortho, Reduce, Unary, shader,
};
use pulid_tensor::{HostTensor, TensorType};

fn linear(g: &mut Graph, name: &str, x: NodeId) -> NodeId {
    let weight = g.constant(format!("{name}.weight"), HostTensor::zeros([8, 8]));
    g.scoped(name, |g| g.apply(MatMul::default(), &[x, weight])).unwrap()
}

/// Keys that the prologue computes, a skip that is read at once and again in the end, a norm of several dispatches, an
/// identity of a strength that may be zero, and a second output.
fn network() -> Graph {
    let mut g = Graph::new("network");
    let context = g.input("context", TensorType::f32([1, 16, 8]), Rate::Run).unwrap();
    let x = g.input("x", TensorType::f32([1, 16, 8]), Rate::Step).unwrap();
    let strength = g.input("strength", TensorType::f32([1]), Rate::Step).unwrap();
    let keys = linear(&mut g, "keys", context);
    let skip = linear(&mut g, "skip", x);
    let mut h = skip;
    for i in 0..3 {
        h = linear(&mut g, &format!("layer.{i}"), h);
        h = g.scoped("silu", |g| g.apply(Unary(Activation::Silu), &[h])).unwrap();
        let square = g.reshape(h, [1, 4, 4, 8]).unwrap();
        let norm = GroupNorm::new(2, 1e-5);
        let (gain, bias) = (g.constant("gain", HostTensor::zeros([8])), g.constant("bias", HostTensor::zeros([8])));
        let square = g.scoped("norm", |g| g.apply(norm, &[square, gain, bias])).unwrap();
        h = g.reshape(square, [1, 16, 8]).unwrap();
        h = g.scoped("keyed", |g| g.apply(Binary::mul(), &[h, keys])).unwrap();
    }
    let branch = linear(&mut g, "branch", h);
    let projection = IdentityProjection { mode: Ortho::V1, heads: 1, zero_keys: 0 };
    h = g.scoped("identity", |g| g.apply(projection, &[h, branch, strength])).unwrap();
    g.output("features", skip).unwrap();
    h = g.scoped("twice", |g| g.apply(Binary::mul(), &[h, skip])).unwrap();
    let y = linear(&mut g, "out", h);
    g.output("y", y).unwrap();
    g
}

/// Each zero that sessions make use of, and none.
const ZEROS: [&[&str]; 2] = [&[], &["strength"]];

fn planned(kind: DeviceKind) -> (Graph, Plan, Capabilities) {
    let capabilities = Capabilities::baseline(kind);
    let graph = optimize(&network());
    let plan = plan(&graph, &capabilities, &FirstVariant).unwrap().plan;
    (graph, plan, capabilities)
}

#[test]
fn live_values_never_share_a_buffer() {
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        let (graph, plan, capabilities) = planned(kind);
        for zero in ZEROS {
            follow(&graph, &plan, &capabilities, zero)
                .unwrap_or_else(|e| panic!("{kind:?}, zero {zero:?}: {e}\n{}", plan.dump()));
        }
    }
}

/// Sums that stay until the end, each of something large that is needed no longer and whose buffer a buffer at hand would be.
#[test]
fn small_values_that_stay_do_not_keep_large_buffers() {
    let (rows, rounds) = (512, 6);
    let mut g = Graph::new("sums");
    let mut x = g.input("x", TensorType::f32([rows, 64]), Rate::Step).unwrap();
    let mut sums = Vec::new();
    for i in 0..rounds {
        let large = g.scoped(format!("large.{i}"), |g| g.apply(Unary(Activation::Silu), &[x])).unwrap();
        x = g.scoped(format!("next.{i}"), |g| g.apply(Binary::mul(), &[large, large])).unwrap();
        let sum = g.scoped(format!("sum.{i}"), |g| g.apply(Reduce::mean([0]), &[large])).unwrap();
        sums.push(g.scoped(format!("kept.{i}"), |g| g.apply(Unary(Activation::Silu), &[sum])).unwrap());
    }
    let mut all = g.apply(Reduce::mean([0]), &[x]).unwrap();
    for sum in sums {
        all = g.apply(Binary::mul(), &[all, sum]).unwrap();
    }
    g.output("all", all).unwrap();
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        let capabilities = Capabilities::baseline(kind);
        let plan = plan(&g, &capabilities, &FirstVariant).unwrap().plan;
        follow(&g, &plan, &capabilities, &[]).unwrap_or_else(|e| panic!("{kind:?}: {e}\n{}", plan.dump()));
        let large = plan.scratch().each().iter().filter(|bytes| **bytes >= rows * 64 * 4).count();
        assert!((2..=3).contains(&large), "{kind:?}: {:?}", plan.scratch());
    }
}

/// The plan with everything that is in buffer `from` in buffer `to`.
fn merged(plan: &Plan, from: usize, to: usize) -> Plan {
    let mut plan = plan.clone();
    let moved = |buffer: &mut usize| *buffer = if *buffer == from { to } else { *buffer };
    for step in plan.prologue.iter_mut().chain(&mut plan.steps) {
        moved(&mut step.output_buffer);
        for dispatch in &mut step.dispatches {
            dispatch.buffers.iter_mut().for_each(moved);
            dispatch.alternatives.iter_mut().for_each(|a| moved(&mut a.buffer));
        }
    }
    for port in plan.inputs.iter_mut().chain(&mut plan.outputs).chain(&mut plan.weights) {
        moved(&mut port.buffer);
    }
    plan
}

/// When each buffer holds something that is needed: (first, last) dispatches of the prologue and one round of steps, from the
/// dispatches alone.
fn lives(plan: &Plan) -> Vec<Vec<(usize, usize)>> {
    let first_step = plan.prologue.iter().map(|s| s.dispatches.len()).sum::<usize>();
    let end = first_step + plan.steps.iter().map(|s| s.dispatches.len()).sum::<usize>();
    let mut lives: Vec<Vec<(usize, usize)>> = vec![Vec::new(); plan.buffers.len()];
    for port in plan.inputs.iter().chain(&plan.weights) {
        lives[port.buffer].push((0, end));
    }
    for (t, d) in plan.prologue.iter().chain(&plan.steps).flat_map(|s| &s.dispatches).enumerate() {
        let writable = shader(d.shader, &d.features).unwrap().writable;
        for (&buffer, writes) in d.buffers.iter().zip(writable) {
            match (writes, lives[buffer].last_mut()) {
                (true, _) => lives[buffer].push((t, t)),
                // The next round reads it again.
                (false, Some(life)) if life.0 < first_step && t >= first_step => life.1 = end,
                (false, Some(life)) => life.1 = life.1.max(t),
                (false, None) => panic!("buffer {buffer} is read before anything is in it"),
            }
        }
    }
    for port in &plan.outputs {
        lives[port.buffer].last_mut().unwrap().1 = end;
    }
    lives
}

#[test]
fn two_buffers_made_one_are_noticed_where_both_are_needed_at_once() {
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        let (graph, plan, capabilities) = planned(kind);
        let lives = lives(&plan);
        let meet = |a: &(usize, usize), b: &(usize, usize)| a.0 <= b.1 && b.0 <= a.1;
        let (mut noticed, mut harmless) = (0, 0);
        for from in 0..plan.buffers.len() {
            for to in (0..plan.buffers.len()).filter(|&to| to != from) {
                let both = lives[from].iter().any(|a| lives[to].iter().any(|b| meet(a, b)));
                let found = follow(&graph, &merged(&plan, from, to), &capabilities, &[]);
                assert_eq!(found.is_err(), both, "{kind:?}: {from} and {to} are one: {found:?}\n{}", plan.dump());
                *if both { &mut noticed } else { &mut harmless } += 1;
            }
        }
        assert!(noticed > 100 && harmless > 0, "{noticed} noticed, {harmless} harmless");
    }
}

/// A value that is read, overwritten and read again: no dispatch writes what it reads, and every value is read.
#[test]
fn a_value_that_is_overwritten_before_its_last_reader_is_noticed() {
    let (graph, mut plan, capabilities) = planned(DeviceKind::Cpu);
    let skip = plan.steps.iter().position(|s| s.label == "skip").unwrap();
    let second = plan.steps.iter().enumerate().filter(|(_, s)| s.label == "silu").nth(1).unwrap().0;
    let kept = plan.steps[skip].output_buffer;
    let lost = plan.steps[second].output_buffer;
    assert_ne!(kept, lost);
    for step in &mut plan.steps[second..=second + 1] {
        for dispatch in &mut step.dispatches {
            dispatch.buffers.iter_mut().filter(|b| **b == lost).for_each(|b| *b = kept);
        }
        if step.output_buffer == lost {
            step.output_buffer = kept;
        }
    }
    let error = follow(&graph, &plan, &capabilities, &[]).unwrap_err();
    assert!(error.contains("reads") || error.contains("holds"), "{error}");
}
