//! What plans leave out while an input is zero.

use pulid_graph::{FirstVariant, Graph, NodeId, Plan, Rate, optimize, plan};
use pulid_ops::{Activation, Binary, Capabilities, DeviceKind, IdentityProjection, MatMul, Ortho, Unary};
use pulid_tensor::{HostTensor, TensorType};

fn linear(g: &mut Graph, name: &str, x: NodeId) -> NodeId {
    let weight = g.constant(format!("{name}.weight"), HostTensor::from_fn([8, 8], |i| (i % 5) as f32));
    g.scoped(name, |g| g.apply(MatMul::default(), &[x, weight])).unwrap()
}

/// h, then for each strength h + s·r of a branch of two operators, then a layer. `shared` also adds each branch to the result.
fn network(strengths: &[&str], shared: bool) -> Plan {
    let mut g = Graph::new("network");
    let x = g.input("x", TensorType::f32([2, 3, 8]), Rate::Step).unwrap();
    let mut h = linear(&mut g, "text", x);
    let mut branches = Vec::new();
    for name in strengths {
        let scale = g.input(*name, TensorType::f32([2]), Rate::Step).unwrap();
        let branch = linear(&mut g, &format!("{name}.branch"), x);
        let branch = g.scoped(format!("{name}.silu"), |g| g.apply(Unary(Activation::Silu), &[branch])).unwrap();
        branches.push(branch);
        let projection = IdentityProjection { mode: Ortho::V1, heads: 1, zero_keys: 0 };
        h = g.scoped(format!("{name}.add"), |g| g.apply(projection, &[h, branch, scale])).unwrap();
    }
    let mut y = linear(&mut g, "out", h);
    for branch in branches.into_iter().filter(|_| shared) {
        y = g.apply(Binary::add(), &[y, branch]).unwrap();
    }
    g.output("y", y).unwrap();
    plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap().plan
}

/// The steps that run while the inputs of these names are zero, each with the buffers that its dispatches bind.
fn running(plan: &Plan, zero: &[&str]) -> Vec<(String, Vec<Vec<usize>>)> {
    let is_zero = |input: usize| zero.contains(&plan.inputs[input].name.as_str());
    let needed = plan.steps.iter().filter(|s| s.unless_zero.is_none_or(|input| !is_zero(input)));
    needed.map(|s| (s.label.clone(), s.dispatches.iter().map(|d| d.bound(is_zero)).collect())).collect()
}

fn labels(plan: &Plan, zero: &[&str]) -> Vec<String> {
    running(plan, zero).into_iter().map(|(label, _)| label).collect()
}

#[test]
fn a_zero_leaves_out_the_operator_and_what_only_it_reads() {
    let plan = network(&["a"], false);
    assert_eq!(labels(&plan, &[]), ["text", "a.silu", "a.add", "out"], "{}", plan.dump());
    assert_eq!(labels(&plan, &["a"]), ["text", "out"], "{}", plan.dump());
    // Then the last layer reads what the first one wrote.
    let steps = running(&plan, &["a"]);
    let text = *steps[0].1[0].last().unwrap();
    assert!(steps[1].1[0].contains(&text));
    assert!(plan.dump().contains("unless a is zero") && plan.dump().contains(" else #"));
}

#[test]
fn what_others_read_is_always_computed() {
    let plan = network(&["a"], true);
    let zero = labels(&plan, &["a"]);
    assert!(zero.iter().any(|label| label == "a.silu") && !zero.iter().any(|label| label == "a.add"), "{zero:?}");
}

#[test]
fn several_strengths_are_left_out_one_by_one() {
    let plan = network(&["a", "b"], false);
    for (zero, expected) in [
        (&[][..], &["text", "a.silu", "a.add", "b.silu", "b.add", "out"][..]),
        (&["a"], &["text", "b.silu", "b.add", "out"]),
        (&["b"], &["text", "a.silu", "a.add", "out"]),
        (&["a", "b"], &["text", "out"]),
    ] {
        let steps = running(&plan, zero);
        assert_eq!(steps.iter().map(|(label, _)| label.as_str()).collect::<Vec<_>>(), expected, "{zero:?}");
        // Every reader of h finds it where it was written last, and nothing between overwrote it.
        let mut written = std::collections::HashMap::new();
        for (label, dispatches) in &steps {
            if label.ends_with(".add") || label == "out" {
                let before = steps.iter().rev().skip_while(|(l, _)| l != label).skip(1);
                let source = before.map(|(l, _)| l).find(|l| *l == "text" || l.ends_with(".add")).unwrap();
                let buffer = written.iter().find(|(_, l)| *l == source).map(|(b, _)| *b);
                assert!(dispatches.iter().any(|d| buffer.is_some_and(|b| d.contains(&b))), "{label} {zero:?}");
            }
            written.insert(*dispatches.last().unwrap().last().unwrap(), label.clone());
        }
    }
}

#[test]
fn results_and_hoisted_values_are_never_left_out() {
    let build = |rate: Rate, is_result: bool| {
        let mut g = Graph::new("network");
        let x = g.input("x", TensorType::f32([2, 3, 8]), rate).unwrap();
        let scale = g.input("scale", TensorType::f32([2]), Rate::Run).unwrap();
        let branch = linear(&mut g, "branch", x);
        let projection = IdentityProjection { mode: Ortho::Off, heads: 1, zero_keys: 0 };
        let mut y = g.apply(projection, &[x, branch, scale]).unwrap();
        if !is_result {
            y = linear(&mut g, "out", y);
        }
        g.output("y", y).unwrap();
        let plan = plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap().plan;
        plan.prologue.iter().chain(&plan.steps).any(|s| s.unless_zero.is_some())
    };
    assert!(build(Rate::Step, false));
    assert!(!build(Rate::Step, true), "a result must be written");
    assert!(!build(Rate::Run, false), "a prologue does not run again when only the strength changes");
}
