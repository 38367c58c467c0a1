//! Walks over several operands with strides: what broadcasting, permuting and slicing lower to.

use pulid_tensor::{Data, Error, HostTensor, Result, Shape};

/// Axes that `shared/strided.wgsl` can walk, after merging.
const MAX_AXES: usize = 8;

/// A row-major walk over a shape and the strides of some operands along it; innermost axis first, mergeable axes merged.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Walk {
    pub extents: Vec<usize>,
    /// Strides of each operand.
    pub strides: Vec<Vec<usize>>,
}

impl Walk {
    /// Merges axes that every operand walks without a seam. Shape and strides are outermost first.
    pub fn new(shape: &[usize], strides: &[&[usize]]) -> Self {
        let mut extents: Vec<usize> = Vec::new();
        let mut merged: Vec<Vec<usize>> = vec![Vec::new(); strides.len()];
        for axis in (0..shape.len()).rev().filter(|&a| shape[a] != 1) {
            let seamless = extents.last().is_some_and(|&inner| {
                merged.iter().zip(strides).all(|(m, s)| m.last().is_some_and(|&stride| s[axis] == stride * inner))
            });
            if let (true, Some(inner)) = (seamless, extents.last_mut()) {
                *inner *= shape[axis];
                continue;
            }
            extents.push(shape[axis]);
            for (m, s) in merged.iter_mut().zip(strides) {
                m.push(s[axis]);
            }
        }
        if extents.is_empty() {
            extents.push(1);
            merged.iter_mut().for_each(|m| m.push(1));
        }
        Walk { extents, strides: merged }
    }

    /// The same walk by cells of four elements, when every operand reads whole aligned cells. `offsets` are elements added
    /// to the operands' positions.
    pub fn by_four(&self, offsets: &[usize]) -> Option<Self> {
        let whole = |s: &Vec<usize>| s[0] == 1 && s[1..].iter().all(|stride| stride % 4 == 0);
        if self.extents[0] % 4 != 0 || !self.strides.iter().all(whole) || offsets.iter().any(|o| o % 4 != 0) {
            return None;
        }
        let mut walk = self.clone();
        walk.extents[0] /= 4;
        for strides in &mut walk.strides {
            strides[1..].iter_mut().for_each(|s| *s /= 4);
        }
        Some(walk)
    }

    /// Value of the shader's RANK.
    pub fn rank(&self) -> u32 {
        self.extents.len() as u32
    }

    /// Steps of the walk.
    pub fn count(&self) -> usize {
        self.extents.iter().product()
    }

    /// The extents as the shader's two vectors.
    pub fn extent_vectors(&self) -> ([u32; 4], [u32; 4]) {
        vectors(&self.extents, 1)
    }

    /// The strides of an operand as the shader's two vectors.
    pub fn stride_vectors(&self, operand: usize) -> ([u32; 4], [u32; 4]) {
        vectors(&self.strides[operand], 0)
    }

    /// An error when the shader cannot walk this many axes.
    pub fn check(&self, operator: &str) -> Result<()> {
        if self.extents.len() > MAX_AXES {
            let detail = format!("needs {} separate axes, at most {MAX_AXES} are supported", self.extents.len());
            return Err(Error::operator(operator, detail));
        }
        Ok(())
    }
}

fn vectors(values: &[usize], fill: u32) -> ([u32; 4], [u32; 4]) {
    let at = |i: usize| values.get(i).map_or(fill, |&v| v as u32);
    ([at(0), at(1), at(2), at(3)], [at(4), at(5), at(6), at(7)])
}

/// Flat offsets of a row-major walk over `shape` (outermost first) with the given strides.
pub(crate) fn offsets<'a>(shape: &'a [usize], strides: &'a [usize], start: usize) -> impl Iterator<Item = usize> + 'a {
    let mut position = vec![0usize; shape.len()];
    let mut flat = start;
    (0..shape.iter().product::<usize>()).map(move |_| {
        let here = flat;
        for axis in (0..shape.len()).rev() {
            position[axis] += 1;
            flat += strides[axis];
            if position[axis] < shape[axis] {
                break;
            }
            flat -= strides[axis] * shape[axis];
            position[axis] = 0;
        }
        here
    })
}

/// The elements of `x` at `indices`, whatever their type, as a tensor of `shape`.
pub(crate) fn select(x: &HostTensor, indices: impl Iterator<Item = usize>, shape: Shape) -> Result<HostTensor> {
    let data = match x.data() {
        Data::F32(v) => Data::F32(indices.map(|i| v[i]).collect()),
        Data::F16(v) => Data::F16(indices.map(|i| v[i]).collect()),
        Data::U32(v) => Data::U32(indices.map(|i| v[i]).collect()),
        Data::Q8(_) | Data::Q4(_) => return Err(Error::operator("select", "quantised blocks do not move")),
    };
    HostTensor::new(shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_what_has_no_seam() {
        // [2, 3, 4, 8] plus a vector of 8: the rows merge.
        let walk = Walk::new(&[2, 3, 4, 8], &[&[96, 32, 8, 1], &[0, 0, 0, 1]]);
        assert_eq!(walk, Walk { extents: vec![8, 24], strides: vec![vec![1, 8], vec![1, 0]] });
        let cells = walk.by_four(&[0]).unwrap();
        assert_eq!(cells, Walk { extents: vec![2, 24], strides: vec![vec![1, 2], vec![1, 0]] });
        assert_eq!(walk.by_four(&[2]), None);
    }

    #[test]
    fn equal_shapes_become_one_axis() {
        let walk = Walk::new(&[2, 1, 3], &[&[3, 3, 1], &[3, 3, 1]]);
        assert_eq!(walk.extents, [6]);
        assert_eq!(Walk::new(&[1, 1], &[&[1, 1]]).extents, [1]);
    }
}
