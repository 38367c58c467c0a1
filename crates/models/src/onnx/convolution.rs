//! Convolutions over rows of elements and images.

use super::builder::Builder;
use super::call::Call;
use super::norm::{batch_norm_affine, batch_norm_folds};
use super::value::{Constant, Traced, Value};
use super::window::{Side, Window, sides, windows};
use crate::vars::channels_last;
use pulid_graph::NodeId;
use pulid_ops::{Binary, Conv2d, Gather, Pad, Slice};
use pulid_tensor::{DType, HostTensor, Result, Shape};

/// Filters [A, B, (KH,) KW] as the file has them.
struct Filters {
    value: Value,
    first: usize,
    second: usize,
    kernel: Vec<usize>,
}

fn filters(b: &Builder, call: &Call, x: &Traced) -> Result<Filters> {
    let value = match b.constant(call, 1) {
        Ok(Some(c)) => Value::Constant(c),
        _ => b.value(call, 1)?,
    };
    let dims = value.dims().to_vec();
    if dims.len() != x.dims.len() || !(3..=5).contains(&dims.len()) {
        let detail =
            format!("takes [N, C, ..] of one to three axes with filters of as many, got {:?} and {dims:?}", x.dims);
        return Err(call.error(detail));
    }
    Ok(Filters { value, first: dims[0], second: dims[1], kernel: dims[2..].to_vec() })
}

/// Rows and columns of a kernel.
fn kernel_2d(kernel: &[usize]) -> [usize; 2] {
    match *kernel {
        [rows, columns] => [rows, columns],
        [columns] => [1, columns],
        _ => [1, 1],
    }
}

fn groups(call: &Call) -> Result<usize> {
    let groups = call.int("group")?.unwrap_or(1);
    usize::try_from(groups).ok().filter(|&g| g > 0).ok_or_else(|| call.unsupported("group", groups))
}

pub(super) fn conv<'a>(b: &mut Builder<'a>, call: &Call<'a>) -> Result<Value> {
    call.known(&["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"])?;
    let x = b.traced(call, 0)?;
    let Filters { value: filters, first: out, second: inputs, kernel } = filters(b, call, &x)?;
    let sides = sides(call, &x.dims[2..], Some(&kernel))?;
    let groups = groups(call)?;
    let Some(window) = Window::of(&sides) else {
        let Value::Constant(filters) = filters else {
            return Err(call.error("filters over three axes must be constants"));
        };
        return conv_over_three(b, call, &x, filters, &sides, groups);
    };
    let [rows, columns] = kernel_2d(&kernel);
    let image = b.as_nhwc(call, &x)?;
    let mut operator = Conv2d {
        stride: window.stride,
        dilation: window.dilation,
        padding: window.padding,
        groups,
        ..Conv2d::default()
    };
    let Value::Constant(filters) = filters else {
        // Filters that the graph computes, as weight standardisation does.
        let Value::Node(w) = filters else { return Err(call.error("has no filters")) };
        let id = b.channels_first(&w)?;
        let id = b.graph.reshape(id, [out, inputs, rows, columns])?;
        let weight = b.permute(id, &[2, 3, 1, 0])?;
        let mut operands = vec![image, weight];
        operator.bias = call.input(2).is_some();
        if operator.bias {
            operands.push(b.vector(call, 2, out)?);
        }
        let id = b.graph.apply(operator, &operands)?;
        return b.with_rank(id, x.dims.len());
    };
    let mut bias = match b.constant(call, 2) {
        Ok(bias) => bias.map(|c| c.floats(call)).transpose()?,
        Err(_) => None,
    };
    if bias.as_ref().is_some_and(|bias| bias.len() != out) {
        return Err(call.error(format!("the bias does not have {out} elements")));
    }
    let computed_bias = bias.is_none() && call.input(2).is_some();
    // A normalisation of nothing but this result becomes part of filters and bias.
    let mut scale = None;
    let norm = b.only_reader(call, "BatchNormalization");
    let norm = norm.filter(|(_, norm)| !computed_bias && batch_norm_folds(b, norm));
    if let Some((_, norm)) = &norm {
        let (factors, offsets) = batch_norm_affine(b, norm, out)?;
        let old = bias.unwrap_or_else(|| vec![0.0; out]);
        bias = Some((0..out).map(|o| (f64::from(old[o]) * f64::from(factors[o])) as f32 + offsets[o]).collect());
        scale = Some(factors);
    }
    let dtype = b.weight_dtype(&filters);
    let weight = b.weight(call, dtype, [rows, columns, inputs, out], move || {
        let host = filters.host()?.reshape([out, inputs, rows, columns])?;
        let Some(scale) = &scale else { return channels_last(&host) };
        let filters = channels_last(&host.cast(DType::F32))?;
        let scaled = filters.as_f32()?.iter().enumerate().map(|(i, w)| w * scale[i % out]).collect();
        HostTensor::from_f32(filters.shape().clone(), scaled)
    });
    let mut operands = vec![image, weight];
    operator.bias = bias.is_some() || computed_bias;
    if let Some(bias) = bias {
        let bias = HostTensor::from_f32([out], bias)?;
        operands.push(b.weight(call, DType::F32, [out], move || Ok(bias.clone())));
    } else if computed_bias {
        operands.push(b.vector(call, 2, out)?);
    }
    let id = b.graph.apply(operator, &operands)?;
    let value = b.with_rank(id, x.dims.len())?;
    if let Some((index, _)) = norm {
        b.take_in(index, value.clone());
    }
    Ok(value)
}

/// A convolution over three axes: the sum of one over two for each tap along the axis with the fewest.
fn conv_over_three(
    b: &mut Builder,
    call: &Call,
    x: &Traced,
    filters: Constant,
    sides: &[Side],
    groups: usize,
) -> Result<Value> {
    let taps = (0..3).min_by_key(|&axis| sides[axis].kernel).unwrap_or(0);
    let [first, second] = [[1, 2], [0, 2], [0, 1]][taps];
    let (side, window) = (sides[taps], Window::new(sides[first], sides[second]));
    let (count, _) = windows(call, &side, x.dims[2 + taps], false)?;
    let order = [0, 2 + taps, 2 + first, 2 + second, 1];
    let mut id = b.permute(x.id, &order)?;
    if side.before + side.after > 0 {
        id = b.graph.apply(Pad::zeros([0, side.before, 0, 0, 0], [0, side.after, 0, 0, 0]), &[id])?;
    }
    let s = b.graph.shape(id).to_vec();
    let (out, inputs) = (filters.dims[0], filters.dims[1]);
    let strides = Shape::from(filters.dims.as_slice()).strides();
    let shape = [window.kernel[0], window.kernel[1], inputs, out];
    let dtype = b.weight_dtype(&filters);
    let mut sum: Option<NodeId> = None;
    for tap in 0..side.kernel {
        let mut part = Slice::along(&s, 1, tap * side.dilation, count);
        part.steps[1] = if count > 1 { side.stride } else { 1 };
        let slab = b.graph.apply(part, &[id])?;
        let slab = b.graph.reshape(slab, [s[0] * count, s[2], s[3], s[4]])?;
        let (own, strides) = (filters.clone(), strides.clone());
        let weight = b.weight(call, dtype, shape, move || {
            let values = own.host()?.to_f32_vec();
            Ok(HostTensor::from_fn(shape, |at| {
                let (o, at) = (at % out, at / out);
                let (i, at) = (at % inputs, at / inputs);
                let (row, column) = (at / shape[1], at % shape[1]);
                let place = [(0, o), (1, i), (2 + taps, tap), (2 + first, row), (2 + second, column)];
                values[place.iter().map(|&(axis, n)| strides[axis] * n).sum::<usize>()]
            }))
        });
        // The bias counts once.
        let bias = sum.is_none() && call.input(2).is_some();
        let mut operands = vec![slab, weight];
        if bias {
            operands.push(b.vector(call, 2, out)?);
        }
        let operator = Conv2d {
            stride: window.stride,
            dilation: window.dilation,
            padding: window.padding,
            groups,
            bias,
            ..Conv2d::default()
        };
        let y = b.graph.apply(operator, &operands)?;
        sum = Some(match sum {
            Some(sum) => b.graph.apply(Binary::add(), &[sum, y])?,
            None => y,
        });
    }
    let y = sum.ok_or_else(|| call.error("has no taps"))?;
    let y_shape = b.graph.shape(y).to_vec();
    let id = b.graph.reshape(y, [s[0], count, y_shape[1], y_shape[2], out])?;
    let mut back = vec![0, 4, 0, 0, 0];
    (back[2 + taps], back[2 + first], back[2 + second]) = (1, 2, 3);
    let id = b.permute(id, &back)?;
    Ok(b.plain(id))
}

/// The gradient of a convolution: a convolution with flipped filters over the input with zeros between its elements.
pub(super) fn conv_transpose(b: &mut Builder, call: &Call) -> Result<Value> {
    let attributes =
        ["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"];
    call.known(&attributes)?;
    let x = b.traced(call, 0)?;
    let Filters { value, first: inputs, second: group_out, kernel } = filters(b, call, &x)?;
    let groups = groups(call)?;
    if kernel.len() > 2 {
        return Err(call.error("transposed convolutions over three axes are not supported"));
    }
    if inputs % groups != 0 || x.dims[1] != inputs {
        return Err(call.error(format!("filters for {inputs} channels in {groups} groups meet {:?}", x.dims)));
    }
    let axes = kernel.len();
    let extra = call.sizes("output_padding", axes, 0)?;
    let wanted = call.ints("output_shape")?.map(|_| call.sizes("output_shape", axes, 0)).transpose()?;
    // What is cut off the full result on each side; automatic padding is defined by the result's size.
    let mode = call.text("auto_pad", "NOTSET")?;
    let pads = if mode == "NOTSET" { call.sizes("pads", 2 * axes, 0)? } else { vec![0; 2 * axes] };
    let (stride, dilation) = (call.sizes("strides", axes, 1)?, call.sizes("dilations", axes, 1)?);
    if [&kernel, &stride, &dilation].into_iter().flatten().any(|&n| n == 0)
        || !["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"].contains(&mode)
    {
        return Err(call.error(format!(
            "kernel {kernel:?}, strides {stride:?}, dilations {dilation:?} or `auto_pad` = {mode} is not supported"
        )));
    }
    let mut margins = Vec::new();
    for axis in 0..axes {
        let extent = x.dims[2 + axis];
        let side = Side { kernel: kernel[axis], stride: stride[axis], dilation: dilation[axis], before: 0, after: 0 };
        let full = (extent - 1).saturating_mul(side.stride).saturating_add(extra[axis]).saturating_add(side.covered());
        let same = mode.starts_with("SAME").then(|| extent.saturating_mul(side.stride));
        let (mut before, mut after) = (pads[axis] as i64, pads[axis + axes] as i64);
        if let Some(size) = wanted.as_ref().map(|sizes| sizes[axis]).or(same) {
            let cut = full as i64 - size as i64;
            before = if mode == "SAME_UPPER" { cut.div_euclid(2) } else { cut - cut.div_euclid(2) };
            after = cut - before;
        }
        // The flipped filter starts before the input by all of itself but one element.
        let reach = side.covered() as i64 - 1;
        margins.push((reach - before, reach - after + extra[axis] as i64));
        if full as i64 - before - after <= 0 {
            return Err(call.error(format!("nothing is left of axis {axis}")));
        }
    }
    let two = |values: &[usize], one: usize| if axes == 1 { [one, values[0]] } else { [values[0], values[1]] };
    let (stride, dilation) = (two(&stride, 1), two(&dilation, 1));
    let margins = if axes == 1 { vec![(0, 0), margins[0]] } else { margins };
    let image = b.as_nhwc(call, &x)?;
    let spread = zeros_between(b, image, stride)?;
    // Negative margins are cut off the input, and it is as if those elements were not there.
    let spread = crop(b, spread, &margins)?;
    let [rows, columns] = kernel_2d(&kernel);
    let weight = flipped(b, call, value, [groups, inputs / groups, group_out, rows, columns])?;
    let at = |n: i64| n.max(0) as usize;
    let operator = Conv2d {
        dilation,
        padding: [at(margins[0].0), at(margins[1].0), at(margins[0].1), at(margins[1].1)],
        groups,
        bias: call.input(2).is_some(),
        ..Conv2d::default()
    };
    let mut operands = vec![spread, weight];
    if operator.bias {
        operands.push(b.vector(call, 2, groups * group_out)?);
    }
    let id = b.graph.apply(operator, &operands)?;
    b.with_rank(id, x.dims.len())
}

/// Zeros between the rows and columns of an image.
fn zeros_between(b: &mut Builder, x: NodeId, stride: [usize; 2]) -> Result<NodeId> {
    if stride == [1, 1] {
        return Ok(x);
    }
    let s = b.graph.shape(x).to_vec();
    let id = b.graph.reshape(x, [s[0], s[1], 1, s[2], 1, s[3]])?;
    let id = b.graph.apply(Pad::zeros([0; 6], [0, 0, stride[0] - 1, 0, stride[1] - 1, 0]), &[id])?;
    let (height, width) = (s[1] * stride[0], s[2] * stride[1]);
    let id = b.graph.reshape(id, [s[0], height, width, s[3]])?;
    let sizes = [s[0], height + 1 - stride[0], width + 1 - stride[1], s[3]];
    b.graph.apply(Slice::new([0; 4], sizes), &[id])
}

/// An image without the rows and columns that negative margins take away.
fn crop(b: &mut Builder, x: NodeId, margins: &[(i64, i64)]) -> Result<NodeId> {
    if margins.iter().all(|m| m.0 >= 0 && m.1 >= 0) {
        return Ok(x);
    }
    let s = b.graph.shape(x).to_vec();
    let away = |n: i64| (-n).max(0) as usize;
    let start = [0, away(margins[0].0), away(margins[1].0), 0];
    let size = |axis: usize| s[axis].saturating_sub(start[axis] + away(margins[axis - 1].1));
    b.graph.apply(Slice::new(start, [s[0], size(1), size(2), s[3]]), &[x])
}

/// Filters [groups·I, O, KH, KW] of a transposed convolution as [KH, KW, I, groups·O], rows and columns flipped.
fn flipped(b: &mut Builder, call: &Call, filters: Value, sizes: [usize; 5]) -> Result<NodeId> {
    let [groups, inputs, out, rows, columns] = sizes;
    let shape = [rows, columns, inputs, groups * out];
    match filters {
        Value::Constant(c) => {
            let dtype = b.weight_dtype(&c);
            Ok(b.weight(call, dtype, shape, move || {
                let values = c.host()?.to_f32_vec();
                Ok(HostTensor::from_fn(shape, |at| {
                    let (o, at) = (at % (groups * out), at / (groups * out));
                    let (i, at) = (at % inputs, at / inputs);
                    let (column, row) = (columns - 1 - at % columns, rows - 1 - at / columns);
                    let (group, o) = (o / out, o % out);
                    values[(((group * inputs + i) * out + o) * rows + row) * columns + column]
                }))
            }))
        }
        Value::Node(w) => {
            let id = b.channels_first(&w)?;
            let id = b.graph.reshape(id, [groups, inputs, out, rows * columns])?;
            let id = b.permute(id, &[3, 1, 0, 2])?;
            let taps: Vec<u32> = (0..(rows * columns) as u32).rev().collect();
            let taps = b.graph.constant("taps", HostTensor::from_u32([taps.len()], taps)?);
            let id = b.graph.apply(Gather::default(), &[id, taps])?;
            b.graph.reshape(id, shape)
        }
    }
}
