//! SDXL's networks as diffusers and transformers lay them out.

mod bands;
mod clip;
mod unet;
mod unet_blocks;
mod vae;

pub use clip::{ClipConfig, ClipTextModel};
pub use unet::{Unet, UnetConfig, UnetSize};
pub use vae::{Vae, VaeConfig};
