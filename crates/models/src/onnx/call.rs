//! One node of a file: its attributes, and errors that name it.

use pulid_checkpoint::onnx::{Attribute, Node};
use pulid_tensor::{Error, Result};
use std::fmt::Display;

/// A node with what its meaning depends on.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub node: &'a Node,
    /// Version of the standard operators.
    pub opset: i64,
    /// The file's name.
    pub file: &'a str,
}

impl<'a> Call<'a> {
    pub fn error(&self, detail: impl Into<String>) -> Error {
        Error::invalid(format!("{}: {}", self.file, self.node.label()), detail)
    }

    /// The error about an attribute whose value is not supported.
    pub fn unsupported(&self, attribute: &str, value: impl Display) -> Error {
        self.error(format!("attribute `{attribute}` = {value} is not supported"))
    }

    /// Refuses attributes beyond the given ones: one that is not understood may change the result.
    pub fn known(&self, names: &[&str]) -> Result<()> {
        match self.node.attributes.keys().find(|key| !names.contains(&key.as_str())) {
            Some(key) => Err(self.error(format!("attribute `{key}` is not supported"))),
            None => Ok(()),
        }
    }

    /// Whether anybody may read a result.
    pub fn wants(&self, output: usize) -> bool {
        self.node.outputs.get(output).is_some_and(|name| !name.is_empty())
    }

    /// Name of an operand, if it is given.
    pub fn input(&self, index: usize) -> Option<&'a str> {
        self.node.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    fn mistyped(&self, name: &str) -> Error {
        self.error(format!("attribute `{name}` has the wrong type"))
    }

    pub fn int(&self, name: &str) -> Result<Option<i64>> {
        match self.node.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Int(value)) => Ok(Some(*value)),
            Some(_) => Err(self.mistyped(name)),
        }
    }

    pub fn flag(&self, name: &str) -> Result<bool> {
        Ok(self.int(name)?.unwrap_or(0) != 0)
    }

    pub fn float(&self, name: &str) -> Result<Option<f32>> {
        match self.node.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Float(value)) => Ok(Some(*value)),
            Some(_) => Err(self.mistyped(name)),
        }
    }

    pub fn floats(&self, name: &str) -> Result<Option<&'a [f32]>> {
        match self.node.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Floats(values)) => Ok(Some(values)),
            Some(_) => Err(self.mistyped(name)),
        }
    }

    pub fn ints(&self, name: &str) -> Result<Option<&'a [i64]>> {
        match self.node.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(_) => Err(self.mistyped(name)),
        }
    }

    pub fn text(&self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.node.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::String(value)) => Ok(value),
            Some(_) => Err(self.mistyped(name)),
        }
    }

    /// Non-negative integers, as many as are wanted.
    pub fn sizes(&self, name: &str, count: usize, default: usize) -> Result<Vec<usize>> {
        let Some(values) = self.ints(name)? else { return Ok(vec![default; count]) };
        let sizes: Option<Vec<usize>> = values.iter().map(|&v| u32::try_from(v).ok().map(|v| v as usize)).collect();
        sizes.filter(|s| s.len() == count).ok_or_else(|| self.unsupported(name, format!("{values:?}")))
    }

    /// The position of an axis that may be counted from the back.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let counted = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        match usize::try_from(counted) {
            Ok(axis) if axis < rank => Ok(axis),
            _ => Err(self.error(format!("there is no axis {axis} among {rank}"))),
        }
    }
}
