//! Attention and what belongs to it.

#[expect(clippy::module_inception, reason = "a family and its main operator share the field's name")]
mod attention;
mod attention_gradient;
mod attention_key_value_gradient;
mod attention_log_sum;
mod attention_query_gradient;
mod head_dot;
mod identity_projection;
mod identity_projection_gradient;
mod identity_score_gradient;
mod rotary;

pub use attention::Attention;
pub(crate) use attention::tile_traffic;
pub use attention_key_value_gradient::AttentionKeyValueGradient;
pub use attention_log_sum::AttentionLogSum;
pub use attention_query_gradient::AttentionQueryGradient;
pub use head_dot::HeadDot;
pub use identity_projection::{IdentityProjection, Ortho};
pub use identity_projection_gradient::IdentityProjectionGradient;
pub use identity_score_gradient::IdentityScoreGradient;
pub use rotary::Rotary;
