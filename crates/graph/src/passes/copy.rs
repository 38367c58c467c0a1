//! Copying a graph node by node, for passes that put others in the place of some.

use crate::{Graph, NodeId, NodeKind};
use pulid_ops::Operator;
use pulid_tensor::Result;

/// A graph in the making.
pub(super) struct Copy<'a> {
    /// The graph that is copied.
    pub old: &'a Graph,
    /// What there is of the copy.
    pub new: Graph,
}

impl<'a> Copy<'a> {
    /// Nothing of a graph yet.
    pub fn of(old: &'a Graph) -> Self {
        Copy { old, new: Graph::new(old.name.clone()) }
    }

    /// A node as it is, but for its operands, which are nodes of the copy.
    pub fn same(&mut self, index: usize, operands: &[NodeId]) -> NodeId {
        let node = &self.old.nodes[index];
        let mut kind = node.kind.clone();
        match &mut kind {
            NodeKind::Reshape(from) => *from = operands[0],
            NodeKind::Apply { inputs, .. } => inputs.copy_from_slice(operands),
            _ => {}
        }
        let id = self.new.add(kind, node.ty.clone(), node.label.clone());
        self.new.nodes[id.index()].unfused = node.unfused;
        id
    }

    /// An operator in the place of a node, under its label.
    pub fn instead(&mut self, index: usize, operator: Box<dyn Operator>, operands: &[NodeId]) -> Result<NodeId> {
        let label = self.old.nodes[index].label.clone();
        self.new.scoped(label, |g| g.apply_boxed(operator, operands))
    }

    /// The copy, whose outputs are these nodes.
    pub fn finish(mut self, outputs: impl IntoIterator<Item = NodeId>) -> Graph {
        self.new.transient.clone_from(&self.old.transient);
        self.new.outputs = self.old.outputs.iter().map(|(name, _)| name.clone()).zip(outputs).collect();
        self.new
    }
}
