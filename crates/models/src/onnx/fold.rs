//! Operators on what is known while importing: the computations of shapes that exporters leave in a file.

use super::builder::Builder;
use super::call::Call;
use super::pointwise::{apply, combine};
use super::value::{Constant, Elements, Value, foldable};
use pulid_checkpoint::onnx::Attribute;
use pulid_ops::{Activation, BinaryFunction, Select};
use pulid_tensor::Result;

/// A node's own constant.
pub(super) fn constant(call: &Call) -> Result<Constant> {
    let mut attributes = call.node.attributes.iter();
    let (Some((name, value)), None) = (attributes.next(), attributes.next()) else {
        return Err(call.error("needs exactly one attribute"));
    };
    Ok(match (name.as_str(), value) {
        ("value", Attribute::Tensor(tensor)) => Constant::from_tensor(tensor)?,
        ("value_float", Attribute::Float(v)) => Constant::floats_of(vec![], vec![*v]),
        ("value_floats", Attribute::Floats(v)) => Constant::floats_of(vec![v.len()], v.clone()),
        ("value_int", Attribute::Int(v)) => Constant { dims: vec![], elements: Elements::Ints(vec![*v]) },
        ("value_ints", Attribute::Ints(v)) => Constant::ints_of(v.clone()),
        _ => return Err(call.error(format!("attribute `{name}` is not supported"))),
    })
}

/// Numbers of `TensorProto.DataType` for floating-point types: float, float16, double, bfloat16.
const FLOATS: [i64; 4] = [1, 10, 11, 16];
/// The same for signed and unsigned integers of at least 32 bits.
const INTEGERS: [i64; 4] = [6, 7, 12, 13];
/// The same for booleans.
const BOOL: i64 = 9;

/// Conversions of constants; between floats the graph's own precision decides.
pub(super) fn cast(b: &mut Builder, call: &Call) -> Result<Value> {
    let value = b.value(call, 0)?;
    let to = if call.node.op_type == "CastLike" {
        call.known(&["saturate", "round_mode"])?;
        match b.value(call, 1)? {
            Value::Constant(c) if c.is_integer() => INTEGERS[1],
            _ => FLOATS[0],
        }
    } else {
        call.known(&["to", "saturate", "round_mode"])?;
        call.int("to")?.ok_or_else(|| call.error("attribute `to` is missing"))?
    };
    let (float, integer) = (FLOATS.contains(&to), INTEGERS.contains(&to) || to == BOOL);
    let elements = match &value {
        Value::Node(_) if float => return Ok(value),
        Value::Constant(c) if float && !c.is_integer() => return Ok(value),
        Value::Constant(c) if float => Elements::Floats(c.ints(call)?.iter().map(|&v| v as f32).collect()),
        Value::Constant(c) if integer && c.is_integer() => {
            Elements::Ints(c.ints(call)?.iter().map(|&v| if to == BOOL { i64::from(v != 0) } else { v }).collect())
        }
        Value::Constant(c) if integer => Elements::Ints(
            c.floats(call)?.iter().map(|&v| if to == BOOL { i64::from(v != 0.0) } else { v as i64 }).collect(),
        ),
        _ => return Err(call.unsupported("to", format!("{to} (of TensorProto.DataType)"))),
    };
    Ok(Value::Constant(Constant { dims: value.dims().to_vec(), elements }))
}

pub(super) fn shape(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["start", "end"])?;
    let value = b.value(call, 0)?;
    let dims = value.dims();
    let rank = dims.len() as i64;
    let bound = |i: i64| (if i < 0 { i.saturating_add(rank) } else { i }).clamp(0, rank) as usize;
    let start = bound(call.int("start")?.unwrap_or(0));
    let end = bound(call.int("end")?.unwrap_or(rank)).max(start);
    Ok(Value::Constant(Constant::ints_of(dims[start..end].iter().map(|&n| n as i64).collect())))
}

pub(super) fn size(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let count = b.value(call, 0)?.dims().iter().product::<usize>();
    Ok(Value::Constant(Constant { dims: vec![], elements: Elements::Ints(vec![count as i64]) }))
}

pub(super) fn range(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let bounds = [0, 1, 2].map(|i| b.needed_constant(call, i));
    let [start, limit, delta] = bounds;
    let (start, limit, delta) = (start?, limit?, delta?);
    let count = |span: f64, delta: f64| -> Result<usize> {
        let count = (span / delta).ceil().max(0.0);
        if !count.is_finite() {
            return Err(call.error("the step must not be zero"));
        }
        // A float that is too large saturates, and is then refused.
        foldable(call, &[count as usize])?;
        Ok(count as usize)
    };
    if start.is_integer() {
        let one = |c: &Constant| match c.ints(call)?[..] {
            [v] => Ok(v),
            _ => Err(call.error("start, limit and step must be scalars")),
        };
        let (start, limit, delta) = (one(&start)?, one(&limit)?, one(&delta)?);
        let n = count(limit as f64 - start as f64, delta as f64)?;
        let values = (0..n as i64).map(|i| start.saturating_add(i.saturating_mul(delta))).collect();
        return Ok(Value::Constant(Constant::ints_of(values)));
    }
    let one = |c: &Constant| match c.floats(call)?[..] {
        [v] => Ok(f64::from(v)),
        _ => Err(call.error("start, limit and step must be scalars")),
    };
    let (start, limit, delta) = (one(&start)?, one(&limit)?, one(&delta)?);
    let n = count(limit - start, delta)?;
    let values = (0..n).map(|i| (start + i as f64 * delta) as f32).collect();
    Ok(Value::Constant(Constant::floats_of(vec![n], values)))
}

pub(super) fn constant_of_shape(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["value"])?;
    let dims = extents(call, &b.needed_constant(call, 0)?.ints(call)?)?;
    foldable(call, &dims)?;
    let one = match call.node.attributes.get("value") {
        None => Constant::floats_of(vec![1], vec![0.0]),
        Some(Attribute::Tensor(tensor)) => Constant::from_tensor(tensor)?,
        Some(_) => return Err(call.error("attribute `value` has the wrong type")),
    };
    if one.count() != 1 {
        return Err(call.error(format!("attribute `value` must hold a scalar, got {:?}", one.dims)));
    }
    one.reshaped(vec![])?.expanded(call, dims).map(Value::Constant)
}

/// Non-negative integers as extents.
pub(super) fn extents(call: &Call, values: &[i64]) -> Result<Vec<usize>> {
    let dims: Option<Vec<usize>> = values.iter().map(|&v| u32::try_from(v).ok().map(|v| v as usize)).collect();
    dims.ok_or_else(|| call.error(format!("{values:?} are no extents")))
}

pub(super) fn cumulative_sum(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["exclusive", "reverse"])?;
    let (x, axis) = (b.needed_constant(call, 0)?, b.needed_constant(call, 1)?);
    let [axis] = axis.ints(call)?[..] else { return Err(call.error("the axis must be a scalar")) };
    let axis = call.axis(axis, x.dims.len())?;
    let (exclusive, reverse) = (call.flag("exclusive")?, call.flag("reverse")?);
    let (extent, inner) = (x.dims[axis], x.dims[axis + 1..].iter().product::<usize>());
    let at =
        |row: usize, i: usize| (row / inner * extent + if reverse { extent - 1 - i } else { i }) * inner + row % inner;
    let rows = x.count().checked_div(extent).unwrap_or(0);
    fn sums<T: Copy + Default>(
        mut values: Vec<T>,
        rows: usize,
        extent: usize,
        exclusive: bool,
        at: impl Fn(usize, usize) -> usize,
        add: impl Fn(T, T) -> T,
    ) -> Vec<T> {
        for row in 0..rows {
            let mut sum = T::default();
            for i in 0..extent {
                let slot = &mut values[at(row, i)];
                let after = add(sum, *slot);
                *slot = if exclusive { sum } else { after };
                sum = after;
            }
        }
        values
    }
    let elements = match x.is_integer() {
        true => Elements::Ints(sums(x.ints(call)?, rows, extent, exclusive, at, i64::saturating_add)),
        false => Elements::Floats(sums(x.floats(call)?, rows, extent, exclusive, at, |a, b| a + b)),
    };
    Ok(Value::Constant(Constant { dims: x.dims, elements }))
}

pub(super) fn modulo(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&["fmod"])?;
    let (x, y) = (b.needed_constant(call, 0)?, b.needed_constant(call, 1)?);
    let by_dividend = call.flag("fmod")?;
    // The sign is the divisor's, as in Python, or the dividend's, as in C.
    let ints = |a: i64, d: i64| match a.checked_rem(d)? {
        rest if !by_dividend && rest != 0 && (rest < 0) != (d < 0) => rest.checked_add(d),
        rest => Some(rest),
    };
    let floats = |a: f32, d: f32| match a % d {
        rest if !by_dividend && rest != 0.0 && (rest < 0.0) != (d < 0.0) => rest + d,
        rest => rest,
    };
    Constant::zip(call, &x, &y, ints, floats).map(Value::Constant)
}

/// How two values are compared.
#[derive(Clone, Copy)]
pub(super) enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds<T: PartialOrd>(self, a: &T, b: &T) -> bool {
        match self {
            Order::Equal => a == b,
            Order::Less => a < b,
            Order::LessOrEqual => a <= b,
            Order::Greater => a > b,
            Order::GreaterOrEqual => a >= b,
        }
    }
}

pub(super) fn compare(b: &mut Builder, call: &Call, order: Order) -> Result<Value> {
    call.known(&[])?;
    let (x, y) = (b.value(call, 0)?, b.value(call, 1)?);
    if let (Value::Constant(x), Value::Constant(y)) = (&x, &y) {
        let holds = Constant::compare(call, x, y, |a, b| order.holds(a, b), |a, b| order.holds(a, b))?;
        return Ok(Value::Constant(holds));
    }
    match order {
        Order::Equal => combine(b, call, BinaryFunction::Equal, x, y),
        Order::Less => combine(b, call, BinaryFunction::Less, x, y),
        Order::LessOrEqual => combine(b, call, BinaryFunction::LessOrEqual, x, y),
        Order::Greater => combine(b, call, BinaryFunction::Less, y, x),
        Order::GreaterOrEqual => combine(b, call, BinaryFunction::LessOrEqual, y, x),
    }
}

/// A function of two truth values.
#[derive(Clone, Copy)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

pub(super) fn logic(b: &mut Builder, call: &Call, logic: Logic) -> Result<Value> {
    call.known(&[])?;
    let (x, y) = (b.value(call, 0)?, b.value(call, 1)?);
    if let (Value::Constant(x), Value::Constant(y)) = (&x, &y) {
        // Floats are no truth values.
        let (x, y) = (x.truth(call)?, y.truth(call)?);
        let f = |a: i64, b: i64| {
            Some(match logic {
                Logic::And => a & b,
                Logic::Or => a | b,
                Logic::Xor => a ^ b,
            })
        };
        return Constant::zip(call, &x, &y, f, |a, _| a).map(Value::Constant);
    }
    // Of ones and zeros.
    let (x, y) = (Value::Node(b.truth(call, x)?), Value::Node(b.truth(call, y)?));
    match logic {
        Logic::And => combine(b, call, BinaryFunction::Mul, x, y),
        Logic::Or => combine(b, call, BinaryFunction::Max, x, y),
        Logic::Xor => {
            let Value::Node(difference) = combine(b, call, BinaryFunction::Sub, x, y)? else {
                return Err(call.error("has no graph"));
            };
            apply(b, &difference, Activation::Abs)
        }
    }
}

pub(super) fn not(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    match b.value(call, 0)? {
        Value::Constant(c) => {
            let elements = Elements::Ints(c.truth(call)?.ints(call)?.iter().map(|&v| 1 - v).collect());
            Ok(Value::Constant(Constant { dims: c.dims, elements }))
        }
        Value::Node(x) => apply(b, &x, Activation::Affine(-1.0, 1.0)),
    }
}

/// The second operand where the first holds, else the third.
pub(super) fn choose(b: &mut Builder, call: &Call) -> Result<Value> {
    call.known(&[])?;
    let (condition, x, y) = (b.value(call, 0)?, b.value(call, 1)?, b.value(call, 2)?);
    let shape = broadcast(call, &[condition.dims(), x.dims(), y.dims()])?;
    if let (Value::Constant(c), Value::Constant(x), Value::Constant(y)) = (&condition, &x, &y) {
        let truth = c.truth(call)?.expanded(call, shape.clone())?.ints(call)?;
        let (x, y) = (x.expanded(call, shape.clone())?, y.expanded(call, shape.clone())?);
        fn pick<T: Copy>(truth: &[i64], x: &[T], y: &[T]) -> Vec<T> {
            truth.iter().zip(x.iter().zip(y)).map(|(&t, (&x, &y))| if t != 0 { x } else { y }).collect()
        }
        let elements = match x.is_integer() && y.is_integer() {
            true => Elements::Ints(pick(&truth, &x.ints(call)?, &y.ints(call)?)),
            false => Elements::Floats(pick(&truth, &x.floats(call)?, &y.floats(call)?)),
        };
        return Ok(Value::Constant(Constant { dims: shape, elements }));
    }
    let operands = [b.truth(call, condition)?, b.materialize(call, x)?, b.materialize(call, y)?];
    let [c, x, y] = operands.map(|x| b.channels_first(&x));
    let id = b.graph.apply(Select, &[c?, x?, y?])?;
    Ok(b.plain(id))
}

/// The extents that all of some extents broadcast to.
pub(super) fn broadcast(call: &Call, all: &[&[usize]]) -> Result<Vec<usize>> {
    let mut shape = pulid_tensor::Shape::from(Vec::new());
    for dims in all {
        let next = shape.broadcast(&pulid_tensor::Shape::from(*dims));
        shape = next.ok_or_else(|| call.error(format!("{all:?} do not broadcast")))?;
    }
    Ok(shape.to_vec())
}
