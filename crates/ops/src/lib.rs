//! Operators of pulid-wgpu: shape rules, lowering to WGSL kernels, references and cases. Knows no GPU interface.
//!
//! Each operator is one Rust file here, one or more shaders under `shaders/`, one `mod` line in its family and one line
//! in [`registry`]. `docs/adding-an-operator.md` walks through it.

pub mod activation;
pub mod arithmetic;
pub mod attention;
pub mod by_rows;
pub mod capabilities;
pub mod case;
pub mod conv;
mod cooperative;
pub mod device_class;
pub mod dispatch;
pub mod elementwise;
pub mod gradient;
pub mod matmul;
pub mod movement;
pub mod norm;
pub mod operator;
pub mod optimizer;
pub mod registry;
pub mod resample;
pub mod shader;
mod split_k;
mod strided;
mod workgroup_tile;

pub use activation::Activation;
pub use attention::*;
pub use by_rows::{Argument, RowsOf, Substitute, TwoPasses};
pub use capabilities::{Capabilities, DeviceKind, MAX_WORKGROUPS};
pub use case::{Case, Fill, LARGEST_BINDING, Operand, Role, Storage, Tolerance};
pub use conv::*;
pub use device_class::DeviceClass;
pub use dispatch::{Dispatch, LONG, LONG_IN_REGISTERS, Slot, Variant};
pub use elementwise::*;
pub use gradient::{GradientRule, Step, Value};
pub use matmul::*;
pub use movement::*;
pub use norm::*;
pub use operator::{Cost, Epilogue, LowerContext, Operator, Passes, expect_operands, fits_quantized, types};
pub use optimizer::*;
pub use registry::{FAMILIES, Family, OperatorInfo, operators};
pub use resample::*;
pub use shader::{Shader, shader, shaders};
