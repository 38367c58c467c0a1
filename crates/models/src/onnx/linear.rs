//! Matrix products.

use super::builder::Builder;
use super::call::Call;
use super::value::{Traced, Value};
use crate::layers::expand;
use crate::vars::transpose;
use pulid_graph::NodeId;
use pulid_ops::{Activation, Binary, MatMul, Unary};
use pulid_tensor::{DType, HostTensor, Result, Shape};

/// alpha·A B + beta·C, with either matrix transposed.
pub(super) fn gemm(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["alpha", "beta", "transA", "transB"])?;
    let (alpha, beta) = (call.float("alpha")?.unwrap_or(1.0), call.float("beta")?.unwrap_or(1.0));
    let x = b.traced(call, 0)?;
    matrix(call, 0, &x.dims)?;
    let a = if call.flag("transA")? { b.permute(x.id, &[1, 0])? } else { x.id };
    let transposed = call.flag("transB")?;
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
        // One row of numbers, or one number, for all rows.
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

fn matrix(call: &Call, index: usize, dims: &[usize]) -> Result<()> {
    if dims.len() == 2 { Ok(()) } else { Err(call.error(format!("operand {index} is no matrix but {dims:?}"))) }
}

/// The product of the last two axes, the others broadcast.
pub(super) fn matmul(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let x = b.traced(call, 0)?;
    let (weight, dims) = match b.value(call, 1)? {
        Value::Node(w) => (b.channels_second(&w)?, w.dims),
        Value::Constant(w) => {
            let (dtype, dims) = (b.weight_dtype(&w), w.dims.clone());
            (b.weight(call, dtype, dims.clone(), move || w.host()), dims)
        }
    };
    if x.dims.len() < 2 || dims.len() < 2 {
        return Err(call.error(format!("products with vectors are not supported: {:?} and {dims:?}", x.dims)));
    }
    let a = b.channels_second(&x)?;
    if dims.len() == 2 {
        let id = b.graph.apply(MatMul::default(), &[a, weight])?;
        return Ok(b.plain(id));
    }
    let lead = |dims: &[usize]| Shape::from(&dims[..dims.len() - 2]);
    let batch = lead(&x.dims).broadcast(&lead(&dims));
    let batch = batch.ok_or_else(|| call.error(format!("{:?} and {dims:?} do not broadcast", x.dims)))?;
    let a = stretched(b, &Traced { id: a, channels_last: false, ..x }, &batch)?;
    let weight = stretched(b, &Traced { id: weight, dims, channels_last: false }, &batch)?;
    let id = b.graph.apply(MatMul::default(), &[a, weight])?;
    Ok(b.plain(id))
}

fn stretched(b: &mut Builder, x: &Traced, batch: &[usize]) -> Result<NodeId> {
    let shape = [batch, &x.dims[x.dims.len() - 2..]].concat();
    expand(&mut b.graph, x.id, shape)
}
