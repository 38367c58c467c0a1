//! From the messages of the file to checked structures.

use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use super::{Attribute, Dim, Graph, Model, Node, Tensor, ValueInfo, tensor_name};
use crate::{ElementType, Source};
use bytes::Bytes;
use prost::Message;
use pulid_tensor::{Error, Result, Shape};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Protocol buffers do not exceed this; larger models keep their weights in other files.
const MAX_FILE: u64 = 2 << 30;

pub(super) fn model(source: &dyn Source) -> Result<Model> {
    let fail = |detail: String| Error::file(source.path(), detail);
    if source.len() > MAX_FILE {
        return Err(fail(format!("has {} bytes; ONNX files end at 2 GiB", source.len())));
    }
    let proto = ModelProto::decode(source.read(0..source.len())?)
        .map_err(|e| fail(format!("is no ONNX model, or is truncated ({e})")))?;
    // Every message is optional in a protocol buffer, so an empty or unrelated file may decode without error.
    let graph = match proto.graph {
        Some(graph) if proto.ir_version > 0 && !graph.node.is_empty() => graph,
        _ => return Err(fail("is no ONNX model: it has no graph".into())),
    };
    let opset = proto
        .opset_import
        .iter()
        .find(|o| o.domain.is_empty() || o.domain == "ai.onnx")
        .map(|o| o.version)
        .ok_or_else(|| fail("does not tell the version of its operators".into()))?;
    let graph = self::graph(graph).map_err(|e| match e {
        Error::Invalid { what, detail } => fail(format!("{what}: {detail}")),
        other => other,
    })?;
    Ok(Model {
        name: source.path().display().to_string(),
        identity: source.identity(),
        producer: proto.producer_name,
        opset,
        graph,
    })
}

fn graph(proto: GraphProto) -> Result<Graph> {
    if !proto.sparse_initializer.is_empty() {
        return Err(Error::invalid("ONNX graph", "keeps weights sparse; export it with dense ones"));
    }
    let mut initializers = BTreeMap::new();
    for t in proto.initializer {
        let tensor = tensor(t)?;
        match initializers.entry(tensor.name.clone()) {
            Entry::Vacant(slot) => drop(slot.insert(tensor)),
            Entry::Occupied(slot) => return Err(Error::invalid(tensor_name(slot.key()), "is there twice")),
        }
    }
    let values = |protos: Vec<ValueInfoProto>| protos.into_iter().map(value_info).collect::<Result<Vec<_>>>();
    let mut inputs = values(proto.input)?;
    inputs.retain(|v| !initializers.contains_key(&v.name));
    Ok(Graph {
        name: proto.name,
        nodes: proto.node.into_iter().map(node).collect::<Result<_>>()?,
        initializers,
        inputs,
        outputs: values(proto.output)?,
    })
}

fn node(proto: NodeProto) -> Result<Node> {
    let mut node = Node {
        name: proto.name,
        op_type: proto.op_type,
        domain: if proto.domain == "ai.onnx" { String::new() } else { proto.domain },
        inputs: proto.input,
        outputs: proto.output,
        attributes: BTreeMap::new(),
    };
    for a in proto.attribute {
        let name = a.name.clone();
        let value = attribute(a).map_err(|e| match e {
            Error::Invalid { what, detail } => {
                Error::invalid(node.label(), format!("attribute `{name}`: {what}: {detail}"))
            }
            other => other,
        })?;
        if node.attributes.insert(name.clone(), value).is_some() {
            return Err(Error::invalid(node.label(), format!("attribute `{name}` is there twice")));
        }
    }
    Ok(node)
}

fn attribute(a: AttributeProto) -> Result<Attribute> {
    let text = |bytes: Bytes| String::from_utf8(bytes.into()).map_err(|_| Error::invalid("text", "is not valid UTF-8"));
    // The numbers of AttributeProto.AttributeType.
    Ok(match a.r#type {
        1 => Attribute::Float(a.f),
        2 => Attribute::Int(a.i),
        3 => Attribute::String(text(a.s)?),
        4 => Attribute::Tensor(tensor(a.t.ok_or_else(|| Error::invalid("tensor", "is missing"))?)?),
        6 => Attribute::Floats(a.floats),
        7 => Attribute::Ints(a.ints),
        8 => Attribute::Strings(a.strings.into_iter().map(text).collect::<Result<_>>()?),
        other => Attribute::Other(other),
    })
}

fn value_info(proto: ValueInfoProto) -> Result<ValueInfo> {
    let tensor = proto.r#type.and_then(|t| t.tensor_type);
    let element = tensor.as_ref().and_then(|t| element_type(t.elem_type));
    let dims = tensor.and_then(|t| t.shape).map(|shape| {
        let dim = |d: super::proto::DimensionProto| match (d.dim_value, d.dim_param) {
            // Some exporters write -1 or 0 for a size that differs from call to call.
            (Some(v), _) if v <= 0 => Ok(Dim::Unknown),
            (Some(v), _) => usize::try_from(v)
                .map(Dim::Fixed)
                .map_err(|_| Error::invalid(format!("value `{}`", proto.name), format!("has an extent of {v}"))),
            (None, Some(name)) if !name.is_empty() => Ok(Dim::Named(name)),
            _ => Ok(Dim::Unknown),
        };
        shape.dim.into_iter().map(dim).collect::<Result<Vec<_>>>()
    });
    Ok(ValueInfo { element, dims: dims.transpose()?, name: proto.name })
}

/// By the numbers of TensorProto.DataType.
fn element_type(number: i32) -> Option<ElementType> {
    Some(match number {
        1 => ElementType::F32,
        2 => ElementType::U8,
        3 => ElementType::I8,
        4 => ElementType::U16,
        5 => ElementType::I16,
        6 => ElementType::I32,
        7 => ElementType::I64,
        9 => ElementType::Bool,
        10 => ElementType::F16,
        11 => ElementType::F64,
        12 => ElementType::U32,
        13 => ElementType::U64,
        16 => ElementType::Bf16,
        _ => return None,
    })
}

fn tensor(proto: TensorProto) -> Result<Tensor> {
    let fail = |detail: String| Error::invalid(tensor_name(&proto.name), detail);
    if proto.data_location != 0 || !proto.external_data.is_empty() {
        let file = proto.external_data.iter().find(|e| e.key == "location").map_or("another file", |e| &e.value);
        return Err(fail(format!("lies in {file}, which is not read; save the model with its weights in one file")));
    }
    let element = element_type(proto.data_type)
        .ok_or_else(|| fail(format!("has elements of type number {}, which is not read", proto.data_type)))?;
    let extents: Vec<usize> = proto
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| fail(format!("has an extent of {d}"))))
        .collect::<Result<_>>()?;
    let bytes = match proto.raw_data {
        Some(raw) => raw,
        None => typed_bytes(&proto, element).into(),
    };
    Tensor::new(proto.name, element, Shape::new(extents), bytes)
}

/// The elements of a tensor without raw data, from the repeated field that the standard assigns to their type.
fn typed_bytes(proto: &TensorProto, element: ElementType) -> Vec<u8> {
    match element {
        ElementType::F32 => proto.float_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::F64 => proto.double_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::I64 => proto.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::U64 => proto.uint64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ElementType::U32 => proto.uint64_data.iter().flat_map(|x| (*x as u32).to_le_bytes()).collect(),
        ElementType::I32 => proto.int32_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        // Narrow types lie one by one in the low bits, half precision by its bits.
        ElementType::F16 | ElementType::Bf16 | ElementType::U16 | ElementType::I16 => {
            proto.int32_data.iter().flat_map(|x| (*x as u16).to_le_bytes()).collect()
        }
        ElementType::Bool | ElementType::U8 | ElementType::I8 => proto.int32_data.iter().map(|x| *x as u8).collect(),
        // No ONNX type is read as blocks.
        ElementType::F8E4M3 | ElementType::F8E5M2 | ElementType::Ggml(_) | ElementType::Q8 | ElementType::Q4 => {
            Vec::new()
        }
    }
}
