//! The backward pass of a graph: gradients of a loss in chosen nodes, from the rules that operators state of themselves
//! ([`pulid_ops::Operator::gradient`]). What no target reaches costs nothing.

use crate::{Graph, NodeId, NodeKind, Rate};
use pulid_ops::{Binary, GradientRule, Step, Value};
use pulid_tensor::{Error, Result, TensorType};
use std::collections::HashMap;

/// Which values of the forward pass the backward pass finds stored.
#[derive(Clone, Copy, Debug, Default)]
pub enum Checkpointing {
    /// All that its rules read.
    #[default]
    Off,
    /// What enters and leaves blocks; the rest of a block is computed again when its gradients are (Chen et al., arXiv
    /// 1604.06174). The function names the block of a label, if it lies in one.
    Blocks(fn(&str) -> Option<&str>),
}

/// Extends a graph by the gradients of a loss in `targets`. The loss is given by its gradients in some values: `upstream` holds
/// pairs of a value and a node of the same type. A target that reaches none of them has no gradient.
///
/// Comes before [`crate::optimize`], which leaves the nodes on the way as they are, so that both kinds of checkpointing give the same
/// bits.
///
/// # Errors
/// Where an operator on the way has no rule; the message names it and its place.
pub fn differentiate(
    graph: &mut Graph,
    upstream: &[(NodeId, NodeId)],
    targets: &[NodeId],
    checkpointing: Checkpointing,
) -> Result<Vec<Option<NodeId>>> {
    for (value, gradient) in upstream {
        if graph.ty(*value) != graph.ty(*gradient) {
            let detail = format!("{} has an upstream gradient {}", graph.ty(*value), graph.ty(*gradient));
            return Err(Error::invalid("gradient", detail));
        }
    }
    let mut backward = Backward::new(graph, targets, checkpointing);
    for &(value, gradient) in upstream {
        backward.accumulate(value, gradient)?;
    }
    for index in (0..backward.forward).rev() {
        backward.step(index)?;
    }
    Ok(targets.iter().map(|target| backward.gradients.get(target).copied()).collect())
}

struct Backward<'a> {
    graph: &'a mut Graph,
    /// Number of nodes of the forward pass.
    forward: usize,
    /// Whether each node of the forward pass depends on a target.
    depends: Vec<bool>,
    /// The gradient in a value, as far as its readers have given it.
    gradients: HashMap<NodeId, NodeId>,
    /// Whether the backward pass finds a value stored.
    stored: Vec<bool>,
    /// Values that are computed again.
    again: HashMap<NodeId, NodeId>,
}

impl<'a> Backward<'a> {
    fn new(graph: &'a mut Graph, targets: &[NodeId], checkpointing: Checkpointing) -> Self {
        let forward = graph.nodes.len();
        let mut depends = vec![false; forward];
        for index in 0..forward {
            let node = &graph.nodes[index];
            depends[index] =
                targets.contains(&NodeId(index as u32)) || node.operands().iter().any(|id| depends[id.index()]);
        }
        for (node, depends) in graph.nodes.iter_mut().zip(&depends) {
            node.unfused |= depends;
        }
        let stored = match checkpointing {
            Checkpointing::Off => vec![true; forward],
            Checkpointing::Blocks(block) => stored(graph, block),
        };
        Backward { graph, forward, depends, gradients: HashMap::new(), stored, again: HashMap::new() }
    }

    /// Adds to the gradient in a value.
    fn accumulate(&mut self, value: NodeId, gradient: NodeId) -> Result<()> {
        let sum = match self.gradients.get(&value) {
            Some(&before) => self.apply(Box::new(Binary::add()), &[before, gradient])?,
            None => gradient,
        };
        self.gradients.insert(value, sum);
        Ok(())
    }

    fn apply(&mut self, operator: Box<dyn pulid_ops::Operator>, inputs: &[NodeId]) -> Result<NodeId> {
        let id = self.graph.apply_boxed(operator, inputs)?;
        self.graph.nodes[id.index()].unfused = true;
        Ok(id)
    }

    /// Gives the gradient in a node's value to its operands.
    fn step(&mut self, index: usize) -> Result<()> {
        let Some(&upstream) = self.gradients.get(&NodeId(index as u32)) else { return Ok(()) };
        if !self.depends[index] {
            return Ok(());
        }
        let node = self.graph.nodes[index].clone();
        let label = format!("gradient of {}", node.label);
        // The graph's own scope says where new nodes stand.
        self.graph.enter(label);
        let done = match &node.kind {
            NodeKind::Reshape(from) if self.depends[from.index()] => {
                let shape = self.graph.shape(*from).clone();
                self.graph.reshape(upstream, shape).and_then(|gradient| self.accumulate(*from, gradient))
            }
            NodeKind::Apply { operator, inputs } => self.rule(index, operator.as_ref(), inputs, &node.ty, upstream),
            _ => Ok(()),
        };
        self.graph.leave();
        done
    }

    fn rule(
        &mut self,
        index: usize,
        operator: &dyn pulid_ops::Operator,
        inputs: &[NodeId],
        output: &TensorType,
        upstream: NodeId,
    ) -> Result<()> {
        let needed: Vec<bool> = inputs.iter().map(|id| self.depends[id.index()]).collect();
        if !needed.contains(&true) {
            return Ok(());
        }
        let types: Vec<_> = inputs.iter().map(|&id| self.graph.ty(id).clone()).collect();
        let place = |error: Error, graph: &Graph| match error {
            Error::Operator { operator, detail } => {
                let label = &graph.nodes[index].label;
                Error::operator(operator, format!("{detail} (at {}:{label})", graph.name))
            }
            other => other,
        };
        let rule = GradientRule::of(operator, &types, output, &needed).map_err(|e| place(e, self.graph))?;
        let mut results: Vec<NodeId> = Vec::new();
        for step in rule.steps() {
            let id = match step {
                Step::Apply { operator, inputs: values } => {
                    let operands: Vec<_> =
                        values.iter().map(|&v| self.value(v, index, inputs, upstream, &results)).collect();
                    self.apply(operator.clone(), &operands)?
                }
                Step::Reshape { of, shape } => {
                    let of = self.value(*of, index, inputs, upstream, &results);
                    self.graph.reshape(of, shape.clone())?
                }
            };
            results.push(id);
        }
        for (operand, &id) in inputs.iter().enumerate().filter(|(i, _)| needed[*i]) {
            if let Some(gradient) = rule.gradient(operand) {
                let gradient = self.value(gradient, index, inputs, upstream, &results);
                self.accumulate(id, gradient)?;
            }
        }
        Ok(())
    }

    /// The node of a value that a rule reads.
    fn value(&mut self, value: Value, index: usize, inputs: &[NodeId], upstream: NodeId, results: &[NodeId]) -> NodeId {
        match value {
            Value::Operand(i) => self.find(inputs[i]),
            Value::Result => self.find(NodeId(index as u32)),
            Value::Upstream => upstream,
            Value::Step(i) => results[i],
        }
    }

    /// A value of the forward pass: the stored one, else one that is computed again.
    fn find(&mut self, id: NodeId) -> NodeId {
        if self.stored[id.index()] {
            return id;
        }
        if let Some(&again) = self.again.get(&id) {
            return again;
        }
        let mut node = self.graph.nodes[id.index()].clone();
        match &mut node.kind {
            NodeKind::Reshape(from) => *from = self.find(*from),
            NodeKind::Apply { inputs, .. } => inputs.iter_mut().for_each(|i| *i = self.find(*i)),
            _ => {}
        }
        node.label = format!("again {}", node.label);
        self.graph.nodes.push(node);
        let again = NodeId(self.graph.nodes.len() as u32 - 1);
        self.again.insert(id, again);
        again
    }
}

/// Whether each value is stored when blocks are computed again: what is no operator's, what does not change between steps, what lies
/// in no block, and what is read outside its block.
fn stored(graph: &Graph, block: fn(&str) -> Option<&str>) -> Vec<bool> {
    let block_of: Vec<_> = graph.nodes.iter().map(|node| block(&node.label)).collect();
    let unchanging = graph.unchanging();
    let mut stored: Vec<bool> = graph
        .nodes
        .iter()
        .enumerate()
        .map(|(i, node)| match node.kind {
            NodeKind::Input { .. } | NodeKind::Weight(_) => true,
            _ => unchanging[i] || block_of[i].is_none(),
        })
        .collect();
    for (i, node) in graph.nodes.iter().enumerate() {
        for &id in node.operands().iter().filter(|id| block_of[id.index()] != block_of[i]) {
            stored[id.index()] = true;
        }
    }
    for &(_, id) in &graph.outputs {
        stored[id.index()] = true;
    }
    // A value under another shape is the same buffer.
    for i in 0..graph.nodes.len() {
        let id = NodeId(i as u32);
        if stored[i] {
            stored[graph.storage(id).index()] = true;
        }
    }
    for i in 0..graph.nodes.len() {
        if let NodeKind::Reshape(from) = graph.nodes[i].kind {
            stored[i] = stored[from.index()];
        }
    }
    stored
}

/// Declares, for each output, an input `upstream.OUTPUT` of its type, and adds an output `d.NAME` for each target: the gradient
/// of the sum of upstream times output. A target that reaches no output has the gradient zero, which is left out.
///
/// # Errors
/// As [`differentiate`], and when a name is taken.
pub fn add_gradients(graph: &mut Graph, targets: &[(String, NodeId)], checkpointing: Checkpointing) -> Result<()> {
    let mut upstream = Vec::new();
    for (name, id) in graph.outputs.clone() {
        let ty = graph.ty(id).clone();
        upstream.push((id, graph.input(format!("upstream.{name}"), ty, Rate::Step)?));
    }
    let nodes: Vec<_> = targets.iter().map(|(_, id)| *id).collect();
    let gradients = differentiate(graph, &upstream, &nodes, checkpointing)?;
    for ((name, _), gradient) in targets.iter().zip(gradients) {
        if let Some(gradient) = gradient {
            graph.output(format!("d.{name}"), gradient)?;
        }
    }
    Ok(())
}
