//! ggml's quantised blocks: what their bytes stand for, with the same f32 arithmetic as ggml and the `gguf` Python package.

use half::f16;
use pulid_tensor::{BLOCK, DType};

/// A type of ggml's quantised blocks that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 32 numbers of 4 bits under a scale.
    Q4_0,
    /// 32 numbers of 4 bits under a scale, over a least value.
    Q4_1,
    /// 32 numbers of 5 bits under a scale.
    Q5_0,
    /// 32 numbers of 5 bits under a scale, over a least value.
    Q5_1,
    /// 32 numbers of 8 bits under a scale.
    Q8_0,
    /// 256 numbers of 2 bits under scales and least values of each 16.
    Q2K,
    /// 256 numbers of 3 bits under scales of each 16.
    Q3K,
    /// 256 numbers of 4 bits under scales and least values of each 32.
    Q4K,
    /// 256 numbers of 5 bits under scales and least values of each 32.
    Q5K,
    /// 256 numbers of 6 bits under scales of each 16.
    Q6K,
}

/// Elements of a K-quant's block.
const SUPER: usize = 256;

impl BlockType {
    /// All of them, for lookups.
    pub const ALL: [BlockType; 10] = [
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
    ];

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q2K => "Q2_K",
            BlockType::Q3K => "Q3_K",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
        }
    }

    /// Elements of a block, which follow one another along the last axis.
    pub const fn elements(self) -> usize {
        match self {
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q8_0 => 32,
            _ => SUPER,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            BlockType::Q4_0 => 18,
            BlockType::Q4_1 => 20,
            BlockType::Q5_0 => 22,
            BlockType::Q5_1 => 24,
            BlockType::Q8_0 => 34,
            BlockType::Q2K => 84,
            BlockType::Q3K => 110,
            BlockType::Q4K => 144,
            BlockType::Q5K => 176,
            BlockType::Q6K => 210,
        }
    }

    /// The type of ours that has the same blocks: 32 numbers along the inner axis of a product, and their scale in half precision.
    pub const fn kernels(self) -> Option<DType> {
        match self {
            BlockType::Q8_0 => Some(DType::Q8),
            BlockType::Q4_0 => Some(DType::Q4),
            _ => None,
        }
    }

    /// Writes the codes of a block of [`BlockType::kernels`] in order; gives the bits of its scale.
    pub(crate) fn codes(self, block: &[u8], codes: &mut [u8; BLOCK]) -> u16 {
        let packed = &block[2..];
        match self {
            BlockType::Q8_0 => codes.copy_from_slice(packed),
            _ => codes.iter_mut().enumerate().for_each(|(i, code)| *code = packed[i % 16] >> (4 * (i / 16)) & 15),
        }
        u16::from_le_bytes([block[0], block[1]])
    }

    /// The values of whole blocks; bytes after the last whole one are not looked at.
    pub(crate) fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let mut values = Vec::with_capacity(bytes.len() / self.bytes() * self.elements());
        for block in bytes.chunks_exact(self.bytes()) {
            match self {
                BlockType::Q4_0 => nibbles(&block[2..], &[0; 4], |q| (q as f32 - 8.0) * half(block, 0), &mut values),
                BlockType::Q4_1 => {
                    nibbles(&block[4..], &[0; 4], |q| half(block, 0) * q as f32 + half(block, 2), &mut values);
                }
                BlockType::Q5_0 => {
                    nibbles(&block[6..], &block[2..6], |q| half(block, 0) * (q as f32 - 16.0), &mut values);
                }
                BlockType::Q5_1 => {
                    let value = |q| half(block, 0) * q as f32 + half(block, 2);
                    nibbles(&block[8..], &block[4..8], value, &mut values);
                }
                BlockType::Q8_0 => {
                    let scale = half(block, 0);
                    values.extend(block[2..].iter().map(|&q| f32::from(q as i8) * scale));
                }
                BlockType::Q2K => q2_k(block, &mut values),
                BlockType::Q3K => q3_k(block, &mut values),
                BlockType::Q4K => q4_k(block, None, &block[16..], &mut values),
                BlockType::Q5K => q4_k(block, Some(&block[16..48]), &block[48..], &mut values),
                BlockType::Q6K => q6_k(block, &mut values),
            }
        }
        values
    }
}

/// The number in half precision at this byte.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 numbers: the low halves of 16 bytes, then the high ones, with a fifth bit each from 4 bytes.
fn nibbles(low: &[u8], high: &[u8], value: impl Fn(u8) -> f32, values: &mut Vec<f32>) {
    for i in 0..32 {
        let fifth = high[i / 8] >> (i % 8) & 1;
        values.push(value(low[i % 16] >> (4 * (i / 16)) & 15 | fifth << 4));
    }
}

/// Scales and least values of 16 (4 bits each), 2-bit numbers, scale of the scales, of the least values.
fn q2_k(block: &[u8], values: &mut Vec<f32>) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, least) = (half(block, 80), half(block, 82));
    for i in 0..SUPER {
        let scale = scales[i / 16];
        let code = codes[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
        values.push(d * f32::from(scale & 15) * f32::from(code) - least * f32::from(scale >> 4));
    }
}

/// Third bits, 2-bit numbers, 6-bit scales of 16, scale of the scales.
fn q3_k(block: &[u8], values: &mut Vec<f32>) {
    let (high, codes, scales, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for i in 0..SUPER {
        let group = i / 16;
        let low = scales[group % 8] >> (4 * (group / 8)) & 15;
        let scale = low | (scales[8 + group % 4] >> (2 * (group / 4)) & 3) << 4;
        let code = codes[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
        // A set bit means that nothing is taken off.
        let offset = if high[i % 32] >> (i / 32) & 1 == 1 { 0.0 } else { 4.0 };
        values.push(d * (f32::from(scale) - 32.0) * (f32::from(code) - offset));
    }
}

/// Scale of the scales and of the least values, both of 32 in 6 bits, then 4-bit numbers; Q5_K has fifth bits too.
fn q4_k(block: &[u8], fifth: Option<&[u8]>, codes: &[u8], values: &mut Vec<f32>) {
    let (d, least, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    for group in 0..8 {
        let (scale, minimum) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => {
                (packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4)
            }
        };
        let (scale, minimum) = (d * f32::from(scale), least * f32::from(minimum));
        for i in 0..32 {
            let low = codes[group / 2 * 32 + i] >> (4 * (group % 2)) & 15;
            let high = fifth.map_or(0, |bits| (bits[i] >> group & 1) << 4);
            values.push(scale * f32::from(low | high) - minimum);
        }
    }
}

/// Low halves, upper 2 bits, scales of 16 in 8 bits, scale of the scales.
fn q6_k(block: &[u8], values: &mut Vec<f32>) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for i in 0..SUPER {
        let (part, inner) = (i / 128, i % 128);
        let code = low[part * 64 + inner % 64] >> (4 * (inner / 64)) & 15
            | (high[part * 32 + inner % 32] >> (2 * (inner / 32)) & 3) << 4;
        values.push(d * f32::from(scales[i / 16] as i8) * (f32::from(code) - 32.0));
    }
}
