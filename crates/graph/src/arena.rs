//! Places for values between operators in a few large buffers, which several plans use by turns.

use crate::plan::{BufferKind, Plan};
use std::cmp::Reverse;
use std::collections::HashMap;

/// Offsets are multiples of it: the largest alignment that a device may ask of storage bindings.
const ALIGNMENT: usize = 256;

/// Most bytes of an arena, where a device takes as many: drivers begin to refuse allocations somewhere above.
const LARGEST: u64 = 2 << 30;

/// Bytes of large buffers in which plans find places for their values, one plan after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arenas(Vec<usize>);

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position among the arenas.
    pub arena: usize,
    /// Bytes before it.
    pub offset: usize,
}

/// What a plan holds between its operators.
#[derive(Clone, Debug, Default)]
pub struct ScratchValues {
    values: Vec<Value>,
    /// Bytes of the values that are there at the same time: no places take less.
    peak: usize,
}

#[derive(Clone, Debug)]
struct Value {
    /// Index into [`Plan::buffers`].
    buffer: usize,
    /// A multiple of [`ALIGNMENT`].
    bytes: usize,
    /// The first and the last dispatch that it is needed in, counted through prologue and steps.
    span: [usize; 2],
    /// Buffers of values that a dispatch writes while it reads this one, or reads while it writes it. WebGPU tracks usage by whole
    /// buffer, and lets none be both in one dispatch.
    apart: Vec<usize>,
}

/// A value's part of an arena.
struct Taken {
    offset: usize,
    end: usize,
    span: [usize; 2],
}

/// Most bytes of an arena on a device that takes buffers of `max_buffer_bytes`.
pub fn largest_arena(max_buffer_bytes: u64) -> usize {
    max_buffer_bytes.min(LARGEST) as usize / ALIGNMENT * ALIGNMENT
}

/// In which order values find places: by what they take of bytes times time, by bytes, or by time. Which is best depends on the plan.
const ORDERS: [fn(&Value) -> [u64; 2]; 3] = [
    |value| [value.bytes as u64 * value.length(), value.bytes as u64],
    |value| [value.bytes as u64, value.length()],
    |value| [value.length(), value.bytes as u64],
];

impl Value {
    /// Dispatches that it is needed in.
    fn length(&self) -> u64 {
        (1 + self.span[1] - self.span[0]) as u64
    }
}

fn meet(a: [usize; 2], b: [usize; 2]) -> bool {
    a[0] <= b[1] && b[0] <= a[1]
}

impl ScratchValues {
    /// The values of a plan's scratch buffers.
    pub(crate) fn of(plan: &Plan) -> ScratchValues {
        let mut values: HashMap<usize, Value> = HashMap::new();
        let steps = plan.prologue.iter().chain(&plan.steps);
        for (now, dispatch) in steps.clone().flat_map(|step| &step.dispatches).enumerate() {
            let bound = dispatch.buffers.iter().copied().zip(dispatch.written.iter().copied());
            let all = bound.chain(dispatch.alternatives.iter().map(|other| (other.buffer, false)));
            let all: Vec<_> = all.filter(|(buffer, _)| plan.buffers[*buffer].kind == BufferKind::Scratch).collect();
            for &(buffer, written) in &all {
                let bytes = plan.buffers[buffer].bytes.next_multiple_of(ALIGNMENT);
                let new = || Value { buffer, bytes, span: [now, now], apart: Vec::new() };
                let value = values.entry(buffer).or_insert_with(new);
                value.span[1] = now;
                value.apart.extend(all.iter().filter(|(_, other)| *other != written).map(|(buffer, _)| buffer));
            }
        }
        // Outputs stay until the end.
        let end = steps.map(|step| step.dispatches.len()).sum();
        for port in &plan.outputs {
            if let Some(value) = values.get_mut(&port.buffer) {
                value.span[1] = end;
            }
        }
        let mut values: Vec<Value> = values.into_values().collect();
        values.sort_by_key(|value| value.buffer);
        let peak = peak(&values);
        ScratchValues { values, peak }
    }
}

/// Most bytes that are there at the same time.
fn peak(values: &[Value]) -> usize {
    let begins = values.iter().map(|value| (value.span[0], true, value.bytes));
    let ends = values.iter().map(|value| (value.span[1] + 1, false, value.bytes));
    let mut changes: Vec<_> = begins.chain(ends).collect();
    changes.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, begins, bytes) in changes {
        now = if begins { now + bytes } else { now - bytes };
        most = most.max(now);
    }
    most
}

impl Arenas {
    /// In which each of these finds places, whichever comes first, in arenas of at most `largest` bytes, or of one value.
    pub fn for_all<'a>(plans: impl IntoIterator<Item = &'a ScratchValues>, largest: usize) -> Arenas {
        let mut plans: Vec<_> = plans.into_iter().collect();
        plans.sort_by_key(|plan| Reverse(plan.peak));
        let mut arenas = Arenas::default();
        // With more room values may go elsewhere, so that what fitted before is tried again.
        loop {
            let before = arenas.clone();
            plans.iter().for_each(|plan| arenas.0 = place(plan, &arenas.0, 0, largest).0);
            if arenas == before {
                return arenas;
            }
        }
    }

    /// Places for the values of one more plan, by their buffers in it, while the arenas stay as large as they are. What finds no room
    /// lies in arenas that come after them.
    pub fn take(&mut self, values: &ScratchValues, largest: usize) -> Vec<(usize, Place)> {
        let (arenas, places) = place(values, &self.0, self.0.len(), largest);
        self.0 = arenas;
        places
    }

    /// Bytes of each.
    pub fn each(&self) -> &[usize] {
        &self.0
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.0.iter().sum()
    }
}

impl FromIterator<usize> for Arenas {
    fn from_iter<I: IntoIterator<Item = usize>>(bytes: I) -> Arenas {
        Arenas(bytes.into_iter().collect())
    }
}

/// Where each value lies, by its buffer.
type Places = Vec<(usize, Place)>;

/// Arenas with places for all values, by the order that makes them grow least. The first `fixed` do not grow.
fn place(plan: &ScratchValues, arenas: &[usize], fixed: usize, largest: usize) -> (Vec<usize>, Places) {
    let mut best: Option<(Vec<usize>, Places)> = None;
    let bytes = |arenas: &[usize]| arenas.iter().sum::<usize>();
    for order in ORDERS {
        let mut values: Vec<&Value> = plan.values.iter().collect();
        values.sort_by_key(|value| Reverse(order(value)));
        let mut grown = arenas.to_vec();
        let places = place_in_turn(&values, &mut grown, fixed, largest);
        if best.as_ref().is_none_or(|(best, _)| bytes(&grown) < bytes(best)) {
            best = Some((grown, places));
        }
        if best.as_ref().is_some_and(|(best, _)| best == arenas) {
            break;
        }
    }
    best.unwrap_or_default()
}

/// Puts one value after another into the first gap that holds it while it is needed, or else where the arenas grow least.
fn place_in_turn(values: &[&Value], arenas: &mut Vec<usize>, fixed: usize, largest: usize) -> Places {
    let mut placed: HashMap<usize, usize> = HashMap::new();
    // What is taken of each arena, by offset.
    let mut taken: Vec<Vec<Taken>> = arenas.iter().map(|_| Vec::new()).collect();
    let mut places = Vec::with_capacity(values.len());
    for value in values {
        let closed: Vec<usize> = value.apart.iter().filter_map(|buffer| placed.get(buffer)).copied().collect();
        // How much the arena of the place would have to grow, and the place.
        let mut best = (value.bytes, Place { arena: arenas.len(), offset: 0 });
        for arena in (0..arenas.len()).filter(|arena| !closed.contains(arena)) {
            let offset = first_gap(&taken[arena], value);
            let end = offset + value.bytes;
            let growth = end.saturating_sub(arenas[arena]);
            let may = growth == 0 || (arena >= fixed && end <= largest);
            if may && (growth < best.0 || (growth == best.0 && arena < best.1.arena)) {
                best = (growth, Place { arena, offset });
            }
            if best.0 == 0 {
                break;
            }
        }
        let (_, place @ Place { arena, offset }) = best;
        if arena == arenas.len() {
            arenas.push(0);
            taken.push(Vec::new());
        }
        let end = offset + value.bytes;
        arenas[arena] = arenas[arena].max(end);
        let after = taken[arena].partition_point(|other| other.offset <= offset);
        taken[arena].insert(after, Taken { offset, end, span: value.span });
        placed.insert(value.buffer, arena);
        places.push((value.buffer, place));
    }
    places
}

/// Where a value finds room while it is needed.
fn first_gap(taken: &[Taken], value: &Value) -> usize {
    let mut free = 0;
    for other in taken.iter().filter(|other| meet(other.span, value.span)) {
        if free + value.bytes <= other.offset {
            break;
        }
        free = free.max(other.end);
    }
    free
}
