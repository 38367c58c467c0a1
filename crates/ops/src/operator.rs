//! The trait every operator implements.

use crate::{Activation, Capabilities, GradientRule, RowsOf, Substitute, TwoPasses, Variant};
use pulid_tensor::{BLOCK, Error, HostTensor, Result, Shape, TensorType};
use std::fmt::Debug;
use std::ops::Range;

/// What lowering sees: the device and the operand types, already checked by [`Operator::infer`].
pub struct LowerContext<'a> {
    /// Limits and features of the device.
    pub capabilities: &'a Capabilities,
    /// Operand types.
    pub inputs: &'a [TensorType],
    /// Result type.
    pub output: &'a TensorType,
}

/// Work of one execution, for schedules, progress and the benchmark's GFLOP/s and GB/s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cost {
    /// Floating-point operations (a multiply-add counts two).
    pub flops: u64,
    /// Bytes that must be read and written at least once.
    pub bytes: u64,
}

/// A cheap tail that a producer can apply to its result before storing it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// Apply an activation.
    Activation(Activation),
    /// Halve the last axis: its first half times a function of its second half.
    Gate(Activation),
    /// Add one more operand of the result's shape and type, appended to the operands.
    Residual,
    /// Add one more operand of the result's type for each image and channel, [N, 1, .., 1, C], appended to the operands.
    PerImage,
}

/// Operands by which an operator may be left out: where operand `zero` holds nothing but zeros, the result is operand `result`,
/// which has its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// The operand that may be zero, such as a strength.
    pub zero: usize,
    /// The operand that is then the result.
    pub result: usize,
}

/// One operator with its attributes. See `docs/adding-an-operator.md`.
pub trait Operator: Debug + Send + Sync {
    /// Name shared by file, shader and test ids.
    fn name(&self) -> &'static str;

    /// Attributes in a canonical `key=value;key=value` form; equal text means equal behaviour.
    fn attributes(&self) -> String;

    /// Result type for the operand types.
    ///
    /// # Errors
    /// Names the operator, the shapes and the limit that they break.
    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType>;

    /// The ways to compute it on a device, best guess first. Every variant gives the same result within tolerance.
    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>>;

    /// Plain Rust with f64 accumulation. Operands arrive as f32 (indices as u32), the result is f32.
    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor>;

    /// Work of one execution. The default counts every operand and the result once.
    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: output.shape.count() as u64, bytes: bytes as u64 }
    }

    /// This operator as a tail of the producer of operand `operand`, if it can be one.
    fn as_epilogue(&self, operand: usize, inputs: &[TensorType]) -> Option<Epilogue> {
        let _ = (operand, inputs);
        None
    }

    /// This operator with a tail applied, if its kernels can do that.
    fn with_epilogue(&self, epilogue: Epilogue) -> Option<Box<dyn Operator>> {
        let _ = epilogue;
        None
    }

    /// Whether operand `operand` may be stored in quantised blocks; graphs refuse them elsewhere.
    fn takes_quantized(&self, operand: usize) -> bool {
        let _ = operand;
        false
    }

    /// How the operator may be left out. Where the operand that may be zero is an input of the network, plans note it and
    /// sessions do leave it out, with everything that only it reads.
    fn passes_when_zero(&self) -> Option<Passes> {
        None
    }

    /// The gradients of a loss in the operands that need one, from that in the result. The default says that there is no rule.
    ///
    /// # Errors
    /// Where the operator, or this form of it, has no rule.
    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        Err(rule.fail("has no gradient rule"))
    }

    /// How rows of a result [N, H, W, C] are computed by themselves, where they can be, for images that exceed a binding.
    fn rows(&self, inputs: &[TensorType], rows: Range<usize>) -> Option<RowsOf> {
        let _ = (inputs, rows);
        None
    }

    /// The operator as two where it must see a whole image before it gives any row.
    fn two_passes(&self) -> Option<TwoPasses> {
        None
    }

    /// Operators that compute the same where no fused kernel does it well, the last of them the result, with no value between
    /// over `limit` bytes as far as that can be.
    fn substitutes(&self, inputs: &[TensorType], limit: usize) -> Option<Vec<Substitute>> {
        let _ = (inputs, limit);
        None
    }

    /// Shapes of the operands that faster kernels read: with zeros behind the elements along each axis the result holds the
    /// same elements first. `None` where the operands are right as they are, or too small to gain.
    fn padded(&self, inputs: &[TensorType]) -> Option<Vec<Shape>> {
        let _ = inputs;
        None
    }

    /// A copy behind a box.
    fn boxed(&self) -> Box<dyn Operator>;
}

impl Clone for Box<dyn Operator> {
    fn clone(&self) -> Self {
        self.boxed()
    }
}

/// Checks the number of operands.
///
/// # Errors
/// Names the operator and both numbers.
pub fn expect_operands(operator: &str, inputs: &[TensorType], expected: usize) -> Result<()> {
    if inputs.len() != expected {
        return Err(Error::operator(operator, format!("takes {expected} operands, got {}", inputs.len())));
    }
    Ok(())
}

/// Whether a weight's type fits the kernels that read quantised blocks: whole blocks of rows, columns in fours.
pub fn fits_quantized(weight: &TensorType) -> bool {
    let columns = weight.shape.last();
    let rows = weight.shape.count().checked_div(columns).unwrap_or(0);
    rows > 0 && rows.is_multiple_of(BLOCK) && columns.is_multiple_of(4)
}

/// Formats operand types for an error message.
pub fn types(inputs: &[TensorType]) -> String {
    inputs.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(" x ")
}
