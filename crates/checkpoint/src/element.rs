use crate::{BlockType, fp8};
use half::{bf16, f16};
use pulid_tensor::{DType, Data, Error, HostTensor, Result, Shape};
use std::fmt;

/// Element type of a tensor in a file.
///
/// Files hold more types than a graph computes with; [`ElementType::dtype`] says what each is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// One byte, zero or one.
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 64-bit integer.
    U64,
    /// Signed 64-bit integer.
    I64,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single-precision number.
    Bf16,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// 8 bits, 4 of exponent, without infinity: PyTorch's `float8_e4m3fn`.
    F8E4M3,
    /// 8 bits, 5 of exponent: PyTorch's `float8_e5m2`.
    F8E5M2,
    /// ggml's quantised blocks, as GGUF files hold them.
    Ggml(BlockType),
    /// Quantised blocks in the order kernels read ([`DType::Q8`]), in files that `pulid quantize` writes.
    Q8,
    /// Quantised blocks in the order kernels read ([`DType::Q4`]), in files that `pulid quantize` writes.
    Q4,
}

impl ElementType {
    /// Every type of the safetensors format's own, for lookups by name.
    pub const ALL: [ElementType; 15] = [
        ElementType::Bool,
        ElementType::U8,
        ElementType::I8,
        ElementType::U16,
        ElementType::I16,
        ElementType::U32,
        ElementType::I32,
        ElementType::U64,
        ElementType::I64,
        ElementType::F16,
        ElementType::Bf16,
        ElementType::F32,
        ElementType::F64,
        ElementType::F8E4M3,
        ElementType::F8E5M2,
    ];

    /// The name that safetensors headers use, or ggml's.
    pub const fn name(self) -> &'static str {
        match self {
            ElementType::Bool => "BOOL",
            ElementType::U8 => "U8",
            ElementType::I8 => "I8",
            ElementType::U16 => "U16",
            ElementType::I16 => "I16",
            ElementType::U32 => "U32",
            ElementType::I32 => "I32",
            ElementType::U64 => "U64",
            ElementType::I64 => "I64",
            ElementType::F16 => "F16",
            ElementType::Bf16 => "BF16",
            ElementType::F32 => "F32",
            ElementType::F64 => "F64",
            ElementType::F8E4M3 => "F8_E4M3",
            ElementType::F8E5M2 => "F8_E5M2",
            ElementType::Ggml(block) => block.name(),
            ElementType::Q8 => "Q8",
            ElementType::Q4 => "Q4",
        }
    }

    /// The type of this safetensors name, if it is one that can be read.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.name() == name)
    }

    /// Bytes per element; of quantised blocks, per word or per block of ggml's.
    pub const fn size(self) -> usize {
        match self {
            ElementType::Bool | ElementType::U8 | ElementType::I8 | ElementType::F8E4M3 | ElementType::F8E5M2 => 1,
            ElementType::U16 | ElementType::I16 | ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::U32 | ElementType::I32 | ElementType::F32 | ElementType::Q8 | ElementType::Q4 => 4,
            ElementType::U64 | ElementType::I64 | ElementType::F64 => 8,
            ElementType::Ggml(block) => block.bytes(),
        }
    }

    /// Whether elements are read as floating-point numbers.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            ElementType::F16
                | ElementType::Bf16
                | ElementType::F32
                | ElementType::F64
                | ElementType::F8E4M3
                | ElementType::F8E5M2
                | ElementType::Ggml(_)
        )
    }

    /// The type such a tensor has once read: f16 stays, fp8 becomes f16 (which holds all its values), other floats become f32,
    /// integers and booleans u32.
    pub const fn dtype(self) -> DType {
        match self {
            ElementType::F16 | ElementType::F8E4M3 | ElementType::F8E5M2 => DType::F16,
            ElementType::Bf16 | ElementType::F32 | ElementType::F64 | ElementType::Ggml(_) => DType::F32,
            ElementType::Q8 => DType::Q8,
            ElementType::Q4 => DType::Q4,
            _ => DType::U32,
        }
    }

    /// Bytes that a tensor of this shape takes, or `None` when that overflows.
    pub fn bytes(self, shape: &Shape) -> Option<u64> {
        if self.dtype().is_quantized() {
            return u64::try_from(self.dtype().bytes(shape)?).ok();
        }
        self.run_bytes(u64::try_from(shape.checked_count().ok()?).ok()?)
    }

    /// Bytes that this many elements take one after another, or `None` when that overflows or they are no whole blocks.
    pub(crate) fn run_bytes(self, count: u64) -> Option<u64> {
        let unit = if let ElementType::Ggml(block) = self { block.elements() as u64 } else { 1 };
        count.is_multiple_of(unit).then_some(count / unit)?.checked_mul(self.size() as u64)
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Little-endian bytes of `element`s as a tensor of [`ElementType::dtype`].
///
/// # Errors
/// The text of what is wrong: a length that is not the shape's, or an integer that u32 does not hold.
pub(crate) fn host_tensor(element: ElementType, shape: &Shape, bytes: &[u8]) -> Result<HostTensor> {
    check_length(element, shape, bytes)?;
    let data = match element {
        ElementType::F32 => Data::F32(chunks(bytes, f32::from_le_bytes).collect()),
        ElementType::F64 => Data::F32(chunks(bytes, f64::from_le_bytes).map(|x| x as f32).collect()),
        ElementType::Bf16 => Data::F32(chunks(bytes, |b| bf16::from_le_bytes(b).to_f32()).collect()),
        ElementType::F16 => Data::F16(chunks(bytes, f16::from_le_bytes).collect()),
        ElementType::F8E4M3 => Data::F16(bytes.iter().map(|&code| fp8::e4m3(code)).collect()),
        ElementType::F8E5M2 => Data::F16(bytes.iter().map(|&code| fp8::e5m2(code)).collect()),
        ElementType::Ggml(block) => Data::F32(block.dequantize(bytes)),
        ElementType::U32 => Data::U32(chunks(bytes, u32::from_le_bytes).collect()),
        ElementType::Q8 => Data::Q8(chunks(bytes, u32::from_le_bytes).collect()),
        ElementType::Q4 => Data::Q4(chunks(bytes, u32::from_le_bytes).collect()),
        _ => Data::U32(
            wide_integers(element, bytes)
                .map(|x| {
                    u32::try_from(x).map_err(|_| Error::invalid("tensor", format!("{x} is no index (0 to 2^32-1)")))
                })
                .collect::<Result<_>>()?,
        ),
    };
    HostTensor::new(shape.clone(), data)
}

/// Little-endian bytes of an integer or boolean tensor as signed 64-bit integers.
///
/// # Errors
/// When the elements are floats, the length is not the shape's, or a U64 exceeds i64.
pub(crate) fn integers(element: ElementType, shape: &Shape, bytes: &[u8]) -> Result<Vec<i64>> {
    check_length(element, shape, bytes)?;
    if element.is_float() || element.dtype().is_quantized() {
        return Err(Error::invalid("tensor", format!("expected integers, found {element}")));
    }
    wide_integers(element, bytes)
        .map(|x| i64::try_from(x).map_err(|_| Error::invalid("tensor", format!("{x} exceeds 64 signed bits"))))
        .collect()
}

/// The elements of a tensor in row-major order, from bytes where they lie `strides` elements apart along each axis.
///
/// # Errors
/// When the tensor does not fit in memory or reaches past the bytes.
pub(crate) fn in_order(bytes: &[u8], size: usize, shape: &Shape, strides: &[u64]) -> Result<Vec<u8>> {
    let fail =
        || Error::invalid("tensor", format!("{shape} of strides {strides:?} does not lie in {} bytes", bytes.len()));
    let strides: Vec<usize> = strides.iter().map(|&s| usize::try_from(s).map_err(|_| fail())).collect::<Result<_>>()?;
    let total = shape.checked_count()?.checked_mul(size).ok_or_else(fail)?;
    let mut out = Vec::new();
    out.try_reserve_exact(total).map_err(|_| fail())?;
    let mut index = vec![0; shape.rank()];
    while out.len() < total {
        let place: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        out.extend_from_slice(bytes.get(place * size..(place + 1) * size).ok_or_else(fail)?);
        for (i, &extent) in index.iter_mut().zip(shape.iter()).rev() {
            *i += 1;
            if *i < extent {
                break;
            }
            *i = 0;
        }
    }
    Ok(out)
}

fn check_length(element: ElementType, shape: &Shape, bytes: &[u8]) -> Result<()> {
    if element.bytes(shape) != Some(bytes.len() as u64) {
        return Err(Error::invalid("tensor", format!("{element}{shape} does not take {} bytes", bytes.len())));
    }
    Ok(())
}

fn chunks<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |c| decode(*c))
}

/// Every integer type widened without loss; nothing for floats.
fn wide_integers(element: ElementType, bytes: &[u8]) -> Box<dyn Iterator<Item = i128> + '_> {
    match element {
        ElementType::Bool => Box::new(bytes.iter().map(|&x| i128::from(x != 0))),
        ElementType::U8 => Box::new(bytes.iter().map(|&x| x.into())),
        ElementType::I8 => Box::new(chunks(bytes, i8::from_le_bytes).map(Into::into)),
        ElementType::U16 => Box::new(chunks(bytes, u16::from_le_bytes).map(Into::into)),
        ElementType::I16 => Box::new(chunks(bytes, i16::from_le_bytes).map(Into::into)),
        ElementType::U32 => Box::new(chunks(bytes, u32::from_le_bytes).map(Into::into)),
        ElementType::I32 => Box::new(chunks(bytes, i32::from_le_bytes).map(Into::into)),
        ElementType::U64 => Box::new(chunks(bytes, u64::from_le_bytes).map(Into::into)),
        ElementType::I64 => Box::new(chunks(bytes, i64::from_le_bytes).map(Into::into)),
        ElementType::F16
        | ElementType::Bf16
        | ElementType::F32
        | ElementType::F64
        | ElementType::F8E4M3
        | ElementType::F8E5M2
        | ElementType::Ggml(_)
        | ElementType::Q8
        | ElementType::Q4 => Box::new(std::iter::empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_become_what_graphs_compute_with() {
        let shape = Shape::from([2]);
        let read = |element, bytes: &[u8]| host_tensor(element, &shape, bytes).unwrap();
        let f64s: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(read(ElementType::F64, &f64s).as_f32().unwrap(), &[1.5, -2.0]);
        let bf16s: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(read(ElementType::Bf16, &bf16s).as_f32().unwrap(), &[1.5, -2.0]);
        let f16s: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(read(ElementType::F16, &f16s).dtype(), DType::F16);
        assert_eq!(read(ElementType::F16, &f16s).to_f32_vec(), &[1.5, -2.0]);
    }

    #[test]
    fn integers_become_indices_or_errors() {
        let shape = Shape::from([2]);
        let i64s = |v: [i64; 2]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let read = |v| host_tensor(ElementType::I64, &shape, &i64s(v));
        assert_eq!(read([7, u32::MAX.into()]).unwrap().as_u32().unwrap(), &[7, u32::MAX]);
        assert!(read([7, -1]).unwrap_err().to_string().contains("-1"));
        assert!(read([1 << 32, 0]).is_err());
        assert_eq!(integers(ElementType::I64, &shape, &i64s([7, -1])).unwrap(), &[7, -1]);
        assert_eq!(integers(ElementType::I8, &shape, &[0xff, 1]).unwrap(), &[-1, 1]);
        assert_eq!(host_tensor(ElementType::Bool, &shape, &[0, 1]).unwrap().as_u32().unwrap(), &[0, 1]);
        assert!(integers(ElementType::U64, &Shape::from([1]), &u64::MAX.to_le_bytes()).is_err());
        assert!(integers(ElementType::F32, &shape, &[0; 8]).is_err());
    }

    #[test]
    fn lengths_are_checked_without_overflow() {
        assert!(host_tensor(ElementType::F32, &Shape::from([2]), &[0; 7]).is_err());
        assert_eq!(ElementType::F64.bytes(&Shape::from([usize::MAX, 2])), None);
        assert_eq!(ElementType::F64.bytes(&Shape::from([1usize << 61])), None);
    }

    #[test]
    fn names_are_the_formats() {
        for element in ElementType::ALL {
            assert_eq!(ElementType::from_name(element.name()), Some(element));
        }
        assert_eq!(ElementType::from_name("F8_E8M0"), None);
    }
}
