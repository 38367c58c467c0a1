use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;

/// Extents of a tensor, outermost first. A scalar has no extents and one element.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// A shape with the given extents.
    pub fn new(extents: impl Into<Vec<usize>>) -> Self {
        Shape(extents.into())
    }

    /// Number of elements; saturates instead of overflowing, so that a hostile size fails the later size checks.
    pub fn count(&self) -> usize {
        self.0.iter().fold(1usize, |n, &d| n.saturating_mul(d))
    }

    /// Number of elements, or an error when memory cannot address as many. An extent of zero excuses no other: offsets and
    /// strides are made of the others too.
    pub fn checked_count(&self) -> Result<usize> {
        /// Bytes of the largest element.
        const ELEMENT: usize = 8;
        self.0
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
            .filter(|&count| count <= isize::MAX as usize / ELEMENT)
            .map(|count| if self.0.contains(&0) { 0 } else { count })
            .ok_or_else(|| Error::invalid("shape", format!("{self} has more elements than memory can address")))
    }

    /// The extents as a slice.
    pub fn extents(&self) -> &[usize] {
        &self.0
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The innermost extent, 1 for a scalar.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1usize; self.0.len()];
        for axis in (0..self.0.len().saturating_sub(1)).rev() {
            strides[axis] = strides[axis + 1].saturating_mul(self.0[axis + 1]);
        }
        strides
    }

    /// The shape both operands broadcast to by NumPy's rule, if they do.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let rank = self.rank().max(other.rank());
        let extent = |s: &Shape, axis: usize| {
            let missing = rank - s.rank();
            if axis < missing { 1 } else { s.0[axis - missing] }
        };
        (0..rank)
            .map(|axis| match (extent(self, axis), extent(other, axis)) {
                (a, b) if a == b => Some(a),
                (1, b) => Some(b),
                (a, 1) => Some(a),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Shape)
    }

    /// Row-major strides of `self` read as `target` by broadcasting: 0 along repeated axes.
    ///
    /// `None` when `self` does not broadcast to `target`.
    pub fn broadcast_strides(&self, target: &Shape) -> Option<Vec<usize>> {
        if self.rank() > target.rank() {
            return None;
        }
        let missing = target.rank() - self.rank();
        let own = self.strides();
        (0..target.rank())
            .map(|axis| {
                if axis < missing {
                    return Some(0);
                }
                match (self.0[axis - missing], target.0[axis]) {
                    (a, b) if a == b => Some(if a == 1 { 0 } else { own[axis - missing] }),
                    (1, _) => Some(0),
                    _ => None,
                }
            })
            .collect()
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl From<Vec<usize>> for Shape {
    fn from(v: Vec<usize>) -> Self {
        Shape(v)
    }
}

impl From<&[usize]> for Shape {
    fn from(v: &[usize]) -> Self {
        Shape(v.to_vec())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(v: [usize; N]) -> Self {
        Shape(v.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// Shape and element type of a value in a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorType {
    /// Extents, outermost first.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
}

impl TensorType {
    /// A type with the given extents and elements.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Self {
        TensorType { shape: shape.into(), dtype }
    }

    /// An f32 tensor.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        Self::new(DType::F32, shape)
    }

    /// Bytes the elements take, without padding.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(&self.shape).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let a = Shape::from([2, 1, 3]);
        let b = Shape::from([4, 1]);
        assert_eq!(a.broadcast(&b), Some(Shape::from([2, 4, 3])));
        assert_eq!(b.broadcast_strides(&Shape::from([2, 4, 3])), Some(vec![0, 1, 0]));
        assert_eq!(Shape::from([2, 3]).broadcast(&Shape::from([4, 3])), None);
    }

    #[test]
    fn hostile_sizes_do_not_overflow() {
        let s = Shape::from([usize::MAX, 2]);
        assert_eq!(s.count(), usize::MAX);
        assert!(s.checked_count().is_err());
        for empty in [[0, usize::MAX, 2], [usize::MAX, 2, 0], [0, 1, usize::MAX / 2]] {
            assert!(Shape::from(empty).checked_count().is_err(), "{empty:?}");
        }
        assert_eq!(Shape::from([4, 0, 8]).checked_count().unwrap(), 0);
    }
}
