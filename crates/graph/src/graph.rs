use crate::{Weight, WeightKey};
use pulid_ops::Operator;
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// A value in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// Position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How often an input changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Set once before a run of many steps (text and identity embeddings, size conditioning); what depends on
    /// nothing else is computed once.
    Run,
    /// Changes with every step (latents, timestep).
    Step,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// Given by the caller under a name.
    Input {
        /// Name in the contract.
        name: String,
        /// How often it changes.
        rate: Rate,
    },
    /// Read from a checkpoint.
    Weight(Weight),
    /// The same bytes under another shape; costs nothing.
    Reshape(NodeId),
    /// An operator applied to operands.
    Apply {
        /// The operator.
        operator: Box<dyn Operator>,
        /// Its operands.
        inputs: Vec<NodeId>,
    },
}

/// One node: what it is, its type and where in the network it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Shape and element type of its value.
    pub ty: TensorType,
    /// Place in the network, for example `down_blocks.1.attentions.0.proj_in`.
    pub label: String,
    /// Whether fusion leaves it as it is: where gradients are computed, values must not depend on who else reads them.
    pub unfused: bool,
}

impl Node {
    /// The nodes this one reads.
    pub fn operands(&self) -> &[NodeId] {
        match &self.kind {
            NodeKind::Reshape(from) => std::slice::from_ref(from),
            NodeKind::Apply { inputs, .. } => inputs,
            _ => &[],
        }
    }
}

/// A network as a graph of operators, in topological order by construction.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) name: String,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, NodeId)>,
    /// Names of the outputs that need not outlast the next run of another network.
    pub(crate) transient: Arc<BTreeSet<String>>,
    /// The node of each weight.
    weights: HashMap<(Arc<WeightKey>, TensorType), NodeId>,
    scope: Vec<String>,
}

impl Graph {
    /// An empty graph of a network.
    pub fn new(name: impl Into<String>) -> Self {
        let (nodes, outputs, transient) = (Vec::new(), Vec::new(), Arc::default());
        Graph { name: name.into(), nodes, outputs, transient, weights: HashMap::new(), scope: Vec::new() }
    }

    /// Name of the network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All nodes; operands stand before their users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Named results.
    pub fn outputs(&self) -> &[(String, NodeId)] {
        &self.outputs
    }

    /// Named inputs with their types.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.nodes.iter().filter_map(|n| match &n.kind {
            NodeKind::Input { name, .. } => Some((name.as_str(), &n.ty)),
            _ => None,
        })
    }

    /// The input of this name.
    pub fn input_named(&self, wanted: &str) -> Option<NodeId> {
        let is = |node: &Node| matches!(&node.kind, NodeKind::Input { name, .. } if name == wanted);
        self.nodes.iter().position(is).map(|index| self.id(index))
    }

    /// The node at a position of [`Graph::nodes`].
    ///
    /// # Panics
    /// When there is none.
    pub fn id(&self, index: usize) -> NodeId {
        assert!(index < self.nodes.len(), "{} has no node {index}", self.name);
        NodeId(index as u32)
    }

    /// Type of a value.
    pub fn ty(&self, id: NodeId) -> &TensorType {
        &self.nodes[id.index()].ty
    }

    /// Shape of a value.
    pub fn shape(&self, id: NodeId) -> &Shape {
        &self.ty(id).shape
    }

    /// Labels of nodes added inside `build` start with `part`.
    pub fn scoped<T>(&mut self, part: impl Into<String>, build: impl FnOnce(&mut Graph) -> T) -> T {
        self.enter(part.into());
        let result = build(self);
        self.leave();
        result
    }

    /// Labels of nodes added from here on start with `part`, until [`Graph::leave`].
    pub(crate) fn enter(&mut self, part: String) {
        self.scope.push(part);
    }

    /// Undoes the last [`Graph::enter`].
    pub(crate) fn leave(&mut self) {
        self.scope.pop();
    }

    pub(crate) fn add(&mut self, kind: NodeKind, ty: TensorType, label: String) -> NodeId {
        self.nodes.push(Node { kind, ty, label, unfused: false });
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Declares an input.
    ///
    /// # Errors
    /// When the name is taken or the type too large to address.
    pub fn input(&mut self, name: impl Into<String>, ty: TensorType, rate: Rate) -> Result<NodeId> {
        let name = name.into();
        if self.inputs().any(|(n, _)| n == name) {
            return Err(Error::invalid("graph", format!("{} has two inputs `{name}`", self.name)));
        }
        ty.shape.checked_count()?;
        Ok(self.add(NodeKind::Input { name: name.clone(), rate }, ty, name))
    }

    /// Declares a weight of the given type; one of equal key and type that is there already is the same node.
    pub fn weight(&mut self, weight: Weight, ty: TensorType) -> NodeId {
        let key = (weight.key().clone(), ty.clone());
        if let Some(&known) = self.weights.get(&key) {
            return known;
        }
        let label = weight.name.clone();
        let id = self.add(NodeKind::Weight(weight), ty, label);
        self.weights.insert(key, id);
        id
    }

    /// Adds a constant.
    pub fn constant(&mut self, name: impl Into<String>, tensor: HostTensor) -> NodeId {
        let ty = tensor.tensor_type();
        self.weight(Weight::constant(name, tensor), ty)
    }

    /// Applies an operator.
    ///
    /// # Errors
    /// The operator's own, with the place in the network in front.
    pub fn apply(&mut self, operator: impl Operator + 'static, inputs: &[NodeId]) -> Result<NodeId> {
        self.apply_boxed(Box::new(operator), inputs)
    }

    /// [`Graph::apply`] for an operator behind a box.
    pub fn apply_boxed(&mut self, operator: Box<dyn Operator>, inputs: &[NodeId]) -> Result<NodeId> {
        let types: Vec<_> = inputs.iter().map(|&i| self.ty(i).clone()).collect();
        let label = self.scope.join(".");
        if let Some(i) = (0..types.len()).find(|&i| types[i].dtype.is_quantized() && !operator.takes_quantized(i)) {
            let detail = format!("operand {i} may not be quantised: {} (at {}:{label})", types[i], self.name);
            return Err(Error::operator(operator.name(), detail));
        }
        let ty = operator.infer(&types).map_err(|e| match e {
            Error::Operator { operator, detail } => {
                Error::operator(operator, format!("{detail} (at {}:{label})", self.name))
            }
            other => other,
        })?;
        ty.shape.checked_count()?;
        Ok(self.add(NodeKind::Apply { operator, inputs: inputs.to_vec() }, ty, label))
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(&mut self, x: NodeId, shape: impl Into<Shape>) -> Result<NodeId> {
        let shape = shape.into();
        if shape.checked_count()? != self.shape(x).count() {
            let detail = format!("{} does not reshape to {shape} (at {})", self.shape(x), self.scope.join("."));
            return Err(Error::operator("reshape", detail));
        }
        let ty = TensorType::new(self.ty(x).dtype, shape);
        let label = self.scope.join(".");
        Ok(self.add(NodeKind::Reshape(x), ty, label))
    }

    /// Names a result.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn output(&mut self, name: impl Into<String>, id: NodeId) -> Result<()> {
        let name = name.into();
        if self.outputs.iter().any(|(n, _)| *n == name) {
            return Err(Error::invalid("graph", format!("{} has two outputs `{name}`", self.name)));
        }
        self.outputs.push((name, id));
        Ok(())
    }

    /// [`Graph::output`] for what is read before any other network runs: it may lie in memory that networks share by turns.
    ///
    /// # Errors
    /// As there.
    pub fn transient_output(&mut self, name: impl Into<String>, id: NodeId) -> Result<()> {
        let name = name.into();
        self.output(name.clone(), id)?;
        Arc::make_mut(&mut self.transient).insert(name);
        Ok(())
    }

    /// Turns a weight into an input of its name and type, for whoever changes its values between runs. It has rate [`Rate::Step`], so
    /// that nothing that depends on it is computed once and kept. Gives what it was, which can still load its first value.
    ///
    /// # Errors
    /// When the node is no weight, or an input of that name is there already.
    pub fn free_weight(&mut self, id: NodeId) -> Result<Weight> {
        let NodeKind::Weight(weight) = &self.nodes[id.index()].kind else {
            let detail = format!("{} is no weight of {}", self.nodes[id.index()].label, self.name);
            return Err(Error::invalid("graph", detail));
        };
        let weight = weight.clone();
        if self.inputs().any(|(name, _)| name == weight.name) {
            return Err(Error::invalid("graph", format!("{} has two inputs `{}`", self.name, weight.name)));
        }
        self.weights.remove(&(weight.key().clone(), self.ty(id).clone()));
        self.nodes[id.index()].kind = NodeKind::Input { name: weight.name.clone(), rate: Rate::Step };
        Ok(weight)
    }

    /// Adds all of another graph: its inputs of the names in `given` become these nodes, the others inputs of this graph. Gives its
    /// outputs, which are none of this graph's.
    ///
    /// # Errors
    /// When an input's type is not that of the node in its place, an input's name is taken, or `given` names none of its inputs.
    pub fn append(&mut self, other: &Graph, given: &[(&str, NodeId)]) -> Result<Vec<(String, NodeId)>> {
        if let Some((name, _)) = given.iter().find(|(name, _)| !other.inputs().any(|(n, _)| n == *name)) {
            return Err(Error::invalid("graph", format!("{} has no input `{name}`", other.name)));
        }
        let mut places: Vec<NodeId> = Vec::with_capacity(other.nodes.len());
        for node in &other.nodes {
            let place = match &node.kind {
                NodeKind::Input { name, rate } => match given.iter().find(|(n, _)| n == name) {
                    Some(&(_, id)) if *self.ty(id) == node.ty => id,
                    Some(&(_, id)) => {
                        let detail = format!("{} takes `{name}` {}, not {}", other.name, node.ty, self.ty(id));
                        return Err(Error::invalid("graph", detail));
                    }
                    None => self.input(name.clone(), node.ty.clone(), *rate)?,
                },
                NodeKind::Weight(weight) => self.weight(weight.clone(), node.ty.clone()),
                NodeKind::Reshape(from) => {
                    let kind = NodeKind::Reshape(places[from.index()]);
                    self.add(kind, node.ty.clone(), node.label.clone())
                }
                NodeKind::Apply { operator, inputs } => {
                    let inputs = inputs.iter().map(|i| places[i.index()]).collect();
                    let kind = NodeKind::Apply { operator: operator.clone(), inputs };
                    self.add(kind, node.ty.clone(), node.label.clone())
                }
            };
            self.nodes[place.index()].unfused |= node.unfused;
            places.push(place);
        }
        Ok(other.outputs.iter().map(|(name, id)| (name.clone(), places[id.index()])).collect())
    }

    /// A hash of everything that decides what the graph computes: operators, types, names of inputs and outputs, keys of weights.
    /// Graphs of equal fingerprints can use one session.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |text: &dyn fmt::Debug| hash.update(format!("{text:?};"));
        for node in &self.nodes {
            add(&node.ty);
            match &node.kind {
                NodeKind::Input { name, rate } => add(&(name, rate)),
                NodeKind::Weight(weight) => add(weight.key()),
                NodeKind::Reshape(from) => add(from),
                NodeKind::Apply { operator, inputs } => add(&(operator.name(), operator.attributes(), inputs)),
            }
            if node.unfused {
                add(&"unfused");
            }
        }
        add(&self.outputs);
        if !self.transient.is_empty() {
            add(&self.transient);
        }
        hash.finalize().into()
    }

    /// Whether each node is the same for all steps of a run: it depends on weights and inputs of rate [`Rate::Run`] alone.
    pub(crate) fn unchanging(&self) -> Vec<bool> {
        let mut same: Vec<bool> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            same.push(match &node.kind {
                NodeKind::Input { rate, .. } => *rate == Rate::Run,
                NodeKind::Weight(_) => true,
                _ => node.operands().iter().all(|i| same[i.index()]),
            });
        }
        same
    }

    /// The node whose buffer holds a value: follows reshapes.
    pub(crate) fn storage(&self, mut id: NodeId) -> NodeId {
        while let NodeKind::Reshape(from) = self.nodes[id.index()].kind {
            id = from;
        }
        id
    }
}
