//! Matrix products.

use super::builder::Builder;
use super::call::Call;
use super::value::{Constant, Value};
use crate::layers::expand;
use crate::vars::transpose;
use pulid_graph::NodeId;
use pulid_ops::{Activation, Binary, Concat, MatMul, Unary};
use pulid_tensor::{DType, HostTensor, Result, Shape};

/// alpha·A B + beta·C, with either matrix transposed.
pub(super) fn gemm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["alpha", "beta", "transA", "transB"])?;
    let (alpha, beta) = (call.float("alpha")?.unwrap_or(1.0), call.float("beta")?.unwrap_or(1.0));
    let x = b.traced(call, 0)?;
    matrix(call, 0, &x.dims)?;
    let a = if call.flag("transA")? { b.permute(x.id, &[1, 0])? } else { x.id };
    let transposed = call.flag("transB")?;
    if let Value::Constant(w) = b.value(call, 1)?
        && w.count().saturating_mul(4) > LARGEST
    {
        return gemm_by_columns(b, call, a, &w, transposed, [alpha, beta]);
    }
    let (weight, transpose_b) = match b.value(call, 1)? {
        Value::Node(w) => {
            matrix(call, 1, &w.dims)?;
            (w.id, transposed)
        }
        Value::Constant(w) => {
            matrix(call, 1, &w.dims)?;
            let dims = if transposed { [w.dims[1], w.dims[0]] } else { [w.dims[0], w.dims[1]] };
            let dtype = b.weight_dtype(&w);
            let load = move || if transposed { transpose(&w.host()?) } else { w.host() };
            (b.weight(call, dtype, dims, load), false)
        }
    };
    let product = MatMul { transpose_b, alpha, ..MatMul::default() };
    let addend = match b.optional(call, 2)? {
        None => {
            let id = b.graph.apply(product, &[a, weight])?;
            return Ok(b.plain(id));
        }
        Some(addend) => addend,
    };
    let columns = b.graph.shape(weight)[usize::from(!transpose_b)];
    if let Value::Constant(c) = &addend {
        let values = c.floats(call)?;
        // One row of elements, or a scalar, for all rows.
        if values.len() == 1 || values.len() == columns && c.dims.last() == Some(&columns) {
            let row = (0..columns).map(|i| beta * values[if values.len() == 1 { 0 } else { i }]).collect();
            let row = HostTensor::from_f32([columns], row)?;
            let bias = b.weight(call, DType::F32, [columns], move || Ok(row.clone()));
            let id = b.graph.apply(MatMul { bias: true, ..product }, &[a, weight, bias])?;
            return Ok(b.plain(id));
        }
    }
    let mut addend = b.materialize(call, addend)?.id;
    if beta != 1.0 {
        addend = b.graph.apply(Unary(Activation::Affine(beta, 0.0)), &[addend])?;
    }
    let id = b.graph.apply(product, &[a, weight])?;
    let id = b.graph.apply(Binary::add(), &[addend, id])?;
    Ok(b.plain(id))
}

/// Bytes that every device binds: WebGPU's default.
const LARGEST: usize = 128 << 20;

/// A product with a matrix larger than devices bind, as the first layer behind VGG's images is: part by part.
fn gemm_by_columns(
    b: &mut Builder,
    call: &Call,
    a: NodeId,
    w: &Constant,
    transposed: bool,
    [alpha, beta]: [f32; 2],
) -> Result<Value> {
    matrix(call, 1, &w.dims)?;
    let [k, columns] = if transposed { [w.dims[1], w.dims[0]] } else { [w.dims[0], w.dims[1]] };
    let bias = match b.constant(call, 2)? {
        Some(c) => Some(c.floats(call)?),
        None => None,
    };
    if bias.as_ref().is_some_and(|bias| bias.len() != columns) {
        return Err(call.error(format!("a matrix of {k} x {columns} takes a bias of {columns} elements only")));
    }
    let dtype = b.weight_dtype(w);
    let step = columns.div_ceil(w.count().saturating_mul(4).div_ceil(LARGEST));
    let mut parts = Vec::new();
    for first in (0..columns).step_by(step) {
        let own = step.min(columns - first);
        let all = w.clone();
        let weight = b.weight(call, dtype, [k, own], move || {
            let values = all.host()?.to_f32_vec();
            Ok(HostTensor::from_fn([k, own], |i| {
                let (row, column) = (i / own, first + i % own);
                values[if transposed { column * k + row } else { row * columns + column }]
            }))
        });
        let mut operands = vec![a, weight];
        if let Some(bias) = &bias {
            let own = bias[first..first + own].iter().map(|v| v * beta).collect::<Vec<_>>();
            let own = HostTensor::from_f32([own.len()], own)?;
            operands.push(b.weight(call, DType::F32, own.shape().clone(), move || Ok(own.clone())));
        }
        parts.push(b.graph.apply(MatMul { alpha, bias: bias.is_some(), ..MatMul::default() }, &operands)?);
    }
    let id = b.graph.apply(Concat::new(1), &parts)?;
    Ok(b.plain(id))
}

fn matrix(call: &Call, index: usize, dims: &[usize]) -> Result<()> {
    if dims.len() == 2 { Ok(()) } else { Err(call.error(format!("operand {index} is no matrix but {dims:?}"))) }
}

/// The product of the last two axes, the others broadcast; a vector is one row on the left and one column on the right.
pub(super) fn matmul(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let x = b.traced(call, 0)?;
    let (weight, dims) = match b.value(call, 1)? {
        Value::Node(w) => (b.channels_first(&w)?, w.dims),
        Value::Constant(w) => {
            let (dtype, dims) = (b.weight_dtype(&w), w.dims.clone());
            (b.weight(call, dtype, dims.clone(), move || w.host()), dims)
        }
    };
    if x.dims.is_empty() || dims.is_empty() {
        return Err(call.error("takes no scalars"));
    }
    let (row, column) = (x.dims.len() == 1, dims.len() == 1);
    let a = b.channels_first(&x)?;
    let left = if row { vec![1, x.dims[0]] } else { x.dims.clone() };
    let right = if column { vec![dims[0], 1] } else { dims.clone() };
    let a = b.graph.reshape(a, left.clone())?;
    let weight = b.graph.reshape(weight, right.clone())?;
    let lead = |dims: &[usize]| Shape::from(&dims[..dims.len() - 2]);
    let id = if right.len() == 2 {
        b.graph.apply(MatMul::default(), &[a, weight])?
    } else {
        let batch = lead(&left).broadcast(&lead(&right));
        let batch = batch.ok_or_else(|| call.error(format!("{:?} and {dims:?} do not broadcast", x.dims)))?;
        let a = stretched(b, a, &batch)?;
        let weight = stretched(b, weight, &batch)?;
        b.graph.apply(MatMul::default(), &[a, weight])?
    };
    let mut shape = b.graph.shape(id).to_vec();
    if column {
        shape.pop();
    }
    if row {
        shape.remove(shape.len() - if column { 1 } else { 2 });
    }
    let id = b.graph.reshape(id, shape)?;
    Ok(b.plain(id))
}

/// A stack of matrices repeated up to leading extents.
fn stretched(b: &mut Builder, x: NodeId, batch: &[usize]) -> Result<NodeId> {
    let own = b.graph.shape(x).to_vec();
    let shape = [batch, &own[own.len() - 2..]].concat();
    expand(&mut b.graph, x, shape)
}
