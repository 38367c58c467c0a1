use crate::{Shape, quantized};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Element type of a tensor that a graph computes with.
///
/// Checkpoints hold more types than these (bf16, i64, ...); they are converted when read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision. Storage only: every kernel accumulates in f32.
    F16,
    /// Unsigned 32-bit integer: token ids and gather indices.
    U32,
    /// Blocks of 8-bit integers with a common scale, 8.5 bits an element: weights of matmul and convolution only. See
    /// `quantized.rs` for the layout.
    Q8,
    /// Blocks of 4-bit integers with a common scale, 4.5 bits an element: as [`DType::Q8`].
    Q4,
}

impl DType {
    /// Bytes that `shape` takes, `None` where that overflows.
    pub fn bytes(self, shape: &Shape) -> Option<usize> {
        match self {
            DType::F32 | DType::U32 => shape.checked_count().ok()?.checked_mul(4),
            DType::F16 => shape.checked_count().ok()?.checked_mul(2),
            DType::Q8 | DType::Q4 => quantized::words(self, shape)?.checked_mul(4),
        }
    }

    /// Whether elements are floating-point numbers of their own.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16)
    }

    /// Whether elements are integers under the scale of a block.
    pub const fn is_quantized(self) -> bool {
        matches!(self, DType::Q8 | DType::Q4)
    }

    /// The name used in plans, case ids and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::U32 => "u32",
            DType::Q8 => "q8",
            DType::Q4 => "q4",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
