//! ONNX files as graphs: the operators that convolutional classifiers and face networks are exported with.
//!
//! The graph is built for concrete extents, so everything a file computes from shapes is known while importing and folds
//! away. Images run channels last from their first convolution on; values are transposed back where a file counts on
//! channels coming second (reshaping, outputs).

mod builder;
mod call;
mod convolution;
mod dispatch;
mod fold;
mod linear;
mod movement;
mod norm;
mod pointwise;
mod pool;
mod reduce;
mod reorder;
mod resize;
mod value;
mod window;

use crate::family::require_onnx;
use crate::{OnnxFamily, Precision};
use builder::Builder;
use pulid_checkpoint::onnx::{Dim, Model};
use pulid_checkpoint::{Source, unique_identity};
use pulid_graph::Graph;
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::BTreeMap;
use value::{Constant, Elements};

/// What is known of an input when a graph is built.
#[derive(Clone, Debug)]
pub enum OnnxInput {
    /// Extents of a float input.
    Extents(Vec<usize>),
    /// A float input itself: where a file wants a constant (factors, bounds, filters) and names an input, this is it.
    Floats(HostTensor),
    /// Extents and elements of an integer or boolean input. What a file computes with integers decides the graph's form.
    Integers(Vec<usize>, Vec<i64>),
}

impl OnnxInput {
    fn dims(&self) -> &[usize] {
        match self {
            OnnxInput::Extents(dims) | OnnxInput::Integers(dims, _) => dims,
            OnnxInput::Floats(tensor) => tensor.shape(),
        }
    }
}

/// A network in an ONNX file.
#[derive(Clone, Debug)]
pub struct OnnxNetwork {
    model: Model,
}

impl OnnxNetwork {
    /// A model that has been read already.
    pub fn new(model: Model) -> Self {
        OnnxNetwork { model }
    }

    /// Opens a `.onnx` file.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Ok(OnnxNetwork { model: Model::open(path)? })
    }

    /// Reads an ONNX model.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn from_source(source: &dyn Source) -> Result<Self> {
        Ok(OnnxNetwork { model: Model::read(source)? })
    }

    /// Refuses a graph that is known to be another face network than the one it is named as. What is not known passes.
    ///
    /// # Errors
    /// Says which of them it is, and where such a file belongs.
    pub fn require(&self, wanted: OnnxFamily) -> Result<()> {
        require_onnx(&self.model, wanted)
    }

    /// Every operator of the standard that is understood, in alphabetical order.
    pub fn operators() -> &'static [&'static str] {
        dispatch::OPERATORS
    }

    /// Names of the inputs, in the file's order.
    pub fn input_names(&self) -> Vec<&str> {
        self.model.graph.inputs.iter().map(|v| v.name.as_str()).collect()
    }

    /// Names of the outputs, in the file's order.
    pub fn output_names(&self) -> Vec<&str> {
        self.model.graph.outputs.iter().map(|v| v.name.as_str()).collect()
    }

    /// Extents of an input where the file fixes them, `None` for each that differs from call to call; `None` altogether
    /// when there is no such input or its rank is not told.
    pub fn input_extents(&self, name: &str) -> Option<Vec<Option<usize>>> {
        let dims = self.model.graph.inputs.iter().find(|v| v.name == name)?.dims.as_ref()?;
        Some(dims.iter().map(|dim| if let Dim::Fixed(n) = dim { Some(*n) } else { None }).collect())
    }

    /// The graph for float inputs of the given extents; see [`OnnxNetwork::build_for`].
    ///
    /// # Errors
    /// As [`OnnxNetwork::build_for`].
    pub fn build(&self, shapes: &BTreeMap<String, Vec<usize>>, precision: Precision) -> Result<Graph> {
        let inputs = shapes.iter().map(|(name, dims)| (name.clone(), OnnxInput::Extents(dims.clone()))).collect();
        self.build_for(&inputs, precision)
    }

    /// The graph for the given inputs.
    ///
    /// Inputs and outputs are f32, carry the file's names and have the file's axes (images [N, C, H, W]). Integer inputs
    /// and scalars are no inputs of the graph, which is built for their values. So it is for the values of float
    /// inputs that are given and that the file uses where only a constant will do; those stay inputs of the graph.
    ///
    /// # Errors
    /// When an input is missing, unknown or not of the extents the file fixes; when the file uses an operator, attribute
    /// or type that is not understood, which the message names.
    pub fn build_for(&self, inputs: &BTreeMap<String, OnnxInput>, precision: Precision) -> Result<Graph> {
        let names = self.input_names();
        if let Some(name) = inputs.keys().find(|name| !names.contains(&name.as_str())) {
            let detail = format!("{} has no such input; it takes {}", self.model.name, names.join(", "));
            return Err(Error::invalid(format!("input `{name}`"), detail));
        }
        // What is folded into weights depends on the inputs; their values are not compared.
        let extents = |(name, input): (&String, &OnnxInput)| match input {
            OnnxInput::Extents(dims) => Some(format!("{name} {dims:?}")),
            _ => None,
        };
        let source = match inputs.iter().map(extents).collect::<Option<Vec<_>>>() {
            Some(extents) => format!("{} {precision:?} {}", self.model.identity, extents.join(", ")),
            None => unique_identity(self.model.name.as_ref()),
        };
        let mut builder = Builder::new(&self.model, precision, source)?;
        for info in &self.model.graph.inputs {
            let fail = |detail: String| Err(Error::invalid(format!("input `{}`", info.name), detail));
            let Some(input) = inputs.get(&info.name) else {
                return fail(format!("is missing; {} takes {}", self.model.name, names.join(", ")));
            };
            let shape = input.dims();
            let fits = info.dims.as_ref().is_none_or(|dims| {
                dims.len() == shape.len()
                    && dims.iter().zip(shape).all(|(dim, n)| !matches!(dim, Dim::Fixed(fixed) if fixed != n))
            });
            let integers = info.element.is_some_and(|e| !e.is_float());
            if !fits || !integers && shape.contains(&0) && !matches!(input, OnnxInput::Floats(_)) {
                let wanted: Vec<_> = info.dims.iter().flatten().map(describe).collect();
                return fail(format!("{} takes [{}], got {shape:?}", self.model.name, wanted.join(", ")));
            }
            match input {
                OnnxInput::Integers(dims, values) if integers || info.element.is_none() => {
                    if dims.iter().product::<usize>() != values.len() {
                        return fail(format!("has {} elements, not those of {dims:?}", values.len()));
                    }
                    let elements = Elements::Ints(values.clone());
                    builder.constant_input(&info.name, Constant { dims: dims.clone(), elements });
                }
                // Whole numbers where floats are wanted are floats.
                OnnxInput::Integers(dims, _) => builder.input(&info.name, dims, None)?,
                _ if integers => {
                    let detail =
                        "wants integers here, whose values the graph is built for; give them with their values";
                    return fail(format!("{} {detail}", self.model.name));
                }
                OnnxInput::Extents(dims) => builder.input(&info.name, dims, None)?,
                // Scalars decide the form of graphs as integers do, and of no elements there is nothing to compute.
                OnnxInput::Floats(t) if t.shape().rank() == 0 || t.shape().count() == 0 => {
                    builder.constant_input(&info.name, Constant::floats_of(t.shape().to_vec(), t.to_f32_vec()));
                }
                OnnxInput::Floats(t) => builder.input(&info.name, t.shape(), Some(t))?,
            }
        }
        builder.finish()
    }
}

fn describe(dim: &Dim) -> String {
    match dim {
        Dim::Fixed(n) => n.to_string(),
        Dim::Named(name) => name.clone(),
        Dim::Unknown => "?".to_owned(),
    }
}
