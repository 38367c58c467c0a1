//! What a name of the file stands for while importing.

use super::call::Call;
use pulid_checkpoint::onnx::Tensor;
use pulid_graph::NodeId;
use pulid_tensor::{DType, HostTensor, Result, Shape};

/// Elements of the largest constant that folding may create: masks and tables of positions stay far below it.
const MAX_FOLDED: usize = 1 << 22;

/// Elements of all constants together by which folding may exceed what the file holds.
pub(super) const MAX_FOLDED_TOGETHER: usize = 1 << 24;

#[derive(Clone)]
pub(super) enum Value {
    /// Known while importing.
    Constant(Constant),
    /// Computed by the graph.
    Node(Traced),
}

/// A value of the graph.
#[derive(Clone)]
pub(super) struct Traced {
    pub id: NodeId,
    /// Extents in the file's order of axes.
    pub dims: Vec<usize>,
    /// The node holds [N, H, W, C] of what the file calls [N, C, H, W].
    pub channels_last: bool,
}

impl Value {
    /// What is left of a value when nothing is left of an axis.
    pub fn empty(dims: &[usize], axis: usize) -> Value {
        let mut dims = dims.to_vec();
        dims[axis] = 0;
        Value::Constant(Constant::floats_of(dims, Vec::new()))
    }

    /// Extents in the file's order of axes.
    pub fn dims(&self) -> &[usize] {
        match self {
            Value::Constant(c) => &c.dims,
            Value::Node(x) => &x.dims,
        }
    }
}

impl Traced {
    /// The node's axis for an axis of the file.
    pub fn physical(&self, axis: usize) -> usize {
        if self.channels_last { [0, 3, 1, 2][axis] } else { axis }
    }
}

#[derive(Clone)]
pub(super) struct Constant {
    pub dims: Vec<usize>,
    pub elements: Elements,
}

#[derive(Clone)]
pub(super) enum Elements {
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    /// Floats that stay in the file until they are asked for.
    Stored(Tensor),
}

impl Constant {
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let elements = match tensor.element.is_float() {
            true => Elements::Stored(tensor.clone()),
            false => Elements::Ints(tensor.to_integers()?),
        };
        Ok(Constant { dims: tensor.shape.to_vec(), elements })
    }

    pub fn ints_of(values: Vec<i64>) -> Self {
        Constant { dims: vec![values.len()], elements: Elements::Ints(values) }
    }

    pub fn floats_of(dims: Vec<usize>, values: Vec<f32>) -> Self {
        Constant { dims, elements: Elements::Floats(values) }
    }

    pub fn count(&self) -> usize {
        Shape::from(self.dims.as_slice()).count()
    }

    /// Whether it holds integers or booleans.
    pub fn is_integer(&self) -> bool {
        matches!(self.elements, Elements::Ints(_))
    }

    /// Element type of a large weight as the file stores it.
    pub fn stored_dtype(&self) -> DType {
        match &self.elements {
            Elements::Stored(tensor) => tensor.element.dtype(),
            _ => DType::F32,
        }
    }

    pub fn ints(&self, call: &Call) -> Result<Vec<i64>> {
        match &self.elements {
            Elements::Ints(values) => Ok(values.clone()),
            _ => Err(call.error("an operand holds floats where integers are expected")),
        }
    }

    /// Integers as truth values, 1 and 0.
    pub fn truth(&self, call: &Call) -> Result<Self> {
        let elements = Elements::Ints(self.ints(call)?.iter().map(|&v| i64::from(v != 0)).collect());
        Ok(Constant { dims: self.dims.clone(), elements })
    }

    /// Floats, f16 where they are stored so.
    pub fn host(&self) -> Result<HostTensor> {
        match &self.elements {
            Elements::Stored(tensor) => tensor.to_host(),
            Elements::Floats(values) => HostTensor::from_f32(self.dims.clone(), values.clone()),
            Elements::Ints(values) => {
                HostTensor::from_f32(self.dims.clone(), values.iter().map(|&v| v as f32).collect())
            }
        }
    }

    pub fn floats(&self, call: &Call) -> Result<Vec<f32>> {
        match &self.elements {
            Elements::Ints(_) => Err(call.error("an operand holds integers where floats are expected")),
            _ => Ok(self.host()?.to_f32_vec()),
        }
    }

    /// The same elements under other extents.
    pub fn reshaped(&self, dims: Vec<usize>) -> Result<Self> {
        let elements = match &self.elements {
            // A stored tensor carries its own extents.
            Elements::Stored(_) => Elements::Floats(self.host()?.to_f32_vec()),
            other => other.clone(),
        };
        Ok(Constant { dims, elements })
    }

    /// Positions along one axis.
    pub fn pick(&self, call: &Call, axis: usize, positions: &[usize]) -> Result<Self> {
        let outer: usize = self.dims[..axis].iter().product();
        let inner: usize = self.dims[axis + 1..].iter().product();
        let mut dims = self.dims.clone();
        dims[axis] = positions.len();
        foldable(call, &dims)?;
        let from = |o: usize, p: usize, i: usize| (o * self.dims[axis] + p) * inner + i;
        let indices: Vec<usize> = (0..outer)
            .flat_map(|o| positions.iter().flat_map(move |&p| (0..inner).map(move |i| from(o, p, i))))
            .collect();
        self.at(call, dims, &indices)
    }

    /// The elements at flat positions, under new extents.
    fn at(&self, call: &Call, dims: Vec<usize>, indices: &[usize]) -> Result<Self> {
        let elements = match &self.elements {
            Elements::Ints(values) => Elements::Ints(indices.iter().map(|&i| values[i]).collect()),
            _ => {
                let values = self.floats(call)?;
                Elements::Floats(indices.iter().map(|&i| values[i]).collect())
            }
        };
        Ok(Constant { dims, elements })
    }

    /// The elements at these strides over new extents.
    fn strided(&self, call: &Call, dims: Vec<usize>, strides: &[usize]) -> Result<Self> {
        foldable(call, &dims)?;
        let indices: Vec<usize> = flat_offsets(&dims, strides);
        self.at(call, dims, &indices)
    }

    /// The axes in another order.
    pub fn permuted(&self, call: &Call, order: &[usize]) -> Result<Self> {
        let strides = Shape::from(self.dims.as_slice()).strides();
        let own: Vec<usize> = order.iter().map(|&axis| strides[axis]).collect();
        self.strided(call, order.iter().map(|&axis| self.dims[axis]).collect(), &own)
    }

    /// Repeated up to larger extents, by NumPy's rule.
    pub fn expanded(&self, call: &Call, dims: Vec<usize>) -> Result<Self> {
        let (from, to) = (Shape::from(self.dims.as_slice()), Shape::from(dims.as_slice()));
        let strides = from.broadcast_strides(&to);
        let strides = strides.ok_or_else(|| call.error(format!("{from} does not broadcast to {to}")))?;
        self.strided(call, dims, &strides)
    }

    /// A function of every element: integers stay integers.
    pub fn map(&self, ints: impl Fn(i64) -> Option<i64>, floats: impl Fn(f64) -> f64) -> Result<Option<Self>> {
        let elements = match &self.elements {
            Elements::Ints(values) => match values.iter().map(|&v| ints(v)).collect() {
                Some(values) => Elements::Ints(values),
                None => return Ok(None),
            },
            _ => {
                let values = self.host()?.to_f32_vec();
                Elements::Floats(values.into_iter().map(|v| floats(f64::from(v)) as f32).collect())
            }
        };
        Ok(Some(Constant { dims: self.dims.clone(), elements }))
    }

    /// Whether a condition holds for two constants, element by element.
    pub fn compare(
        call: &Call,
        a: &Constant,
        b: &Constant,
        ints: impl Fn(&i64, &i64) -> bool,
        floats: impl Fn(&f32, &f32) -> bool,
    ) -> Result<Self> {
        let both =
            Self::zip(call, a, b, |x, y| Some(i64::from(ints(&x, &y))), |x, y| if floats(&x, &y) { 1.0 } else { 0.0 })?;
        let elements = match both.elements {
            Elements::Floats(values) => Elements::Ints(values.into_iter().map(|v| i64::from(v != 0.0)).collect()),
            other => other,
        };
        Ok(Constant { elements, ..both })
    }

    /// Constants one after the other along an axis; they agree along the others.
    pub fn concat(call: &Call, parts: &[Constant], axis: usize) -> Result<Self> {
        let mut dims = parts[0].dims.clone();
        dims[axis] = parts.iter().map(|p| p.dims[axis]).fold(0, usize::saturating_add);
        foldable(call, &dims)?;
        let outer: usize = dims[..axis].iter().product();
        fn join<T: Copy>(parts: &[(Vec<T>, usize)], outer: usize) -> Vec<T> {
            (0..outer)
                .flat_map(|o| parts.iter().flat_map(move |(v, run)| &v[o * run..(o + 1) * run]))
                .copied()
                .collect()
        }
        let run = |p: &Constant| p.dims[axis..].iter().product::<usize>();
        let elements = if parts.iter().all(Constant::is_integer) {
            let parts: Result<Vec<_>> = parts.iter().map(|p| Ok((p.ints(call)?, run(p)))).collect();
            Elements::Ints(join(&parts?, outer))
        } else {
            let parts: Result<Vec<_>> = parts.iter().map(|p| Ok((p.floats(call)?, run(p)))).collect();
            Elements::Floats(join(&parts?, outer))
        };
        Ok(Constant { dims, elements })
    }

    /// Two constants element by element, by NumPy's broadcasting.
    pub fn zip(
        call: &Call,
        a: &Constant,
        b: &Constant,
        ints: impl Fn(i64, i64) -> Option<i64>,
        floats: impl Fn(f32, f32) -> f32,
    ) -> Result<Self> {
        let (sa, sb) = (Shape::from(a.dims.as_slice()), Shape::from(b.dims.as_slice()));
        let disagree = || call.error(format!("{sa} and {sb} do not broadcast"));
        let shape = sa.broadcast(&sb).ok_or_else(disagree)?;
        foldable(call, &shape)?;
        let strides = shape.strides();
        let (ta, tb) = match (sa.broadcast_strides(&shape), sb.broadcast_strides(&shape)) {
            (Some(ta), Some(tb)) => (ta, tb),
            _ => return Err(disagree()),
        };
        let at = |i: usize, own: &[usize]| -> usize {
            (0..strides.len()).map(|axis| (i / strides[axis]) % shape[axis] * own[axis]).sum()
        };
        let pairs = (0..shape.count()).map(|i| (at(i, &ta), at(i, &tb)));
        let elements = if a.is_integer() && b.is_integer() {
            let (va, vb) = (a.ints(call)?, b.ints(call)?);
            let values: Option<Vec<i64>> = pairs.map(|(i, j)| ints(va[i], vb[j])).collect();
            Elements::Ints(values.ok_or_else(|| call.error("an integer overflows or is divided by zero"))?)
        } else {
            let (va, vb) = (a.floats(call)?, b.floats(call)?);
            Elements::Floats(pairs.map(|(i, j)| floats(va[i], vb[j])).collect())
        };
        Ok(Constant { dims: shape.to_vec(), elements })
    }
}

/// Flat offsets of a row-major walk with the given strides.
fn flat_offsets(dims: &[usize], strides: &[usize]) -> Vec<usize> {
    let steps = Shape::from(dims).strides();
    let at = |i: usize| (0..dims.len()).map(|axis| (i / steps[axis]) % dims[axis] * strides[axis]).sum();
    (0..dims.iter().product()).map(at).collect()
}

/// Refuses extents beyond what is folded.
pub(super) fn foldable(call: &Call, dims: &[usize]) -> Result<()> {
    let count = Shape::from(dims).count();
    if count <= MAX_FOLDED { Ok(()) } else { Err(call.error(format!("a constant of {count} elements is too large"))) }
}
