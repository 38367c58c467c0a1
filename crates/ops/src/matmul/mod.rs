//! Matrix products.

#[expect(clippy::module_inception, reason = "a family and its one operator share the field's name")]
mod matmul;

pub use matmul::MatMul;
