//! Operators on pictures, which run channels last.

use super::builder::Builder;
use super::call::Call;
use super::value::Value;
use crate::layers::global_average;
use crate::vars::channels_last;
use pulid_graph::NodeId;
use pulid_ops::{
    AveragePool2d, BatchNorm, Conv2d, Coordinates, Interpolation, MaxPool2d, Resize2d, Rounding, UpsampleNearest,
};
use pulid_tensor::{DType, HostTensor, Result};

/// A sliding window as the file describes it.
struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    /// Top, left, bottom, right.
    padding: [usize; 4],
}

/// The window over x [N, H, W, C]; convolutions tell the kernel by their filters.
fn window(b: &Builder, call: &Call, x: NodeId, filters: Option<[usize; 2]>) -> Result<Window> {
    let kernel = match (filters, call.ints("kernel_shape")?) {
        (Some(kernel), None) => kernel,
        (filters, _) => {
            let kernel = call.sizes("kernel_shape", [0; 2])?;
            if filters.is_some_and(|f| f != kernel) {
                return Err(call.error(format!("attribute `kernel_shape` = {kernel:?}, but filters are {filters:?}")));
            }
            kernel
        }
    };
    let (stride, dilation) = (call.sizes("strides", [1; 2])?, call.sizes("dilations", [1; 2])?);
    if [kernel, stride, dilation].iter().flatten().any(|&n| n == 0) {
        return Err(call.error(format!("kernel {kernel:?}, strides {stride:?} or dilations {dilation:?} hold a zero")));
    }
    let padding = match call.text("auto_pad", "NOTSET")? {
        "NOTSET" => call.sizes("pads", [0; 4])?,
        "VALID" => [0; 4],
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            let mut padding = [0; 4];
            for axis in 0..2 {
                let extent = b.graph.shape(x)[1 + axis];
                let windows = extent.div_ceil(stride[axis]);
                let covered = (windows.max(1) - 1)
                    .saturating_mul(stride[axis])
                    .saturating_add((kernel[axis] - 1).saturating_mul(dilation[axis]))
                    .saturating_add(1);
                let total = covered.saturating_sub(extent);
                // The odd element goes where the name says.
                let before = if mode == "SAME_UPPER" { total / 2 } else { total.div_ceil(2) };
                padding[axis] = before;
                padding[axis + 2] = total - before;
            }
            padding
        }
        other => return Err(call.unsupported("auto_pad", other)),
    };
    Ok(Window { kernel, stride, dilation, padding })
}

pub(super) fn conv<'a>(b: &mut Builder<'a>, call: &Call<'a>) -> Result<Value> {
    call.known(&["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"])?;
    let x = b.traced(call, 0)?;
    let x = b.channels_last(call, &x)?;
    let filters = b.needed_constant(call, 1)?;
    let [out, inputs, rows, columns] = filters.dims[..] else {
        return Err(call.error(format!("filters must be [O, I, KH, KW], got {:?}", filters.dims)));
    };
    let window = window(b, call, x, Some([rows, columns]))?;
    let [groups] = [call.int("group")?.unwrap_or(1)].map(|g| usize::try_from(g).unwrap_or(0));
    let mut bias = b.constant(call, 2)?.map(|c| c.floats(call)).transpose()?;
    if bias.as_ref().is_some_and(|bias| bias.len() != out) {
        return Err(call.error(format!("the bias does not have {out} elements")));
    }
    // A normalisation of nothing but this result becomes part of filters and bias.
    let mut scale = None;
    let norm = b.only_reader(call, "BatchNormalization");
    let norm = norm.filter(|(_, norm)| (1..5).all(|i| matches!(b.optional(norm, i), Ok(Some(Value::Constant(_))))));
    if let Some((_, norm)) = &norm {
        let (factors, offsets) = batch_norm_affine(b, norm, out)?;
        let old = bias.unwrap_or_else(|| vec![0.0; out]);
        bias = Some((0..out).map(|o| (f64::from(old[o]) * f64::from(factors[o])) as f32 + offsets[o]).collect());
        scale = Some(factors);
    }
    let dtype = b.weight_dtype(&filters);
    let weight = b.weight(call, dtype, [rows, columns, inputs, out], move || {
        let Some(scale) = &scale else { return channels_last(&filters.host()?) };
        let filters = channels_last(&filters.host()?.cast(DType::F32))?;
        let scaled = filters.as_f32()?.iter().enumerate().map(|(i, w)| w * scale[i % out]).collect();
        HostTensor::from_f32(filters.shape().clone(), scaled)
    });
    let operator = Conv2d {
        stride: window.stride,
        dilation: window.dilation,
        padding: window.padding,
        groups,
        bias: bias.is_some(),
        ..Conv2d::default()
    };
    let mut operands = vec![x, weight];
    if let Some(bias) = bias {
        let bias = HostTensor::from_f32([out], bias)?;
        operands.push(b.weight(call, DType::F32, [out], move || Ok(bias.clone())));
    }
    let id = b.graph.apply(operator, &operands)?;
    let value = b.picture(id);
    if let Some((index, _)) = norm {
        b.take_in(index, value.clone());
    }
    Ok(value)
}

/// Gain, bias, mean and variance of a normalisation, and its epsilon.
fn batch_norm_parameters(b: &Builder, call: &Call, channels: usize) -> Result<([Vec<f32>; 4], BatchNorm)> {
    call.known(&["epsilon", "momentum", "spatial", "training_mode", "is_test"])?;
    call.one_output()?;
    for (name, wanted) in [("spatial", 1), ("training_mode", 0)] {
        if let Some(value) = call.int(name)?.filter(|&value| value != wanted) {
            return Err(call.unsupported(name, value));
        }
    }
    let read = |index: usize| -> Result<Vec<f32>> {
        let values = b.needed_constant(call, index)?.floats(call)?;
        if values.len() == channels {
            return Ok(values);
        }
        Err(call.error(format!("operand {index} has {} elements for {channels} channels", values.len())))
    };
    Ok(([read(1)?, read(2)?, read(3)?, read(4)?], BatchNorm::new(call.float("epsilon")?.unwrap_or(1e-5))))
}

/// Factor and offset of each channel.
fn batch_norm_affine(b: &Builder, call: &Call, channels: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let ([gain, bias, mean, variance], operator) = batch_norm_parameters(b, call, channels)?;
    operator.fold(&gain, &bias, &mean, &variance)
}

/// A normalisation that stands alone, over pictures or rows of features.
pub(super) fn batch_norm(b: &mut Builder, call: &Call) -> Result<Value> {
    let x = b.traced(call, 0)?;
    let id = match x.dims[..] {
        [_, _] => x.id,
        _ => b.channels_last(call, &x)?,
    };
    let (parameters, operator) = batch_norm_parameters(b, call, x.dims[1])?;
    let mut operands = vec![id];
    for values in parameters {
        let values = HostTensor::from_f32([values.len()], values)?;
        operands.push(b.weight(call, DType::F32, values.shape().clone(), move || Ok(values.clone())));
    }
    let id = b.graph.apply(operator, &operands)?;
    Ok(if x.dims.len() == 2 { b.plain(id) } else { b.picture(id) })
}

pub(super) fn max_pool(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"])?;
    let x = b.traced(call, 0)?;
    let x = b.channels_last(call, &x)?;
    let Window { kernel, stride, dilation, padding } = window(b, call, x, None)?;
    let operator = MaxPool2d { kernel, stride, dilation, padding, ceil_mode: call.flag("ceil_mode")? };
    let id = b.graph.apply(operator, &[x])?;
    Ok(b.picture(id))
}

pub(super) fn average_pool(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"])?;
    let x = b.traced(call, 0)?;
    let x = b.channels_last(call, &x)?;
    let Window { kernel, stride, dilation, padding } = window(b, call, x, None)?;
    if dilation != [1; 2] {
        return Err(call.unsupported("dilations", format!("{dilation:?}")));
    }
    let (ceil_mode, count_include_pad) = (call.flag("ceil_mode")?, call.flag("count_include_pad")?);
    let id = b.graph.apply(AveragePool2d { kernel, stride, padding, ceil_mode, count_include_pad }, &[x])?;
    Ok(b.picture(id))
}

pub(super) fn global_average_pool(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let x = b.traced(call, 0)?;
    let x = b.channels_last(call, &x)?;
    let id = global_average(&mut b.graph, x)?;
    Ok(b.picture(id))
}

/// How large a resized picture is to be.
struct Target {
    size: [usize; 2],
    /// Growth of rows and columns, where the file states that and not the size.
    scales: Option<[f64; 2]>,
}

/// The target of factors for every axis.
fn target_of_scales(call: &Call, dims: &[usize], scales: &[f32]) -> Result<Target> {
    match (dims, scales) {
        (&[_, _, height, width], &[batch, channels, rows, columns]) if batch == 1.0 && channels == 1.0 => {
            // Products in f32, as the file's factors are.
            let size = [(height, rows), (width, columns)].map(|(n, s)| (n as f32 * s).floor() as usize);
            Ok(Target { size, scales: Some([f64::from(rows), f64::from(columns)]) })
        }
        _ => Err(call.error(format!("only rows and columns of pictures resize; got factors {scales:?} for {dims:?}"))),
    }
}

/// The target of extents for every axis.
fn target_of_sizes(call: &Call, dims: &[usize], sizes: &[i64]) -> Result<Target> {
    let wanted: Option<Vec<usize>> = sizes.iter().map(|&n| usize::try_from(n).ok()).collect();
    match (dims, wanted.as_deref()) {
        (&[n, c, _, _], Some(&[batch, channels, rows, columns])) if batch == n && channels == c => {
            Ok(Target { size: [rows, columns], scales: None })
        }
        _ => Err(call.error(format!("only rows and columns of pictures resize; {dims:?} cannot become {sizes:?}"))),
    }
}

/// Values for some axes as values for all.
fn spread<T: Copy>(call: &Call, axes: Option<&[i64]>, values: Vec<T>, all: Vec<T>) -> Result<Vec<T>> {
    let Some(axes) = axes else { return Ok(values) };
    if axes.len() != values.len() {
        return Err(call.error(format!("attribute `axes` = {axes:?} names not as many axes as there are values")));
    }
    let mut all = all;
    for (&axis, value) in axes.iter().zip(values) {
        let axis = call.axis(axis, all.len())?;
        all[axis] = value;
    }
    Ok(all)
}

pub(super) fn resize(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[
        "antialias",
        "axes",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "keep_aspect_ratio_policy",
        "mode",
        "nearest_mode",
    ])?;
    let x = b.traced(call, 0)?;
    if call.opset < 11 {
        // The first version knew factors only, and the positions of Upsample.
        let scales = b.needed_constant(call, 1)?.floats(call)?;
        let target = target_of_scales(call, &x.dims, &scales)?;
        let x = b.channels_last(call, &x)?;
        return asymmetric(b, call, x, target);
    }
    for name in ["antialias", "exclude_outside"] {
        if call.flag(name)? {
            return Err(call.unsupported(name, 1));
        }
    }
    let policy = call.text("keep_aspect_ratio_policy", "stretch")?;
    if policy != "stretch" {
        return Err(call.unsupported("keep_aspect_ratio_policy", policy));
    }
    let axes = call.ints("axes")?;
    let scales = b.constant(call, 2)?.filter(|c| c.count() > 0);
    let sizes = b.constant(call, 3)?.filter(|c| c.count() > 0);
    let target = match (scales, sizes) {
        (Some(scales), None) => {
            let scales = spread(call, axes, scales.floats(call)?, vec![1.0; x.dims.len()])?;
            target_of_scales(call, &x.dims, &scales)?
        }
        (None, Some(sizes)) => {
            let all = x.dims.iter().map(|&n| n as i64).collect();
            let sizes = spread(call, axes, sizes.ints(call)?, all)?;
            target_of_sizes(call, &x.dims, &sizes)?
        }
        _ => return Err(call.error("needs either factors or sizes")),
    };
    let interpolation = match call.text("mode", "nearest")? {
        "nearest" => Interpolation::Nearest(match call.text("nearest_mode", "round_prefer_floor")? {
            "round_prefer_floor" => Rounding::RoundPreferFloor,
            "round_prefer_ceil" => Rounding::RoundPreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => return Err(call.unsupported("nearest_mode", other)),
        }),
        "linear" => Interpolation::Bilinear,
        "cubic" => Interpolation::Bicubic(call.float("cubic_coeff_a")?.unwrap_or(-0.75)),
        other => return Err(call.unsupported("mode", other)),
    };
    let x = b.channels_last(call, &x)?;
    let coordinates = match call.text("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => Coordinates::HalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        "pytorch_half_pixel" => {
            // An axis that shrinks to one pixel takes the first one's place, which is also where aligned corners put it.
            let [height, _] = target.size;
            let of = |size: usize| if size > 1 { Coordinates::HalfPixel } else { Coordinates::AlignCorners };
            let [rows, columns] = target.size.map(of);
            if rows != columns {
                let width = b.graph.shape(x)[2];
                let tall = Target { size: [height, width], scales: target.scales.map(|s| [s[0], 1.0]) };
                let x = resized(b, x, &tall, interpolation, rows)?;
                let wide = Target { scales: target.scales.map(|s| [1.0, s[1]]), ..target };
                let id = resized(b, x, &wide, interpolation, columns)?;
                return Ok(b.picture(id));
            }
            rows
        }
        other => return Err(call.unsupported("coordinate_transformation_mode", other)),
    };
    let id = resized(b, x, &target, interpolation, coordinates)?;
    Ok(b.picture(id))
}

pub(super) fn upsample(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["mode", "scales"])?;
    let x = b.traced(call, 0)?;
    let scales = match b.constant(call, 1)? {
        Some(c) => c.floats(call)?,
        None => call.floats("scales")?.ok_or_else(|| call.error("factors are missing"))?.to_vec(),
    };
    let target = target_of_scales(call, &x.dims, &scales)?;
    let x = b.channels_last(call, &x)?;
    asymmetric(b, call, x, target)
}

/// Resizing as before version 11.
fn asymmetric(b: &mut Builder, call: &Call, x: NodeId, target: Target) -> Result<Value> {
    let interpolation = match call.text("mode", "nearest")? {
        "nearest" => Interpolation::Nearest(Rounding::Floor),
        "linear" | "bilinear" => Interpolation::Bilinear,
        other => return Err(call.unsupported("mode", other)),
    };
    let id = resized(b, x, &target, interpolation, Coordinates::Asymmetric)?;
    Ok(b.picture(id))
}

fn resized(
    b: &mut Builder,
    x: NodeId,
    target: &Target,
    interpolation: Interpolation,
    coordinates: Coordinates,
) -> Result<NodeId> {
    let Target { size, scales } = *target;
    let (height, width) = (b.graph.shape(x)[1], b.graph.shape(x)[2]);
    let factor = size[0] / height;
    let whole = factor > 0 && size == [height * factor, width * factor];
    let repeats = interpolation == Interpolation::Nearest(Rounding::Floor)
        && coordinates == Coordinates::Asymmetric
        && scales.is_none_or(|s| s == [factor as f64; 2]);
    if whole && repeats {
        return b.graph.apply(UpsampleNearest { factor }, &[x]);
    }
    b.graph.apply(Resize2d { size, interpolation, coordinates, scales }, &[x])
}
