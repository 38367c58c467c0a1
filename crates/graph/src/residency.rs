//! Fitting a plan into a budget of device memory: what stays, what streams.
//!
//! Weights that do not fit are uploaded anew for every run, stage by stage: a stage is some consecutive steps and the streamed
//! weights they read. Two stages in a row share no buffer, so that one's weights are uploaded while the other computes.

use crate::PlannedGraph;
use crate::plan::{BufferKind, BufferPlan, Plan, Stage, Step};
use pulid_tensor::{Error, Result};
use std::collections::HashMap;

/// Bytes of a stage's weights, about: enough to hide the cost of a submission, little enough to keep the slots small.
fn stage_bytes(plan: &Plan) -> usize {
    (plan.summary().weight_bytes / 32).clamp(256 << 10, 64 << 20)
}

/// Finenesses with which the share of streamed weights is tried.
const SHARES: usize = 64;

/// The plan with as many weights streamed as `budget` bytes demand; unchanged where everything fits.
///
/// # Errors
/// When the budget is too small even with every weight streamed; the message says what would do.
pub fn fit(planned: PlannedGraph, budget: u64) -> Result<PlannedGraph> {
    let summary = planned.plan.summary();
    if (summary.weight_bytes + summary.working_bytes) as u64 <= budget {
        return Ok(planned);
    }
    let uses = uses(&planned.plan);
    let mut smallest = usize::MAX;
    for share in 0..=SHARES {
        let plan = streamed(&planned.plan, &uses, share as f64 / SHARES as f64);
        let summary = plan.summary();
        let peak = summary.weight_bytes + summary.working_bytes;
        if peak as u64 <= budget {
            return Ok(PlannedGraph { plan, weights: planned.weights });
        }
        smallest = smallest.min(peak);
    }
    Err(Error::Device(format!(
        "{} does not fit a budget of {} of device memory: it needs {}, of which values between operators take {}; raise \
         `memory`, choose a smaller image or quantise the weights",
        planned.plan.network,
        bytes(budget as usize),
        bytes(smallest),
        bytes(planned.plan.summary().working_bytes)
    )))
}

fn bytes(n: usize) -> String {
    match n {
        ..0x4000_0000 => format!("{:.1} MiB", n as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", n as f64 / f64::from(1 << 30)),
    }
}

/// The only step that reads each weight, in both phases; none for weights that several steps read: these stay.
fn uses(plan: &Plan) -> Vec<Option<(Phase, usize)>> {
    let weight_of: HashMap<usize, usize> = plan.weights.iter().enumerate().map(|(i, w)| (w.buffer, i)).collect();
    let mut readers: Vec<Vec<(Phase, usize)>> = vec![Vec::new(); plan.weights.len()];
    for (phase, steps) in [(Phase::Prologue, &plan.prologue), (Phase::Steps, &plan.steps)] {
        for (i, step) in steps.iter().enumerate() {
            let mut read: Vec<usize> =
                step.dispatches.iter().flat_map(|d| &d.buffers).filter_map(|b| weight_of.get(b).copied()).collect();
            read.sort_unstable();
            read.dedup();
            read.into_iter().for_each(|w| readers[w].push((phase, i)));
        }
    }
    readers.into_iter().map(|r| if let [only] = r[..] { Some(only) } else { None }).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Prologue,
    Steps,
}

/// Small vectors always stay: uploading each would cost more than it frees.
const SMALLEST: usize = 64 << 10;

/// The plan with all weights of the prologue and this share of the others streamed, evenly spread over the steps.
fn streamed(plan: &Plan, uses: &[Option<(Phase, usize)>], share: f64) -> Plan {
    let size = |w: usize| plan.buffers[plan.weights[w].buffer].bytes;
    let mut of_step: HashMap<(bool, usize), Vec<usize>> = HashMap::new();
    for (w, place) in uses.iter().enumerate() {
        if let Some((phase, step)) = place
            && size(w) >= SMALLEST
        {
            of_step.entry((*phase == Phase::Steps, *step)).or_default().push(w);
        }
    }
    let stage_bytes = stage_bytes(plan);
    let (mut seen, mut taken) = (0usize, 0usize);
    let mut slots = Slots::default();
    let mut slot_of: HashMap<usize, usize> = HashMap::new();
    let mut phases = [Vec::new(), Vec::new()];
    let mut stage = 0;
    for (stages, steps, in_steps) in [(0, &plan.prologue, false), (1, &plan.steps, true)] {
        let stages: &mut Vec<Stage> = &mut phases[stages];
        let mut held = 0;
        for i in 0..steps.len() {
            let mut weights = Vec::new();
            for &w in of_step.get(&(in_steps, i)).into_iter().flatten() {
                seen += if in_steps { size(w) } else { 0 };
                if !in_steps || (taken as f64) < share * seen as f64 {
                    taken += if in_steps { size(w) } else { 0 };
                    weights.push(w);
                }
            }
            let more: usize = weights.iter().map(|&w| size(w)).sum();
            if stages.is_empty() || (held > 0 && held + more > stage_bytes) {
                stages.push(Stage { first: i, weights: Vec::new() });
                stage += 1;
                held = 0;
            }
            held += more;
            for w in weights {
                slot_of.insert(w, slots.take(size(w), stage));
                if let Some(last) = stages.last_mut() {
                    last.weights.push(w);
                }
            }
        }
    }
    let [prologue_stages, stages] = phases;
    rebuilt(plan, &slot_of, &slots, prologue_stages, stages)
}

/// Buffers that streamed weights pass through.
#[derive(Default)]
struct Slots {
    /// Size, and the last stage that uses it.
    slots: Vec<(usize, usize)>,
}

impl Slots {
    /// A slot that neither this stage nor the one before it uses: the one that fits best, else the largest one grown.
    fn take(&mut self, bytes: usize, stage: usize) -> usize {
        let free = || (0..self.slots.len()).filter(|&i| self.slots[i].1 + 1 < stage);
        let fitting = free().filter(|&i| self.slots[i].0 >= bytes).min_by_key(|&i| self.slots[i].0);
        let chosen = fitting.or_else(|| free().max_by_key(|&i| self.slots[i].0));
        let slot = chosen.unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some((size, last)) => (*size, *last) = ((*size).max(bytes), stage),
            None => self.slots.push((bytes, stage)),
        }
        slot
    }
}

/// The plan over renumbered buffers: those of streamed weights are gone, the slots come last.
fn rebuilt(
    plan: &Plan,
    slot_of: &HashMap<usize, usize>,
    slots: &Slots,
    prologue_stages: Vec<Stage>,
    stages: Vec<Stage>,
) -> Plan {
    let streamed: HashMap<usize, usize> = slot_of.iter().map(|(&w, &slot)| (plan.weights[w].buffer, slot)).collect();
    let mut kept = 0;
    let numbers: Vec<Option<usize>> = (0..plan.buffers.len())
        .map(|b| {
            let stays = !streamed.contains_key(&b);
            kept += usize::from(stays);
            stays.then(|| kept - 1)
        })
        .collect();
    let number = |b: usize| numbers[b].unwrap_or_else(|| kept + streamed.get(&b).copied().unwrap_or_default());
    let mut result = plan.clone();
    result.buffers =
        (0..plan.buffers.len()).filter(|&b| numbers[b].is_some()).map(|b| plan.buffers[b].clone()).collect();
    result.buffers.extend(slots.slots.iter().map(|&(bytes, _)| BufferPlan { bytes, kind: BufferKind::Slot }));
    let renumber = |step: &mut Step| {
        step.output_buffer = number(step.output_buffer);
        for dispatch in &mut step.dispatches {
            dispatch.buffers.iter_mut().for_each(|b| *b = number(*b));
            dispatch.alternatives.iter_mut().for_each(|a| a.buffer = number(a.buffer));
        }
    };
    result.prologue.iter_mut().chain(&mut result.steps).for_each(renumber);
    for port in result.inputs.iter_mut().chain(&mut result.outputs).chain(&mut result.weights) {
        port.buffer = number(port.buffer);
    }
    (result.prologue_stages, result.stages) = (prologue_stages, stages);
    result
}
