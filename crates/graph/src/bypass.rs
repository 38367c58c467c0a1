//! What of a graph may be left out while an input is zero, by [`Operator::passes_when_zero`](pulid_ops::Operator::passes_when_zero).

use crate::{Graph, NodeId, NodeKind};

/// An operator that passes an operand through while an input holds nothing but zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bypass {
    /// The input.
    pub input: NodeId,
    /// What its readers read then.
    pub instead: NodeId,
}

/// The bypasses of a graph.
#[derive(Debug)]
pub(crate) struct Bypasses {
    /// Of each node, if it passes an operand through.
    around: Vec<Option<Bypass>>,
    /// The input whose zeros make each node superfluous: the operator itself, and what only such operators read.
    unless_zero: Vec<Option<NodeId>>,
}

impl Bypasses {
    /// Looks at every operator of the steps (`constant` says which nodes are computed in the prologue: those always are, since
    /// they are not computed again when the input changes). Results of the network are never left out.
    pub fn of(graph: &Graph, constant: &[bool]) -> Self {
        let nodes = graph.nodes();
        let is_result = |index: usize| graph.outputs().iter().any(|(_, id)| graph.storage(*id).index() == index);
        let around: Vec<_> = (0..nodes.len())
            .map(|index| {
                let NodeKind::Apply { operator, inputs } = &nodes[index].kind else { return None };
                let passes = operator.passes_when_zero()?;
                let (input, instead) = (graph.storage(*inputs.get(passes.zero)?), *inputs.get(passes.result)?);
                let is_input = matches!(nodes[input.index()].kind, NodeKind::Input { .. });
                let fits = is_input && graph.ty(instead) == &nodes[index].ty && !constant[index] && !is_result(index);
                fits.then_some(Bypass { input, instead })
            })
            .collect();

        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            node.operands().iter().for_each(|id| readers[id.index()].push(index));
        }
        let mut unless_zero: Vec<Option<NodeId>> = vec![None; nodes.len()];
        for index in (0..nodes.len()).rev() {
            if let Some(bypass) = around[index] {
                unless_zero[index] = Some(bypass.input);
                continue;
            }
            // Whom a reader needs this node for: for nobody while the reader's input is zero, unless it passes this node through.
            let needed = |&reader: &usize| match around[reader] {
                Some(Bypass { input, instead }) if instead.index() != index => Some(input),
                Some(_) => None,
                None => unless_zero[reader],
            };
            let mut inputs = readers[index].iter().map(needed);
            let first = inputs.next().flatten();
            let computed = matches!(nodes[index].kind, NodeKind::Apply { .. } | NodeKind::Reshape(_));
            if computed && !constant[index] && !is_result(index) && inputs.all(|input| input == first) {
                unless_zero[index] = first;
            }
        }
        Bypasses { around, unless_zero }
    }

    /// The input whose zeros make a node superfluous.
    pub fn unless_zero(&self, index: usize) -> Option<NodeId> {
        self.unless_zero[index]
    }

    /// The nodes whose buffers a reader of `id` may find its value in: its own, then, each while one more input is zero, others.
    pub fn places(&self, graph: &Graph, id: NodeId) -> Vec<(Option<NodeId>, NodeId)> {
        let mut stored = graph.storage(id);
        let mut places = vec![(None, stored)];
        while let Some(bypass) = self.around[stored.index()] {
            stored = graph.storage(bypass.instead);
            places.push((Some(bypass.input), stored));
        }
        places
    }
}
