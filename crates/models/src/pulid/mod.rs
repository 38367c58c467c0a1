//! PuLID's own modules: identity encoders and the identity cross-attention.

mod id_attention;
mod id_encoder;
mod id_former;
mod mapping;
mod names;
#[cfg(not(target_arch = "wasm32"))]
mod trained;
mod version;

pub(crate) use id_attention::IdentityAttention;
pub use id_attention::{IdentityAdapter, IdentityInputs, IdentityLayer, IdentitySettings};
pub use id_encoder::IdEncoder;
pub use id_former::IdFormer;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use id_former::SCALES;
pub use names::{content_sha256, unread_tensors};
pub use pulid_ops::Ortho;
#[cfg(not(target_arch = "wasm32"))]
pub use trained::{TrainedAdapter, TrainedParameter};
pub use version::PulidVersion;
