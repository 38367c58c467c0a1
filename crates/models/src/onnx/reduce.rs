//! Reductions over axes.

use super::builder::Builder;
use super::call::Call;
use super::value::{Constant, Traced, Value};
use pulid_graph::NodeId;
use pulid_ops::{Activation, Binary, BinaryFunction, Function, Pointwise, Reduce, Reduction, Unary};
use pulid_tensor::{DType, HostTensor, Result};

/// The standard's reductions.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Reducer {
    Mean,
    Sum,
    Max,
    Min,
    Product,
    L1,
    L2,
    SumSquare,
    LogSum,
    LogSumExp,
}

pub(super) fn reduce(b: &mut Builder, call: &Call, reducer: Reducer) -> Result<Value> {
    call.known(&["axes", "keepdims", "noop_with_empty_axes"])?;
    let value = b.value(call, 0)?;
    let rank = value.dims().len();
    let axes = match b.constant(call, 1)? {
        Some(c) => c.ints(call)?,
        None => call.ints("axes")?.unwrap_or(&[]).to_vec(),
    };
    let mut axes = axes.iter().map(|&axis| call.axis(axis, rank)).collect::<Result<Vec<_>>>()?;
    axes.sort_unstable();
    axes.dedup();
    let keep = call.int("keepdims")?.unwrap_or(1) != 0;
    if axes.is_empty() && !call.flag("noop_with_empty_axes")? {
        axes = (0..rank).collect();
    }
    match value {
        Value::Constant(c) if c.is_integer() || c.count() == 0 => fold(call, &c, reducer, &axes, keep),
        value => {
            let x = b.materialize(call, value)?;
            over(b, &x, reducer, &axes, keep)
        }
    }
}

/// A reduction of a value of the graph.
pub(super) fn over(b: &mut Builder, x: &Traced, reducer: Reducer, axes: &[usize], keep: bool) -> Result<Value> {
    let physical: Vec<usize> = axes.iter().map(|&axis| x.physical(axis)).collect();
    let id = reduced(b, x.id, reducer, &physical)?;
    let kept = b.like(x, id);
    match kept {
        Value::Node(y) if !keep => {
            let id = b.channels_first(&y)?;
            let dims: Vec<usize> = (0..y.dims.len()).filter(|axis| !axes.contains(axis)).map(|a| y.dims[a]).collect();
            let id = b.graph.reshape(id, dims)?;
            Ok(b.plain(id))
        }
        kept => Ok(kept),
    }
}

/// The reduced axes stay, with extent 1.
fn reduced(b: &mut Builder, x: NodeId, reducer: Reducer, axes: &[usize]) -> Result<NodeId> {
    let g = &mut b.graph;
    let apply = |reduction| Reduce { reduction, axes: axes.to_vec(), keep_dims: true };
    match reducer {
        Reducer::Mean => g.apply(apply(Reduction::Mean), &[x]),
        Reducer::Sum => g.apply(apply(Reduction::Sum), &[x]),
        Reducer::Max => g.apply(apply(Reduction::Max), &[x]),
        Reducer::Product => g.apply(apply(Reduction::Product), &[x]),
        Reducer::Min => {
            let x = g.apply(Unary(Activation::Neg), &[x])?;
            let x = g.apply(apply(Reduction::Max), &[x])?;
            g.apply(Unary(Activation::Neg), &[x])
        }
        Reducer::L1 => {
            let x = g.apply(Unary(Activation::Abs), &[x])?;
            g.apply(apply(Reduction::Sum), &[x])
        }
        Reducer::SumSquare => {
            let x = g.apply(Binary::mul(), &[x, x])?;
            g.apply(apply(Reduction::Sum), &[x])
        }
        Reducer::L2 => {
            let x = reduced(b, x, Reducer::SumSquare, axes)?;
            b.graph.apply(Unary(Activation::Sqrt), &[x])
        }
        Reducer::LogSum => {
            let x = g.apply(apply(Reduction::Sum), &[x])?;
            g.apply(Pointwise(Function::Log), &[x])
        }
        Reducer::LogSumExp => {
            // Less the largest, so that no exponential overflows.
            let high = g.apply(apply(Reduction::Max), &[x])?;
            let x = g.apply(Binary::sub(), &[x, high])?;
            let x = g.apply(Unary(Activation::Exp), &[x])?;
            let x = g.apply(apply(Reduction::Sum), &[x])?;
            let x = g.apply(Pointwise(Function::Log), &[x])?;
            g.apply(Binary::new(BinaryFunction::Add), &[x, high])
        }
    }
}

/// Reductions of integers, and of nothing, while importing.
fn fold(call: &Call, c: &Constant, reducer: Reducer, axes: &[usize], keep: bool) -> Result<Value> {
    let kept: Vec<usize> = (0..c.dims.len()).map(|a| if axes.contains(&a) { 1 } else { c.dims[a] }).collect();
    let count: usize = kept.iter().product();
    let dims =
        if keep { kept.clone() } else { (0..kept.len()).filter(|a| !axes.contains(a)).map(|a| kept[a]).collect() };
    super::value::foldable(call, &dims)?;
    if c.count() == 0 {
        let nothing = match reducer {
            Reducer::Sum | Reducer::L1 | Reducer::L2 | Reducer::SumSquare => 0.0,
            Reducer::Product => 1.0,
            Reducer::Max | Reducer::LogSum | Reducer::LogSumExp => f32::NEG_INFINITY,
            Reducer::Min => f32::INFINITY,
            Reducer::Mean => f32::NAN,
        };
        return Ok(Value::Constant(Constant::floats_of(dims, vec![nothing; count])));
    }
    let start = match reducer {
        Reducer::Sum => 0,
        Reducer::Product => 1,
        Reducer::Max => i64::MIN,
        Reducer::Min => i64::MAX,
        _ => return Err(call.error("this reduction of integers is not supported")),
    };
    let mut results = vec![start; count];
    let (strides, own) = (strides(&c.dims), strides(&kept));
    for (i, &v) in c.ints(call)?.iter().enumerate() {
        let at = (0..kept.len())
            .map(|a| if kept[a] == 1 { 0 } else { (i / strides[a]) % c.dims[a] * own[a] })
            .sum::<usize>();
        let slot = &mut results[at];
        *slot = match reducer {
            Reducer::Sum => slot.saturating_add(v),
            Reducer::Product => slot.saturating_mul(v),
            Reducer::Max => (*slot).max(v),
            _ => (*slot).min(v),
        };
    }
    Constant::ints_of(results).reshaped(dims).map(Value::Constant)
}

fn strides(dims: &[usize]) -> Vec<usize> {
    pulid_tensor::Shape::from(dims).strides()
}

/// Mean, maximum or p-norm of everything behind the channels.
pub(super) fn global_pool(b: &mut Builder, call: &Call) -> Result<Value> {
    let x = b.traced(call, 0)?;
    let axes: Vec<usize> = (2..x.dims.len()).collect();
    match call.node.op_type.as_str() {
        "GlobalLpPool" => {
            call.known(&["p"])?;
            match call.int("p")?.unwrap_or(2) {
                1 => over(b, &x, Reducer::L1, &axes, true),
                2 => over(b, &x, Reducer::L2, &axes, true),
                p => Err(call.unsupported("p", p)),
            }
        }
        name => {
            call.known(&[])?;
            over(b, &x, if name == "GlobalMaxPool" { Reducer::Max } else { Reducer::Mean }, &axes, true)
        }
    }
}

/// A vector of one value, as a weight.
pub(super) fn number(b: &mut Builder, call: &Call, value: f32) -> NodeId {
    b.weight(call, DType::F32, [1], move || HostTensor::from_f32([1], vec![value]))
}
