//! The graph under construction: values by name, and images in either order of axes.

use super::call::Call;
use super::dispatch::dispatch;
use super::value::{Constant, MAX_FOLDED_TOGETHER, Traced, Value};
use crate::Precision;
use crate::layers::cast;
use pulid_checkpoint::onnx::{Model, Node};
use pulid_graph::{Graph, NodeId, Rate, Weight, WeightKey};
use pulid_ops::Permute;
use pulid_tensor::{DType, Error, HostTensor, Result, Shape, TensorType};
use std::collections::{HashMap, HashSet};

pub(super) struct Builder<'a> {
    pub graph: Graph,
    pub precision: Precision,
    /// What the weights are made of: the file, and what it was built for.
    source: String,
    /// Weights so far: the same file built for the same inputs has the same ones in the same order.
    weights: usize,
    model: &'a Model,
    values: HashMap<&'a str, Value>,
    /// Inputs whose values the caller has given already: what the graph may count on where a constant is needed.
    given: HashMap<NodeId, Constant>,
    /// Which nodes read a value; a graph's output counts as the node behind the last.
    readers: HashMap<&'a str, Vec<usize>>,
    /// Nodes that an earlier one has taken in.
    done: HashSet<usize>,
    /// Each image's node in the other order of axes, if there is one already.
    permuted: HashMap<NodeId, NodeId>,
}

impl<'a> Builder<'a> {
    pub fn new(model: &'a Model, precision: Precision, source: String) -> Result<Self> {
        let mut values = HashMap::new();
        for (name, tensor) in &model.graph.initializers {
            values.insert(name.as_str(), Value::Constant(Constant::from_tensor(tensor)?));
        }
        let mut readers: HashMap<_, Vec<_>> = HashMap::new();
        for (index, node) in model.graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|name| readers.entry(name.as_str()).or_default().push(index));
        }
        for output in &model.graph.outputs {
            readers.entry(output.name.as_str()).or_default().push(model.graph.nodes.len());
        }
        let (given, done, permuted) = (HashMap::new(), HashSet::new(), HashMap::new());
        Ok(Builder {
            graph: Graph::new("onnx"),
            precision,
            source,
            weights: 0,
            model,
            values,
            given,
            readers,
            done,
            permuted,
        })
    }

    /// An input of the file that is known already and none of the graph: integers.
    pub fn constant_input(&mut self, name: &'a str, value: Constant) {
        self.values.insert(name, Value::Constant(value));
    }

    /// Declares an input of the file, with its values where they are known already.
    pub fn input(&mut self, name: &'a str, dims: &[usize], known: Option<&HostTensor>) -> Result<()> {
        let x = self.graph.input(name, TensorType::f32(dims), Rate::Step)?;
        let dtype = self.precision.activations;
        let id = self.graph.scoped(name, |g| cast(g, x, dtype))?;
        self.values.insert(name, Value::Node(Traced { id, dims: dims.to_vec(), channels_last: false }));
        if let Some(known) = known {
            self.given.insert(id, Constant::floats_of(dims.to_vec(), known.to_f32_vec()));
        }
        Ok(())
    }

    /// Adds every node and names the outputs.
    pub fn finish(mut self) -> Result<Graph> {
        let model = self.model;
        let mut folded = 0;
        for (index, node) in model.graph.nodes.iter().enumerate() {
            if self.done.contains(&index) {
                continue;
            }
            let call = self.call(node);
            // A scope lasts for one closure over the graph, but an importer needs the whole builder: the graph moves in.
            let mut graph = std::mem::replace(&mut self.graph, Graph::new(""));
            let values = graph.scoped(node.label(), |g| {
                std::mem::swap(g, &mut self.graph);
                let values = dispatch(&mut self, &call);
                std::mem::swap(g, &mut self.graph);
                values
            });
            self.graph = graph;
            let values = values?;
            folded += self.growth(node, &values);
            if folded > MAX_FOLDED_TOGETHER {
                return Err(
                    call.error(format!("with it, constants of {folded} elements were computed; that is too many"))
                );
            }
            let further = node.outputs.iter().skip(values.len());
            if let Some(name) = further.into_iter().find(|name| self.readers.contains_key(name.as_str())) {
                return Err(call.error(format!("its further output `{name}` is not supported")));
            }
            let named = node.outputs.iter().zip(values).filter(|(name, _)| !name.is_empty());
            named.for_each(|(name, value)| drop(self.values.insert(name, value)));
        }
        for output in &model.graph.outputs {
            let unknown = || Error::invalid(&model.name, format!("nothing gives the output `{}`", output.name));
            let id = match self.values.get(output.name.as_str()).ok_or_else(unknown)?.clone() {
                Value::Node(x) => self.channels_first(&x)?,
                Value::Constant(c) if c.count() == 0 => {
                    let detail = format!("the output `{}` {:?} has no elements", output.name, c.dims);
                    return Err(Error::invalid(&model.name, detail));
                }
                Value::Constant(c) => self.graph.constant(&output.name, c.host()?.cast(DType::F32)),
            };
            let id = self.graph.scoped(&output.name, |g| cast(g, id, DType::F32))?;
            self.graph.output(&output.name, id)?;
        }
        Ok(self.graph)
    }

    /// By how many elements a node's constants exceed those it was made of.
    fn growth(&self, node: &Node, values: &[Value]) -> usize {
        let elements = |value: &Value| match value {
            Value::Constant(c) => c.count(),
            Value::Node(_) => 0,
        };
        if node.op_type == "Constant" {
            return 0;
        }
        let before: usize = node.inputs.iter().filter_map(|name| self.values.get(name.as_str())).map(elements).sum();
        values.iter().map(elements).sum::<usize>().saturating_sub(before)
    }

    fn call(&self, node: &'a Node) -> Call<'a> {
        Call { node, opset: self.model.opset, file: &self.model.name }
    }

    /// Whether anybody reads a result of a node.
    pub fn reads(&self, call: &Call, output: usize) -> bool {
        call.node.outputs.get(output).is_some_and(|name| !name.is_empty() && self.readers.contains_key(name.as_str()))
    }

    /// The node that alone reads this one's result, if it is of that operator; mark it with [`Builder::take_in`].
    pub fn only_reader(&self, call: &Call<'a>, op_type: &str) -> Option<(usize, Call<'a>)> {
        let name = call.node.outputs.first()?;
        let [index] = self.readers.get(name.as_str())?[..] else { return None };
        let node = self.model.graph.nodes.get(index)?;
        let fits = node.op_type == op_type && node.domain.is_empty() && node.inputs.first() == Some(name);
        fits.then(|| (index, self.call(node)))
    }

    /// Gives a later node's value now.
    pub fn take_in(&mut self, index: usize, value: Value) {
        if let Some(name) = self.model.graph.nodes[index].outputs.first() {
            self.values.insert(name, value);
            self.done.insert(index);
        }
    }

    /// An operand that may be left out.
    pub fn optional(&self, call: &Call, index: usize) -> Result<Option<Value>> {
        let Some(name) = call.input(index) else { return Ok(None) };
        let unknown = || call.error(format!("reads `{name}`, which nothing before it gives"));
        self.values.get(name).cloned().map(Some).ok_or_else(unknown)
    }

    pub fn value(&self, call: &Call, index: usize) -> Result<Value> {
        self.optional(call, index)?.ok_or_else(|| call.error(format!("operand {index} is missing")))
    }

    /// An operand that must be known while importing and may be left out.
    pub fn constant(&self, call: &Call, index: usize) -> Result<Option<Constant>> {
        match self.optional(call, index)? {
            None => Ok(None),
            Some(Value::Constant(constant)) => Ok(Some(constant)),
            // Only the input itself: a reshaped one is another node.
            Some(Value::Node(x)) => match self.given.get(&x.id) {
                Some(known) => Ok(Some(known.clone())),
                None => Err(call.error(format!("operand {index} must be a constant"))),
            },
        }
    }

    /// [`Builder::constant`] that may not be left out.
    pub fn needed_constant(&self, call: &Call, index: usize) -> Result<Constant> {
        self.constant(call, index)?.ok_or_else(|| call.error(format!("operand {index} is missing")))
    }

    /// An operand in the graph.
    pub fn traced(&mut self, call: &Call, index: usize) -> Result<Traced> {
        let value = self.value(call, index)?;
        self.materialize(call, value)
    }

    /// A value in the graph; constants get the type of the values between operators.
    pub fn materialize(&mut self, call: &Call, value: Value) -> Result<Traced> {
        match value {
            Value::Node(x) => Ok(x),
            Value::Constant(c) if c.is_integer() => {
                Err(call.error("integers are understood only where shapes are computed"))
            }
            Value::Constant(c) if c.count() == 0 => {
                Err(call.error(format!("reads {:?}, which has no elements", c.dims)))
            }
            Value::Constant(c) => {
                let dtype = self.precision.activations;
                let id = self.weight(call, dtype, c.dims.clone(), {
                    let c = c.clone();
                    move || c.host()
                });
                Ok(Traced { id, dims: c.dims, channels_last: false })
            }
        }
    }

    /// A weight of the graph that is read when the graph is loaded.
    pub fn weight(
        &mut self,
        call: &Call,
        dtype: DType,
        shape: impl Into<Shape>,
        load: impl Fn() -> Result<HostTensor> + Send + Sync + 'static,
    ) -> NodeId {
        let key = WeightKey::new(self.source.as_str(), format!("weight {}", self.weights));
        self.weights += 1;
        let weight =
            Weight::new(call.node.label(), key, move || Ok(load()?.cast(dtype))).in_file(self.model.name.as_str());
        self.graph.weight(weight, TensorType::new(dtype, shape))
    }

    /// The type of a large weight.
    pub fn weight_dtype(&self, constant: &Constant) -> DType {
        self.precision.weight(constant.stored_dtype())
    }

    /// Truth values in the graph: 1 and 0.
    pub fn truth(&mut self, call: &Call, value: Value) -> Result<Traced> {
        match value {
            Value::Constant(c) if c.is_integer() => {
                let values = c.ints(call)?.iter().map(|&v| f32::from(v != 0)).collect();
                self.materialize(call, Value::Constant(Constant::floats_of(c.dims, values)))
            }
            value => self.materialize(call, value),
        }
    }

    /// An operand as one f32 vector.
    pub fn vector(&mut self, call: &Call, index: usize, length: usize) -> Result<NodeId> {
        let value = self.value(call, index)?;
        if value.dims().iter().product::<usize>() != length {
            return Err(call.error(format!("operand {index} {:?} has not {length} elements", value.dims())));
        }
        match value {
            Value::Node(x) => {
                let id = self.channels_first(&x)?;
                let id = self.graph.reshape(id, [length])?;
                cast(&mut self.graph, id, DType::F32)
            }
            Value::Constant(c) => Ok(self.weight(call, DType::F32, [length], move || c.host()?.reshape([length]))),
        }
    }

    /// An image's node as [N, H, W, C].
    pub fn channels_last(&mut self, call: &Call, x: &Traced) -> Result<NodeId> {
        match x.dims[..] {
            _ if x.channels_last => Ok(x.id),
            [_, _, _, _] => self.permuted(x.id, &[0, 2, 3, 1]),
            _ => Err(call.error(format!("takes images [N, C, H, W], got {:?}", x.dims))),
        }
    }

    /// A value's node with the file's order of axes.
    pub fn channels_first(&mut self, x: &Traced) -> Result<NodeId> {
        if x.channels_last { self.permuted(x.id, &[0, 3, 1, 2]) } else { Ok(x.id) }
    }

    fn permuted(&mut self, id: NodeId, order: &[usize]) -> Result<NodeId> {
        if let Some(&permuted) = self.permuted.get(&id) {
            return Ok(permuted);
        }
        let permuted = self.permute(id, order)?;
        self.permuted.insert(id, permuted);
        self.permuted.insert(permuted, id);
        Ok(permuted)
    }

    /// The axes in another order; free where only axes of one element move.
    pub fn permute(&mut self, id: NodeId, order: &[usize]) -> Result<NodeId> {
        let shape = self.graph.shape(id);
        let long: Vec<usize> = order.iter().copied().filter(|&axis| shape[axis] != 1).collect();
        let dims: Vec<usize> = order.iter().map(|&axis| shape[axis]).collect();
        match long.is_sorted() {
            true if shape.extents() == dims => Ok(id),
            true => self.graph.reshape(id, dims),
            false => self.graph.apply(Permute::new(order), &[id]),
        }
    }

    /// A node with the file's order of axes as a value.
    pub fn plain(&self, id: NodeId) -> Value {
        Value::Node(Traced { id, dims: self.graph.shape(id).to_vec(), channels_last: false })
    }

    /// A node [N, H, W, C] as a value.
    pub fn nhwc(&self, id: NodeId) -> Value {
        let s = self.graph.shape(id);
        Value::Node(Traced { id, dims: vec![s[0], s[3], s[1], s[2]], channels_last: true })
    }

    /// A value [N, C, L] or [N, C, H, W] as an image [N, H, W, C]; rows of elements become images of height 1.
    pub fn as_nhwc(&mut self, call: &Call, x: &Traced) -> Result<NodeId> {
        match x.dims[..] {
            [n, c, length] => {
                let dims = vec![n, c, 1, length];
                let id = self.graph.reshape(x.id, dims.clone())?;
                self.channels_last(call, &Traced { id, dims, channels_last: false })
            }
            _ => self.channels_last(call, x),
        }
    }

    /// An image as a value with as many axes as [`Builder::as_nhwc`] was given.
    pub fn with_rank(&mut self, id: NodeId, rank: usize) -> Result<Value> {
        if rank != 3 {
            return Ok(self.nhwc(id));
        }
        let s = self.graph.shape(id).to_vec();
        let id = self.permuted(id, &[0, 3, 1, 2])?;
        let id = self.graph.reshape(id, [s[0], s[3], s[2]])?;
        Ok(self.plain(id))
    }

    /// A node in the order of axes of another value.
    pub fn like(&self, x: &Traced, id: NodeId) -> Value {
        if x.channels_last { self.nhwc(id) } else { self.plain(id) }
    }
}
