//! Graphs as parts of larger ones: a loss is a network's graph and some operators behind it.

use crate::{Graph, NodeId, NodeKind};
use pulid_tensor::{Error, Result};
use std::collections::HashMap;

impl Graph {
    /// Adds another graph's nodes to this one. Its inputs named in `given` are these nodes of this graph; the others become inputs of
    /// this graph, under their names. Gives the other graph's outputs by name, which are no outputs of this graph yet.
    ///
    /// # Errors
    /// When `other` has no such input or one of another type, or the name of an input is taken.
    pub fn inline(&mut self, other: &Graph, given: &[(&str, NodeId)]) -> Result<HashMap<String, NodeId>> {
        for (name, id) in given {
            let input = other.inputs().find(|(input, _)| input == name);
            let (found, expected) = (self.ty(*id), input.map(|(_, ty)| ty));
            if expected != Some(found) {
                let expected = expected.map_or_else(|| "no such input".to_owned(), ToString::to_string);
                let detail = format!("{} gives {} `{name}` {found}, which has {expected}", self.name, other.name);
                return Err(Error::invalid("graph", detail));
            }
        }
        let mut at: Vec<NodeId> = Vec::with_capacity(other.nodes.len());
        for node in &other.nodes {
            let id = match &node.kind {
                NodeKind::Input { name, rate } => match given.iter().find(|(input, _)| input == name) {
                    Some(&(_, id)) => id,
                    None => self.input(name.clone(), node.ty.clone(), *rate)?,
                },
                NodeKind::Weight(weight) => self.weight(weight.clone(), node.ty.clone()),
                NodeKind::Reshape(from) => {
                    self.add(NodeKind::Reshape(at[from.index()]), node.ty.clone(), node.label.clone())
                }
                NodeKind::Apply { operator, inputs } => {
                    let inputs = inputs.iter().map(|id| at[id.index()]).collect();
                    let kind = NodeKind::Apply { operator: operator.clone(), inputs };
                    self.add(kind, node.ty.clone(), node.label.clone())
                }
            };
            self.nodes[id.index()].unfused |= node.unfused;
            at.push(id);
        }
        Ok(other.outputs.iter().map(|(name, id)| (name.clone(), at[id.index()])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rate, reference};
    use pulid_ops::Binary;
    use pulid_tensor::{HostTensor, TensorType};

    /// `y` = `a` (b + 1).
    fn part() -> Graph {
        let mut g = Graph::new("part");
        let a = g.input("a", TensorType::f32([3]), Rate::Step).unwrap();
        let b = g.input("b", TensorType::f32([3]), Rate::Run).unwrap();
        let one = g.constant("one", HostTensor::from_fn([1], |_| 1.0));
        let sum = g.apply(Binary::add(), &[b, one]).unwrap();
        let y = g.apply(Binary::mul(), &[a, sum]).unwrap();
        g.output("y", y).unwrap();
        g
    }

    #[test]
    fn a_part_reads_given_nodes_and_declares_its_other_inputs() {
        let mut g = Graph::new("whole");
        let x = g.input("x", TensorType::f32([3]), Rate::Step).unwrap();
        let twice = g.apply(Binary::add(), &[x, x]).unwrap();
        let y = g.inline(&part(), &[("a", twice)]).unwrap()["y"];
        g.output("z", y).unwrap();
        let names: Vec<_> = g.inputs().map(|(name, _)| name).collect();
        assert_eq!(names, ["x", "b"]);
        assert_eq!(g.outputs().len(), 1);
        let tensor = |factor: f32| HostTensor::from_fn([3], |i| i as f32 * factor);
        let inputs = HashMap::from([("x".to_owned(), tensor(1.0)), ("b".to_owned(), tensor(10.0))]);
        let z = reference::run(&g, &inputs, |_, _| Ok(())).unwrap();
        assert_eq!(z["z"].as_f32().unwrap(), [0.0, 22.0, 84.0]);
    }

    #[test]
    fn a_part_refuses_what_does_not_fit() {
        let mut g = Graph::new("whole");
        let x = g.input("x", TensorType::f32([4]), Rate::Step).unwrap();
        let b = g.input("b", TensorType::f32([3]), Rate::Step).unwrap();
        for (given, named) in [(("a", x), "`a`"), (("c", b), "no such input"), (("a", b), "two inputs `b`")] {
            let message = g.inline(&part(), &[given]).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }
}
