//! What the import of ONNX files does beyond giving the right numbers, which `goldens.rs` checks.

use pulid_checkpoint::ElementType;
use pulid_checkpoint::onnx::{Attribute, Dim, Graph, Model, Node, Tensor, ValueInfo};
use pulid_graph::{NodeKind, optimize};
use pulid_models::Precision;
use pulid_models::onnx::{OnnxInput, OnnxNetwork};
use pulid_tensor::{DType, HostTensor, Result};
use std::collections::BTreeMap;
use std::path::Path;

fn golden(name: &str) -> OnnxNetwork {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/onnx");
    OnnxNetwork::open(folder.join(name).join("model.onnx")).unwrap()
}

fn shapes(given: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
    given.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
}

fn operators(graph: &pulid_graph::Graph) -> Vec<&'static str> {
    let applied = graph.nodes().iter().filter_map(|n| match &n.kind {
        NodeKind::Apply { operator, .. } => Some(operator.name()),
        _ => None,
    });
    applied.collect()
}

fn node(op_type: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> Node {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
    Node {
        name: format!("the_{output}"),
        op_type: op_type.into(),
        inputs: names(inputs),
        outputs: names(&[output]),
        attributes: attributes.iter().map(|(name, value)| (name.to_string(), value.clone())).collect(),
        ..Node::default()
    }
}

/// A model of input `x` [N, 3, 4, 5] and output `y`, with integers `ints` and one float `one`.
fn model(ints: &[i64], nodes: Vec<Node>) -> OnnxNetwork {
    let info = |name: &str, dims| ValueInfo { name: name.into(), element: Some(ElementType::F32), dims };
    let bytes: Vec<u8> = ints.iter().flat_map(|i| i.to_le_bytes()).collect();
    let ints = Tensor::new("ints", ElementType::I64, [ints.len()], bytes).unwrap();
    let one = Tensor::new("one", ElementType::F32, [1], 1f32.to_le_bytes().to_vec()).unwrap();
    let dims = vec![Dim::Named("N".into()), Dim::Fixed(3), Dim::Fixed(4), Dim::Fixed(5)];
    let graph = Graph {
        nodes,
        initializers: [ints, one].into_iter().map(|t| (t.name.clone(), t)).collect(),
        inputs: vec![info("x", Some(dims))],
        outputs: vec![info("y", None)],
        ..Graph::default()
    };
    OnnxNetwork::new(Model {
        name: "test.onnx".into(),
        identity: "test".into(),
        producer: String::new(),
        opset: 13,
        graph,
    })
}

fn build(network: &OnnxNetwork) -> Result<pulid_graph::Graph> {
    network.build(&shapes(&[("x", &[2, 3, 4, 5])]), Precision::F32)
}

#[test]
fn detector_folds_shapes_and_moves_nothing_but_its_input() {
    let graph =
        optimize(&golden("scrfd-like").build(&shapes(&[("input.1", &[1, 3, 96, 64])]), Precision::F32).unwrap());
    let names = operators(&graph);
    // The heads' transposes are free: channels are last already.
    assert_eq!(names.iter().filter(|n| **n == "permute").count(), 1, "{names:?}");
    assert_eq!(names.iter().filter(|n| **n == "upsample_nearest").count(), 2, "{names:?}");
    assert!(!names.iter().any(|n| ["slice", "concat", "cast"].contains(n)), "{names:?}");
}

#[test]
fn recogniser_folds_the_norms_behind_convolutions() {
    let network = golden("iresnet-like");
    assert_eq!(network.input_extents("input.1").unwrap()[1..], [Some(3), Some(32), Some(32)]);
    let graph = optimize(&network.build(&shapes(&[("input.1", &[2, 3, 32, 32])]), Precision::F32).unwrap());
    let names = operators(&graph);
    // Four blocks begin with a norm; one stands before the flattening and one at the end.
    assert_eq!(names.iter().filter(|n| **n == "batch_norm").count(), 6, "{names:?}");
}

#[test]
fn every_golden_builds_in_half_precision() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/onnx");
    let mut built = 0;
    for case in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("model.onnx").exists())
    {
        let network = OnnxNetwork::open(case.join("model.onnx")).unwrap();
        let inputs = pulid_checkpoint::Checkpoint::open(case.join("inputs.safetensors")).unwrap();
        let shapes = inputs.keys().map(|k| (k.to_owned(), inputs.info(k).unwrap().shape.to_vec())).collect();
        let graph = network.build(&shapes, Precision::F16).unwrap_or_else(|e| panic!("{}: {e}", case.display()));
        for (name, id) in graph.outputs() {
            assert_eq!(graph.ty(*id).dtype, DType::F32, "{name}");
        }
        built += 1;
    }
    assert!(built > 10);
}

#[test]
fn what_is_not_supported_is_named() {
    let cases = [
        (node("Einsum", &["x"], "y", &[]), "Einsum `the_y`"),
        (node("Relu", &["x"], "y", &[("slope", Attribute::Float(1.0))]), "`slope`"),
        (node("LeakyRelu", &["x"], "y", &[("alpha", Attribute::Int(1))]), "`alpha`"),
        (node("Relu", &["z"], "y", &[]), "`z`"),
        (node("Relu", &[], "y", &[]), "operand 0"),
        (node("Reshape", &["x", "x"], "y", &[]), "operand 1 must be a constant"),
        (node("Concat", &["x"], "y", &[("axis", Attribute::Int(4))]), "axis 4"),
        (node("Concat", &["x"], "y", &[("axis", Attribute::Int(i64::MIN))]), "axis -9223372036854775808"),
        (node("Transpose", &["x"], "y", &[("perm", Attribute::Ints(vec![0, 0, 1, 2]))]), "`perm`"),
        (node("Cast", &["x"], "y", &[("to", Attribute::Int(7))]), "`to` = 7"),
        (node("Add", &["x", "ints"], "y", &[]), "integer"),
        (node("MaxPool", &["x"], "y", &[("kernel_shape", Attribute::Ints(vec![2, -2]))]), "`kernel_shape`"),
        (node("MaxPool", &["x"], "y", &[]), "zero"),
        (node("Resize", &["x", "", "one"], "y", &[("mode", Attribute::String("cubic".into()))]), "[1.0]"),
        (node("Relu", &["x"], "w", &[]), "output `y`"),
    ];
    for (node, part) in cases {
        let label = node.label();
        let error = build(&model(&[1 << 62, 0, -1], vec![node])).map(|_| ()).expect_err(&label).to_string();
        assert!(error.contains(part) && error.contains("test.onnx"), "{label}: {error}");
    }
}

#[test]
fn broken_shape_computations_are_errors() {
    for ints in [&[-1, -1][..], &[0, 0, 0, 0, 0], &[7, -1], &[i64::MAX, i64::MAX, 4], &[-2], &[]] {
        let network = model(ints, vec![node("Reshape", &["x", "ints"], "y", &[])]);
        assert!(build(&network).is_err(), "{ints:?}");
    }
    let nodes = vec![node("Mul", &["ints", "ints"], "z", &[]), node("Reshape", &["x", "z"], "y", &[])];
    assert!(build(&model(&[i64::MAX], nodes)).unwrap_err().to_string().contains("overflows"));
    let axes = [("axis", Attribute::Int(0))];
    let nodes = vec![node("Gather", &["x", "ints"], "y", &axes)];
    assert!(build(&model(&[2], nodes)).unwrap_err().to_string().contains("outside"));
}

#[test]
fn inputs_are_held_to_the_file() {
    let network = model(&[], vec![node("Relu", &["x"], "y", &[])]);
    let refuse = |given: &[(&str, &[usize])]| {
        network.build(&shapes(given), Precision::F32).map(|_| ()).expect_err("must be refused").to_string()
    };
    assert!(refuse(&[]).contains("`x`"));
    assert!(refuse(&[("x", &[2, 3, 4, 5]), ("mask", &[1])]).contains("`mask`"));
    assert!(refuse(&[("x", &[2, 3, 4, 6])]).contains("[N, 3, 4, 5]"));
    assert!(refuse(&[("x", &[3, 4, 5])]).contains("[N, 3, 4, 5]"));
    assert!(refuse(&[("x", &[0, 3, 4, 5])]).contains("[0, 3, 4, 5]"));
    assert_eq!((network.input_names(), network.output_names()), (vec!["x"], vec!["y"]));
}

#[test]
fn integer_inputs_decide_the_graph() {
    let info = |name: &str, element| ValueInfo { name: name.into(), element: Some(element), dims: None };
    let graph = Graph {
        nodes: vec![node("Reshape", &["x", "target"], "y", &[])],
        inputs: vec![info("x", ElementType::F32), info("target", ElementType::I64)],
        outputs: vec![info("y", ElementType::F32)],
        ..Graph::default()
    };
    let model = Model { name: "test.onnx".into(), identity: "test".into(), producer: String::new(), opset: 13, graph };
    let network = OnnxNetwork::new(model);
    let build = |target: OnnxInput| {
        let x = OnnxInput::Extents(vec![2, 3, 4]);
        network.build_for(&[("x".into(), x), ("target".into(), target)].into(), Precision::F32)
    };
    let graph = build(OnnxInput::Integers(vec![2], vec![-1, 2])).unwrap();
    assert_eq!(graph.ty(graph.outputs()[0].1).shape.to_vec(), [12, 2]);
    assert_eq!(graph.inputs().map(|(name, _)| name).collect::<Vec<_>>(), ["x"]);
    let refusal = |target| build(target).map(|_| ()).expect_err("must be refused").to_string();
    assert!(refusal(OnnxInput::Extents(vec![2])).contains("`target`"));
    assert!(refusal(OnnxInput::Integers(vec![2], vec![-1, 5])).contains("[-1, 5]"));
    assert!(refusal(OnnxInput::Integers(vec![3], vec![-1, 5])).contains("2 elements"));
}

#[test]
fn values_of_float_inputs_stand_where_constants_do() {
    let info = |name: &str| ValueInfo { name: name.into(), element: Some(ElementType::F32), dims: None };
    let graph = Graph {
        nodes: vec![node("Resize", &["x", "", "scales"], "y", &[])],
        inputs: vec![info("x"), info("scales")],
        outputs: vec![info("y")],
        ..Graph::default()
    };
    let network = OnnxNetwork::new(Model {
        name: "test.onnx".into(),
        identity: "test".into(),
        producer: String::new(),
        opset: 13,
        graph,
    });
    let build = |scales: OnnxInput| {
        let x = OnnxInput::Extents(vec![1, 1, 2, 3]);
        network.build_for(&[("x".into(), x), ("scales".into(), scales)].into(), Precision::F32)
    };
    let scales = HostTensor::from_f32([4], vec![1.0, 1.0, 2.0, 3.0]).unwrap();
    let graph = build(OnnxInput::Floats(scales)).unwrap();
    assert_eq!(graph.ty(graph.outputs()[0].1).shape.to_vec(), [1, 1, 4, 9]);
    let refusal = build(OnnxInput::Extents(vec![4])).map(|_| ()).expect_err("must be refused").to_string();
    assert!(refusal.contains("Resize `the_y`") && refusal.contains("operand 2"), "{refusal}");
}

#[test]
fn results_that_are_not_computed_are_named_where_they_are_read() {
    let kernel = ("kernel_shape", Attribute::Ints(vec![2, 2]));
    let pool = |then: &str| {
        let mut pool = node("MaxPool", &["x"], "p", std::slice::from_ref(&kernel));
        pool.outputs.push("positions".into());
        build(&model(&[], vec![pool, node("Relu", &[then], "y", &[])])).map(|_| ())
    };
    // Exporters name results that nobody reads.
    assert!(pool("p").is_ok());
    let error = pool("positions").unwrap_err().to_string();
    assert!(error.contains("MaxPool `the_p`") && error.contains("`positions`"), "{error}");
}
