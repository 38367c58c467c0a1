//! ONNX files as graphs: the operators that face detectors and recognisers are exported with.
//!
//! The graph is built for concrete extents, so everything a file computes from shapes is known while importing and folds
//! away. Pictures run channels last from their first convolution on; values are turned back where a file counts on
//! channels coming second (reshaping, outputs).

mod builder;
mod call;
mod linear;
mod movement;
mod picture;
mod pointwise;
mod value;

use crate::Precision;
use builder::Builder;
use pulid_checkpoint::Source;
use pulid_checkpoint::onnx::{Dim, Model};
use pulid_graph::Graph;
use pulid_tensor::{Error, Result};
use std::collections::BTreeMap;

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
    #[cfg(not(target_arch = "wasm32"))]
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

    /// The graph for inputs of the given extents.
    ///
    /// Inputs and outputs are f32, carry the file's names and have the file's axes (pictures [N, C, H, W]).
    ///
    /// # Errors
    /// When an input is missing, unknown or not of the extents the file fixes; when the file uses an operator, attribute
    /// or type that is not understood, which the message names.
    pub fn build(&self, shapes: &BTreeMap<String, Vec<usize>>, precision: Precision) -> Result<Graph> {
        let names = self.input_names();
        if let Some(name) = shapes.keys().find(|name| !names.contains(&name.as_str())) {
            let detail = format!("{} has no such input; it takes {}", self.model.name, names.join(", "));
            return Err(Error::invalid(format!("input `{name}`"), detail));
        }
        let mut builder = Builder::new(&self.model, precision)?;
        for info in &self.model.graph.inputs {
            let fail = |detail: String| Err(Error::invalid(format!("input `{}`", info.name), detail));
            let Some(shape) = shapes.get(&info.name) else {
                return fail(format!("is missing; {} takes {}", self.model.name, names.join(", ")));
            };
            if info.element.is_some_and(|e| !e.is_float()) {
                return fail(format!("{} wants integers here; only networks of floats are run", self.model.name));
            }
            let fits = info.dims.as_ref().is_none_or(|dims| {
                dims.len() == shape.len()
                    && dims.iter().zip(shape).all(|(dim, n)| !matches!(dim, Dim::Fixed(fixed) if fixed != n))
            });
            if !fits || shape.contains(&0) {
                let wanted: Vec<_> = info.dims.iter().flatten().map(describe).collect();
                return fail(format!("{} takes [{}], got {shape:?}", self.model.name, wanted.join(", ")));
            }
            builder.input(&info.name, shape)?;
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
