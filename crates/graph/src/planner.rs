//! From a graph and a device's capabilities to a [`Plan`].

use crate::bypass::Bypasses;
use crate::pack::{Span, pack};
use crate::plan::{Alternative, BufferKind, BufferPlan, Plan, PlannedDispatch, Port, Step};
use crate::{Arenas, Graph, NodeId, NodeKind, Rate, Traffic, Weight, largest_arena};
use pulid_ops::{Capabilities, Dispatch, LowerContext, Operator, Slot, Variant};
use pulid_tensor::{Error, Result, TensorType};
use std::collections::HashMap;

/// Picks a kernel variant. The engine's autotune implements it by measurement.
pub trait Chooser {
    /// Index into `variants` (never empty).
    fn choose(
        &self,
        operator: &dyn Operator,
        inputs: &[TensorType],
        output: &TensorType,
        variants: &[Variant],
    ) -> usize;
}

/// Takes the operator's own first choice: reproducible, needs no device.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstVariant;

impl Chooser for FirstVariant {
    fn choose(&self, _: &dyn Operator, _: &[TensorType], _: &TensorType, _: &[Variant]) -> usize {
        0
    }
}

/// A plan and the weights it uploads, in the order of [`Plan::weights`].
#[derive(Clone, Debug)]
pub struct PlannedGraph {
    /// The plan.
    pub plan: Plan,
    /// How to read each weight.
    pub weights: Vec<Weight>,
}

/// Plans a graph for a device.
///
/// # Errors
/// When a tensor does not fit one binding of the device, or an operator cannot be lowered.
pub fn plan(graph: &Graph, capabilities: &Capabilities, chooser: &dyn Chooser) -> Result<PlannedGraph> {
    let planned = Planner::new(graph, capabilities, chooser).run()?;
    let packed = Planner { spans: Some(Vec::new()), ..Planner::new(graph, capabilities, chooser) }.run()?;
    // Where values come and go as they are made, little is to be gained, and plans stay short to read.
    let [before, after] = [&planned, &packed].map(|planned| planned.plan.summary().working_bytes);
    Ok(if after < before - before / 10 { packed } else { planned })
}

/// [`plan`] for a device that runs several by turns and has one memory for the values between their operators: each has a buffer
/// of its own in the plan, which is to become a place in [`Plan::arenas`] or in those of all plans.
///
/// # Errors
/// As [`plan`].
pub fn plan_sharing(graph: &Graph, capabilities: &Capabilities, chooser: &dyn Chooser) -> Result<PlannedGraph> {
    let planner = Planner { spans: Some(Vec::new()), shares: true, ..Planner::new(graph, capabilities, chooser) };
    let mut planned = planner.run()?;
    let scratch = planned.plan.scratch();
    planned.plan.arenas = Arenas::for_all([&scratch], largest_arena(capabilities.max_buffer_bytes));
    Ok(planned)
}

/// The last use of what stays in a scratch buffer until the run is over.
const UNTIL_THE_END: usize = usize::MAX - 1;

struct Planner<'a> {
    graph: &'a Graph,
    capabilities: &'a Capabilities,
    chooser: &'a dyn Chooser,
    /// Whether each node is the same for all steps of a run.
    constant: Vec<bool>,
    bypasses: Bypasses,
    /// For storage nodes: index of the last node that reads the value; [`UNTIL_THE_END`], or `usize::MAX` when it must stay.
    last_use: Vec<usize>,
    buffer_of: HashMap<NodeId, usize>,
    /// Position of each input in [`Plan::inputs`].
    input_of: HashMap<NodeId, usize>,
    free: Vec<usize>,
    /// When each scratch buffer holds its value, if every value is to have a buffer of its own at first.
    spans: Option<Vec<Option<Span>>>,
    /// Whether they keep them.
    shares: bool,
    plan: Plan,
    weights: Vec<Weight>,
}

impl<'a> Planner<'a> {
    fn new(graph: &'a Graph, capabilities: &'a Capabilities, chooser: &'a dyn Chooser) -> Self {
        let constant = graph.unchanging();
        let bypasses = Bypasses::of(graph, &constant);
        let mut last_use = vec![0; graph.nodes.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            let places = node.operands().iter().flat_map(|&operand| bypasses.places(graph, operand));
            for stored in places.map(|(_, id)| id.index()) {
                // What the prologue computes and a step reads stays for the whole run.
                let crosses = constant[stored] && !constant[index];
                last_use[stored] = if crosses { usize::MAX } else { last_use[stored].max(index) };
            }
        }
        for (name, id) in &graph.outputs {
            let stored = graph.storage(*id).index();
            // What the prologue computes is not there again after the next step.
            let transient = graph.transient.contains(name) && !constant[stored];
            last_use[stored] = last_use[stored].max(if transient { UNTIL_THE_END } else { usize::MAX });
        }
        let plan = Plan {
            network: graph.name.clone(),
            buffers: Vec::new(),
            arenas: Arenas::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            weights: Vec::new(),
            prologue: Vec::new(),
            steps: Vec::new(),
            prologue_stages: Vec::new(),
            stages: Vec::new(),
        };
        Planner {
            graph,
            capabilities,
            chooser,
            constant,
            bypasses,
            last_use,
            buffer_of: HashMap::new(),
            input_of: HashMap::new(),
            free: Vec::new(),
            spans: None,
            shares: false,
            plan,
            weights: Vec::new(),
        }
    }

    fn run(mut self) -> Result<PlannedGraph> {
        self.declare_ports()?;
        for constant in [true, false] {
            for index in 0..self.graph.nodes.len() {
                if self.constant[index] == constant {
                    self.place(index)?;
                }
            }
        }
        for (name, id) in &self.graph.outputs {
            let buffer = self.buffer_of[&self.graph.storage(*id)];
            let ty = self.graph.ty(*id).clone();
            let hoisted = self.constant[id.index()];
            self.plan.outputs.push(Port { name: name.clone(), ty, buffer, hoisted });
        }
        if let Some(spans) = self.spans.as_ref().filter(|_| !self.shares) {
            pack(&mut self.plan, spans);
        }
        Ok(PlannedGraph { plan: self.plan, weights: self.weights })
    }

    fn declare_ports(&mut self) -> Result<()> {
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let id = NodeId(index as u32);
            match &node.kind {
                NodeKind::Input { name, rate } => {
                    let buffer = self.new_buffer(&node.ty, BufferKind::Input, &node.label)?;
                    self.buffer_of.insert(id, buffer);
                    self.input_of.insert(id, self.plan.inputs.len());
                    let hoisted = *rate == Rate::Run;
                    self.plan.inputs.push(Port { name: name.clone(), ty: node.ty.clone(), buffer, hoisted });
                }
                NodeKind::Weight(weight) => {
                    let buffer = self.new_buffer(&node.ty, BufferKind::Weight, &node.label)?;
                    self.buffer_of.insert(id, buffer);
                    let name = weight.name.clone();
                    self.plan.weights.push(Port { name, ty: node.ty.clone(), buffer, hoisted: true });
                    self.weights.push(weight.clone());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn place(&mut self, index: usize) -> Result<()> {
        let graph = self.graph;
        let node = &graph.nodes[index];
        let NodeKind::Apply { operator, inputs } = &node.kind else { return Ok(()) };
        let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i).clone()).collect();
        let cx = LowerContext { capabilities: self.capabilities, inputs: &types, output: &node.ty };
        let mut variants = operator.lower(&cx)?;
        if variants.is_empty() {
            return Err(Error::operator(operator.name(), format!("no kernel fits this device (at {})", node.label)));
        }
        let choice = match variants.len() {
            1 => 0,
            _ => self.chooser.choose(operator.as_ref(), &types, &node.ty, &variants).min(variants.len() - 1),
        };
        let variant = variants.swap_remove(choice);

        let id = NodeId(index as u32);
        let output = self.result_buffer(index)?;
        self.buffer_of.insert(id, output);
        let mut scratch = Vec::with_capacity(variant.scratch.len());
        for &bytes in &variant.scratch {
            scratch.push(self.scratch_buffer(bytes, &node.label)?);
        }
        let operands: Vec<_> = inputs.iter().map(|&i| self.buffer_of[&graph.storage(i)]).collect();
        let others: Vec<_> = inputs.iter().map(|&i| self.others(i)).collect();
        let bytes = |slot: &Slot| match *slot {
            Slot::Input(i) => types[i].bytes(),
            Slot::Output => node.ty.bytes(),
            Slot::Scratch(i) => variant.scratch[i],
            Slot::Unused => 0,
        };
        let infos: Vec<_> = variant.dispatches.iter().map(Dispatch::shader_info).collect::<Result<_>>()?;
        let dispatches = variant
            .dispatches
            .into_iter()
            .zip(infos)
            .map(|(d, info)| {
                let traffic = traffic(&d.bindings, info.writable, bytes);
                let resolve = |slot: &Slot| match *slot {
                    Slot::Input(i) => operands[i],
                    Slot::Output => output,
                    Slot::Scratch(i) => scratch[i],
                    // A read-only binding that is never read; operand 0 is always there and read-only.
                    Slot::Unused => operands[0],
                };
                let alternatives = d.bindings.iter().enumerate().flat_map(|(binding, slot)| {
                    let others = if let Slot::Input(i) = *slot { others[i].as_slice() } else { &[] };
                    others.iter().map(move |&(input, buffer)| Alternative { binding, input, buffer })
                });
                PlannedDispatch {
                    shader: d.shader,
                    alternatives: alternatives.collect(),
                    buffers: d.bindings.iter().map(resolve).collect(),
                    written: info.writable,
                    features: d.features,
                    constants: d.constants,
                    params: d.params,
                    params_text: d.params_text,
                    grid: d.grid,
                    traffic,
                }
            })
            .collect();
        let step = Step {
            label: node.label.clone(),
            operator: format!("{}({})", operator.name(), operator.attributes()),
            variant: variant.name,
            output: node.ty.clone(),
            output_buffer: output,
            cost: operator.cost(&types, &node.ty),
            unless_zero: self.bypasses.unless_zero(index).map(|input| self.input_of[&input]),
            dispatches,
        };
        scratch.into_iter().for_each(|buffer| self.free_buffer(buffer));
        self.release(inputs, index);
        if self.last_use[index] == 0 {
            // Nobody reads it (an unused result): its buffer is free at once.
            self.free_buffer(output);
        }
        if self.constant[index] {
            self.plan.prologue.push(step)
        } else {
            self.plan.steps.push(step)
        }
        Ok(())
    }

    /// Where the value of an operand is while inputs are zero: the input, the buffer.
    fn others(&self, operand: NodeId) -> Vec<(usize, usize)> {
        let places = self.bypasses.places(self.graph, operand);
        places.into_iter().filter_map(|(input, id)| Some((self.input_of[&input?], self.buffer_of[&id]))).collect()
    }

    /// Frees the buffers of operands that no later node reads.
    fn release(&mut self, inputs: &[NodeId], index: usize) {
        let places = inputs.iter().flat_map(|&i| self.bypasses.places(self.graph, i));
        let mut stored: Vec<_> = places.map(|(_, id)| id).collect();
        stored.sort_unstable();
        stored.dedup();
        for id in stored {
            let reusable = matches!(self.graph.nodes[id.index()].kind, NodeKind::Apply { .. });
            if reusable && self.last_use[id.index()] == index {
                self.free_buffer(self.buffer_of[&id]);
            }
        }
    }

    /// The step that is planned at present.
    fn now(&self) -> usize {
        self.plan.prologue.len() + self.plan.steps.len()
    }

    /// Nothing reads a scratch buffer's value after this step.
    fn free_buffer(&mut self, buffer: usize) {
        let now = self.now();
        match &mut self.spans {
            Some(spans) => {
                if let Some(Some([_, last])) = spans.get_mut(buffer) {
                    *last = now;
                }
            }
            None => self.free.push(buffer),
        }
    }

    fn result_buffer(&mut self, index: usize) -> Result<usize> {
        let node = &self.graph.nodes[index];
        if self.last_use[index] == usize::MAX {
            let is_output = self.graph.outputs.iter().any(|(_, id)| self.graph.storage(*id).index() == index);
            let kind = if is_output { BufferKind::Output } else { BufferKind::Hoisted };
            return self.new_buffer(&node.ty, kind, &node.label);
        }
        self.scratch_buffer(node.ty.bytes(), &node.label)
    }

    /// The free buffer that fits best, else the largest free one grown, else a new one.
    fn scratch_buffer(&mut self, bytes: usize, label: &str) -> Result<usize> {
        let bytes = self.checked_size(bytes, label)?;
        let size = |b: &usize| self.plan.buffers[*b].bytes;
        let best = (0..self.free.len()).filter(|&i| size(&self.free[i]) >= bytes).min_by_key(|&i| size(&self.free[i]));
        let largest = (0..self.free.len()).max_by_key(|&i| size(&self.free[i]));
        match best.or(largest) {
            Some(position) => {
                let buffer = self.free.swap_remove(position);
                let planned = &mut self.plan.buffers[buffer];
                planned.bytes = planned.bytes.max(bytes);
                Ok(buffer)
            }
            None => {
                let (buffer, now) = (self.plan.buffers.len(), self.now());
                self.plan.buffers.push(BufferPlan { bytes, kind: BufferKind::Scratch });
                if let Some(spans) = &mut self.spans {
                    spans.resize(buffer + 1, None);
                    spans[buffer] = Some([now, usize::MAX]);
                }
                Ok(buffer)
            }
        }
    }

    fn new_buffer(&mut self, ty: &TensorType, kind: BufferKind, label: &str) -> Result<usize> {
        let bytes = self.checked_size(ty.bytes(), label)?;
        self.plan.buffers.push(BufferPlan { bytes, kind });
        Ok(self.plan.buffers.len() - 1)
    }

    fn checked_size(&self, bytes: usize, label: &str) -> Result<usize> {
        let limit = self.capabilities.max_binding_bytes;
        let padded = bytes.saturating_add(15) / 16 * 16;
        if padded as u64 > limit {
            return Err(Error::Device(format!(
                "{}: a tensor at `{label}` takes {bytes} bytes, but a binding of this device holds {limit}; \
                 use a smaller image or batch",
                self.graph.name
            )));
        }
        Ok(padded.max(16))
    }
}

/// What a dispatch reads and writes, given its bindings, which of them it writes, and their bytes.
fn traffic(bindings: &[Slot], written: &[bool], bytes: impl Fn(&Slot) -> usize) -> Traffic {
    let mut sum = Traffic::default();
    for (slot, &written) in bindings.iter().zip(written) {
        let part = if written { &mut sum.written } else { &mut sum.read };
        *part += bytes(slot) as u64;
    }
    sum
}
