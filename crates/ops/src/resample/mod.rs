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
