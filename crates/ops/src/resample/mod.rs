//! Pooling and resizing of channels-last images.

mod affine_sample;
mod average_pool2d;
mod coordinate;
mod max_pool2d;
mod resize2d;
mod upsample_nearest;

pub use affine_sample::{AffineSample, AffineSampleGradient};
pub use average_pool2d::AveragePool2d;
pub use coordinate::{Coordinates, Rounding};
pub use max_pool2d::MaxPool2d;
pub use resize2d::{Interpolation, Resize2d};
pub use upsample_nearest::UpsampleNearest;

use crate::{GradientRule, Reduce, Reduction, Value};
use pulid_tensor::Result;

/// The gradient of an image whose every pixel was repeated so many times along rows and columns: the sum of each block of the
/// result's.
fn sum_of_blocks(rule: &mut GradientRule<'_>, [rows, columns]: [usize; 2]) -> Result<Value> {
    let x = rule.shape(Value::Operand(0));
    let blocks = rule.reshape(Value::Upstream, [x[0] * x[1], rows, x[2], columns, x[3]])?;
    let sum = rule.apply(Reduce { reduction: Reduction::Sum, axes: vec![1, 3], keep_dims: false }, [blocks])?;
    rule.reshape(sum, x)
}
