//! Values that are still needed keep their buffers, and a plan in which one does not is noticed.

#[path = "support/liveness.rs"]
mod liveness;

use liveness::{follow, follow_in};
use pulid_graph::plan::BufferKind;
use pulid_graph::{
    Arenas, FirstVariant, Graph, NodeId, Place, Plan, PlannedGraph, Rate, largest_arena, optimize, plan, plan_sharing,
};
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
fn sums(rows: usize) -> Graph {
    let rounds = 6;
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
    g
}

#[test]
fn small_values_that_stay_do_not_keep_large_buffers() {
    let rows = 512;
    let g = sums(rows);
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        let capabilities = Capabilities::baseline(kind);
        let plan = plan(&g, &capabilities, &FirstVariant).unwrap().plan;
        follow(&g, &plan, &capabilities, &[]).unwrap_or_else(|e| panic!("{kind:?}: {e}\n{}", plan.dump()));
        let scratch = plan.buffers.iter().filter(|b| b.kind == BufferKind::Scratch);
        let large = scratch.filter(|b| b.bytes >= rows * 64 * 4).count();
        assert!((2..=3).contains(&large), "{kind:?}: {:?}", plan.buffers);
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

/// The network above with an output that stays in the memory of the values, as a plan for arenas.
fn sharing(kind: DeviceKind) -> (Graph, Plan, Capabilities) {
    let capabilities = Capabilities::baseline(kind);
    let mut graph = network();
    let norm = graph.nodes().iter().rposition(|node| node.label == "norm").unwrap();
    graph.transient_output("norm", graph.id(norm)).unwrap();
    let graph = optimize(&graph);
    let PlannedGraph { plan, .. } = plan_sharing(&graph, &capabilities, &FirstVariant).unwrap();
    let output = plan.outputs.iter().find(|port| port.name == "norm").unwrap().buffer;
    assert_eq!(plan.buffers[output].kind, BufferKind::Scratch);
    (graph, plan, capabilities)
}

#[test]
fn values_of_several_plans_find_places_in_the_same_arenas() {
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        let (graph, plan, capabilities) = sharing(kind);
        let other = sums(64);
        let of_other = plan_sharing(&other, &capabilities, &FirstVariant).unwrap().plan;
        let largest = largest_arena(capabilities.max_buffer_bytes);
        let both = [plan.scratch(), of_other.scratch()];
        let arenas = Arenas::for_all(&both, largest);
        let alone = [&plan, &of_other].map(Plan::scratch_bytes);
        assert!(arenas.bytes() < alone[0] + alone[1], "{arenas:?} for {alone:?}");
        let whole: usize = plan.buffers.iter().filter(|b| b.kind == BufferKind::Scratch).map(|b| b.bytes).sum();
        assert!(2 * alone[0] < whole, "{} of {whole}", alone[0]);
        for ((graph, plan), values) in [(&graph, &plan), (&other, &of_other)].into_iter().zip(&both) {
            let mut taken = arenas.clone();
            let places = taken.take(values, largest);
            assert_eq!(taken, arenas, "what was reserved is not enough");
            for (buffer, place) in &places {
                let end = place.offset + plan.buffers[*buffer].bytes;
                assert!(place.offset % 256 == 0 && end <= arenas.each()[place.arena], "{place:?}");
            }
            for zero in ZEROS {
                follow_in(graph, plan, &capabilities, zero, &places).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
            }
            // Without room in what is there, all lies behind it, in arenas as small as asked for.
            let mut full: Arenas = [256].into_iter().collect();
            let places = full.take(values, 4096);
            follow_in(graph, plan, &capabilities, &[], &places).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
            assert_eq!(full.each()[0], 256);
            let largest = plan.buffers.iter().map(|b| b.bytes).max().unwrap().max(4096);
            assert!(full.each().len() > arenas.each().len() && full.each().iter().all(|bytes| *bytes <= largest));
        }
    }
}

/// Two values in one arena are a mistake where they overlap while both are needed, and where a dispatch reads one and writes the other.
#[test]
fn values_that_may_not_lie_in_one_arena_are_noticed() {
    let (graph, plan, capabilities) = sharing(DeviceKind::Cpu);
    let lives = lives(&plan);
    let scratch: Vec<usize> =
        (0..plan.buffers.len()).filter(|&buffer| plan.buffers[buffer].kind == BufferKind::Scratch).collect();
    let in_one = |from: usize, to: usize, offset: usize| -> Vec<(usize, Place)> {
        let place = |&buffer: &usize| match buffer == from {
            true => (buffer, Place { arena: to, offset }),
            false => (buffer, Place { arena: buffer, offset: 0 }),
        };
        scratch.iter().map(place).collect()
    };
    let mut noticed = [0, 0];
    for &from in &scratch {
        for &to in scratch.iter().filter(|&&to| to != from) {
            let (a, b) = (lives[from][0], lives[to][0]);
            let overlap = follow_in(&graph, &plan, &capabilities, &[], &in_one(from, to, 0));
            assert_eq!(overlap.is_err(), a.0 <= b.1 && b.0 <= a.1, "{from} over {to}: {overlap:?}");
            let dispatches = || plan.prologue.iter().chain(&plan.steps).flat_map(|step| &step.dispatches);
            let binds = |buffer: usize, writes: bool| {
                move |d: &pulid_graph::plan::PlannedDispatch| {
                    d.buffers.iter().zip(d.written).any(|(b, written)| *b == buffer && *written == writes)
                }
            };
            let mixed = dispatches().any(|d| binds(from, true)(d) && binds(to, false)(d))
                || dispatches().any(|d| binds(to, true)(d) && binds(from, false)(d));
            let beside = follow_in(&graph, &plan, &capabilities, &[], &in_one(from, to, 1 << 20));
            assert_eq!(beside.is_err(), mixed, "{from} beside {to}: {beside:?}");
            noticed[0] += usize::from(overlap.is_err());
            noticed[1] += usize::from(mixed);
        }
    }
    assert!(noticed[0] > noticed[1] && noticed[1] > 10, "{noticed:?}");
}
