//! Normalisations.

use super::builder::Builder;
use super::call::Call;
use super::pointwise::along;
use super::reduce::{Reducer, number, over};
use super::value::{Traced, Value};
use pulid_graph::NodeId;
use pulid_ops::{
    Activation, AveragePool2d, BatchNorm, Binary, BinaryFunction, Function, GroupNorm, LayerNorm, Pointwise, Reduce,
    Unary,
};
use pulid_tensor::Result;

/// Epsilon of a normalisation, or the standard's default.
fn epsilon(call: &Call, name: &str) -> Result<f32> {
    Ok(call.float(name)?.unwrap_or(1e-5))
}

/// Refuses attributes that change what a batch normalisation computes; whether it is in training mode.
fn batch_norm_mode(call: &Call) -> Result<bool> {
    call.known(&["epsilon", "momentum", "spatial", "training_mode", "is_test", "consumed_inputs"])?;
    match call.int("spatial")? {
        Some(value) if value != 1 => Err(call.unsupported("spatial", value)),
        // Before version 14 further results meant training.
        _ if call.opset < 14 => Ok((1..5).any(|output| call.wants(output))),
        _ => call.flag("training_mode"),
    }
}

/// Factor and offset of each channel, where they are known.
pub(super) fn batch_norm_affine(b: &Builder, call: &Call, channels: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    if batch_norm_mode(call)? {
        return Err(call.unsupported("training_mode", 1));
    }
    let read = |index: usize| -> Result<Vec<f32>> {
        let values = b.needed_constant(call, index)?.floats(call)?;
        if values.len() == channels {
            return Ok(values);
        }
        Err(call.error(format!("operand {index} has {} elements for {channels} channels", values.len())))
    };
    BatchNorm::new(epsilon(call, "epsilon")?).fold(&read(1)?, &read(2)?, &read(3)?, &read(4)?)
}

/// Whether a convolution may take this normalisation into its filters.
pub(super) fn batch_norm_folds(b: &Builder, call: &Call) -> bool {
    let known = (1..5).all(|i| matches!(b.optional(call, i), Ok(Some(Value::Constant(_)))));
    known && batch_norm_mode(call).is_ok_and(|training| !training)
}

/// A normalisation that stands alone, over anything with a channel axis.
pub(super) fn batch_norm(b: &mut Builder, call: &Call) -> Result<Vec<Value>> {
    let training = batch_norm_mode(call)?;
    let x = b.traced(call, 0)?;
    if x.dims.len() < 2 {
        return Err(call.error(format!("needs a channel axis, got {:?}", x.dims)));
    }
    let channels = x.dims[1];
    let operator = BatchNorm::new(epsilon(call, "epsilon")?);
    if training {
        return batch_norm_training(b, call, &x, operator.eps);
    }
    let mut vectors = Vec::new();
    for index in 1..5 {
        vectors.push(b.vector(call, index, channels)?);
    }
    let value = per_channel(b, &x, |b, x| b.graph.apply(operator, &[&[x], &vectors[..]].concat()))?;
    Ok(vec![value])
}

/// A function over values with channels last, applied to any value with channels second.
fn per_channel(b: &mut Builder, x: &Traced, f: impl FnOnce(&mut Builder, NodeId) -> Result<NodeId>) -> Result<Value> {
    if x.channels_last || x.dims.len() == 2 {
        let id = f(b, x.id)?;
        return Ok(b.like(x, id));
    }
    let rank = x.dims.len();
    let order: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let id = b.permute(x.id, &order)?;
    let id = f(b, id)?;
    if rank == 4 {
        return Ok(b.nhwc(id));
    }
    let back: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let id = b.permute(id, &back)?;
    Ok(b.plain(id))
}

/// With the statistics of the batch itself, as weight standardisation writes it; then the running statistics.
fn batch_norm_training(b: &mut Builder, call: &Call, x: &Traced, eps: f32) -> Result<Vec<Value>> {
    let (channels, rank) = (x.dims[1], x.dims.len());
    let plain = b.channels_first(x)?;
    let order: Vec<usize> = [1, 0].into_iter().chain(2..rank).collect();
    let rows = b.permute(plain, &order)?;
    let dims = b.graph.shape(rows).to_vec();
    let length = dims[1..].iter().product::<usize>();
    let rows = b.graph.reshape(rows, [channels, length])?;
    let id = b.graph.apply(LayerNorm { eps, gain: false, bias: false }, &[rows])?;
    let id = b.graph.reshape(id, dims)?;
    let id = b.permute(id, &order)?;
    let mut shape = vec![1; rank];
    shape[1] = channels;
    let [gain, bias] = [1, 2].map(|index| {
        let vector = b.vector(call, index, channels)?;
        b.graph.reshape(vector, shape.clone())
    });
    let id = b.graph.apply(Binary::mul(), &[id, gain?])?;
    let id = b.graph.apply(Binary::add(), &[id, bias?])?;
    let mut results = vec![b.plain(id)];
    if b.reads(call, 1) || b.reads(call, 2) {
        let momentum = call.float("momentum")?.unwrap_or(0.9);
        let mean = |b: &mut Builder, x| b.graph.apply(Reduce::mean([1]), &[x]);
        let average = mean(b, rows)?;
        let off = b.graph.apply(Binary::sub(), &[rows, average])?;
        let squares = b.graph.apply(Binary::mul(), &[off, off])?;
        let variance = mean(b, squares)?;
        for (index, statistic) in [(3, average), (4, variance)] {
            let new = b.graph.reshape(statistic, [channels])?;
            let new = b.graph.apply(Unary(Activation::Affine(1.0 - momentum, 0.0)), &[new])?;
            let old = b.vector(call, index, channels)?;
            let old = b.graph.apply(Unary(Activation::Affine(momentum, 0.0)), &[old])?;
            let id = b.graph.apply(Binary::add(), &[new, old])?;
            results.push(b.plain(id));
        }
    }
    Ok(results)
}

/// Statistics per image and channel.
pub(super) fn instance_norm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["epsilon", "consumed_inputs"])?;
    let x = b.traced(call, 0)?;
    let Some(&channels) = x.dims.get(1) else { return Err(call.error(format!("got {:?}", x.dims))) };
    grouped(b, call, &x, channels, epsilon(call, "epsilon")?)
}

/// Statistics per image and group of channels.
pub(super) fn group_norm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["epsilon", "num_groups", "stash_type"])?;
    let x = b.traced(call, 0)?;
    let groups = call.int("num_groups")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let channels = x.dims.get(1).copied().unwrap_or(0);
    if x.dims.len() < 3 || groups == 0 || channels % groups != 0 {
        return Err(call.error(format!("`num_groups` = {groups} does not divide the channels of {:?}", x.dims)));
    }
    if call.opset >= 21 || groups == channels {
        return grouped(b, call, &x, groups, epsilon(call, "epsilon")?);
    }
    // Versions 18 to 20 had a gain and a bias for each group.
    let eps = epsilon(call, "epsilon")?;
    let norm = GroupNorm { groups, eps, affine: false, activation: Activation::None };
    let repeated = [1, 2].map(|index| {
        let vector = b.vector(call, index, groups)?;
        let column = b.graph.reshape(vector, [groups, 1])?;
        let all = crate::layers::expand(&mut b.graph, column, [groups, channels / groups])?;
        b.graph.reshape(all, [channels])
    });
    let [gain, bias] = repeated;
    let (gain, bias) = (gain?, bias?);
    per_channel(b, &x, |b, x| {
        let x = b.graph.apply(norm, &[x])?;
        let x = b.graph.apply(Binary::mul(), &[x, gain])?;
        b.graph.apply(Binary::add(), &[x, bias])
    })
}

fn grouped(b: &mut Builder, call: &Call, x: &Traced, groups: usize, eps: f32) -> Result<Value> {
    let channels = x.dims[1];
    if x.dims.len() < 3 {
        return Err(call.error(format!("needs axes behind the channels, got {:?}", x.dims)));
    }
    let vectors = [b.vector(call, 1, channels)?, b.vector(call, 2, channels)?];
    // A long row for each group is what exporters make of group normalisation with reshapes around it: few channels and
    // many elements, for which normalising rows is better than moving the channels.
    if groups == channels && !x.channels_last {
        let (batch, length) = (x.dims[0], x.dims[2..].iter().product::<usize>());
        let rows = b.graph.reshape(x.id, [batch, channels, length])?;
        let rows = b.graph.apply(LayerNorm { eps, gain: false, bias: false }, &[rows])?;
        let [gain, bias] = vectors.map(|v| b.graph.reshape(v, [channels, 1]));
        let rows = b.graph.apply(Binary::mul(), &[rows, gain?])?;
        let rows = b.graph.apply(Binary::add(), &[rows, bias?])?;
        let id = b.graph.reshape(rows, x.dims.clone())?;
        return Ok(b.plain(id));
    }
    per_channel(b, x, |b, x| b.graph.apply(GroupNorm::new(groups, eps), &[x, vectors[0], vectors[1]]))
}

/// x as rows of the elements from an axis on.
fn rows_from(b: &mut Builder, call: &Call, x: &Traced, default: i64) -> Result<(NodeId, usize)> {
    let axis = call.axis(call.int("axis")?.unwrap_or(default), x.dims.len())?;
    let id = b.channels_first(x)?;
    let (rows, length) = (x.dims[..axis].iter().product::<usize>(), x.dims[axis..].iter().product());
    Ok((b.graph.reshape(id, [rows, length])?, axis))
}

/// Statistics over all axes from one on; then mean and inverse deviation where they are read.
pub(super) fn layer_norm(b: &mut Builder, call: &Call) -> Result<Vec<Value>> {
    call.known(&["axis", "epsilon", "stash_type"])?;
    let x = b.traced(call, 0)?;
    let eps = epsilon(call, "epsilon")?;
    let (rows, axis) = rows_from(b, call, &x, -1)?;
    let length = b.graph.shape(rows).last();
    let mut operands = vec![rows, b.vector(call, 1, length)?];
    let bias = call.input(2).is_some();
    if bias {
        operands.push(b.vector(call, 2, length)?);
    }
    let id = b.graph.apply(LayerNorm { eps, gain: true, bias }, &operands)?;
    let id = b.graph.reshape(id, x.dims.clone())?;
    let mut results = vec![b.plain(id)];
    if b.reads(call, 1) || b.reads(call, 2) {
        let mut dims = x.dims.clone();
        dims[axis..].fill(1);
        let mean = b.graph.apply(Reduce::mean([1]), &[rows])?;
        let off = b.graph.apply(Binary::sub(), &[rows, mean])?;
        let squares = b.graph.apply(Binary::mul(), &[off, off])?;
        let variance = b.graph.apply(Reduce::mean([1]), &[squares])?;
        let shifted = b.graph.apply(Unary(Activation::Affine(1.0, eps)), &[variance])?;
        let inverse = b.graph.apply(Unary(Activation::Rsqrt), &[shifted])?;
        for id in [mean, inverse] {
            let id = b.graph.reshape(id, dims.clone())?;
            results.push(b.plain(id));
        }
    }
    Ok(results)
}

/// x over the root of its mean square, times a gain.
pub(super) fn rms_norm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axis", "epsilon", "stash_type"])?;
    let x = b.traced(call, 0)?;
    let (rows, _) = rows_from(b, call, &x, -1)?;
    let length = b.graph.shape(rows).last();
    let squares = b.graph.apply(Binary::mul(), &[rows, rows])?;
    let mean = b.graph.apply(Reduce::mean([1]), &[squares])?;
    let shifted = b.graph.apply(Unary(Activation::Affine(1.0, epsilon(call, "epsilon")?)), &[mean])?;
    let inverse = b.graph.apply(Unary(Activation::Rsqrt), &[shifted])?;
    let id = b.graph.apply(Binary::mul(), &[rows, inverse])?;
    let gain = b.vector(call, 1, length)?;
    let id = b.graph.apply(Binary::mul(), &[id, gain])?;
    let id = b.graph.reshape(id, x.dims)?;
    Ok(b.plain(id))
}

/// (x - mean) / deviation over axes.
pub(super) fn mean_variance_norm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axes"])?;
    let x = b.traced(call, 0)?;
    let axes = call.ints("axes")?.unwrap_or(&[0, 2, 3]);
    let axes = axes.iter().map(|&axis| Ok(x.physical(call.axis(axis, x.dims.len())?))).collect::<Result<Vec<_>>>()?;
    let mean = b.graph.apply(Reduce::mean(axes.clone()), &[x.id])?;
    let off = b.graph.apply(Binary::sub(), &[x.id, mean])?;
    let squares = b.graph.apply(Binary::mul(), &[off, off])?;
    let variance = b.graph.apply(Reduce::mean(axes), &[squares])?;
    // The standard adds 1e-9 to the deviation.
    let deviation = b.graph.apply(Unary(Activation::Sqrt), &[variance])?;
    let deviation = b.graph.apply(Unary(Activation::Affine(1.0, 1e-9)), &[deviation])?;
    let id = b.graph.apply(Binary::div(), &[off, deviation])?;
    Ok(b.like(&x, id))
}

/// x over the p-norm of an axis; zeros stay zeros.
pub(super) fn lp_norm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axis", "p"])?;
    let x = b.traced(call, 0)?;
    let axis = call.axis(call.int("axis")?.unwrap_or(-1), x.dims.len())?;
    let reducer = match call.int("p")?.unwrap_or(2) {
        1 => Reducer::L1,
        2 => Reducer::L2,
        p => return Err(call.unsupported("p", p)),
    };
    let Value::Node(norm) = over(b, &x, reducer, &[axis], true)? else {
        return Err(call.error("has no graph"));
    };
    // The smallest normal number, which no norm of f32 values other than 0 falls below by much.
    let least = number(b, call, f32::MIN_POSITIVE);
    let norm = b.graph.apply(Binary::new(BinaryFunction::Max), &[norm.id, least])?;
    let id = b.graph.apply(Binary::div(), &[x.id, norm])?;
    Ok(b.like(&x, id))
}

/// x / (bias + alpha / size · the sum of squares of neighbouring channels)^beta.
pub(super) fn local_response_norm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["alpha", "beta", "bias", "size"])?;
    let x = b.traced(call, 0)?;
    let size = call.int("size")?.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let size = size.ok_or_else(|| call.error("attribute `size` is missing or not positive"))?;
    let float = |name, default| Ok::<f32, pulid_tensor::Error>(call.float(name)?.unwrap_or(default));
    let (alpha, beta, bias) = (float("alpha", 1e-4)?, float("beta", 0.75)?, float("bias", 1.0)?);
    if x.dims.len() < 2 {
        return Err(call.error(format!("needs a channel axis, got {:?}", x.dims)));
    }
    let before = (size - 1) / 2;
    along(b, &x, 1, |b, x| {
        let dims = b.graph.shape(x).to_vec();
        let channels = dims[dims.len() - 1];
        let squares = b.graph.apply(Binary::mul(), &[x, x])?;
        let rows = dims[..dims.len() - 1].iter().product::<usize>();
        // The channels as an image of one row each: a mean that counts the padding is the sum over `size`.
        let image = b.graph.reshape(squares, [1, rows, channels, 1])?;
        let pool = AveragePool2d {
            kernel: [1, size],
            stride: [1, 1],
            padding: [0, before, 0, size - 1 - before],
            ceil_mode: false,
            count_include_pad: true,
        };
        let mean = b.graph.apply(pool, &[image])?;
        let mean = b.graph.reshape(mean, dims)?;
        let base = b.graph.apply(Unary(Activation::Affine(alpha, bias)), &[mean])?;
        // A positive base to the power -beta.
        let log = b.graph.apply(Pointwise(Function::Log), &[base])?;
        let log = b.graph.apply(Unary(Activation::Affine(-beta, 0.0)), &[log])?;
        let factor = b.graph.apply(Unary(Activation::Exp), &[log])?;
        b.graph.apply(Binary::mul(), &[x, factor])
    })
}
