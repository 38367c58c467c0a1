//! Operators on single elements, and softmax.

use super::builder::Builder;
use super::call::Call;
use super::fold::broadcast;
use super::value::{Constant, Traced, Value};
use pulid_graph::NodeId;
use pulid_ops::{Activation, Binary, BinaryFunction, Function, PRelu, Pointwise, Reduce, Reduction, Softmax, Unary};
use pulid_tensor::{DType, Result, Shape};

/// A function of single elements: one that kernels may take as an epilogue, or one that stands alone.
#[derive(Clone, Copy)]
pub(super) enum Scalar {
    Activation(Activation),
    Function(Function),
}

impl Scalar {
    fn apply(self, x: f64) -> f64 {
        match self {
            Scalar::Activation(f) => f.apply(x),
            Scalar::Function(f) => f.apply(x),
        }
    }
}

/// Constants up to this many elements are computed while importing; larger ones when the graph is loaded.
const FOLDED_AT_ONCE: usize = 1 << 16;

pub(super) fn unary(b: &mut Builder, call: &Call, f: Scalar) -> Result<Value> {
    match b.value(call, 0)? {
        Value::Constant(c) if c.is_integer() || c.count() <= FOLDED_AT_ONCE => {
            let integers = |v: i64| match f {
                Scalar::Activation(Activation::Neg) => v.checked_neg(),
                Scalar::Activation(Activation::Abs) => v.checked_abs(),
                Scalar::Activation(Activation::Relu) => Some(v.max(0)),
                Scalar::Function(Function::Sign) => Some(v.signum()),
                _ => None,
            };
            let folded = c.map(integers, |v| f.apply(v))?;
            folded.map(Value::Constant).ok_or_else(|| call.error("this function of integers is not supported"))
        }
        value => {
            let x = b.materialize(call, value)?;
            let id = match f {
                Scalar::Activation(f) => b.graph.apply(Unary(f), &[x.id])?,
                Scalar::Function(f) => b.graph.apply(Pointwise(f), &[x.id])?,
            };
            Ok(b.like(&x, id))
        }
    }
}

pub(super) fn apply(b: &mut Builder, x: &Traced, f: Activation) -> Result<Value> {
    let id = b.graph.apply(Unary(f), &[x.id])?;
    Ok(b.like(x, id))
}

pub(super) fn clip(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["min", "max"])?;
    let mut value = b.value(call, 0)?;
    let bounds = [(1, "min", BinaryFunction::Max), (2, "max", BinaryFunction::Min)];
    let mut limits = [f32::MIN, f32::MAX];
    for (index, name, f) in bounds {
        let bound = match (b.optional(call, index)?, call.float(name)?) {
            (Some(Value::Constant(c)), _) if c.count() != 1 => {
                return Err(call.error(format!("`{name}` must be a scalar, got {:?}", c.dims)));
            }
            (Some(bound), _) => bound,
            (None, Some(number)) => Value::Constant(Constant::floats_of(vec![], vec![number])),
            (None, None) => continue,
        };
        match (&value, bound) {
            // Both bounds in one function, which joins what computes x.
            (Value::Node(_), Value::Constant(c)) if !c.is_integer() => limits[index - 1] = c.floats(call)?[0],
            (_, bound) => value = combine(b, call, f, value, bound)?,
        }
    }
    // The upper bound comes last, so it decides where the bounds cross.
    limits[0] = limits[0].min(limits[1]);
    match value {
        // The standard's defaults are the ends of the type.
        Value::Node(x) if limits != [f32::MIN, f32::MAX] => apply(b, &x, Activation::Clamp(limits[0], limits[1])),
        value => Ok(value),
    }
}

pub(super) fn prelu(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let x = b.traced(call, 0)?;
    let slope = b.value(call, 1)?;
    if let Value::Constant(c) = &slope
        && c.count() == 1
    {
        return apply(b, &x, Activation::LeakyRelu(c.floats(call)?[0]));
    }
    let rank = x.dims.len();
    let dims = slope.dims().to_vec();
    let per_channel = rank >= 2
        && dims.len() <= rank
        && padded(&dims, rank).iter().enumerate().all(|(axis, &n)| n == if axis == 1 { x.dims[1] } else { 1 });
    if per_channel && (rank == 2 || rank == 4) {
        let slope = b.vector(call, 1, x.dims[1])?;
        if rank == 2 {
            let id = b.graph.apply(PRelu, &[x.id, slope])?;
            return Ok(b.plain(id));
        }
        let x = b.channels_last(call, &x)?;
        let id = b.graph.apply(PRelu, &[x, slope])?;
        return Ok(b.nhwc(id));
    }
    // Any other slopes: max(x, 0) + slope·min(x, 0).
    if broadcast(call, &[&x.dims, &dims])? != x.dims {
        return Err(call.error(format!("slopes {dims:?} do not broadcast to {:?}", x.dims)));
    }
    let high = apply(b, &x, Activation::Relu)?;
    let low = apply(b, &x, Activation::Clamp(f32::MIN, 0.0))?;
    let low = combine(b, call, BinaryFunction::Mul, low, slope)?;
    combine(b, call, BinaryFunction::Add, high, low)
}

/// Extents with ones in front.
fn padded(dims: &[usize], rank: usize) -> Vec<usize> {
    let mut all = vec![1; rank.saturating_sub(dims.len())];
    all.extend_from_slice(dims);
    all
}

pub(super) fn binary(b: &mut Builder, call: &Call, f: BinaryFunction) -> Result<Value> {
    // Files of the first versions say how the second operand is broadcast; NumPy's rule came with version 7.
    call.known(&[])?;
    let (x, y) = (b.value(call, 0)?, b.value(call, 1)?);
    combine(b, call, f, x, y)
}

/// The sum, mean, largest or smallest of any number of operands.
pub(super) fn several(b: &mut Builder, call: &Call, f: BinaryFunction) -> Result<Value> {
    call.known(&[])?;
    let count = call.node.inputs.len();
    let mut all = b.value(call, 0)?;
    for index in 1..count {
        let next = b.value(call, index)?;
        all = combine(b, call, f, all, next)?;
    }
    if call.node.op_type == "Mean" {
        let count = Value::Constant(Constant::floats_of(vec![], vec![count as f32]));
        all = combine(b, call, BinaryFunction::Div, all, count)?;
    }
    Ok(all)
}

/// A function of two values, broadcast.
pub(super) fn combine(b: &mut Builder, call: &Call, f: BinaryFunction, x: Value, y: Value) -> Result<Value> {
    let y = match y {
        // Exponents may be integers where bases are floats.
        Value::Constant(c) if f == BinaryFunction::Pow && c.is_integer() => {
            let values = c.ints(call)?.iter().map(|&v| v as f32).collect();
            Value::Constant(Constant::floats_of(c.dims, values))
        }
        y => y,
    };
    match (x, y) {
        (Value::Constant(x), Value::Constant(y)) => fold(call, f, &x, &y).map(Value::Constant),
        (Value::Node(x), Value::Constant(y)) => with_constant(b, call, f, &x, &y, false),
        (Value::Constant(x), Value::Node(y)) => with_constant(b, call, f, &y, &x, true),
        (Value::Node(x), Value::Node(y)) => {
            let rank = x.dims.len().max(y.dims.len());
            if rank == 4 && (x.channels_last || y.channels_last) {
                let operands = [operand(b, call, &x)?, operand(b, call, &y)?];
                let id = b.graph.apply(Binary::new(f), &operands)?;
                return Ok(b.nhwc(id));
            }
            let operands = [b.channels_first(&x)?, b.channels_first(&y)?];
            let id = b.graph.apply(Binary::new(f), &operands)?;
            Ok(b.plain(id))
        }
    }
}

/// An operand of at most four axes as an image.
fn operand(b: &mut Builder, call: &Call, x: &Traced) -> Result<NodeId> {
    if x.dims.len() == 4 {
        return b.channels_last(call, x);
    }
    let dims = padded(&x.dims, 4);
    let id = b.graph.reshape(x.id, dims.clone())?;
    b.channels_last(call, &Traced { id, dims, channels_last: false })
}

fn fold(call: &Call, f: BinaryFunction, x: &Constant, y: &Constant) -> Result<Constant> {
    match f {
        BinaryFunction::Add => Constant::zip(call, x, y, i64::checked_add, |a, b| a + b),
        BinaryFunction::Sub => Constant::zip(call, x, y, i64::checked_sub, |a, b| a - b),
        BinaryFunction::Mul => Constant::zip(call, x, y, i64::checked_mul, |a, b| a * b),
        BinaryFunction::Div => Constant::zip(call, x, y, i64::checked_div, |a, b| a / b),
        BinaryFunction::Max => Constant::zip(call, x, y, |a, b| Some(a.max(b)), f32::max),
        BinaryFunction::Min => Constant::zip(call, x, y, |a, b| Some(a.min(b)), f32::min),
        BinaryFunction::Pow => Constant::zip(call, x, y, |_, _| None, f32::powf),
        BinaryFunction::Less | BinaryFunction::LessOrEqual | BinaryFunction::Equal => {
            Err(call.error("comparisons of constants are folded elsewhere"))
        }
    }
}

/// f(x, constant), or f(constant, x) where `reversed`.
fn with_constant(
    b: &mut Builder,
    call: &Call,
    f: BinaryFunction,
    x: &Traced,
    c: &Constant,
    reversed: bool,
) -> Result<Value> {
    if c.is_integer() {
        return Err(call.error("floats meet an integer constant"));
    }
    let shape = Shape::from(x.dims.as_slice()).broadcast(&Shape::from(c.dims.as_slice()));
    let shape = shape.ok_or_else(|| call.error(format!("{:?} and {:?} do not broadcast", x.dims, c.dims)))?;
    if c.count() == 1 && c.dims.len() <= x.dims.len() {
        let number = c.floats(call)?[0];
        // A number's function joins what computes x.
        let affine = match (f, reversed) {
            (BinaryFunction::Add, _) => Some((1.0, number)),
            (BinaryFunction::Mul, _) => Some((number, 0.0)),
            (BinaryFunction::Sub, false) => Some((1.0, -number)),
            (BinaryFunction::Sub, true) => Some((-1.0, number)),
            (BinaryFunction::Div, false) => Some((1.0 / number, 0.0)),
            _ => None,
        };
        if f == BinaryFunction::Pow && !reversed && (number == 2.0 || number == 0.5) {
            if number == 0.5 {
                return apply(b, x, Activation::Sqrt);
            }
            let id = b.graph.apply(Binary::mul(), &[x.id, x.id])?;
            return Ok(b.like(x, id));
        }
        if let Some((scale, offset)) = affine {
            return apply(b, x, Activation::Affine(scale, offset));
        }
    }
    let channels_last = x.channels_last && shape.rank() == 4;
    let dims = padded(&c.dims, if channels_last { 4 } else { c.dims.len() });
    let dims = if channels_last { [0, 2, 3, 1].iter().map(|&axis| dims[axis]).collect() } else { dims };
    let swapped = reversed
        && !matches!(
            f,
            BinaryFunction::Add
                | BinaryFunction::Mul
                | BinaryFunction::Max
                | BinaryFunction::Min
                | BinaryFunction::Equal
        );
    // Only a second operand may be f32 among f16.
    let dtype = if swapped { b.precision.activations } else { DType::F32 };
    let c = c.clone();
    let constant = b.weight(call, dtype, dims, move || match channels_last {
        true => c.host()?.reshape(padded(&c.dims, 4))?.nchw_to_nhwc(),
        false => c.host(),
    });
    let x = if channels_last { x.id } else { b.channels_first(x)? };
    let operands = if swapped { [constant, x] } else { [x, constant] };
    let id = b.graph.apply(Binary::new(f), &operands)?;
    Ok(if channels_last { b.nhwc(id) } else { b.plain(id) })
}

/// Softmax, or its logarithm.
pub(super) fn softmax(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axis"])?;
    let x = b.traced(call, 0)?;
    let rank = x.dims.len();
    let log = call.node.op_type == "LogSoftmax";
    let function = |b: &mut Builder, x: NodeId| if log { log_softmax(b, x) } else { b.graph.apply(Softmax, &[x]) };
    // Before version 13 all axes from the given one on were taken together.
    let together = call.opset < 13;
    let axis = call.axis(call.int("axis")?.unwrap_or(if together { 1 } else { -1 }), rank)?;
    if together && axis + 1 < rank {
        let rows = x.dims[..axis].iter().product::<usize>();
        let id = b.channels_first(&x)?;
        let flat = b.graph.reshape(id, [rows, x.dims[axis..].iter().product()])?;
        let flat = function(b, flat)?;
        let id = b.graph.reshape(flat, x.dims)?;
        return Ok(b.plain(id));
    }
    along(b, &x, axis, function)
}

/// x less the logarithm of the sum of its exponentials, over the last axis.
fn log_softmax(b: &mut Builder, x: NodeId) -> Result<NodeId> {
    let axes = vec![b.graph.shape(x).rank() - 1];
    let reduce = |reduction| Reduce { reduction, axes: axes.clone(), keep_dims: true };
    let highest = b.graph.apply(reduce(Reduction::Max), &[x])?;
    let x = b.graph.apply(Binary::sub(), &[x, highest])?;
    let sum = b.graph.apply(Unary(Activation::Exp), &[x])?;
    let sum = b.graph.apply(reduce(Reduction::Sum), &[sum])?;
    let sum = b.graph.apply(Pointwise(Function::Log), &[sum])?;
    b.graph.apply(Binary::sub(), &[x, sum])
}

/// A function over the last axis, applied along any axis; it may change that axis' extent.
pub(super) fn along(
    b: &mut Builder,
    x: &Traced,
    axis: usize,
    f: impl FnOnce(&mut Builder, NodeId) -> Result<NodeId>,
) -> Result<Value> {
    // Swapping two axes is its own inverse.
    let mut order: Vec<usize> = (0..x.dims.len()).collect();
    order.swap(x.physical(axis), x.dims.len() - 1);
    let id = b.permute(x.id, &order)?;
    let id = f(b, id)?;
    let id = b.permute(id, &order)?;
    Ok(b.like(x, id))
}
