//! Attention and what belongs to it.

#[expect(clippy::module_inception, reason = "a family and its main operator share the field's name")]
mod attention;
mod identity_projection;
mod rotary;

pub use attention::Attention;
pub use identity_projection::{IdentityProjection, Ortho};
pub use rotary::Rotary;
