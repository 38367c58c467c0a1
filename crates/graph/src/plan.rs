//! The plan: plain data that an engine runs without knowing any operator.

use crate::{Arenas, ScratchValues, Traffic};
use pulid_ops::Cost;
use pulid_tensor::TensorType;
use serde::Serialize;
use std::fmt::Write as _;

/// What a planned buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BufferKind {
    /// Written by the caller.
    Input,
    /// Read from a checkpoint.
    Weight,
    /// Computed once per run and kept while stepping.
    Hoisted,
    /// Reused by values whose lifetimes do not overlap.
    Scratch,
    /// Read back by the caller.
    Output,
    /// Streamed weights pass through it, one after another.
    Slot,
}

/// One GPU buffer.
#[derive(Clone, Debug, Serialize)]
pub struct BufferPlan {
    /// Size in bytes, a multiple of 16.
    pub bytes: usize,
    /// Purpose.
    pub kind: BufferKind,
}

/// A named tensor that the caller writes or reads, or a weight.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// Name in the contract, or checkpoint key.
    pub name: String,
    /// Shape and element type.
    pub ty: TensorType,
    /// Index into [`Plan::buffers`].
    pub buffer: usize,
    /// For inputs: whether a change makes the prologue run again.
    pub hoisted: bool,
}

/// One compute dispatch with its buffers.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedDispatch {
    /// Shader name.
    pub shader: &'static str,
    /// Shader features.
    pub features: Vec<&'static str>,
    /// Values of pipeline-overridable constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Buffer of each storage binding 1, 2, ...
    pub buffers: Vec<usize>,
    /// Whether each is written.
    #[serde(skip)]
    pub written: &'static [bool],
    /// Other buffers for bindings that read what may be left out, in the order of [`PlannedDispatch::bound`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// Bytes of the uniform at binding 0.
    #[serde(skip)]
    pub params: Vec<u8>,
    /// Readable parameters.
    #[serde(rename = "params")]
    pub params_text: String,
    /// Workgroups.
    pub grid: [u32; 3],
    /// Bytes of what it reads and writes.
    #[serde(skip)]
    pub traffic: Traffic,
}

/// What a binding reads instead while an input is zero: see [`Operator::passes_when_zero`](pulid_ops::Operator::passes_when_zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Alternative {
    /// Position in [`PlannedDispatch::buffers`].
    pub binding: usize,
    /// The input, an index into [`Plan::inputs`].
    pub input: usize,
    /// The buffer to read then.
    pub buffer: usize,
}

impl PlannedDispatch {
    /// The buffers to bind while the inputs for which `zero` answers so hold nothing but zeros.
    pub fn bound(&self, zero: impl Fn(usize) -> bool) -> Vec<usize> {
        let choose = |(binding, &buffer): (usize, &usize)| {
            let own = self.alternatives.iter().filter(|a| a.binding == binding);
            own.take_while(|a| zero(a.input)).last().map_or(buffer, |a| a.buffer)
        };
        self.buffers.iter().enumerate().map(choose).collect()
    }
}

/// One operator of the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Place in the network.
    pub label: String,
    /// Operator name and attributes.
    pub operator: String,
    /// Chosen kernel variant.
    pub variant: &'static str,
    /// Type of the result.
    pub output: TensorType,
    /// Buffer of the result.
    pub output_buffer: usize,
    /// Work.
    pub cost: Cost,
    /// The input, an index into [`Plan::inputs`], whose zeros make the step superfluous.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unless_zero: Option<usize>,
    /// Dispatches in order.
    pub dispatches: Vec<PlannedDispatch>,
}

/// Consecutive steps and the streamed weights that must be uploaded before them. It ends where the next stage begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Its first step.
    pub first: usize,
    /// Indices into [`Plan::weights`].
    pub weights: Vec<usize>,
}

/// Everything a device needs to run a network.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Name of the network.
    pub network: String,
    /// Buffers to allocate.
    pub buffers: Vec<BufferPlan>,
    /// Where scratch buffers are parts of larger ones, which other plans use too: what they take alone. Empty where each is its own.
    #[serde(skip)]
    pub arenas: Arenas,
    /// What the caller writes.
    pub inputs: Vec<Port>,
    /// What the caller reads.
    pub outputs: Vec<Port>,
    /// What is uploaded once, in the order of the weights the planner returns.
    pub weights: Vec<Port>,
    /// Run once after an input of [`Rate::Run`](crate::Rate::Run) changed.
    pub prologue: Vec<Step>,
    /// Run every time.
    pub steps: Vec<Step>,
    /// How weights stream through the prologue; empty where all stay.
    pub prologue_stages: Vec<Stage>,
    /// How weights stream through the steps; empty where all stay.
    pub stages: Vec<Stage>,
}

/// Sizes and counts of a plan, for tests that hold them and for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlanSummary {
    /// Bytes of weights that stay, and of the slots that the others stream through.
    pub weight_bytes: usize,
    /// Bytes of weights that are uploaded for each run of the prologue or the steps.
    pub streamed_bytes: usize,
    /// Bytes of all other buffers together: what stepping needs at its peak.
    pub working_bytes: usize,
    /// Dispatches of the prologue.
    pub prologue_dispatches: usize,
    /// Dispatches of one step.
    pub step_dispatches: usize,
    /// Floating-point operations of one step.
    pub step_flops: u64,
}

impl Plan {
    /// What it holds between its operators, for places in arenas.
    pub fn scratch(&self) -> ScratchValues {
        ScratchValues::of(self)
    }

    /// Bytes for its values between operators.
    pub fn scratch_bytes(&self) -> usize {
        match self.arenas.bytes() {
            0 => self.scratch_buffers().iter().map(|&i| self.buffers[i].bytes).sum(),
            bytes => bytes,
        }
    }

    /// Its buffers for values between operators, the largest first.
    pub(crate) fn scratch_buffers(&self) -> Vec<usize> {
        let is_scratch = |i: &usize| self.buffers[*i].kind == BufferKind::Scratch;
        let mut places: Vec<usize> = (0..self.buffers.len()).filter(is_scratch).collect();
        places.sort_by_key(|&i| std::cmp::Reverse(self.buffers[i].bytes));
        places
    }

    /// Sizes and counts.
    pub fn summary(&self) -> PlanSummary {
        let bytes = |weights: bool| -> usize {
            let of_kind = |b: &&BufferPlan| matches!(b.kind, BufferKind::Weight | BufferKind::Slot) == weights;
            let stay = self.buffers.iter().filter(|b| b.kind != BufferKind::Scratch);
            stay.filter(of_kind).map(|b| b.bytes).sum()
        };
        PlanSummary {
            weight_bytes: bytes(true),
            streamed_bytes: self.streamed().map(|w| self.weights[w].ty.bytes()).sum(),
            working_bytes: bytes(false) + self.scratch_bytes(),
            prologue_dispatches: self.prologue.iter().map(|s| s.dispatches.len()).sum(),
            step_dispatches: self.steps.iter().map(|s| s.dispatches.len()).sum(),
            step_flops: self.steps.iter().map(|s| s.cost.flops).sum(),
        }
    }

    /// Indices of the weights that stream.
    pub fn streamed(&self) -> impl Iterator<Item = usize> {
        self.prologue_stages.iter().chain(&self.stages).flat_map(|s| &s.weights).copied()
    }

    /// The plan as text: one line a buffer, a port and a dispatch. Stable, so that snapshots show what a change did.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let s = self.summary();
        let _ = writeln!(text, "plan {}", self.network);
        let _ = writeln!(
            text,
            "weights {} B, working {} B, prologue {} dispatches, step {} dispatches, {} flop",
            s.weight_bytes, s.working_bytes, s.prologue_dispatches, s.step_dispatches, s.step_flops
        );
        if s.streamed_bytes > 0 {
            let slots = self.buffers.iter().filter(|b| b.kind == BufferKind::Slot);
            let slot_bytes: usize = slots.clone().map(|b| b.bytes).sum();
            let _ = writeln!(
                text,
                "stays {} B, streams {} B in {} weights and {} stages through {} slots of {slot_bytes} B, peak {} B",
                s.weight_bytes - slot_bytes,
                s.streamed_bytes,
                self.streamed().count(),
                self.prologue_stages.len() + self.stages.len(),
                slots.count(),
                s.weight_bytes + s.working_bytes
            );
        }
        for (i, b) in self.buffers.iter().enumerate().filter(|(_, b)| b.kind != BufferKind::Weight) {
            let _ = writeln!(text, "buffer {i} {:?} {} B", b.kind, b.bytes);
        }
        for (what, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            for p in ports {
                let _ = writeln!(text, "{what} {} {} buffer {}", p.name, p.ty, p.buffer);
            }
        }
        for (what, steps, stages) in
            [("prologue", &self.prologue, &self.prologue_stages), ("step", &self.steps, &self.stages)]
        {
            for (i, step) in steps.iter().enumerate() {
                let stage = stages.iter().rev().find(|s| s.first <= i);
                let unless = step.unless_zero.map(|i| format!(", unless {} is zero", self.inputs[i].name));
                let _ = writeln!(
                    text,
                    "{what} {} {} [{}] -> {}{}",
                    step.label,
                    step.operator,
                    step.variant,
                    step.output,
                    unless.unwrap_or_default()
                );
                for d in &step.dispatches {
                    let name = |(binding, &buffer): (usize, &usize)| {
                        let own = d.alternatives.iter().filter(|a| a.binding == binding);
                        let others = own.map(|a| format!(" else {}", self.buffer_name(a.buffer, stage)));
                        self.buffer_name(buffer, stage) + &others.collect::<String>()
                    };
                    let buffers: Vec<_> = d.buffers.iter().enumerate().map(name).collect();
                    let constants: Vec<_> = d.constants.iter().map(|(n, v)| format!(" {n}={v}")).collect();
                    let features = d.features.join("+");
                    let _ = writeln!(
                        text,
                        "  {} {features}{} grid {:?} ({}) {}",
                        d.shader,
                        constants.concat(),
                        d.grid,
                        buffers.join(", "),
                        d.params_text
                    );
                }
            }
        }
        text
    }

    /// A weight's name, of a slot that of the weight which lies in it during a stage.
    fn buffer_name(&self, buffer: usize, stage: Option<&Stage>) -> String {
        let mut streamed = stage.into_iter().flat_map(|s| &s.weights).map(|&w| &self.weights[w]);
        let stays = |w: &&Port| w.buffer == buffer && self.buffers[buffer].kind == BufferKind::Weight;
        match streamed.find(|w| w.buffer == buffer).or_else(|| self.weights.iter().find(stays)) {
            Some(w) => w.name.clone(),
            None => format!("#{buffer}"),
        }
    }
}
