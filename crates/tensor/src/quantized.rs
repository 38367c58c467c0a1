//! Weights in blocks: 32 rows of one column share a scale in half precision.
//!
//! A weight [.., N] is seen as a table of R rows (all axes but the last) and N columns, as the kernels read it: rows are
//! the inner axis of the product. Rows are padded to whole blocks and columns to fours, both with what stands for zero. Words of 32 bits:
//!
//! * q8 (like ggml's Q8_0): for each row the columns four to a word, as signed bytes; value = byte · scale.
//! * q4 (like ggml's Q4_0): for each pair of rows the columns four to a word, as nibbles: the even row in the low half, the
//!   odd row in the high half; value = (nibble - 8) · scale.
//! * both: then the scales, for each block the columns two to a word.

use crate::{DType, Shape, f16};

/// Rows that share a scale.
pub const BLOCK: usize = 32;

/// Extents of a quantised table in storage units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extents {
    rows: usize,
    columns: usize,
    blocks: usize,
    /// Columns in fours.
    quads: usize,
}

impl Extents {
    fn of(shape: &Shape) -> Option<Extents> {
        let count = shape.checked_count().ok()?;
        let columns = shape.extents().last().copied().unwrap_or(1);
        let rows = count.checked_div(columns).unwrap_or(0);
        Some(Extents { rows, columns, blocks: rows.div_ceil(BLOCK), quads: columns.div_ceil(4) })
    }

    /// Words before the scales.
    fn values(&self, dtype: DType) -> Option<usize> {
        let rows_of_words = if dtype == DType::Q8 { BLOCK } else { BLOCK / 2 };
        self.blocks.checked_mul(rows_of_words)?.checked_mul(self.quads)
    }

    fn words(&self, dtype: DType) -> Option<usize> {
        self.values(dtype)?.checked_add(self.blocks.checked_mul(2 * self.quads)?)
    }
}

/// Whether tables of both shapes have the same blocks: matrices that differ within the last block of rows and the last four columns.
pub(crate) fn same_blocks(a: &Shape, b: &Shape) -> bool {
    let of = |shape: &Shape| Extents::of(shape).map(|e| (shape.rank() == 2, e.blocks, e.quads));
    of(a) == of(b) && matches!(of(a), Some((true, ..)))
}

/// Words of 32 bits that a tensor takes, `None` where that overflows.
pub(crate) fn words(dtype: DType, shape: &Shape) -> Option<usize> {
    Extents::of(shape)?.words(dtype)
}

/// Quantises row-major values of the given shape, each block to its own largest value.
pub(crate) fn quantize(dtype: DType, shape: &Shape, values: &[f32]) -> Vec<u32> {
    let Some((e, total)) = Extents::of(shape).and_then(|e| Some((e, e.words(dtype)?))) else { return Vec::new() };
    let mut words = vec![0u32; total];
    let (codes, scales) = words.split_at_mut(e.values(dtype).unwrap_or(0));
    // The nibbles of zero.
    codes.fill(if dtype == DType::Q4 { 0x8888_8888 } else { 0 });
    let mut peaks = vec![0f32; e.columns];
    let mut inverse = vec![0f32; e.columns];
    for (block, rows) in values.chunks(BLOCK * e.columns.max(1)).enumerate() {
        // The value of the largest size, with its sign.
        peaks.fill(0.0);
        for row in rows.chunks_exact(e.columns) {
            for (peak, &v) in peaks.iter_mut().zip(row) {
                if v.abs() > peak.abs() || !v.is_finite() {
                    *peak = v;
                }
            }
        }
        let divisor = if dtype == DType::Q8 { 127.0 } else { -8.0 };
        for (c, (&peak, inverse)) in peaks.iter().zip(&mut inverse).enumerate() {
            let scale = if dtype == DType::Q8 { peak.abs() } else { peak } / divisor;
            // Beyond half precision the largest scale is the nearest; NaN and infinity stay visible as NaN.
            let scale = match peak.is_finite() {
                // A block of zeros has the scale 0, not -0.
                true => f16::from_f32(scale.clamp(-65504.0, 65504.0) + 0.0),
                false => f16::NAN,
            };
            *inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
            scales[block * 2 * e.quads + c / 2] |= u32::from(scale.to_bits()) << (16 * (c % 2));
        }
        for (r, row) in rows.chunks_exact(e.columns).enumerate() {
            let r = block * BLOCK + r;
            if dtype == DType::Q8 {
                let words = &mut codes[r * e.quads..][..e.quads];
                for (c, (&v, &inverse)) in row.iter().zip(&inverse).enumerate() {
                    let code = (v * inverse).round().clamp(-127.0, 127.0) as i8;
                    words[c / 4] |= u32::from(code as u8) << (8 * (c % 4));
                }
            } else {
                let words = &mut codes[r / 2 * e.quads..][..e.quads];
                for (c, (&v, &inverse)) in row.iter().zip(&inverse).enumerate() {
                    let code = ((v * inverse).round() + 8.0).clamp(0.0, 15.0) as u32;
                    words[c / 4] ^= (code ^ 8) << (4 * (c % 4) + 16 * (r % 2));
                }
            }
        }
    }
    words
}

/// Words of whole blocks that exist already: `block(column, number, codes)` writes the codes of 32 rows and gives the bits of their
/// scale; codes are signed bytes for q8, 0 to 15 for q4. `None` where rows are no whole blocks, or too many for memory.
pub(crate) fn pack(
    dtype: DType,
    shape: &Shape,
    mut block: impl FnMut(usize, usize, &mut [u8; BLOCK]) -> u16,
) -> Option<Vec<u32>> {
    /// Columns at a time, whose words of a row share a line of the cache.
    const TILE: usize = 64;
    let e = Extents::of(shape).filter(|e| dtype.is_quantized() && e.rows.is_multiple_of(BLOCK))?;
    let (total, values) = (e.words(dtype)?, e.values(dtype)?);
    let mut words = Vec::new();
    words.try_reserve_exact(total).ok()?;
    // The nibbles of zero, where columns are no whole fours.
    words.resize(values, if dtype == DType::Q4 { 0x8888_8888 } else { 0 });
    words.resize(total, 0u32);
    let (packed, scales) = words.split_at_mut(values);
    let mut codes = [0u8; BLOCK];
    for first in (0..e.columns).step_by(TILE) {
        for number in 0..e.blocks {
            for c in first..e.columns.min(first + TILE) {
                let scale = block(c, number, &mut codes);
                scales[number * 2 * e.quads + c / 2] |= u32::from(scale) << (16 * (c % 2));
                for (i, &code) in codes.iter().enumerate() {
                    let r = number * BLOCK + i;
                    match dtype {
                        DType::Q8 => packed[r * e.quads + c / 4] |= u32::from(code) << (8 * (c % 4)),
                        _ => {
                            let place = 4 * (c % 4) + 16 * (r % 2);
                            packed[r / 2 * e.quads + c / 4] ^= u32::from(code & 15 ^ 8) << place;
                        }
                    }
                }
            }
        }
    }
    Some(words)
}

/// The values, row-major, that quantised words stand for.
pub(crate) fn dequantize(dtype: DType, shape: &Shape, words: &[u32]) -> Vec<f32> {
    let Some((e, first_scale)) = Extents::of(shape).and_then(|e| Some((e, e.values(dtype)?))) else {
        return Vec::new();
    };
    let mut values = Vec::with_capacity(e.rows * e.columns);
    for r in 0..e.rows {
        for c in 0..e.columns {
            let scale = words[first_scale + r / BLOCK * 2 * e.quads + c / 2] >> (16 * (c % 2));
            let scale = f16::from_bits(scale as u16).to_f32();
            let code = match dtype {
                DType::Q8 => f32::from((words[r * e.quads + c / 4] >> (8 * (c % 4))) as u8 as i8),
                _ => (words[r / 2 * e.quads + c / 4] >> (4 * (c % 4) + 16 * (r % 2)) & 15) as f32 - 8.0,
            };
            values.push(code * scale);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use crate::{DType, HostTensor, Shape};

    /// Largest error of a block in units of its largest value.
    fn worst(dtype: DType, shape: &[usize]) -> f32 {
        let tensor = HostTensor::from_fn(shape, |i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0);
        let back = tensor.cast(dtype);
        assert_eq!(back.dtype(), dtype);
        assert_eq!(back.bytes().len(), back.tensor_type().bytes());
        let (a, b) = (tensor.to_f32_vec(), back.to_f32_vec());
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn blocks_keep_values_within_half_a_step() {
        for shape in [&[64, 8][..], &[3, 3, 32, 12], &[7, 5], &[33, 1], &[1, 1]] {
            assert!(worst(DType::Q8, shape) <= 0.505 / 127.0, "{shape:?}: {}", worst(DType::Q8, shape));
            // Values of the sign that the scale does not have may be a whole step off at their end.
            assert!(worst(DType::Q4, shape) <= 1.01 / 8.0, "{shape:?}: {}", worst(DType::Q4, shape));
        }
    }

    #[test]
    fn whole_steps_survive() {
        let q8 = HostTensor::from_fn([32, 4], |i| (i % 255) as f32 - 127.0);
        let full = HostTensor::from_fn([32, 4], |i| if i < 4 { 127.0 } else { (i % 255) as f32 - 127.0 });
        assert_eq!(full.cast(DType::Q8).to_f32_vec(), full.to_f32_vec());
        assert_ne!(q8.cast(DType::Q4).to_f32_vec(), q8.to_f32_vec());
        let q4 = HostTensor::from_fn([32, 4], |i| if i < 4 { -8.0 } else { (i % 16) as f32 - 8.0 });
        assert_eq!(q4.cast(DType::Q4).to_f32_vec(), q4.to_f32_vec());
    }

    #[test]
    fn sizes_are_four_and_a_half_and_eight_and_a_half_bits() {
        let bits = |dtype| crate::TensorType::new(dtype, [320, 320]).bytes() as f64 * 8.0 / (320.0 * 320.0);
        assert_eq!(bits(DType::Q8), 8.5);
        assert_eq!(bits(DType::Q4), 4.5);
        assert_eq!(crate::TensorType::new(DType::Q8, Shape::from([usize::MAX, 4])).bytes(), usize::MAX);
    }

    #[test]
    fn blocks_that_exist_keep_every_code() {
        for (dtype, codes) in [(DType::Q8, 256), (DType::Q4, 16)] {
            // 70 columns are no whole fours and more than are packed at a time.
            let code = |c: usize, r: usize| ((c * 37 + r * 11) % codes) as u8;
            let scale = |c: usize, number: usize| {
                crate::f16::from_f32(if c % 2 == 0 { 0.25 } else { -0.5 } * (number + 1) as f32)
            };
            let packed = HostTensor::from_blocks(dtype, [2, 32, 70], |c, number, block| {
                block.iter_mut().enumerate().for_each(|(i, to)| *to = code(c, number * 32 + i));
                scale(c, number).to_bits()
            });
            let want = HostTensor::from_fn([2, 32, 70], |i| {
                let (r, c) = (i / 70, i % 70);
                let code = if codes == 256 { f32::from(code(c, r) as i8) } else { f32::from(code(c, r)) - 8.0 };
                code * scale(c, r / 32).to_f32()
            });
            assert_eq!(packed.unwrap().to_f32_vec(), want.to_f32_vec(), "{dtype}");
            assert!(HostTensor::from_blocks(dtype, [33, 4], |_, _, _| 0).is_err());
        }
        assert!(HostTensor::from_blocks(DType::F16, [32, 4], |_, _, _| 0).is_err());
    }

    #[test]
    fn extremes_neither_vanish_nor_hide() {
        let zeros = HostTensor::zeros([32, 4]);
        assert_eq!(zeros.cast(DType::Q4).to_f32_vec(), zeros.to_f32_vec());
        let mut values = vec![1.0; 128];
        values[5] = f32::NAN;
        let nan = HostTensor::from_f32([32, 4], values).unwrap().cast(DType::Q8).to_f32_vec();
        assert!(nan[5].is_nan() && (nan[4] - 1.0).abs() < 1e-3);
        let large = HostTensor::from_fn([32, 4], |_| 1e30).cast(DType::Q8).to_f32_vec();
        assert!(large.iter().all(|v| v.is_finite() && *v > 8e6));
    }
}
