//! Operators that move elements: borders, repetition, parts, blocks.

use super::builder::Builder;
use super::call::Call;
use super::fold::{broadcast, extents};
use super::movement::picked;
use super::pointwise::combine;
use super::value::{Constant, Traced, Value, foldable};
use crate::layers;
use pulid_ops::{BinaryFunction, Pad, Slice};
use pulid_tensor::{DType, HostTensor, Result};

/// Consecutive parts along an axis.
pub(super) fn split(b: &mut Builder, call: &Call) -> Result<Vec<Value>> {
    call.known(&["axis", "split", "num_outputs"])?;
    let value = b.value(call, 0)?;
    let axis = call.axis(call.int("axis")?.unwrap_or(0), value.dims().len())?;
    let extent = value.dims()[axis];
    let sizes = match b.constant(call, 1)? {
        Some(c) => Some(c.ints(call)?),
        None => call.ints("split")?.map(<[i64]>::to_vec),
    };
    let sizes = match sizes {
        Some(sizes) => extents(call, &sizes)?,
        None => {
            let count = call.node.outputs.len();
            if count == 0 || call.int("num_outputs")?.is_some_and(|n| n != count as i64) {
                return Err(call.error(format!("`num_outputs` is not the number of its {count} results")));
            }
            // The last part may be smaller.
            let size = extent.div_ceil(count);
            (0..count).map(|i| extent.saturating_sub(i * size).min(size)).collect()
        }
    };
    if sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(extent) {
        return Err(call.error(format!("parts of {sizes:?} do not make up {extent} elements")));
    }
    let mut start = 0;
    let mut parts = Vec::new();
    for size in sizes {
        parts.push(match &value {
            Value::Constant(c) => Value::Constant(c.pick(call, axis, &(start..start + size).collect::<Vec<_>>())?),
            Value::Node(x) if size == 0 => Value::empty(&x.dims, axis),
            Value::Node(x) => {
                let shape = b.graph.shape(x.id).to_vec();
                let part = Slice::along(&shape, x.physical(axis), start, size);
                let id = b.graph.apply(part, &[x.id])?;
                b.like(x, id)
            }
        });
        start += size;
    }
    Ok(parts)
}

/// A border of a constant, or of the tensor's own elements.
pub(super) fn pad(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["mode", "pads", "value", "paddings"])?;
    let value = b.value(call, 0)?;
    let x = b.materialize(call, value)?;
    let rank = x.dims.len();
    let widths = match b.constant(call, 1)? {
        Some(c) => c.ints(call)?,
        None => {
            let widths = call.ints("pads")?.or(call.ints("paddings")?);
            widths.ok_or_else(|| call.error("the widths are missing"))?.to_vec()
        }
    };
    let axes = match b.constant(call, 3)? {
        Some(c) => c.ints(call)?.iter().map(|&axis| call.axis(axis, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    if widths.len() != 2 * axes.len() {
        return Err(call.error(format!("{} widths for {} axes", widths.len(), axes.len())));
    }
    let (mut before, mut after) = (vec![0i64; rank], vec![0i64; rank]);
    for (i, &axis) in axes.iter().enumerate() {
        (before[axis], after[axis]) = (widths[i], widths[i + axes.len()]);
    }
    for axis in 0..rank {
        let size = (x.dims[axis] as i64).checked_add(before[axis]).and_then(|n| n.checked_add(after[axis]));
        if !size.is_some_and(|n| n > 0 && u32::try_from(n).is_ok()) {
            return Err(call.error(format!("widths {widths:?} leave no possible axis {axis} of {:?}", x.dims)));
        }
    }
    let mode = call.text("mode", "constant")?;
    if mode != "constant" {
        let mut x = x;
        for axis in (0..rank).filter(|&axis| (before[axis], after[axis]) != (0, 0)) {
            let n = x.dims[axis] as i64;
            foldable(call, &[(n + before[axis] + after[axis]) as usize])?;
            let positions =
                (-before[axis]..n + after[axis]).map(|i| border(call, mode, i, n)).collect::<Result<Vec<_>>>()?;
            x = picked(b, &x, axis, &positions)?;
        }
        return Ok(Value::Node(x));
    }
    let filling = match b.constant(call, 2) {
        Ok(Some(c)) if c.count() == 1 => c.floats(call)?[0],
        Ok(Some(c)) => return Err(call.error(format!("the value must be a scalar, got {:?}", c.dims))),
        Ok(None) => call.float("value")?.unwrap_or(0.0),
        Err(_) => return padded_by_value(b, call, &x, &before, &after),
    };
    constant_border(b, &x, &before, &after, filling)
}

/// Positive widths add, negative ones take away.
fn constant_border(b: &mut Builder, x: &Traced, before: &[i64], after: &[i64], value: f32) -> Result<Value> {
    let shape = b.graph.shape(x.id).to_vec();
    let (mut start, mut size) = (vec![0; shape.len()], shape.clone());
    let (mut first, mut last) = (vec![0; shape.len()], vec![0; shape.len()]);
    for axis in 0..before.len() {
        let at = x.physical(axis);
        start[at] = (-before[axis]).max(0) as usize;
        size[at] = shape[at].saturating_sub(start[at] + (-after[axis]).max(0) as usize);
        (first[at], last[at]) = (before[axis].max(0) as usize, after[axis].max(0) as usize);
    }
    let mut id = x.id;
    if size != shape {
        id = b.graph.apply(Slice::new(start, size), &[id])?;
    }
    if first.iter().chain(&last).any(|&n| n > 0) {
        id = b.graph.apply(Pad { before: first, after: last, value }, &[id])?;
    }
    Ok(b.like(x, id))
}

/// A border of a number that the graph computes.
fn padded_by_value(b: &mut Builder, call: &Call, x: &Traced, before: &[i64], after: &[i64]) -> Result<Value> {
    let number = b.value(call, 2)?;
    let inside = constant_border(b, x, before, after, 0.0)?;
    let dims = x.dims.clone();
    let zeros = b.weight(call, DType::F32, dims.clone(), move || Ok(HostTensor::zeros(dims.clone())));
    let zeros = Traced {
        id: layers::cast(&mut b.graph, zeros, b.precision.activations)?,
        dims: x.dims.clone(),
        channels_last: false,
    };
    let border = constant_border(b, &zeros, before, after, 1.0)?;
    let border = combine(b, call, BinaryFunction::Mul, border, number)?;
    combine(b, call, BinaryFunction::Add, inside, border)
}

/// The position of n that stands at position i beyond its ends.
fn border(call: &Call, mode: &str, i: i64, n: i64) -> Result<usize> {
    Ok(match mode {
        "edge" => i.clamp(0, n - 1) as usize,
        "wrap" => i.rem_euclid(n) as usize,
        "reflect" if n == 1 => 0,
        "reflect" => {
            let period = 2 * (n - 1);
            let at = i.rem_euclid(period);
            at.min(period - at) as usize
        }
        other => return Err(call.unsupported("mode", other)),
    })
}

/// Repetition along axes of extent 1, by NumPy's rule in both directions.
pub(super) fn expand(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let value = b.value(call, 0)?;
    let wanted = extents(call, &b.needed_constant(call, 1)?.ints(call)?)?;
    let shape = broadcast(call, &[value.dims(), &wanted])?;
    match value {
        Value::Constant(c) => c.expanded(call, shape).map(Value::Constant),
        Value::Node(x) if x.dims == shape => Ok(Value::Node(x)),
        Value::Node(x) if x.channels_last && shape.len() == 4 => {
            let physical = [0, 2, 3, 1].map(|axis| shape[axis]);
            let id = layers::expand(&mut b.graph, x.id, physical)?;
            Ok(b.nhwc(id))
        }
        Value::Node(x) => {
            let id = b.channels_first(&x)?;
            let id = layers::expand(&mut b.graph, id, shape)?;
            Ok(b.plain(id))
        }
    }
}

/// The whole repeated along axes.
pub(super) fn tile(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let value = b.value(call, 0)?;
    let repeats = extents(call, &b.needed_constant(call, 1)?.ints(call)?)?;
    let dims = value.dims().to_vec();
    if repeats.len() != dims.len() || repeats.contains(&0) {
        return Err(call.error(format!("{repeats:?} repetitions of {dims:?} are not supported")));
    }
    match value {
        Value::Constant(mut c) => {
            foldable(call, &dims.iter().zip(&repeats).map(|(n, r)| n.saturating_mul(*r)).collect::<Vec<_>>())?;
            for (axis, &n) in repeats.iter().enumerate().filter(|(_, n)| **n > 1) {
                c = Constant::concat(call, &vec![c; n], axis)?;
            }
            Ok(Value::Constant(c))
        }
        Value::Node(x) => {
            let id = b.channels_first(&x)?;
            let apart: Vec<usize> = dims.iter().flat_map(|&n| [1, n]).collect();
            let repeated: Vec<usize> = dims.iter().zip(&repeats).flat_map(|(&n, &r)| [r, n]).collect();
            let id = b.graph.reshape(id, apart)?;
            let id = layers::expand(&mut b.graph, id, repeated)?;
            let whole: Vec<usize> = dims.iter().zip(&repeats).map(|(n, r)| n * r).collect();
            let id = b.graph.reshape(id, whole)?;
            Ok(b.plain(id))
        }
    }
}

fn block(call: &Call) -> Result<usize> {
    let size = call.int("blocksize")?.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..1 << 15).contains(n));
    size.ok_or_else(|| call.error("attribute `blocksize` is missing, not positive or too large"))
}

/// Channels become blocks of pixels.
pub(super) fn depth_to_space(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["blocksize", "mode"])?;
    let (size, x) = (block(call)?, b.traced(call, 0)?);
    let x = b.channels_last(call, &x)?;
    let s = b.graph.shape(x).to_vec();
    let channels = s[3] / (size * size);
    if channels * size * size != s[3] {
        return Err(call.error(format!("blocks of {size} do not divide {} channels", s[3])));
    }
    let (apart, order) = match call.text("mode", "DCR")? {
        "DCR" => ([s[0], s[1], s[2], size, size, channels], [0, 1, 3, 2, 4, 5]),
        "CRD" => ([s[0], s[1], s[2], channels, size, size], [0, 1, 4, 2, 5, 3]),
        other => return Err(call.unsupported("mode", other)),
    };
    let id = b.graph.reshape(x, apart)?;
    let id = b.permute(id, &order)?;
    let id = b.graph.reshape(id, [s[0], s[1] * size, s[2] * size, channels])?;
    Ok(b.nhwc(id))
}

/// Blocks of pixels become channels.
pub(super) fn space_to_depth(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["blocksize", "mode"])?;
    let (size, x) = (block(call)?, b.traced(call, 0)?);
    let x = b.channels_last(call, &x)?;
    let s = b.graph.shape(x).to_vec();
    if s[1] % size != 0 || s[2] % size != 0 {
        return Err(call.error(format!("blocks of {size} do not divide {} x {} pixels", s[1], s[2])));
    }
    let id = b.graph.reshape(x, [s[0], s[1] / size, size, s[2] / size, size, s[3]])?;
    let order = match call.text("mode", "DCR")? {
        "DCR" => [0, 1, 3, 2, 4, 5],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => return Err(call.unsupported("mode", other)),
    };
    let id = b.permute(id, &order)?;
    let id = b.graph.reshape(id, [s[0], s[1] / size, s[2] / size, size * size * s[3]])?;
    Ok(b.nhwc(id))
}
