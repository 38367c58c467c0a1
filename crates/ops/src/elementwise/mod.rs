//! Operators that compute each element on its own.

mod activation_gradient;
mod binary;
mod cast;
mod geglu;
mod geglu_gradient;
mod pointwise;
mod prelu;
mod prelu_gradient;
mod select;
mod swiglu;
mod time_embedding;
mod time_embedding_gradient;
mod unary;

pub use activation_gradient::ActivationGradient;
pub(crate) use binary::per_image;
pub use binary::{Binary, BinaryFunction};
pub use cast::Cast;
pub use geglu::GeGlu;
pub use geglu_gradient::GeGluGradient;
pub use pointwise::{Function, Pointwise};
pub use prelu::PRelu;
pub use prelu_gradient::PReluGradient;
pub use select::Select;
pub use swiglu::SwiGlu;
pub use time_embedding::TimeEmbedding;
pub use time_embedding_gradient::TimeEmbeddingGradient;
pub use unary::Unary;
