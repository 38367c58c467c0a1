//! Operators with statistics over an axis: normalisations, softmax, reductions.

mod batch_norm;
mod group_apply;
mod group_norm;
mod group_norm_gradient;
mod group_statistics;
mod l2_normalize;
mod l2_normalize_gradient;
mod layer_norm;
mod layer_norm_gradient;
mod reduce;
mod softmax;
mod softmax_gradient;

pub use batch_norm::BatchNorm;
pub use group_apply::GroupApply;
pub use group_norm::GroupNorm;
pub use group_norm_gradient::GroupNormGradient;
pub use group_statistics::GroupStatistics;
pub use l2_normalize::L2Normalize;
pub use l2_normalize_gradient::L2NormalizeGradient;
pub use layer_norm::LayerNorm;
pub use layer_norm_gradient::LayerNormGradient;
pub use reduce::{Reduce, Reduction};
pub use softmax::Softmax;
pub use softmax_gradient::SoftmaxGradient;

use crate::DeviceKind;

/// Whether rows are better worked on by one invocation each than by one workgroup each: on CPU devices, where barriers
/// cost more than uncoalesced reads, as long as there are rows for every core's lanes.
fn prefer_serial(kind: DeviceKind, rows: usize) -> bool {
    kind == DeviceKind::Cpu && rows >= 32
}
