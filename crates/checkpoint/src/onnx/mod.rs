//! ONNX files: a graph of nodes and its weights.
//!
//! Weights kept as raw bytes, which every common exporter writes, stay slices of the mapped file until they are asked for.

mod proto;
mod read;

use crate::element::{host_tensor, integers};
use crate::{ElementType, Source};
use bytes::Bytes;
use pulid_tensor::{Error, HostTensor, Result, Shape};
use std::collections::BTreeMap;

/// A graph with its weights, and the version of the operators' meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What error messages call the file.
    pub name: String,
    /// What tells the file's bytes from all others: [`Source::identity`](crate::Source::identity).
    pub identity: String,
    /// The program that wrote the file; may be empty.
    pub producer: String,
    /// Version of the standard operators (domain `ai.onnx`).
    pub opset: i64,
    /// The graph.
    pub graph: Graph,
}

/// Nodes in an order in which they can be computed, as the standard demands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// The graph's own name; may be empty.
    pub name: String,
    /// The operations.
    pub nodes: Vec<Node>,
    /// Weights and other constants by value name.
    pub initializers: BTreeMap<String, Tensor>,
    /// Values that the caller gives; initializers that old files repeat here are left out.
    pub inputs: Vec<ValueInfo>,
    /// Values that the caller gets, in the file's order.
    pub outputs: Vec<ValueInfo>,
}

/// One operation. An empty input or output name means that the optional operand is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// The node's name; may be empty.
    pub name: String,
    /// The operator, for example `Conv`.
    pub op_type: String,
    /// The operator's domain; empty for the standard's own operators.
    pub domain: String,
    /// Names of the operands.
    pub inputs: Vec<String>,
    /// Names of the results.
    pub outputs: Vec<String>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// Text.
    String(String),
    /// A tensor.
    Tensor(Tensor),
    /// Numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<String>),
    /// A kind that is not read, such as a graph; its number in the standard.
    Other(i32),
}

/// A constant: its type and its little-endian bytes.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    /// Name of the value; may be empty in attributes.
    pub name: String,
    /// Type of the elements in the file.
    pub element: ElementType,
    /// The extents.
    pub shape: Shape,
    bytes: Bytes,
}

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Name of the value.
    pub name: String,
    /// Type of the elements, where the file tells it and it can be read.
    pub element: Option<ElementType>,
    /// The extents, where the file tells how many there are.
    pub dims: Option<Vec<Dim>>,
}

/// An extent of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this size.
    Fixed(usize),
    /// A size that differs from call to call, by its name; equal names are equal sizes.
    Named(String),
    /// A size of which nothing is told.
    Unknown,
}

impl Model {
    /// Opens a `.onnx` file; its raw weights stay in the file until asked for.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::read(&*crate::files::open(path)?)
    }

    /// Reads an ONNX model.
    ///
    /// # Errors
    /// When the source is no ONNX model or a truncated one; keeps weights in other files, sparse or in a type that cannot
    /// be read; repeats a name; or has a tensor whose size is not its shape's.
    pub fn read(source: &dyn Source) -> Result<Self> {
        crate::stranger::refuse(source)?;
        read::model(source)
    }
}

impl Tensor {
    /// A constant from its little-endian bytes.
    ///
    /// # Errors
    /// When the number of bytes is not the type's.
    pub fn new(
        name: impl Into<String>,
        element: ElementType,
        shape: impl Into<Shape>,
        bytes: impl Into<Bytes>,
    ) -> Result<Self> {
        let (name, shape, bytes) = (name.into(), shape.into(), bytes.into());
        match element.bytes(&shape) {
            Some(n) if n == bytes.len() as u64 => Ok(Tensor { name, element, shape, bytes }),
            Some(n) => Err(Error::invalid(
                tensor_name(&name),
                format!("{element}{shape} takes {n} bytes, not {}", bytes.len()),
            )),
            None => Err(Error::invalid(tensor_name(&name), format!("{element}{shape} is larger than memory"))),
        }
    }

    /// The little-endian bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The elements: f16 stays f16, other floats become f32, integers and booleans u32.
    ///
    /// # Errors
    /// When an integer is negative or needs more than 32 bits.
    pub fn to_host(&self) -> Result<HostTensor> {
        host_tensor(self.element, &self.shape, &self.bytes).map_err(|e| self.explain(e))
    }

    /// The elements of an integer or boolean tensor.
    ///
    /// # Errors
    /// When the elements are floats.
    pub fn to_integers(&self) -> Result<Vec<i64>> {
        integers(self.element, &self.shape, &self.bytes).map_err(|e| self.explain(e))
    }

    fn explain(&self, error: Error) -> Error {
        match error {
            Error::Invalid { detail, .. } => Error::invalid(tensor_name(&self.name), detail),
            other => other,
        }
    }
}

/// Weights are large; their debug text tells only what they are.
impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", tensor_name(&self.name), self.element, self.shape)
    }
}

fn tensor_name(name: &str) -> String {
    if name.is_empty() { "ONNX tensor".into() } else { format!("ONNX tensor `{name}`") }
}

impl Node {
    /// What messages call this node: its operator and its name, or its first output where it has none.
    pub fn label(&self) -> String {
        let name = if self.name.is_empty() { self.outputs.first().unwrap_or(&self.name) } else { &self.name };
        format!("{} `{name}`", self.op_type)
    }
}
