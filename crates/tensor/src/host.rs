use crate::quantized::{dequantize, pack, quantize, same_blocks, words};
use crate::{BLOCK, DType, Error, Result, Shape, TensorType, f16};

/// Elements of a [`HostTensor`], row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// Indices.
    U32(Vec<u32>),
    /// Quantised blocks, as words: [`DType::Q8`].
    Q8(Vec<u32>),
    /// Quantised blocks, as words: [`DType::Q4`].
    Q4(Vec<u32>),
}

/// A dense row-major tensor in main memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Shape,
    data: Data,
}

impl HostTensor {
    /// A tensor from its shape and elements.
    ///
    /// # Errors
    /// When the number of elements is not the shape's.
    pub fn new(shape: impl Into<Shape>, data: Data) -> Result<Self> {
        let shape = shape.into();
        let count = shape.checked_count()?;
        let (len, expected) = match &data {
            Data::F32(v) => (v.len(), count),
            Data::F16(v) => (v.len(), count),
            Data::U32(v) => (v.len(), count),
            Data::Q8(v) => (v.len(), words(DType::Q8, &shape).unwrap_or(usize::MAX)),
            Data::Q4(v) => (v.len(), words(DType::Q4, &shape).unwrap_or(usize::MAX)),
        };
        if expected != len {
            return Err(Error::invalid("tensor", format!("shape {shape} does not hold {len} elements")));
        }
        Ok(HostTensor { shape, data })
    }

    /// An f32 tensor; see [`HostTensor::new`].
    pub fn from_f32(shape: impl Into<Shape>, data: Vec<f32>) -> Result<Self> {
        Self::new(shape, Data::F32(data))
    }

    /// An index tensor; see [`HostTensor::new`].
    pub fn from_u32(shape: impl Into<Shape>, data: Vec<u32>) -> Result<Self> {
        Self::new(shape, Data::U32(data))
    }

    /// A tensor of quantised blocks that exist already, such as those of a file: `block(column, number, codes)` writes the codes of
    /// the column's 32 rows from 32 · number on and gives the bits of their scale in half precision. Codes are signed bytes for
    /// [`DType::Q8`], 0 to 15 for [`DType::Q4`].
    ///
    /// # Errors
    /// When the type is not quantised, rows (all axes but the last) are no whole blocks, or memory is short.
    pub fn from_blocks(
        dtype: DType,
        shape: impl Into<Shape>,
        block: impl FnMut(usize, usize, &mut [u8; BLOCK]) -> u16,
    ) -> Result<Self> {
        let shape = shape.into();
        let Some(words) = pack(dtype, &shape, block) else {
            return Err(Error::invalid("tensor", format!("{shape} is no whole blocks of {dtype}, or too large")));
        };
        Self::new(shape, if dtype == DType::Q8 { Data::Q8(words) } else { Data::Q4(words) })
    }

    /// A tensor computed element by element from its flat index.
    pub fn from_fn(shape: impl Into<Shape>, f: impl FnMut(usize) -> f32) -> Self {
        let shape = shape.into();
        let data = Data::F32((0..shape.count()).map(f).collect());
        HostTensor { shape, data }
    }

    /// An f32 tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        Self::from_fn(shape, |_| 0.0)
    }

    /// The extents.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::F16(_) => DType::F16,
            Data::U32(_) => DType::U32,
            Data::Q8(_) => DType::Q8,
            Data::Q4(_) => DType::Q4,
        }
    }

    /// Shape and element type.
    pub fn tensor_type(&self) -> TensorType {
        TensorType::new(self.dtype(), self.shape.clone())
    }

    /// The elements as f32, converted where they are not.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        match &self.data {
            Data::F32(v) => v.clone(),
            Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::U32(v) => v.iter().map(|&x| x as f32).collect(),
            Data::Q8(v) => dequantize(DType::Q8, &self.shape, v),
            Data::Q4(v) => dequantize(DType::Q4, &self.shape, v),
        }
    }

    /// The elements as f32 without a copy.
    ///
    /// # Errors
    /// When the tensor has another element type.
    pub fn as_f32(&self) -> Result<&[f32]> {
        match &self.data {
            Data::F32(v) => Ok(v),
            _ => Err(Error::invalid("tensor", format!("expected f32 elements, found {}", self.dtype()))),
        }
    }

    /// The elements as indices without a copy.
    ///
    /// # Errors
    /// When the tensor has another element type.
    pub fn as_u32(&self) -> Result<&[u32]> {
        match &self.data {
            Data::U32(v) => Ok(v),
            _ => Err(Error::invalid("tensor", format!("expected u32 elements, found {}", self.dtype()))),
        }
    }

    /// The raw little-endian bytes of the elements.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::F32(v) => bytemuck::cast_slice(v),
            Data::F16(v) => bytemuck::cast_slice(v),
            Data::U32(v) | Data::Q8(v) | Data::Q4(v) => bytemuck::cast_slice(v),
        }
    }

    /// A tensor of the given type from raw little-endian bytes (of any alignment).
    ///
    /// # Errors
    /// When the number of bytes is not the type's.
    pub fn from_bytes(ty: &TensorType, bytes: &[u8]) -> Result<Self> {
        if bytes.len() != ty.bytes() {
            return Err(Error::invalid("tensor", format!("{ty} takes {} bytes, found {}", ty.bytes(), bytes.len())));
        }
        let data = match ty.dtype {
            DType::F32 => Data::F32(bytemuck::allocation::pod_collect_to_vec(bytes)),
            DType::F16 => Data::F16(bytemuck::allocation::pod_collect_to_vec(bytes)),
            DType::U32 => Data::U32(bytemuck::allocation::pod_collect_to_vec(bytes)),
            DType::Q8 => Data::Q8(bytemuck::allocation::pod_collect_to_vec(bytes)),
            DType::Q4 => Data::Q4(bytemuck::allocation::pod_collect_to_vec(bytes)),
        };
        Self::new(ty.shape.clone(), data)
    }

    /// The same elements as another type; floats round to nearest even, blocks quantise to their own largest value.
    pub fn cast(&self, dtype: DType) -> HostTensor {
        if dtype == self.dtype() {
            return self.clone();
        }
        let data = match dtype {
            DType::F32 => Data::F32(self.to_f32_vec()),
            DType::F16 => Data::F16(self.to_f32_vec().into_iter().map(f16::from_f32).collect()),
            DType::U32 => Data::U32(self.to_f32_vec().into_iter().map(|x| x as u32).collect()),
            DType::Q8 => Data::Q8(quantize(dtype, &self.shape, &self.to_f32_vec())),
            DType::Q4 => Data::Q4(quantize(dtype, &self.shape, &self.to_f32_vec())),
        };
        HostTensor { shape: self.shape.clone(), data }
    }

    /// [`HostTensor::cast`], without a copy where the type is the same.
    pub fn into_dtype(self, dtype: DType) -> HostTensor {
        if dtype == self.dtype() { self } else { self.cast(dtype) }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the number of elements differs.
    pub fn reshape(self, shape: impl Into<Shape>) -> Result<Self> {
        if self.dtype().is_quantized() {
            return Err(Error::invalid("reshape", "quantised blocks follow the shape they were made for"));
        }
        Self::new(shape, self.data)
    }

    /// The axes in another order: axis `i` of the result is axis `order[i]` of `self`.
    ///
    /// # Errors
    /// When `order` is not a permutation of the axes.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut seen = order.to_vec();
        seen.sort_unstable();
        if !seen.iter().copied().eq(0..self.shape.rank()) {
            return Err(Error::invalid("permute", format!("{order:?} does not reorder the axes of {}", self.shape)));
        }
        let strides = self.shape.strides();
        let shape: Vec<usize> = order.iter().map(|&a| self.shape[a]).collect();
        let step: Vec<usize> = order.iter().map(|&a| strides[a]).collect();
        let index = permuted_indices(&shape, &step);
        let data = match &self.data {
            Data::F32(v) => Data::F32(index.map(|i| v[i]).collect()),
            Data::F16(v) => Data::F16(index.map(|i| v[i]).collect()),
            Data::U32(v) => Data::U32(index.map(|i| v[i]).collect()),
            Data::Q8(_) | Data::Q4(_) => {
                return Err(Error::invalid("permute", "quantised blocks follow the order they were made for"));
            }
        };
        Self::new(shape, data)
    }

    /// The elements with zeros behind them along each axis. Quantised blocks have theirs already: of them only the shape changes, and
    /// only within their last block and last four columns.
    ///
    /// # Errors
    /// When the shape is smaller along an axis or has another number of them, or blocks would have to move.
    pub fn zero_padded(&self, shape: impl Into<Shape>) -> Result<Self> {
        let (to, from) = (shape.into(), &self.shape);
        if to.rank() != from.rank() || to.iter().zip(from.iter()).any(|(to, from)| to < from) {
            return Err(Error::invalid("tensor", format!("{from} is not part of {to}")));
        }
        fn pad<T: Copy + Default>(from: &[T], shape: &[usize], to: &[usize]) -> Vec<T> {
            let (Some((&width, outer)), Some(&wide)) = (shape.split_last(), to.last()) else { return from.to_vec() };
            let mut result = vec![T::default(); to.iter().product()];
            for (row, elements) in from.chunks_exact(width.max(1)).enumerate() {
                // The row's place among those of the result, by its index along each outer axis.
                let (mut rest, mut place, mut stride) = (row, 0, 1);
                for (&extent, &extent_to) in outer.iter().zip(to).rev() {
                    place += rest % extent * stride;
                    (rest, stride) = (rest / extent, stride * extent_to);
                }
                result[place * wide..][..width].copy_from_slice(elements);
            }
            result
        }
        to.checked_count()?;
        let data = match &self.data {
            Data::F32(v) => Data::F32(pad(v, from, &to)),
            Data::F16(v) => Data::F16(pad(v, from, &to)),
            Data::U32(v) => Data::U32(pad(v, from, &to)),
            Data::Q8(_) | Data::Q4(_) if !same_blocks(from, &to) => {
                return Err(Error::invalid("tensor", format!("the blocks of {from} are not those of {to}")));
            }
            Data::Q8(v) => Data::Q8(v.clone()),
            Data::Q4(v) => Data::Q4(v.clone()),
        };
        Self::new(to, data)
    }

    /// Channels first to channels last: [N, C, H, W] to [N, H, W, C].
    pub fn nchw_to_nhwc(&self) -> Result<Self> {
        self.permute(&[0, 2, 3, 1])
    }

    /// Channels last to channels first: [N, H, W, C] to [N, C, H, W].
    pub fn nhwc_to_nchw(&self) -> Result<Self> {
        self.permute(&[0, 3, 1, 2])
    }
}

/// Flat source indices of a row-major walk over `shape` with the given source strides.
fn permuted_indices<'a>(shape: &'a [usize], step: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    let count = shape.iter().product::<usize>();
    let mut position = vec![0usize; shape.len()];
    let mut flat = 0usize;
    (0..count).map(move |_| {
        let here = flat;
        for axis in (0..shape.len()).rev() {
            position[axis] += 1;
            flat += step[axis];
            if position[axis] < shape[axis] {
                break;
            }
            flat -= step[axis] * shape[axis];
            position[axis] = 0;
        }
        here
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permute_moves_channels() {
        let t = HostTensor::from_fn([1, 2, 2, 3], |i| i as f32);
        let n = t.nchw_to_nhwc().unwrap();
        assert_eq!(n.shape(), &Shape::from([1, 2, 3, 2]));
        assert_eq!(&n.as_f32().unwrap()[..4], &[0.0, 6.0, 1.0, 7.0]);
        assert_eq!(n.nhwc_to_nchw().unwrap(), t);
    }

    #[test]
    fn zeros_go_behind_the_elements_of_each_axis() {
        let t = HostTensor::from_fn([2, 2, 3], |i| i as f32 + 1.0);
        let padded = t.zero_padded([3, 2, 4]).unwrap();
        assert_eq!(&padded.as_f32().unwrap()[..8], &[1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 0.0]);
        assert_eq!(&padded.as_f32().unwrap()[12..], &[10.0, 11.0, 12.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(t.zero_padded([2, 2, 2]).is_err() && t.zero_padded([2, 12]).is_err());
        let matrix = HostTensor::from_fn([70, 6], |i| (i as f32 * 0.7).sin());
        for dtype in [DType::Q8, DType::Q4] {
            let padded = matrix.cast(dtype).zero_padded([96, 8]).unwrap();
            assert_eq!(padded, matrix.zero_padded([96, 8]).unwrap().cast(dtype), "{dtype}");
            assert!(padded.to_f32_vec()[70 * 8..].iter().all(|&v| v == 0.0), "{dtype}");
            assert!(matrix.cast(dtype).zero_padded([128, 8]).is_err());
        }
    }

    #[test]
    fn bytes_round_trip_through_f16() {
        let t = HostTensor::from_fn([3], |i| i as f32 * 0.5).cast(DType::F16);
        let back = HostTensor::from_bytes(&t.tensor_type(), t.bytes()).unwrap();
        assert_eq!(t, back);
        assert!(HostTensor::from_bytes(&t.tensor_type(), &t.bytes()[1..]).is_err());
    }
}
