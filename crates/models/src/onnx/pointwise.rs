//! Operators on single elements, and softmax.

use super::builder::Builder;
use super::call::Call;
use super::value::{Constant, Numbers, Traced, Value};
use pulid_graph::NodeId;
use pulid_ops::{Activation, Binary, BinaryFunction, PRelu, Softmax, Unary};
use pulid_tensor::{DType, Result, Shape};

/// A function without attributes.
pub(super) fn plain_unary(b: &mut Builder, call: &Call, f: Activation) -> Result<Value> {
    call.known(&[])?;
    unary(b, call, f)
}

pub(super) fn unary(b: &mut Builder, call: &Call, f: Activation) -> Result<Value> {
    let x = b.traced(call, 0)?;
    apply(b, &x, f)
}

fn apply(b: &mut Builder, x: &Traced, f: Activation) -> Result<Value> {
    let id = b.graph.apply(Unary(f), &[x.id])?;
    Ok(b.like(x, id))
}

/// Floor and Ceil, where sizes are computed.
pub(super) fn round(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let c = b.needed_constant(call, 0)?;
    let up = call.node.op_type == "Ceil";
    let values = c.floats(call)?.iter().map(|v| if up { v.ceil() } else { v.floor() }).collect();
    Ok(Value::Constant(Constant { dims: c.dims, numbers: Numbers::Floats(values) }))
}

pub(super) fn clip(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["min", "max"])?;
    let bound = |index: usize, name: &str| -> Result<Option<f32>> {
        match b.constant(call, index)? {
            None => call.float(name),
            Some(c) => match c.floats(call)?[..] {
                [value] => Ok(Some(value)),
                _ => Err(call.error(format!("`{name}` must be one number, got {:?}", c.dims))),
            },
        }
    };
    match (bound(1, "min")?, bound(2, "max")?) {
        (None, None) => b.value(call, 0),
        // The standard's defaults are the ends of the type.
        (low, high) => unary(b, call, Activation::Clamp(low.unwrap_or(f32::MIN), high.unwrap_or(f32::MAX))),
    }
}

pub(super) fn prelu(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let x = b.traced(call, 0)?;
    let slope = b.needed_constant(call, 1)?;
    let values = slope.floats(call)?;
    if let [slope] = values[..] {
        return apply(b, &x, Activation::LeakyRelu(slope));
    }
    let rank = x.dims.len();
    let per_channel = rank >= 2
        && slope.dims.len() <= rank
        && padded(&slope.dims, rank).iter().enumerate().all(|(axis, &n)| n == if axis == 1 { x.dims[1] } else { 1 });
    if !per_channel || !(rank == 2 || rank == 4) {
        return Err(call.error(format!("slopes {:?} of {:?} are not one per channel", slope.dims, x.dims)));
    }
    let slope = b.weight(call, DType::F32, [values.len()], move || slope.host()?.reshape([slope.count()]));
    if rank == 2 {
        let id = b.graph.apply(PRelu, &[x.id, slope])?;
        return Ok(b.plain(id));
    }
    let x = b.channels_last(call, &x)?;
    let id = b.graph.apply(PRelu, &[x, slope])?;
    Ok(b.picture(id))
}

/// Extents with ones in front.
fn padded(dims: &[usize], rank: usize) -> Vec<usize> {
    let mut all = vec![1; rank.saturating_sub(dims.len())];
    all.extend_from_slice(dims);
    all
}

pub(super) fn binary(b: &mut Builder, call: &Call, f: BinaryFunction) -> Result<Value> {
    call.known(&[])?;
    match (b.value(call, 0)?, b.value(call, 1)?) {
        (Value::Constant(x), Value::Constant(y)) => fold(call, f, &x, &y).map(Value::Constant),
        (Value::Node(x), Value::Constant(y)) => with_constant(b, call, f, &x, &y, false),
        (Value::Constant(x), Value::Node(y)) => with_constant(b, call, f, &y, &x, true),
        (Value::Node(x), Value::Node(y)) => {
            let rank = x.dims.len().max(y.dims.len());
            if rank == 4 && (x.channels_last || y.channels_last) {
                let operands = [operand(b, call, &x)?, operand(b, call, &y)?];
                let id = b.graph.apply(Binary::new(f), &operands)?;
                return Ok(b.picture(id));
            }
            let operands = [b.channels_second(&x)?, b.channels_second(&y)?];
            let id = b.graph.apply(Binary::new(f), &operands)?;
            Ok(b.plain(id))
        }
    }
}

/// An operand of at most four axes as a picture.
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
        other => Err(call.error(format!("{} of constants is not supported", other.label()))),
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
        if let Some((scale, offset)) = affine {
            return apply(b, x, Activation::Affine(scale, offset));
        }
    }
    let channels_last = x.channels_last && shape.rank() == 4;
    let dims = padded(&c.dims, if channels_last { 4 } else { c.dims.len() });
    let dims = if channels_last { [0, 2, 3, 1].iter().map(|&axis| dims[axis]).collect() } else { dims };
    let swapped = reversed && matches!(f, BinaryFunction::Sub | BinaryFunction::Div);
    // Only a second operand may be f32 among f16.
    let dtype = if swapped { b.precision.activations } else { DType::F32 };
    let c = c.clone();
    let constant = b.weight(call, dtype, dims, move || match channels_last {
        true => c.host()?.reshape(padded(&c.dims, 4))?.nchw_to_nhwc(),
        false => c.host(),
    });
    let x = if channels_last { x.id } else { b.channels_second(x)? };
    let operands = if swapped { [constant, x] } else { [x, constant] };
    let id = b.graph.apply(Binary::new(f), &operands)?;
    Ok(if channels_last { b.picture(id) } else { b.plain(id) })
}

pub(super) fn softmax(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["axis"])?;
    let x = b.traced(call, 0)?;
    let rank = x.dims.len();
    // Before version 13 all axes from the given one on were taken together.
    let together = call.opset < 13;
    let axis = call.axis(call.int("axis")?.unwrap_or(if together { 1 } else { -1 }), rank)?;
    if together && axis + 1 < rank {
        let rows = x.dims[..axis].iter().product::<usize>();
        let id = b.channels_second(&x)?;
        let flat = b.graph.reshape(id, [rows, x.dims[axis..].iter().product()])?;
        let flat = b.graph.apply(Softmax, &[flat])?;
        let id = b.graph.reshape(flat, x.dims)?;
        return Ok(b.plain(id));
    }
    // Swapping two axes is its own inverse.
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(x.physical(axis), rank - 1);
    let id = b.permute(x.id, &order)?;
    let id = b.graph.apply(Softmax, &[id])?;
    let id = b.permute(id, &order)?;
    Ok(b.like(&x, id))
}
