//! Resizing. Rows and columns of images have kernels of their own; every other kind of resizing is a matrix for each axis,
//! computed while importing.

use super::builder::Builder;
use super::call::Call;
use super::movement::picked;
use super::pointwise::along;
use super::value::{Traced, Value};
use pulid_graph::NodeId;
use pulid_ops::{Binary, Coordinates, Interpolation, MatMul, Resize2d, Rounding, UpsampleNearest};
use pulid_tensor::{DType, HostTensor, Result};

/// One axis to be resized.
#[derive(Clone, Copy, Debug)]
struct Axis {
    axis: usize,
    input: usize,
    output: usize,
    /// Growth, where the file states that and not the size.
    scale: Option<f64>,
    /// Start and end of the part to be resized, as fractions; for one kind of positions only.
    part: [f64; 2],
}

impl Axis {
    fn growth(&self) -> f64 {
        self.scale.unwrap_or(self.output as f64 / self.input as f64)
    }

    fn stays(&self) -> bool {
        self.input == self.output && self.scale.is_none_or(|s| s == 1.0)
    }

    /// An axis of `input` elements that grows by a factor.
    fn by_factor(call: &Call, axis: usize, input: usize, scale: f32) -> Result<Self> {
        // Products in f32, as the file's factors are.
        let size = (input as f32 * scale).floor();
        if !(size >= 1.0 && size <= 2f32.powi(30)) {
            return Err(call.error(format!("axis {axis} of {input} elements cannot grow by {scale}")));
        }
        Ok(Axis { axis, input, output: size as usize, scale: Some(f64::from(scale)), part: [0.0, 1.0] })
    }
}

/// How elements are made.
struct Method<'a> {
    mode: &'a str,
    positions: &'a str,
    nearest: Rounding,
    cubic: f64,
    antialias: bool,
    exclude_outside: bool,
    /// What stands outside the part to be resized.
    outside: f32,
}

impl Method<'_> {
    /// Where an element of the result lies in the input; `None` outside the part to be resized.
    fn position(&self, call: &Call, a: &Axis, i: usize) -> Result<Option<f64>> {
        let (i, n, m, growth) = (i as f64, a.input as f64, a.output as f64, a.growth());
        // The result's extent before it was rounded down to a whole number.
        let extent = a.scale.map_or(m, |s| s * n);
        let half_pixel = (i + 0.5) / growth - 0.5;
        Ok(Some(match self.positions {
            "half_pixel" => half_pixel,
            "half_pixel_symmetric" => {
                let centre = n / 2.0;
                centre * (1.0 - m / extent) + half_pixel
            }
            "pytorch_half_pixel" if a.output > 1 => half_pixel,
            // Beside the first pixel, which is the nearest.
            "pytorch_half_pixel" => -0.5,
            "align_corners" if extent == 1.0 => 0.0,
            "align_corners" => i * (n - 1.0) / (extent - 1.0),
            "asymmetric" => i / growth,
            "tf_crop_and_resize" => {
                let [start, end] = a.part;
                let at = match extent == 1.0 {
                    true => 0.5 * (start + end) * (n - 1.0),
                    false => start * (n - 1.0) + i * (end - start) * (n - 1.0) / (extent - 1.0),
                };
                return Ok((0.0..=n - 1.0).contains(&at).then_some(at));
            }
            other => return Err(call.unsupported("coordinate_transformation_mode", other)),
        }))
    }

    /// The element nearest to a position.
    fn nearest(&self, a: &Axis, at: f64) -> usize {
        let whole = match self.nearest {
            Rounding::Floor => at.floor(),
            Rounding::Ceil => at.ceil(),
            Rounding::RoundPreferFloor => (at - 0.5).ceil(),
            Rounding::RoundPreferCeil => (at + 0.5).floor(),
        };
        whole.clamp(0.0, a.input as f64 - 1.0) as usize
    }

    /// Weights of all elements of the input for an element of the result.
    fn weights(&self, a: &Axis, at: f64) -> Vec<f32> {
        let mut weights = vec![0.0f64; a.input];
        if self.mode == "nearest" {
            weights[self.nearest(a, at)] = 1.0;
            return weights.into_iter().map(|w| w as f32).collect();
        }
        // Shrinking widens the kernel where it is not to alias.
        let scale = if self.antialias { a.growth().min(1.0) } else { 1.0 };
        let radius = if self.mode == "cubic" { 2.0 } else { 1.0 } / scale;
        let (first, last) = ((at - radius).floor() as i64, (at + radius).ceil() as i64);
        for j in first..=last {
            let weight = self.kernel(scale * (j as f64 - at));
            let inside = (0..a.input as i64).contains(&j);
            if inside || !self.exclude_outside {
                weights[j.clamp(0, a.input as i64 - 1) as usize] += weight;
            }
        }
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| (w / sum) as f32).collect()
    }

    fn kernel(&self, x: f64) -> f64 {
        let (x, a) = (x.abs(), self.cubic);
        match self.mode {
            "linear" => (1.0 - x).max(0.0),
            _ if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            _ if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
            _ => 0.0,
        }
    }
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
        return by_factors(b, call, &x, &scales);
    }
    let rank = x.dims.len();
    let axes: Vec<usize> = match call.ints("axes")? {
        Some(axes) => axes.iter().map(|&axis| call.axis(axis, rank)).collect::<Result<_>>()?,
        None => (0..rank).collect(),
    };
    let positions = call.text("coordinate_transformation_mode", "half_pixel")?;
    let mut resized = targets(b, call, &x, &axes)?;
    if positions == "tf_crop_and_resize" {
        let part = b.needed_constant(call, 1)?.floats(call)?;
        if part.len() != 2 * axes.len() {
            return Err(call.error(format!("the part to be resized has {} numbers", part.len())));
        }
        for (i, a) in resized.iter_mut().enumerate() {
            a.part = [f64::from(part[i]), f64::from(part[i + axes.len()])];
        }
    }
    let method = Method {
        mode: call.text("mode", "nearest")?,
        positions,
        nearest: match call.text("nearest_mode", "round_prefer_floor")? {
            "round_prefer_floor" => Rounding::RoundPreferFloor,
            "round_prefer_ceil" => Rounding::RoundPreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => return Err(call.unsupported("nearest_mode", other)),
        },
        cubic: f64::from(call.float("cubic_coeff_a")?.unwrap_or(-0.75)),
        antialias: call.flag("antialias")?,
        exclude_outside: call.flag("exclude_outside")?,
        outside: call.float("extrapolation_value")?.unwrap_or(0.0),
    };
    if !["nearest", "linear", "cubic"].contains(&method.mode) {
        return Err(call.unsupported("mode", method.mode));
    }
    match as_image(&x, &resized, &method) {
        Some(pair) => resize_image(b, call, &x, pair, &method),
        None => by_matrices(b, call, x, &resized, &method),
    }
}

/// The axes to be resized and their new extents.
fn targets(b: &Builder, call: &Call, x: &Traced, axes: &[usize]) -> Result<Vec<Axis>> {
    let scales = b.constant(call, 2)?.filter(|c| c.count() > 0);
    let sizes = b.constant(call, 3)?.filter(|c| c.count() > 0);
    let policy = call.text("keep_aspect_ratio_policy", "stretch")?;
    let many = |n: usize, all: String| match n == axes.len() {
        true => Ok(()),
        false => Err(call.error(format!("{all} are not one for each of {} axes", axes.len()))),
    };
    match (scales, sizes) {
        (Some(scales), None) => {
            let scales = scales.floats(call)?;
            many(scales.len(), format!("factors {scales:?}"))?;
            axes.iter().zip(scales).map(|(&axis, s)| Axis::by_factor(call, axis, x.dims[axis], s)).collect()
        }
        (None, Some(sizes)) => {
            let sizes = super::fold::extents(call, &sizes.ints(call)?)?;
            many(sizes.len(), format!("sizes {sizes:?}"))?;
            let growths = axes.iter().zip(&sizes).map(|(&axis, &size)| size as f64 / x.dims[axis] as f64);
            let common = match policy {
                "stretch" => None,
                "not_larger" => Some(growths.fold(f64::INFINITY, f64::min)),
                "not_smaller" => Some(growths.fold(0.0, f64::max)),
                other => return Err(call.unsupported("keep_aspect_ratio_policy", other)),
            };
            let mut all = Vec::new();
            for (&axis, &size) in axes.iter().zip(&sizes) {
                let input = x.dims[axis];
                let output = common.map_or(size, |s| (s * input as f64 + 0.5).floor() as usize);
                if output == 0 {
                    return Err(call.error(format!("nothing is left of axis {axis}")));
                }
                all.push(Axis { axis, input, output, scale: common, part: [0.0, 1.0] });
            }
            Ok(all)
        }
        _ => Err(call.error("needs either factors or sizes")),
    }
}

/// Rows and columns, where nothing else changes and the kernels know how.
fn as_image(x: &Traced, axes: &[Axis], method: &Method) -> Option<[Axis; 2]> {
    let known = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"].contains(&method.positions);
    let plain = known && !method.antialias && !method.exclude_outside && x.dims.len() == 4;
    let others_stay = axes.iter().all(|a| a.axis >= 2 || a.stays());
    let find = |axis: usize| {
        let (input, part) = (x.dims.get(axis).copied().unwrap_or(1), [0.0, 1.0]);
        let same = Axis { axis, input, output: input, scale: None, part };
        axes.iter().find(|a| a.axis == axis).copied().unwrap_or(same)
    };
    // Aligned corners follow the stated factor, which the kernels do not, where it makes no whole extent.
    let whole =
        |a: &Axis| method.positions != "align_corners" || a.scale.is_none_or(|s| s * a.input as f64 == a.output as f64);
    let pair = [find(2), find(3)];
    (plain && others_stay && pair.iter().all(whole)).then_some(pair)
}

fn resize_image(b: &mut Builder, call: &Call, x: &Traced, pair: [Axis; 2], method: &Method) -> Result<Value> {
    let interpolation = match method.mode {
        "nearest" => Interpolation::Nearest(method.nearest),
        "linear" => Interpolation::Bilinear,
        _ => Interpolation::Bicubic(method.cubic as f32),
    };
    let x = b.channels_last(call, x)?;
    let coordinates = match method.positions {
        "half_pixel" => Coordinates::HalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        _ => {
            // An axis that shrinks to one pixel takes the first one's place, which is also where aligned corners put it.
            let of = |a: &Axis| if a.output > 1 { Coordinates::HalfPixel } else { Coordinates::AlignCorners };
            let [rows, columns] = [of(&pair[0]), of(&pair[1])];
            if rows != columns {
                let still = |a: &Axis, n: usize| Axis { input: n, output: n, scale: Some(1.0), ..*a };
                let [tall, wide] = pair;
                let x = resized(b, x, [tall, still(&wide, wide.input)], interpolation, rows)?;
                let id = resized(b, x, [still(&tall, tall.output), wide], interpolation, columns)?;
                return Ok(b.nhwc(id));
            }
            rows
        }
    };
    let id = resized(b, x, pair, interpolation, coordinates)?;
    Ok(b.nhwc(id))
}

fn resized(
    b: &mut Builder,
    x: NodeId,
    pair: [Axis; 2],
    interpolation: Interpolation,
    coordinates: Coordinates,
) -> Result<NodeId> {
    let (height, width) = (b.graph.shape(x)[1], b.graph.shape(x)[2]);
    let size = [pair[0].output, pair[1].output];
    let scales = match (pair[0].scale, pair[1].scale) {
        (None, None) => None,
        _ => Some([pair[0].growth(), pair[1].growth()]),
    };
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

/// Elements of the largest matrix for an axis.
const MAX_MATRIX: usize = 1 << 22;

/// The largest extent to which an axis is resized by positions.
const MAX_EXTENT: usize = 1 << 20;

/// Axis by axis: weights of the input's elements for each of the result's.
fn by_matrices(b: &mut Builder, call: &Call, x: Traced, axes: &[Axis], method: &Method) -> Result<Value> {
    let cropped = method.positions == "tf_crop_and_resize";
    let mut current = x;
    // Elements of the result that lie outside the part, by axis.
    let mut outside: Vec<(usize, Vec<bool>)> = Vec::new();
    for a in axes.iter().filter(|a| cropped || !a.stays()) {
        if a.output > MAX_EXTENT {
            return Err(call.error(format!("resizing an axis to {} elements is not supported", a.output)));
        }
        let positions = (0..a.output).map(|i| method.position(call, a, i)).collect::<Result<Vec<_>>>()?;
        if positions.iter().any(Option::is_none) {
            outside.push((a.axis, positions.iter().map(Option::is_none).collect()));
        }
        if method.mode == "nearest" {
            let nearest: Vec<usize> = positions.iter().map(|at| method.nearest(a, at.unwrap_or(0.0))).collect();
            current = picked(b, &current, a.axis, &nearest)?;
            continue;
        }
        if a.input.saturating_mul(a.output) > MAX_MATRIX {
            return Err(
                call.error(format!("resizing {} elements to {} in this way is not supported", a.input, a.output))
            );
        }
        let rows: Vec<Vec<f32>> = positions.iter().map(|at| method.weights(a, at.unwrap_or(0.0))).collect();
        let matrix = HostTensor::from_fn([a.input, a.output], |i| rows[i % a.output][i / a.output]);
        let dtype = b.precision.activations;
        let matrix = b.weight(call, dtype, [a.input, a.output], move || Ok(matrix.clone()));
        let value = along(b, &current, a.axis, |b, x| b.graph.apply(MatMul::default(), &[x, matrix]))?;
        match value {
            Value::Node(x) => current = x,
            other => return Ok(other),
        }
    }
    if outside.is_empty() {
        return Ok(Value::Node(current));
    }
    // Nothing of what was computed outside, and the stated number there.
    let shape: Vec<usize> = (0..current.dims.len())
        .map(|axis| if outside.iter().any(|(a, _)| *a == axis) { current.dims[axis] } else { 1 })
        .collect();
    let strides = pulid_tensor::Shape::from(shape.as_slice()).strides();
    let inside = HostTensor::from_fn(shape.clone(), |i| {
        let out = outside.iter().any(|(axis, out)| out[i / strides[*axis] % shape[*axis]]);
        if out { 0.0 } else { 1.0 }
    });
    let number = method.outside;
    let border = HostTensor::from_fn(shape.clone(), |i| inside.as_f32().map_or(0.0, |v| (1.0 - v[i]) * number));
    let id = b.channels_first(&current)?;
    let inside = b.weight(call, DType::F32, shape.clone(), move || Ok(inside.clone()));
    let border = b.weight(call, DType::F32, shape, move || Ok(border.clone()));
    let id = b.graph.apply(Binary::mul(), &[id, inside])?;
    let id = b.graph.apply(Binary::add(), &[id, border])?;
    Ok(b.plain(id))
}

pub(super) fn upsample(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["mode", "scales"])?;
    let x = b.traced(call, 0)?;
    let scales = match b.constant(call, 1)? {
        Some(c) => c.floats(call)?,
        None => call.floats("scales")?.ok_or_else(|| call.error("factors are missing"))?.to_vec(),
    };
    by_factors(b, call, &x, &scales)
}

/// Resizing as before version 11: by factors for all axes.
fn by_factors(b: &mut Builder, call: &Call, x: &Traced, scales: &[f32]) -> Result<Value> {
    if scales.len() != x.dims.len() {
        return Err(call.error(format!("{} factors for {:?}", scales.len(), x.dims)));
    }
    let axes = (0..scales.len()).map(|axis| Axis::by_factor(call, axis, x.dims[axis], scales[axis]));
    let axes = axes.collect::<Result<Vec<_>>>()?;
    let mode = match call.text("mode", "nearest")? {
        "nearest" => "nearest",
        "linear" | "bilinear" => "linear",
        other => return Err(call.unsupported("mode", other)),
    };
    let method = Method {
        mode,
        positions: "asymmetric",
        nearest: Rounding::Floor,
        cubic: -0.75,
        antialias: false,
        exclude_outside: false,
        outside: 0.0,
    };
    match as_image(x, &axes, &method) {
        Some(pair) => resize_image(b, call, x, pair, &method),
        None => by_matrices(b, call, x.clone(), &axes, &method),
    }
}
