//! What the compilers in Mesa's Vulkan drivers make of every kernel, for GPUs that are not there: registers, spills, occupancy, code.
//!
//! Mesa's `drm-shim` answers for the kernel's graphics driver, so that a Vulkan driver opens a GPU by its name alone and
//! compiles real pipelines; nothing runs. `docs/gpu-stats.md` says what the figures mean and what they do not.

mod driver;
mod figures;
mod gpu;
mod kernels;
mod table;

pub use driver::{Compiled, Driver};
pub use figures::{Figures, figures};
pub use gpu::{GPUS, Gpu};
pub use kernels::{Kernel, kernels};
pub use table::{Row, differences, problems, render};

/// What went wrong, in words.
pub type Outcome<T = ()> = Result<T, String>;
