//! Follows what every buffer of a plan holds while its dispatches run, and holds their reads against the graph.

use pulid_graph::plan::Step;
use pulid_graph::{Graph, NodeKind, Place, Plan, Rate};
use pulid_ops::{Capabilities, LowerContext, Slot, Variant};
use std::collections::HashMap;

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    /// The value of a node.
    Node(usize),
    /// What a node's dispatches hand on to each other in a scratch buffer of its variant.
    Scratch(usize, usize),
}

/// Runs the prologue once and the steps twice, without computing anything: who writes, who reads, in the plan's order. `graph` is
/// what the plan was made of, for a device with `capabilities`; the inputs with the names in `zero` hold nothing but zeros.
///
/// # Errors
/// Says where a dispatch reads something else than its operator's variant wants there, where one binds a buffer that it writes
/// twice, where one writes an input or a weight, and where an output does not hold its value in the end.
pub fn follow(graph: &Graph, plan: &Plan, capabilities: &Capabilities, zero: &[&str]) -> Result<(), String> {
    follow_in(graph, plan, capabilities, zero, &[])
}

/// [`follow`] where some buffers are parts of arenas: what is written into one is lost from those that it overlaps.
///
/// # Errors
/// As there, and where a dispatch writes an arena that it reads or writes elsewhere too.
pub fn follow_in(
    graph: &Graph,
    plan: &Plan,
    capabilities: &Capabilities,
    zero: &[&str],
    places: &[(usize, Place)],
) -> Result<(), String> {
    let mut run = Run {
        graph,
        plan,
        capabilities,
        zero,
        places: places.iter().copied().collect(),
        held: vec![None; plan.buffers.len()],
        left_out: vec![None; graph.nodes().len()],
    };
    let constant = unchanging(graph);
    let is_apply = |&i: &usize| matches!(graph.nodes()[i].kind, NodeKind::Apply { .. });
    let applied = (0..graph.nodes().len()).filter(is_apply);
    let (once, each): (Vec<usize>, Vec<usize>) = applied.partition(|&i| constant[i]);
    if (once.len(), each.len()) != (plan.prologue.len(), plan.steps.len()) {
        return Err(format!("{} and {} steps are not the graph's", plan.prologue.len(), plan.steps.len()));
    }
    for (&node, step) in each.iter().zip(&plan.steps) {
        run.left_out[node] = step.unless_zero.filter(|&input| run.is_zero(input));
    }

    run.fill()?;
    for (&node, step) in once.iter().zip(&plan.prologue) {
        run.step(node, step)?;
    }
    // What the prologue made must survive the first round, and what the first round left must not be read in the second.
    for round in 1..=2 {
        for (&node, step) in each.iter().zip(&plan.steps) {
            if run.left_out[node].is_none() {
                run.step(node, step).map_err(|e| format!("round {round}: {e}"))?;
            }
        }
        for (port, (name, id)) in plan.outputs.iter().zip(graph.outputs()) {
            let want = Some(Held::Node(run.place(id.index())));
            if run.held[port.buffer] != want {
                return Err(format!("round {round}: output {name} holds {}", run.say(run.held[port.buffer])));
            }
        }
    }
    Ok(())
}

/// Whether each node depends on weights and inputs of [`Rate::Run`] alone.
fn unchanging(graph: &Graph) -> Vec<bool> {
    let mut same: Vec<bool> = Vec::new();
    for node in graph.nodes() {
        same.push(match &node.kind {
            NodeKind::Input { rate, .. } => *rate == Rate::Run,
            _ => node.operands().iter().all(|id| same[id.index()]),
        });
    }
    same
}

struct Run<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    capabilities: &'a Capabilities,
    zero: &'a [&'a str],
    places: HashMap<usize, Place>,
    held: Vec<Option<Held>>,
    /// Of each node the input whose zeros leave it out.
    left_out: Vec<Option<usize>>,
}

impl Run<'_> {
    fn is_zero(&self, input: usize) -> bool {
        self.zero.contains(&self.plan.inputs[input].name.as_str())
    }

    /// The node whose value a reader of `index` gets: what a reshape shows, what an operator that is left out passes through.
    fn place(&self, mut index: usize) -> usize {
        loop {
            index = match &self.graph.nodes()[index].kind {
                NodeKind::Reshape(from) => from.index(),
                NodeKind::Apply { operator, inputs } if self.left_out[index].is_some() => {
                    match operator.passes_when_zero() {
                        Some(passes) => inputs[passes.result].index(),
                        None => return index,
                    }
                }
                _ => return index,
            };
        }
    }

    /// Inputs and weights, in the order of the graph.
    fn fill(&mut self) -> Result<(), String> {
        let (mut inputs, mut weights) = (self.plan.inputs.iter(), self.plan.weights.iter());
        for (index, node) in self.graph.nodes().iter().enumerate() {
            let port = match &node.kind {
                NodeKind::Input { .. } => inputs.next(),
                NodeKind::Weight(_) => weights.next(),
                _ => continue,
            };
            let buffer = port.ok_or_else(|| format!("{} has no buffer", node.label))?.buffer;
            if self.held[buffer].replace(Held::Node(index)).is_some() {
                return Err(format!("{} shares buffer {buffer} with another", node.label));
            }
        }
        Ok(())
    }

    /// The variant of a node's operator that a step runs.
    fn variant(&self, node: usize, name: &str) -> Result<Variant, String> {
        let (graph, node) = (self.graph, &self.graph.nodes()[node]);
        let NodeKind::Apply { operator, inputs } = &node.kind else { return Err("no operator".into()) };
        let types: Vec<_> = inputs.iter().map(|&id| graph.ty(id).clone()).collect();
        let cx = LowerContext { capabilities: self.capabilities, inputs: &types, output: &node.ty };
        let mut variants = operator.lower(&cx).map_err(|e| e.to_string())?.into_iter();
        variants.find(|v| v.name == name).ok_or_else(|| format!("{} has no variant {name}", node.label))
    }

    /// Whether two buffers lie in one arena, and whether they overlap there.
    fn together(&self, a: usize, b: usize) -> (bool, bool) {
        let (Some(first), Some(second)) = (self.places.get(&a), self.places.get(&b)) else { return (false, false) };
        let end = |buffer: usize, place: &Place| place.offset + self.plan.buffers[buffer].bytes;
        let one = a != b && first.arena == second.arena;
        (one, one && first.offset < end(b, second) && second.offset < end(a, first))
    }

    fn step(&mut self, node: usize, step: &Step) -> Result<(), String> {
        let operands: Vec<usize> =
            self.graph.nodes()[node].operands().iter().map(|id| self.place(id.index())).collect();
        for (dispatch, lowered) in step.dispatches.iter().zip(self.variant(node, step.variant)?.dispatches) {
            let bound = dispatch.bound(|input| self.is_zero(input));
            let writable = lowered.shader_info().map_err(|e| e.to_string())?.writable;
            for (&written, _) in bound.iter().zip(writable).filter(|(_, writes)| **writes) {
                for (&other, &writes) in bound.iter().zip(writable) {
                    let (one, overlap) = self.together(written, other);
                    if overlap || (one && !writes) {
                        return Err(format!("{} writes {written} and binds {other} in the same arena", step.label));
                    }
                }
            }
            for ((&buffer, slot), &writes) in bound.iter().zip(&lowered.bindings).zip(writable) {
                let wanted = match *slot {
                    Slot::Input(i) => Held::Node(operands[i]),
                    Slot::Output => Held::Node(node),
                    Slot::Scratch(i) => Held::Scratch(node, i),
                    Slot::Unused => continue,
                };
                if !writes && self.held[buffer] != Some(wanted) {
                    let (held, wanted) = (self.say(self.held[buffer]), self.say(Some(wanted)));
                    return Err(format!("{} reads {held} in buffer {buffer}, not {wanted}", step.label));
                }
                if writes && bound.iter().filter(|&&other| other == buffer).count() > 1 {
                    return Err(format!("{} binds buffer {buffer}, which it writes, twice", step.label));
                }
            }
            for ((&buffer, slot), _) in bound.iter().zip(&lowered.bindings).zip(writable).filter(|(_, writes)| **writes)
            {
                let mut ports = self.plan.inputs.iter().chain(&self.plan.weights);
                if ports.any(|port| port.buffer == buffer) {
                    return Err(format!("{} writes buffer {buffer}, which is an input's or a weight's", step.label));
                }
                for other in (0..self.held.len()).filter(|&other| self.together(buffer, other).1).collect::<Vec<_>>() {
                    self.held[other] = None;
                }
                self.held[buffer] = Some(match *slot {
                    Slot::Scratch(i) => Held::Scratch(node, i),
                    _ => Held::Node(node),
                });
            }
        }
        Ok(())
    }

    fn say(&self, held: Option<Held>) -> String {
        match held {
            None => "nothing".into(),
            Some(Held::Node(i)) => format!("node {i} `{}`", self.graph.nodes()[i].label),
            Some(Held::Scratch(i, n)) => format!("scratch {n} of `{}`", self.graph.nodes()[i].label),
        }
    }
}
