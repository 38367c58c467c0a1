//! Gradients: every operator's rule against finite differences of its reference, and the passes' promises.

use pulid_graph::autodiff::{add_gradients, differentiate};
use pulid_graph::{
    Checkpointing, FirstVariant, Graph, NodeId, NodeKind, Rate, optimize, plan, reference, replace_wide_attention,
};
use pulid_ops::{
    Activation, Attention, Binary, BinaryFunction, Capabilities, Case, DeviceKind, Fill, Gather, GradientRule, MatMul,
    Role, Storage, Unary, operators,
};
use pulid_tensor::{DType, HostTensor, TensorType};
use std::collections::{BTreeSet, HashMap};

/// Step of the finite differences: what f32 results lose to rounding is a ten-thousandth of what they change by.
const STEP: f32 = 0.02;

/// A repeatable direction.
fn direction(shape: &pulid_tensor::Shape, seed: usize) -> HostTensor {
    HostTensor::from_fn(shape.clone(), |i| ((i * 7919 + seed * 104_729) as f32 * 0.618).sin() * 1.4)
}

fn dot(a: &HostTensor, b: &HostTensor) -> f64 {
    a.to_f32_vec().iter().zip(b.to_f32_vec()).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

/// Whether finite differences tell the gradient: no kinks, no jumps, ordinary numbers.
fn is_smooth(case: &Case) -> bool {
    let attributes = case.operator.attributes();
    // The derivatives of the last three and rounding are held elsewhere: they bend or jump within a step.
    let kinks = ["relu", "clamp", "abs", "op=max", "op=min", "op=less", "op=equal", "rsqrt", "reciprocal", "to=f16"];
    // A step of scores that are scaled by 20 is no small one.
    let steep = attributes.contains("scale=20");
    let ordinary = case.operands.iter().all(|o| match &o.fill {
        Fill::Values(values) => values.iter().all(|v| v.is_finite() && v.abs() < 100.0 && *v != 0.0),
        _ => true,
    });
    let bends = case.operator.name() == "prelu" && !case.name.contains("apart");
    let odd = steep || bends || case.name.contains("every_class");
    ordinary && !odd && !kinks.iter().any(|kink| attributes.contains(kink))
}

/// The gradient in one operand of a case along a direction, by its rule and by differences of its reference; `None` where the
/// operator has no rule.
fn both_ways(case: &Case, operand: usize) -> Option<(f64, f64, f64)> {
    let types = case.types(Storage::F32);
    let output = case.operator.infer(&types).unwrap();
    let needed: Vec<_> = (0..types.len()).map(|i| i == operand).collect();
    GradientRule::of(case.operator.as_ref(), &types, &output, &needed).ok()?;
    let mut g = Graph::new("case");
    let inputs: Vec<_> =
        types.iter().enumerate().map(|(i, ty)| g.input(format!("x{i}"), ty.clone(), Rate::Step).unwrap()).collect();
    let y = g.apply_boxed(case.operator.clone(), &inputs).unwrap();
    g.output("y", y).unwrap();
    add_gradients(&mut g, &[("x".into(), inputs[operand])], Checkpointing::Off).unwrap();
    let values = case.inputs(Storage::F32).unwrap();
    let upstream = direction(&output.shape, 1);
    let along = direction(&types[operand].shape, 2);
    let mut given: HashMap<_, _> = values.iter().enumerate().map(|(i, v)| (format!("x{i}"), v.clone())).collect();
    given.insert("upstream.y".into(), upstream.clone());
    let gradient = reference::run(&g, &given, |_, _| Ok(())).unwrap().remove("d.x").unwrap();
    let result = |t: f32| {
        let (x, d) = (values[operand].to_f32_vec(), along.to_f32_vec());
        let moved = HostTensor::from_fn(types[operand].shape.clone(), |i| x[i] + t * d[i]);
        let operands: Vec<_> = (0..values.len()).map(|i| if i == operand { &moved } else { &values[i] }).collect();
        case.operator.reference(&operands).unwrap()
    };
    // Sums of many terms move further than what they add: no further than where their activation still bends little.
    let (ahead, behind) = (result(STEP).to_f32_vec(), result(-STEP).to_f32_vec());
    let squares: f32 = ahead.iter().zip(&behind).map(|(a, b)| ((a - b) / (2.0 * STEP)).powi(2)).sum();
    let step = STEP / ((squares / ahead.len() as f32).sqrt() / 4.0).max(1.0);
    let loss = |t: f32| dot(&result(t), &upstream);
    // Four points: the error falls with the fourth power of the step.
    let near = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
    let far = (loss(2.0 * step) - loss(-2.0 * step)) / (4.0 * f64::from(step));
    Some((dot(&gradient, &along), (4.0 * near - far) / 3.0, dot(&gradient, &gradient).sqrt()))
}

#[test]
fn rules_agree_with_finite_differences() {
    let mut checked = BTreeSet::new();
    let mut wrong = Vec::new();
    for (_, info) in operators() {
        for case in (info.cases)().iter().filter(|c| !c.benchmark && !c.large && is_smooth(c)) {
            for (i, operand) in case.operands.iter().enumerate() {
                if matches!(operand.role, Role::Index(_)) || operand.shape.count() > 20_000 {
                    continue;
                }
                let Some((rule, differences, size)) = both_ways(case, i) else { continue };
                checked.insert(info.name);
                // The floor: results of size one, rounded to f32, divided by the step.
                if (rule - differences).abs() > (1e-3 * size).max(5e-6) {
                    let line = format!("{} {} operand {i}: {rule} against {differences}", info.name, case.name);
                    wrong.push(line);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let with_rules = [
        "matmul",
        "unary",
        "binary",
        "geglu",
        "cast",
        "reduce",
        "concat",
        "slice",
        "pad",
        "permute",
        "expand",
        "attention",
        "identity_projection",
        "time_embedding",
        "affine_sample",
        "group_norm",
        "layer_norm",
        "conv2d",
        "softmax",
        "l2_normalize",
        "batch_norm",
        "prelu",
        "rotary",
        "upsample_nearest",
        "average_pool2d",
        "resize2d",
    ];
    for name in with_rules {
        assert!(checked.contains(name), "{name} has no rule: {checked:?}");
    }
}

#[test]
fn equal_operands_share_what_the_larger_has() {
    for (function, da, db) in [
        (BinaryFunction::Max, [0.0, 10.0, 30.0], [10.0, 10.0, 0.0]),
        (BinaryFunction::Min, [10.0, 10.0, 0.0], [0.0, 10.0, 30.0]),
    ] {
        let mut g = Graph::new("larger");
        let [a, b] = ["a", "b"].map(|name| g.input(name, TensorType::f32([3]), Rate::Step).unwrap());
        let y = g.apply(Binary::new(function), &[a, b]).unwrap();
        g.output("y", y).unwrap();
        add_gradients(&mut g, &[("a".into(), a), ("b".into(), b)], Checkpointing::Off).unwrap();
        let given = [("a", [1.0, 2.0, 3.0]), ("b", [2.0, 2.0, 1.0]), ("upstream.y", [10.0, 20.0, 30.0])];
        let given = given.map(|(name, values)| (name.to_owned(), HostTensor::from_fn([3], |i| values[i]))).into();
        let got = reference::run(&g, &given, |_, _| Ok(())).unwrap();
        assert_eq!((got["d.a"].to_f32_vec(), got["d.b"].to_f32_vec()), (da.to_vec(), db.to_vec()), "{function:?}");
    }
}

#[test]
fn slopes_agree_with_finite_differences() {
    use Activation::*;
    let points = [-3.1, -0.7, 0.3, 0.6, 1.9, 4.2];
    let all = [None, Relu, Silu, Gelu, QuickGelu, Sigmoid, LeakyRelu(0.1), Exp, Tanh, Clamp(-0.5, 0.75), Neg, Abs];
    let positive = [Sqrt, Rsqrt, Reciprocal, Affine(0.3, 2.0)];
    for (f, x) in
        all.iter().flat_map(|f| points.map(|x| (f, x))).chain(positive.iter().flat_map(|f| [(f, 0.4), (f, 2.5)]))
    {
        let h = 1e-5;
        let differences = (f.apply(x + h) - f.apply(x - h)) / (2.0 * h);
        assert!((f.slope(x) - differences).abs() < 1e-7, "{f:?} at {x}: {} against {differences}", f.slope(x));
    }
}

/// Two blocks of a linear layer, SiLU and a residual each; the last layer stands outside.
fn network() -> (Graph, Vec<(String, NodeId)>) {
    let mut g = Graph::new("network");
    let x = g.input("x", TensorType::f32([4, 8]), Rate::Step).unwrap();
    let mut targets = vec![("x".to_owned(), x)];
    let mut h = x;
    for (block, rate) in [("blocks.0", 0.37), ("blocks.1", 0.41)] {
        let w = g.constant(format!("{block}.weight"), HostTensor::from_fn([8, 8], |i| (i as f32 * rate).sin() * 0.5));
        targets.push((format!("{block}.weight"), w));
        h = g.scoped(block, |g| {
            let mut y = h;
            for _ in 0..3 {
                y = g.apply(MatMul::default(), &[y, w]).unwrap();
                y = g.apply(Unary(Activation::Silu), &[y]).unwrap();
            }
            g.apply(Binary::add(), &[h, y]).unwrap()
        });
    }
    let y = g.apply(Unary(Activation::Tanh), &[h]).unwrap();
    g.output("y", y).unwrap();
    (g, targets)
}

fn block(label: &str) -> Option<&str> {
    label.starts_with("blocks.").then(|| label.get(..8)).flatten()
}

fn applied(graph: &Graph) -> usize {
    graph.nodes().iter().filter(|n| matches!(n.kind, NodeKind::Apply { .. })).count()
}

#[test]
fn wide_heads_have_the_gradients_of_their_products() {
    let shape = [1, 6, 176];
    let gradients = |replaced: bool| {
        let mut g = Graph::new("wide");
        let inputs: Vec<_> =
            ["q", "k", "v"].iter().map(|name| g.input(*name, TensorType::f32(shape), Rate::Step).unwrap()).collect();
        let y = g.apply(Attention::new(1), &inputs).unwrap();
        g.output("y", y).unwrap();
        let mut g = if replaced { replace_wide_attention(&g).unwrap() } else { g };
        let products = g.nodes().iter().filter(|n| format!("{:?}", n.kind).contains("MatMul")).count();
        assert_eq!(products > 0, replaced);
        let targets: Vec<_> = ["q", "k", "v"].map(|name| (name.to_owned(), g.input_named(name).unwrap())).into();
        add_gradients(&mut g, &targets, Checkpointing::Off).unwrap();
        let names = ["q", "k", "v", "upstream.y"];
        let given = names.iter().enumerate().map(|(i, n)| (n.to_string(), direction(&shape.into(), i))).collect();
        reference::run(&g, &given, |_, _| Ok(())).unwrap()
    };
    let (whole, products) = (gradients(false), gradients(true));
    assert_eq!(whole.len(), 4);
    for (name, want) in &whole {
        let error = products[name].deviation_from(want);
        assert!(error < 1e-5, "{name}: {error:.1e}");
    }
}

#[test]
fn checkpoints_change_memory_and_no_bit() {
    let (mut all, targets) = network();
    let (mut blocks, _) = network();
    add_gradients(&mut all, &targets, Checkpointing::Off).unwrap();
    add_gradients(&mut blocks, &targets, Checkpointing::Blocks(block)).unwrap();
    let given = HashMap::from([
        ("x".to_owned(), direction(&[4, 8].into(), 3)),
        ("upstream.y".to_owned(), direction(&[4, 8].into(), 4)),
    ]);
    let run = |graph: &Graph| reference::run(&optimize(graph), &given, |_, _| Ok(())).unwrap();
    let (a, b) = (run(&all), run(&blocks));
    assert_eq!(a.len(), 4, "{:?}", a.keys());
    for (name, value) in &a {
        assert_eq!(value, &b[name], "{name}");
    }
    assert!(applied(&blocks) > applied(&all), "nothing is computed again");
    // Both fuse alike: a value has its bits whoever else reads it.
    let forward = |graph: &Graph| -> Vec<String> {
        let own = optimize(graph);
        let labelled = own.nodes().iter().filter(|n| n.label.starts_with("blocks."));
        labelled.map(|n| format!("{} {:?}", n.label, matches!(n.kind, NodeKind::Apply { .. }))).collect()
    };
    assert_eq!(forward(&all), forward(&blocks));
}

#[test]
fn deep_networks_keep_only_what_enters_blocks() {
    let deep = |checkpointing| {
        let mut g = Graph::new("deep");
        let mut h = g.input("x", TensorType::f32([64, 64]), Rate::Step).unwrap();
        let x = h;
        let w = g.constant("weight", HostTensor::from_fn([64, 64], |i| (i as f32 * 0.37).sin() * 0.1));
        for i in 0..8 {
            h = g.scoped(format!("blocks.{i}"), |g| {
                let mut y = h;
                for _ in 0..6 {
                    y = g.apply(MatMul::default(), &[y, w]).unwrap();
                    y = g.apply(Unary(Activation::Silu), &[y]).unwrap();
                }
                y
            });
        }
        g.output("y", h).unwrap();
        add_gradients(&mut g, &[("x".into(), x)], checkpointing).unwrap();
        let planned = plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap();
        planned.plan.summary().working_bytes
    };
    let (all, blocks) = (deep(Checkpointing::Off), deep(Checkpointing::Blocks(block)));
    assert!(blocks * 2 < all, "{blocks} of {all} bytes");
}

/// Frozen weights may be quantised: the gradient reads their blocks where they lie.
#[test]
fn gradients_pass_quantised_weights() {
    let weight = HostTensor::from_fn([32, 8], |i| (i as f32 * 0.37).sin() * 0.5);
    let upstream = direction(&[3, 8].into(), 6);
    for dtype in [DType::Q8, DType::Q4] {
        let blocks = weight.cast(dtype);
        let gradient = |weight: HostTensor| {
            let mut g = Graph::new("network");
            let x = g.input("x", TensorType::f32([3, 32]), Rate::Step).unwrap();
            let w = g.constant("weight", weight);
            let y = g.apply(MatMul::default(), &[x, w]).unwrap();
            g.output("y", y).unwrap();
            add_gradients(&mut g, &[("x".into(), x)], Checkpointing::Off).unwrap();
            let given = HashMap::from([
                ("x".to_owned(), direction(&[3, 32].into(), 5)),
                ("upstream.y".to_owned(), upstream.clone()),
            ]);
            // Every step lowers, too.
            plan(&optimize(&g), &Capabilities::baseline(DeviceKind::Cpu), &FirstVariant).unwrap();
            reference::run(&g, &given, |_, _| Ok(())).unwrap().remove("d.x").unwrap()
        };
        let values = blocks.cast(DType::F32);
        assert_ne!(values, weight, "{dtype} rounds nothing");
        assert_eq!(gradient(blocks), gradient(values), "{dtype}");
    }
}

#[test]
fn frozen_parts_cost_nothing() {
    let (mut g, targets) = network();
    let before = applied(&g);
    add_gradients(&mut g, &targets[2..3], Checkpointing::Off).unwrap();
    let labels: Vec<_> = g.nodes().iter().filter(|n| n.label.starts_with("gradient of blocks.0")).collect();
    assert!(labels.is_empty() && applied(&g) > before, "{labels:?}");
}

#[test]
fn a_missing_rule_names_operator_and_place() {
    let mut g = Graph::new("network");
    let table = g.input("table", TensorType::f32([5, 2]), Rate::Step).unwrap();
    let rows = g.input("rows", TensorType::new(DType::U32, [3]), Rate::Step).unwrap();
    let y = g.scoped("embedding", |g| g.apply(Gather::default(), &[table, rows])).unwrap();
    g.output("y", y).unwrap();
    let error = add_gradients(&mut g, &[("table".into(), table)], Checkpointing::Off).unwrap_err().to_string();
    assert!(error.contains("gather") && error.contains("network:embedding"), "{error}");
}

#[test]
fn upstream_gradients_have_their_values_types() {
    let (mut g, targets) = network();
    let y = g.outputs()[0].1;
    let other = g.input("other", TensorType::f32([4, 9]), Rate::Step).unwrap();
    let error = differentiate(&mut g, &[(y, other)], &[targets[0].1], Checkpointing::Off).unwrap_err();
    assert!(error.to_string().contains("[4, 9]"), "{error}");
}
