//! Convolutions.

mod conv2d;
mod conv2d_gradient;
mod window;

pub use conv2d::Conv2d;
pub use conv2d_gradient::Conv2dGradient;
pub(crate) use window::Window;
