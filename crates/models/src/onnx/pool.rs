//! Pooling over one, two or more axes; more are pooled one by one, which all of these functions allow.

use super::builder::Builder;
use super::call::Call;
use super::value::{Traced, Value};
use super::window::{Side, Window, sides, sums, windows};
use pulid_graph::NodeId;
use pulid_ops::{Activation, AveragePool2d, Binary, BinaryFunction, MaxPool2d, Unary};
use pulid_tensor::{DType, HostTensor, Result};

/// Pools the axes behind the channels of x by a function over images.
fn pooled(
    b: &mut Builder,
    call: &Call,
    x: &Traced,
    sides: &[Side],
    mut pool: impl FnMut(&mut Builder, NodeId, Window) -> Result<NodeId>,
) -> Result<Value> {
    if let Some(window) = Window::of(sides) {
        let image = b.as_nhwc(call, x)?;
        let id = pool(b, image, window)?;
        return b.with_rank(id, x.dims.len());
    }
    let rank = x.dims.len();
    let order: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let mut id = b.permute(x.id, &order)?;
    for (axis, &side) in sides.iter().enumerate() {
        let mut dims = b.graph.shape(id).to_vec();
        let rows = axis + 1;
        let columns: usize = dims[rows + 1..rank - 1].iter().product();
        let image = [dims[..rows].iter().product(), dims[rows], columns, dims[rank - 1]];
        let image = b.graph.reshape(id, image)?;
        let y = pool(b, image, Window::new(side, Side::ONE))?;
        dims[rows] = b.graph.shape(y)[1];
        id = b.graph.reshape(y, dims)?;
    }
    let back: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let id = b.permute(id, &back)?;
    Ok(b.plain(id))
}

/// The operand and the window over it.
fn operand(b: &mut Builder, call: &Call) -> Result<(Traced, Vec<Side>)> {
    let x = b.traced(call, 0)?;
    if x.dims.len() < 3 {
        return Err(call.error(format!("takes [N, C, ..] with axes behind the channels, got {:?}", x.dims)));
    }
    let sides = sides(call, &x.dims[2..], None)?;
    Ok((x, sides))
}

pub(super) fn max_pool(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"])?;
    let (x, sides) = operand(b, call)?;
    let ceil_mode = call.flag("ceil_mode")?;
    pooled(b, call, &x, &sides, |b, x, Window { kernel, stride, dilation, padding }| {
        b.graph.apply(MaxPool2d { kernel, stride, dilation, padding, ceil_mode }, &[x])
    })
}

pub(super) fn average_pool(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"])?;
    let (x, mut sides) = operand(b, call)?;
    let (ceil_mode, count_include_pad) = (call.flag("ceil_mode")?, call.flag("count_include_pad")?);
    if sides.iter().all(|side| side.dilation == 1) {
        return pooled(b, call, &x, &sides, |b, x, Window { kernel, stride, padding, .. }| {
            b.graph.apply(AveragePool2d { kernel, stride, padding, ceil_mode, count_include_pad }, &[x])
        });
    }
    // Sums of what the taps meet, over how many of them count.
    let stated: Vec<Side> = sides.clone();
    for (side, &extent) in sides.iter_mut().zip(&x.dims[2..]) {
        side.after = windows(call, side, extent, ceil_mode)?.1;
    }
    let extents = if x.dims.len() == 3 { vec![1, x.dims[2]] } else { x.dims[2..].to_vec() };
    let stated = if x.dims.len() == 3 { vec![Side::ONE, stated[0]] } else { stated };
    let mut single = stated.iter().zip(&extents).map(|(side, &extent)| {
        let count = move |window: usize| {
            let taps = (0..side.kernel).map(move |tap| window * side.stride + tap * side.dilation);
            taps.filter(|&at| match count_include_pad {
                true => at < extent + side.before + side.after,
                false => at >= side.before && at < extent + side.before,
            })
            .count()
        };
        Box::new(count) as Box<dyn Fn(usize) -> usize>
    });
    let two = x.dims.len() <= 4;
    let none: Box<dyn Fn(usize) -> usize> = Box::new(|_| 1);
    pooled(b, call, &x, &sides, |b, x, window| {
        let y = sums(b, call, x, &window)?;
        let [_, height, width, _] = b.graph.shape(y)[..] else { return Ok(y) };
        let rows = single.next();
        let columns = if two { single.next() } else { None };
        let (rows, columns) = (rows.as_ref().unwrap_or(&none), columns.as_ref().unwrap_or(&none));
        let factors =
            HostTensor::from_fn([height, width, 1], |i| 1.0 / (rows(i / width) * columns(i % width)).max(1) as f32);
        let factors = b.weight(call, DType::F32, [height, width, 1], move || Ok(factors.clone()));
        b.graph.apply(Binary::mul(), &[y, factors])
    })
}

/// The p-norm under each window.
pub(super) fn lp_pool(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["auto_pad", "ceil_mode", "dilations", "kernel_shape", "p", "pads", "strides"])?;
    let (x, mut sides) = operand(b, call)?;
    let ceil_mode = call.flag("ceil_mode")?;
    for (side, &extent) in sides.iter_mut().zip(&x.dims[2..]) {
        side.after = windows(call, side, extent, ceil_mode)?.1;
    }
    let p = call.int("p")?.unwrap_or(2);
    if p < 1 {
        return Err(call.unsupported("p", p));
    }
    let power = |b: &mut Builder, x: NodeId, exponent: f32| {
        let exponent = super::reduce::number(b, call, exponent);
        b.graph.apply(Binary::new(BinaryFunction::Pow), &[x, exponent])
    };
    let raised = match p {
        2 => b.graph.apply(Binary::mul(), &[x.id, x.id])?,
        _ => {
            let size = b.graph.apply(Unary(Activation::Abs), &[x.id])?;
            if p == 1 { size } else { power(b, size, p as f32)? }
        }
    };
    let raised = Traced { id: raised, ..x };
    let value = pooled(b, call, &raised, &sides, |b, x, window| sums(b, call, x, &window))?;
    let Value::Node(y) = value else { return Ok(value) };
    let id = match p {
        1 => y.id,
        2 => b.graph.apply(Unary(Activation::Sqrt), &[y.id])?,
        _ => power(b, y.id, 1.0 / p as f32)?,
    };
    Ok(b.like(&y, id))
}
