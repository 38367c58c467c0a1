//! PuLID's own modules: identity encoders and the identity cross-attention.

mod id_attention;
mod id_encoder;
mod id_former;
mod mapping;
mod version;

pub use id_attention::{IdentityAdapter, IdentitySettings, Ortho};
pub use id_encoder::IdEncoder;
pub use id_former::IdFormer;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use id_former::SCALES;
pub use version::PulidVersion;
