//! Passes keep what a graph computes.

use pulid_graph::{Graph, NodeKind, Rate, fit_bindings, optimize, reference};
use pulid_ops::{Attention, Binary, Conv2d, Conv2dGradient, GroupNorm, MatMul, UpsampleNearest};
use pulid_tensor::{DType, HostTensor, TensorType};
use std::collections::HashMap;

fn run(graph: &Graph, inputs: &HashMap<String, HostTensor>) -> HashMap<String, HostTensor> {
    reference::run(graph, inputs, |_, _| Ok(())).unwrap()
}

fn inputs<const N: usize>(values: [(&str, HostTensor); N]) -> HashMap<String, HostTensor> {
    values.map(|(name, value)| (name.to_owned(), value)).into()
}

fn wave(shape: impl Into<pulid_tensor::Shape>, rate: f32) -> HostTensor {
    HostTensor::from_fn(shape, |i| (i as f32 * rate).sin())
}

/// The largest difference of `name`.
fn difference(a: &HashMap<String, HostTensor>, b: &HashMap<String, HostTensor>, name: &str) -> f32 {
    let (a, b) = (&a[name], &b[name]);
    assert_eq!(a.tensor_type(), b.tensor_type());
    a.to_f32_vec().iter().zip(b.to_f32_vec()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn padding_changes_nothing() {
    let (k, n) = (331, 270);
    let (weight, bias) = (wave([k, n], 0.31), wave([n], 0.7));
    let given = inputs([("x", wave([2, 3, k], 0.7))]);
    for dtype in [DType::F32, DType::Q8, DType::Q4] {
        let mut g = Graph::new("linear");
        let x = g.input("x", TensorType::f32([2, 3, k]), Rate::Step).unwrap();
        let w = g.constant("weight", weight.cast(dtype));
        let b = g.constant("bias", bias.clone());
        let y = g.apply(MatMul::linear(), &[x, w, b]).unwrap();
        g.output("y", y).unwrap();
        let padded = optimize(&g);
        let matrix = padded.nodes().iter().find(|n| matches!(n.kind, NodeKind::Weight(_)) && n.ty.shape.rank() == 2);
        assert_eq!(matrix.unwrap().ty, TensorType::new(dtype, [352, 272]));
        assert_eq!(run(&g, &given)["y"], run(&padded, &given)["y"], "{dtype}");
    }
}

#[test]
fn gradients_of_colours_are_padded_to_the_tiled_kernels() {
    let same = Conv2dGradient { stride: [1; 2], dilation: [1; 2], padding: [1; 4], groups: 1, rest: [0; 2] };
    for (outputs, channels, padded_to) in [(3, 8, [3, 3, 8, 4]), (12, 3, [3, 3, 4, 12])] {
        let mut g = Graph::new("gradient");
        let up = g.input("up", TensorType::f32([1, 20, 19, outputs]), Rate::Step).unwrap();
        let w = g.constant("weight", wave([3, 3, channels, outputs], 0.31));
        let dx = g.apply(same.clone(), &[up, w]).unwrap();
        g.output("dx", dx).unwrap();
        let padded = optimize(&g);
        let weight = padded.nodes().iter().find(|n| matches!(n.kind, NodeKind::Weight(_))).unwrap();
        assert_eq!(weight.ty, TensorType::f32(padded_to));
        let given = inputs([("up", wave([1, 20, 19, outputs], 0.7))]);
        assert_eq!(run(&g, &given)["dx"], run(&padded, &given)["dx"]);
    }
}

#[test]
fn what_flows_through_both_operands_is_not_padded() {
    let mut g = Graph::new("scores");
    let [a, b] = [("a", [3, 331]), ("b", [331, 270])]
        .map(|(name, shape)| g.input(name, TensorType::f32(shape), Rate::Step).unwrap());
    let y = g.apply(MatMul::default(), &[a, b]).unwrap();
    g.output("y", y).unwrap();
    assert_eq!(optimize(&g).nodes().len(), 3);
}

#[test]
fn attention_of_wide_heads_goes_some_queries_at_a_time() {
    let channels = 192;
    let mut g = Graph::new("attention");
    let [q, k, v] = [("q", 11), ("k", 7), ("v", 7)]
        .map(|(name, rows)| g.input(name, TensorType::f32([2, rows, channels]), Rate::Step).unwrap());
    let y = g.apply(Attention::new(1), &[q, k, v]).unwrap();
    g.output("y", y).unwrap();
    let given = inputs([
        ("q", wave([2, 11, channels], 1.3)),
        ("k", wave([2, 7, channels], 0.7)),
        ("v", wave([2, 7, channels], 2.1)),
    ]);
    // All queries, five at a time, one at a time.
    for (limit, products) in [(usize::MAX, 2), (2 * 2 * 5 * 7 * 4, 6), (1, 22)] {
        let rows = fit_bindings(&g, limit).unwrap();
        let is_product =
            |n: &&pulid_graph::Node| matches!(&n.kind, NodeKind::Apply { operator, .. } if operator.name() == "matmul");
        assert_eq!(rows.nodes().iter().filter(is_product).count(), products, "limit {limit}");
        let off = difference(&run(&g, &given), &run(&rows, &given), "y");
        assert!(off < 1e-6, "limit {limit}: off by {off}");
    }
}

/// Two images, a convolution with a residual after it, a norm, upsampling and a convolution of every other row.
fn images() -> Graph {
    let mut g = Graph::new("images");
    let x = g.input("x", TensorType::f32([2, 11, 6, 8]), Rate::Step).unwrap();
    let filters = |g: &mut Graph, name: &str, rate| {
        let weight = g.constant(format!("{name}.weight"), wave([3, 3, 8, 8], rate));
        (weight, g.constant(format!("{name}.bias"), wave([8], rate)))
    };
    let (w, b) = filters(&mut g, "conv1", 0.37);
    let h = g.apply(Conv2d::same(1), &[x, w, b]).unwrap();
    let h = g.apply(Binary::add(), &[x, h]).unwrap();
    let (gain, bias) = (g.constant("gain", wave([8], 0.9)), g.constant("shift", wave([8], 0.2)));
    let h = g.apply(GroupNorm::new(4, 1e-5), &[h, gain, bias]).unwrap();
    let h = g.apply(UpsampleNearest { factor: 2 }, &[h]).unwrap();
    let (w, b) = filters(&mut g, "conv2", 0.11);
    let y = g.apply(Conv2d { stride: [2, 1], ..Conv2d::same(1) }, &[h, w, b]).unwrap();
    g.output("y", y).unwrap();
    g
}

#[test]
fn bands_of_a_batch_have_no_seam() {
    let g = images();
    let given = inputs([("x", wave([2, 11, 6, 8], 0.61))]);
    let whole = run(&g, &given);
    // The input and output, which must be whole, take 4,224 and 8,448 bytes; the upsampled images 16,896.
    let limit = 8_448;
    let banded = fit_bindings(&g, limit).unwrap();
    let largest = banded.nodes().iter().map(|n| n.ty.bytes()).max().unwrap();
    assert!(largest <= limit, "{largest}");
    let off = difference(&whole, &run(&banded, &given), "y");
    assert!(off < 1e-5, "off by {off}");
    // A residual is added where its convolution was computed, so that they can become one.
    let fused = |graph: &Graph| {
        let takes_residual = |n: &&pulid_graph::Node| matches!(&n.kind, NodeKind::Apply { operator, .. } if operator.attributes().contains("residual=true"));
        optimize(graph).nodes().iter().filter(takes_residual).count()
    };
    assert_eq!(fused(&g), 1);
    let narrow = fit_bindings(&g, 2_000).unwrap();
    assert!(fused(&narrow) > 2, "{}", fused(&narrow));
    assert!(difference(&whole, &run(&narrow, &given), "y") < 1e-5);
}

#[test]
fn what_fits_stays_as_it_is() {
    let g = images();
    assert_eq!(fit_bindings(&g, 1 << 20).unwrap().fingerprint(), g.fingerprint());
}

#[test]
fn convolutions_add_what_is_the_same_for_all_pixels_of_an_image() {
    let mut g = Graph::new("time");
    let x = g.input("x", TensorType::f32([2, 5, 6, 8]), Rate::Step).unwrap();
    let time = g.input("time", TensorType::f32([2, 1, 1, 12]), Rate::Step).unwrap();
    // One for all images is no operand of a convolution.
    let shared = g.input("shared", TensorType::f32([1, 1, 1, 12]), Rate::Step).unwrap();
    let (w, b) = (g.constant("weight", wave([3, 3, 8, 12], 0.31)), g.constant("bias", wave([12], 0.7)));
    let h = g.apply(Conv2d::same(1), &[x, w, b]).unwrap();
    for (name, other) in [("y", [h, time]), ("z", [time, h]), ("s", [h, shared])] {
        // A convolution of its own for each.
        let own = g.apply(Conv2d::same(1), &[x, w, b]).unwrap();
        let y = g.apply(Binary::add(), &other.map(|id| if id == h { own } else { id })).unwrap();
        g.output(name, y).unwrap();
    }
    let fused = optimize(&g);
    let operators = |name: &str| {
        let is =
            |n: &&pulid_graph::Node| matches!(&n.kind, NodeKind::Apply { operator, .. } if operator.name() == name);
        fused.nodes().iter().filter(is).count()
    };
    assert_eq!((operators("conv2d"), operators("binary")), (3, 1));
    let given = inputs([
        ("x", wave([2, 5, 6, 8], 0.7)),
        ("time", wave([2, 1, 1, 12], 1.3)),
        ("shared", wave([1, 1, 1, 12], 1.1)),
    ]);
    let (before, after) = (run(&g, &given), run(&fused, &given));
    for name in ["y", "z", "s"] {
        // Sums of 72 products in f64, of some units, rounded to f32 once instead of twice.
        assert!(difference(&before, &after, name) < 2e-6);
    }
}
