//! Operators that move elements: other extents, other order, parts.

use super::builder::Builder;
use super::call::Call;
use super::value::{Constant, Traced, Value};
use pulid_graph::NodeId;
use pulid_ops::{Concat, Gather, Slice};
use pulid_tensor::{HostTensor, Result};

/// The same elements under other extents.
pub(super) fn reshaped(b: &mut Builder, value: Value, dims: Vec<usize>) -> Result<Value> {
    match value {
        Value::Constant(c) => Ok(Value::Constant(c.reshaped(dims)?)),
        Value::Node(x) if x.dims == dims => Ok(Value::Node(x)),
        Value::Node(x) => {
            let id = b.channels_first(&x)?;
            let id = b.graph.reshape(id, dims)?;
            Ok(b.plain(id))
        }
    }
}

pub(super) fn reshape(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["allowzero", "shape"])?;
    let value = b.value(call, 0)?;
    let target = match b.constant(call, 1)? {
        Some(c) => c.ints(call)?,
        None => call.ints("shape")?.ok_or_else(|| call.error("the new shape is missing"))?.to_vec(),
    };
    let from = value.dims();
    let keep_zeros = call.flag("allowzero")?;
    let fail = || call.error(format!("{from:?} does not reshape to {target:?}"));
    let mut dims = Vec::with_capacity(target.len());
    let mut open = None;
    for (axis, &n) in target.iter().enumerate() {
        dims.push(match n {
            0 if !keep_zeros => *from.get(axis).ok_or_else(fail)?,
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            n => usize::try_from(n).map_err(|_| fail())?,
        });
    }
    let product = |dims: &[usize]| dims.iter().try_fold(1usize, |all, &n| all.checked_mul(n));
    let (count, known) = (product(from).ok_or_else(fail)?, product(&dims).ok_or_else(fail)?);
    if let Some(axis) = open {
        dims[axis] = count.checked_div(known).ok_or_else(fail)?;
    }
    if product(&dims) != Some(count) {
        return Err(fail());
    }
    reshaped(b, value, dims)
}

pub(super) fn flatten(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axis"])?;
    let value = b.value(call, 0)?;
    let dims = value.dims();
    // The axis may lie behind the last.
    let axis = match call.int("axis")?.unwrap_or(1) {
        axis if axis == dims.len() as i64 => dims.len(),
        axis => call.axis(axis, dims.len())?,
    };
    let flat = vec![dims[..axis].iter().product(), dims[axis..].iter().product()];
    reshaped(b, value, flat)
}

/// Axes from an attribute, or since version 13 from an operand.
fn axes(b: &Builder, call: &Call) -> Result<Option<Vec<i64>>> {
    call.known(&["axes"])?;
    match b.constant(call, 1)? {
        Some(c) => c.ints(call).map(Some),
        None => Ok(call.ints("axes")?.map(<[i64]>::to_vec)),
    }
}

pub(super) fn unsqueeze(b: &mut Builder, call: &Call) -> Result<Value> {
    let value = b.value(call, 0)?;
    let wanted = axes(b, call)?.ok_or_else(|| call.error("axes are missing"))?;
    let rank = value.dims().len() + wanted.len();
    let mut new = wanted.iter().map(|&axis| call.axis(axis, rank)).collect::<Result<Vec<_>>>()?;
    new.sort_unstable();
    new.dedup();
    if new.len() != wanted.len() {
        return Err(call.error(format!("axes {wanted:?} repeat")));
    }
    let mut dims = value.dims().to_vec();
    new.iter().for_each(|&axis| dims.insert(axis, 1));
    reshaped(b, value, dims)
}

pub(super) fn squeeze(b: &mut Builder, call: &Call) -> Result<Value> {
    let value = b.value(call, 0)?;
    let dims = value.dims();
    let gone: Vec<usize> = match axes(b, call)? {
        Some(axes) => axes.iter().map(|&axis| call.axis(axis, dims.len())).collect::<Result<_>>()?,
        None => (0..dims.len()).filter(|&axis| dims[axis] == 1).collect(),
    };
    if let Some(&axis) = gone.iter().find(|&&axis| dims[axis] != 1) {
        return Err(call.error(format!("axis {axis} of {dims:?} has more than one element")));
    }
    let dims = (0..dims.len()).filter(|axis| !gone.contains(axis)).map(|axis| dims[axis]).collect();
    reshaped(b, value, dims)
}

pub(super) fn transpose(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["perm"])?;
    let value = b.value(call, 0)?;
    let rank = value.dims().len();
    let order: Vec<usize> = match call.ints("perm")? {
        Some(perm) => perm.iter().map(|&axis| call.axis(axis, rank)).collect::<Result<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return Err(call.error(format!("attribute `perm` = {order:?} does not reorder {rank} axes")));
    }
    if let Value::Constant(c) = &value
        && c.is_integer()
    {
        return Ok(Value::Constant(c.permuted(call, &order)?));
    }
    let x = b.materialize(call, value)?;
    // Both changes of order in one.
    let physical: Vec<usize> = order.iter().map(|&axis| x.physical(axis)).collect();
    let id = b.permute(x.id, &physical)?;
    Ok(b.plain(id))
}

pub(super) fn concat(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axis"])?;
    let parts = (0..call.node.inputs.len()).map(|i| b.value(call, i)).collect::<Result<Vec<_>>>()?;
    let Some(first) = parts.first() else { return Err(call.error("has no operand")) };
    let dims = first.dims();
    // Version 1 alone had a default.
    let axis = call.axis(call.int("axis")?.ok_or_else(|| call.error("attribute `axis` is missing"))?, dims.len())?;
    let agree =
        |other: &[usize]| other.len() == dims.len() && (0..dims.len()).all(|a| a == axis || other[a] == dims[a]);
    if let Some(odd) = parts.iter().map(Value::dims).find(|other| !agree(other)) {
        return Err(call.error(format!("{dims:?} and {odd:?} do not join along axis {axis}")));
    }
    let constants: Option<Vec<Constant>> =
        parts.iter().map(|part| if let Value::Constant(c) = part { Some(c.clone()) } else { None }).collect();
    if let Some(constants) = constants {
        return Ok(Value::Constant(Constant::concat(call, &constants, axis)?));
    }
    let parts = parts.into_iter().filter(|part| !part.dims().contains(&0));
    let parts = parts.map(|part| b.materialize(call, part)).collect::<Result<Vec<_>>>()?;
    if let Some(image) = parts.iter().find(|part| part.channels_last) {
        let axis = image.physical(axis);
        let ids = parts.iter().map(|part| b.channels_last(call, part)).collect::<Result<Vec<_>>>()?;
        let id = b.graph.apply(Concat::new(axis), &ids)?;
        return Ok(b.nhwc(id));
    }
    let ids: Vec<NodeId> = parts.iter().map(|part| part.id).collect();
    let id = b.graph.apply(Concat::new(axis), &ids)?;
    Ok(b.plain(id))
}

/// One axis of a slice: first position, step and number of elements.
#[derive(Clone, Copy)]
struct Range {
    axis: usize,
    start: usize,
    step: i64,
    count: usize,
}

impl Range {
    /// By the standard's rule: negative bounds count from the end, and bounds outside are moved to the nearest end.
    fn new(call: &Call, axis: usize, extent: usize, start: i64, end: i64, step: i64) -> Result<Self> {
        let n = extent as i64;
        let absolute = |i: i64| if i < 0 { i.saturating_add(n) } else { i };
        let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let (start, end) = (absolute(start).clamp(low.max(0), high.max(0)), absolute(end).clamp(low, high));
        let span = if step > 0 { end - start } else { start - end };
        if step == 0 {
            return Err(call.error(format!("axis {axis}: a step of 0")));
        }
        let count = (span.max(0) as u64).div_ceil(step.unsigned_abs()) as usize;
        Ok(Range { axis, start: start as usize, step, count })
    }

    fn positions(&self) -> Vec<usize> {
        (0..self.count as i64).map(|i| (self.start as i64 + i * self.step) as usize).collect()
    }
}

pub(super) fn slice(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["starts", "ends", "axes"])?;
    let operand = |index: usize, name: &str| -> Result<Option<Vec<i64>>> {
        match b.constant(call, index)? {
            Some(c) => c.ints(call).map(Some),
            None => Ok(call.ints(name)?.map(<[i64]>::to_vec)),
        }
    };
    let starts = operand(1, "starts")?.ok_or_else(|| call.error("starts are missing"))?;
    let ends = operand(2, "ends")?.ok_or_else(|| call.error("ends are missing"))?;
    let axes = operand(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = operand(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(call.error("starts, ends, axes and steps differ in number"));
    }
    let value = b.value(call, 0)?;
    let dims = value.dims().to_vec();
    let mut ranges: Vec<Range> = Vec::new();
    for i in 0..starts.len() {
        let axis = call.axis(axes[i], dims.len())?;
        if ranges.iter().any(|r| r.axis == axis) {
            return Err(call.error(format!("axes {axes:?} repeat")));
        }
        ranges.push(Range::new(call, axis, dims[axis], starts[i], ends[i], steps[i])?);
    }
    let mut x = match value {
        Value::Constant(mut c) => {
            for range in &ranges {
                c = c.pick(call, range.axis, &range.positions())?;
            }
            return Ok(Value::Constant(c));
        }
        Value::Node(x) => x,
    };
    if let Some(range) = ranges.iter().find(|range| range.count == 0) {
        return Ok(Value::empty(&x.dims, range.axis));
    }
    // Backwards steps become lists of positions; the rest is one operator.
    let (forwards, backwards): (Vec<Range>, Vec<Range>) = ranges.into_iter().partition(|r| r.step > 0);
    let shape = b.graph.shape(x.id).to_vec();
    let mut part = Slice::new(vec![0; shape.len()], shape.clone());
    for range in &forwards {
        let axis = x.physical(range.axis);
        part.starts[axis] = range.start;
        part.sizes[axis] = range.count;
        part.steps[axis] = if range.count > 1 { range.step as usize } else { 1 };
        x.dims[range.axis] = range.count;
    }
    if part.sizes != shape {
        x.id = b.graph.apply(part, &[x.id])?;
    }
    for range in &backwards {
        x = picked(b, &x, range.axis, &range.positions())?;
    }
    Ok(Value::Node(x))
}

/// Positions along one axis of a value.
pub(super) fn picked(b: &mut Builder, x: &Traced, axis: usize, positions: &[usize]) -> Result<Traced> {
    let physical = x.physical(axis);
    // Swapping two axes is its own inverse.
    let mut order: Vec<usize> = (0..x.dims.len()).collect();
    order.swap(0, physical);
    let front = b.permute(x.id, &order)?;
    let list = HostTensor::from_u32([positions.len()], positions.iter().map(|&p| p as u32).collect())?;
    let list = b.graph.constant("positions", list);
    let rows = b.graph.apply(Gather::default(), &[front, list])?;
    let id = b.permute(rows, &order)?;
    let mut dims = x.dims.clone();
    dims[axis] = positions.len();
    Ok(Traced { id, dims, channels_last: x.channels_last })
}

pub(super) fn gather(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axis"])?;
    let value = b.value(call, 0)?;
    let from = value.dims();
    let axis = call.axis(call.int("axis")?.unwrap_or(0), from.len())?;
    let indices = b.needed_constant(call, 1)?;
    let positions = indices
        .ints(call)?
        .iter()
        .map(|&i| call.axis(i, from[axis]))
        .collect::<Result<Vec<usize>>>()
        .map_err(|_| call.error(format!("an index lies outside axis {axis} of {from:?}")))?;
    if positions.is_empty() {
        return Err(call.error("gathers nothing"));
    }
    let dims = [&from[..axis], &indices.dims[..], &from[axis + 1..]].concat();
    let picked = match value {
        Value::Constant(c) => Value::Constant(c.pick(call, axis, &positions)?),
        Value::Node(x) => Value::Node(picked(b, &x, axis, &positions)?),
    };
    reshaped(b, picked, dims)
}
