//! SDXL's networks as diffusers and transformers lay them out, and the single files that hold all of them.

mod clip;
mod infer;
mod misplaced;
mod model;
mod names;
mod prediction;
pub mod single_file;
mod unet;
mod unet_blocks;
mod unread;
mod vae;

pub use clip::{ClipConfig, ClipTextModel};
pub use model::{Part, PartFiles, SdxlModel, TextEncoder};
pub(crate) use prediction::is_mark;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use prediction::refuse_clean_image;
pub use prediction::{PredictionMarks, Predicts};
pub use unet::{Unet, UnetConfig, UnetSize};
pub use vae::{Vae, VaeConfig};
