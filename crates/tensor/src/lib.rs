//! Shapes, element types, host tensors and the error that every crate of pulid-wgpu shares.
//!
//! This crate depends on nothing else in the workspace.

mod deviation;
mod dtype;
mod error;
mod host;
mod quantized;
mod shape;
mod threads;

pub use deviation::{deviation, standard_deviation};
pub use dtype::DType;
pub use error::{Error, Result, io_message};
pub use half::f16;
pub use host::{Data, HostTensor};
pub use quantized::BLOCK;
pub use shape::{Shape, TensorType};
pub use threads::MaybeSendSync;
