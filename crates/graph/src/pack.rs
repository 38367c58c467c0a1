//! Which values between operators lie in the same buffer, chosen with the whole plan in view.

use crate::plan::{BufferKind, BufferPlan, Plan};

/// The steps during which a scratch buffer holds something, counted through prologue and steps, both ends included.
pub(crate) type Span = [usize; 2];

/// Puts values that are never there at the same time into one buffer: the largest first, each into the smallest buffer that is free all the
/// while ("greedy by size for shared objects" of Pisarchyk and Lee, arXiv 2001.03288). `spans` are of the plan's scratch buffers, of which
/// each holds one value.
pub(crate) fn pack(plan: &mut Plan, spans: &[Option<Span>]) {
    let span = |buffer: usize| spans.get(buffer).copied().flatten().unwrap_or([0, usize::MAX]);
    let order = plan.scratch_buffers();
    // Buffers that were made, with the spans that are taken. They become smaller from one to the next.
    let mut made: Vec<(BufferPlan, Vec<Span>)> = Vec::new();
    let mut place = vec![0; plan.buffers.len()];
    for buffer in order {
        let [first, last] = span(buffer);
        let free = |(_, taken): &(BufferPlan, Vec<Span>)| taken.iter().all(|[a, b]| *b < first || last < *a);
        let found = made.iter().rposition(free).unwrap_or_else(|| {
            made.push((plan.buffers[buffer].clone(), Vec::new()));
            made.len() - 1
        });
        made[found].1.push([first, last]);
        place[buffer] = found;
    }
    let mut buffers: Vec<BufferPlan> = Vec::new();
    let mut moved = vec![0; plan.buffers.len()];
    let kept = plan.buffers.iter().enumerate().filter(|(_, b)| b.kind != BufferKind::Scratch);
    for (buffer, planned) in kept {
        moved[buffer] = buffers.len();
        buffers.push(planned.clone());
    }
    for (buffer, planned) in plan.buffers.iter().enumerate() {
        if planned.kind == BufferKind::Scratch {
            moved[buffer] = buffers.len() + place[buffer];
        }
    }
    buffers.extend(made.into_iter().map(|(planned, _)| planned));
    plan.buffers = buffers;
    let ports = plan.inputs.iter_mut().chain(&mut plan.outputs).chain(&mut plan.weights);
    ports.for_each(|port| port.buffer = moved[port.buffer]);
    for step in plan.prologue.iter_mut().chain(&mut plan.steps) {
        step.output_buffer = moved[step.output_buffer];
        for dispatch in &mut step.dispatches {
            dispatch.buffers.iter_mut().for_each(|buffer| *buffer = moved[*buffer]);
            dispatch.alternatives.iter_mut().for_each(|other| other.buffer = moved[other.buffer]);
        }
    }
}
