//! ONNX files written by the format's own library, and files that are broken on purpose.

use proptest::prelude::*;
use pulid_checkpoint::onnx::{Attribute, Dim, Model};
use pulid_checkpoint::{ElementType, MemorySource};

const TYPES: &[u8] = include_bytes!("data/types.onnx");

fn read(bytes: impl Into<Vec<u8>>) -> Result<Model, String> {
    Model::read(&MemorySource::new("m.onnx", bytes.into())).map_err(|e| e.to_string())
}

#[test]
fn every_element_type_is_read_from_both_encodings() {
    let graph = read(TYPES).unwrap().graph;
    for encoding in ["typed", "raw"] {
        for name in ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"] {
            let tensor = graph.initializers[&format!("{name}_{encoding}")].to_host().unwrap();
            assert_eq!(tensor.to_f32_vec(), [-1.0, 0.5, 2.0], "{name} {encoding}");
        }
        for name in ["INT8", "INT16", "INT32", "INT64"] {
            let tensor = &graph.initializers[&format!("{name}_{encoding}")];
            assert_eq!(tensor.to_integers().unwrap(), [-1, 0, 2], "{name} {encoding}");
            assert!(tensor.to_host().is_err(), "{name} {encoding} holds -1, which is no index");
        }
        for name in ["UINT8", "UINT16", "UINT32", "UINT64"] {
            let tensor = &graph.initializers[&format!("{name}_{encoding}")];
            assert_eq!(tensor.to_integers().unwrap(), [0, 1, 2], "{name} {encoding}");
            assert_eq!(tensor.to_host().unwrap().as_u32().unwrap(), [0, 1, 2], "{name} {encoding}");
        }
        let bools = &graph.initializers[&format!("BOOL_{encoding}")];
        assert_eq!(bools.to_integers().unwrap(), [0, 1, 1]);
    }
    assert_eq!(graph.initializers["scalar"].to_host().unwrap().to_f32_vec(), [3.5]);
    assert_eq!(graph.initializers["scalar"].shape.rank(), 0);
    assert_eq!(graph.initializers["matrix"].shape.extents(), [2, 3]);
    assert_eq!(graph.initializers["nothing"].to_host().unwrap().shape().count(), 0);
}

#[test]
fn nodes_values_and_versions_are_read() {
    let model = read(TYPES).unwrap();
    assert_eq!((model.opset, model.producer.as_str(), model.name.as_str()), (11, "generate.py", "m.onnx"));
    let node = &model.graph.nodes[0];
    assert_eq!(node.label(), "Add `every attribute`");
    assert_eq!(
        (node.inputs.join(","), node.outputs.join(","), node.domain.as_str()),
        ("a,,matrix".into(), "b".into(), "")
    );
    let attribute = |name: &str| node.attributes[name].clone();
    assert_eq!(attribute("int"), Attribute::Int(-7));
    assert_eq!(attribute("float"), Attribute::Float(0.25));
    assert_eq!(attribute("string"), Attribute::String("nearest".into()));
    assert_eq!(attribute("ints"), Attribute::Ints(vec![1, -2]));
    assert_eq!(attribute("floats"), Attribute::Floats(vec![0.5, -0.5]));
    assert_eq!(attribute("strings"), Attribute::Strings(vec!["x".into(), "y".into()]));
    let Attribute::Tensor(tensor) = attribute("tensor") else { panic!("not a tensor") };
    assert_eq!(tensor.to_integers().unwrap(), [4, -5]);

    let [input] = model.graph.inputs.as_slice() else { panic!("the initializer is listed as an input") };
    assert_eq!((input.name.as_str(), input.element), ("a", Some(ElementType::F32)));
    assert_eq!(input.dims, Some(vec![Dim::Named("batch".into()), Dim::Fixed(3), Dim::Unknown]));
    let [output] = model.graph.outputs.as_slice() else { panic!("one output") };
    assert_eq!((output.name.as_str(), output.element, &output.dims), ("b", None, &None));
}

#[test]
fn raw_weights_are_not_copied() {
    let source = MemorySource::new("m.onnx", TYPES);
    let model = Model::read(&source).unwrap();
    let file = TYPES.as_ptr_range();
    assert!(file.contains(&model.graph.initializers["FLOAT_raw"].bytes().as_ptr()));
}

/// Field `tag` of a message, by its content.
fn field(tag: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = varint(tag << 3 | 2);
    bytes.extend(varint(content.len() as u64));
    bytes.extend(content);
    bytes
}

/// Field `tag` of a message, by its number.
fn number(tag: u64, value: i64) -> Vec<u8> {
    [varint(tag << 3), varint(value as u64)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A model of one node and these further fields of its graph.
fn model(graph_fields: &[u8]) -> Vec<u8> {
    let node = field(1, &[field(2, b"y"), field(4, b"Relu")].concat());
    let opset = field(8, &number(2, 13));
    [number(1, 8), field(7, &[&node, graph_fields].concat()), opset].concat()
}

fn initializer(fields: &[Vec<u8>]) -> Vec<u8> {
    field(5, &[field(8, b"w"), fields.concat()].concat())
}

#[test]
fn other_files_are_no_models() {
    assert!(read(model(&[])).is_ok());
    for (bytes, part) in [
        (&b""[..], "is empty"),
        (b"hello, this is text", "is text"),
        (b"PK\x03\x04", "is no ONNX model"),
        (b"<html></html>", "is a web page"),
        (&[0xff; 64], "is no ONNX model"),
    ] {
        assert!(read(bytes).unwrap_err().contains(part), "{bytes:?}");
    }
    let no_opset = [number(1, 8), field(7, &field(1, &field(4, b"Relu")))].concat();
    assert!(read(no_opset).unwrap_err().contains("version of its operators"));
}

#[test]
fn broken_initializers_are_refused() {
    let dims = |d: &[i64]| d.iter().flat_map(|&d| number(1, d)).collect::<Vec<u8>>();
    let float = number(2, 1);
    let location = [field(1, b"location"), field(2, b"../weights.bin")].concat();
    for (fields, expected) in [
        (vec![dims(&[2]), float.clone(), field(9, &[0; 7])], "takes 8 bytes, not 7"),
        (vec![dims(&[2]), float.clone()], "takes 8 bytes, not 0"),
        (vec![dims(&[-1]), float.clone()], "extent of -1"),
        (vec![dims(&[i64::MAX, i64::MAX]), float.clone()], "larger than memory"),
        (vec![dims(&[1 << 62]), float.clone()], "larger than memory"),
        (vec![dims(&[1 << 40]), float.clone(), field(9, &[0; 4])], "not 4"),
        (vec![dims(&[1]), number(2, 8)], "type number 8"),
        (vec![dims(&[1]), number(2, 99)], "type number 99"),
        (vec![dims(&[1]), float.clone(), number(14, 1), field(13, &location)], "lies in ../weights.bin"),
    ] {
        let message = read(model(&initializer(&fields))).unwrap_err();
        assert!(message.contains(expected) && message.contains("`w`"), "{message}");
    }
    let scalar = initializer(&[float, field(9, &[0; 4])]);
    assert!(read(model(&scalar)).is_ok());
    assert!(read(model(&[scalar.clone(), scalar].concat())).unwrap_err().contains("is there twice"));
    assert!(read(model(&field(15, b""))).unwrap_err().contains("sparse"));
}

#[test]
fn broken_attributes_name_their_node() {
    let with = |attributes: &[Vec<u8>]| {
        let node = [field(3, b"n"), field(4, b"Relu"), attributes.concat()].concat();
        read(model(&field(1, &node)))
    };
    let bad_text = field(5, &[field(1, b"mode"), field(4, &[0xff]), number(20, 3)].concat());
    assert!(with(&[bad_text]).unwrap_err().contains("Relu `n`: attribute `mode`"));
    let no_tensor = field(5, &[field(1, b"value"), number(20, 4)].concat());
    assert!(with(&[no_tensor]).unwrap_err().contains("attribute `value`"));
    let one = field(5, &[field(1, b"axis"), number(3, 1), number(20, 2)].concat());
    assert!(with(&[one.clone(), one]).unwrap_err().contains("is there twice"));
    // A subgraph is not read but not an error either, until an operator looks at it.
    let subgraph = field(5, &[field(1, b"body"), field(6, b""), number(20, 5)].concat());
    assert_eq!(with(&[subgraph]).unwrap().graph.nodes[1].attributes["body"], Attribute::Other(5));
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let mut deep = Vec::new();
    for _ in 0..10_000 {
        // Groups nest without a length; this is a start of group 3.
        deep.push(3 << 3 | 3);
    }
    assert!(read(deep).is_err());
    let mut nested = Vec::new();
    for _ in 0..300 {
        nested = field(7, &field(1, &field(5, &field(6, &nested))));
    }
    let _ = read(model(&nested));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_a_model_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(bytes);
    }

    #[test]
    fn a_truncated_model_never_panics(end in 0..TYPES.len()) {
        let _ = read(&TYPES[..end]);
    }

    #[test]
    fn a_changed_model_never_panics(at in 0..TYPES.len(), to in any::<u8>(), also in 0..TYPES.len(), bit in 0..8) {
        let mut bytes = TYPES.to_vec();
        bytes[at] = to;
        bytes[also] ^= 1u8 << bit;
        if let Ok(model) = read(bytes) {
            for tensor in model.graph.initializers.values() {
                let _ = tensor.to_host();
                let _ = tensor.to_integers();
            }
        }
    }
}
