//! Convolutions.

mod conv2d;
mod window;

pub use conv2d::Conv2d;
pub(crate) use window::Window;
