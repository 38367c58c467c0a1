//! PuLID on any GPU: a photo and a prompt in, an image of that person out.
//!
//! The parts that need no network live in small pure modules, all of which build for the browser:
//! [`random`] draws PyTorch's noise, [`sampler`] turns a noise prediction into latents step by step, [`image`] reads
//! photos and writes images, and [`face`] finds, aligns and masks faces around the networks' outputs. [`runtime`] is
//! where networks run; [`identity`] reads a person from photos, [`pipeline`] makes the image, [`settings`] lists all that
//! can be said of it, and [`preset`] knows the official applications' settings.

mod blame;
pub mod face;
pub mod identity;
pub mod image;
mod numbers;
pub mod pipeline;
mod pool;
pub mod preset;
#[cfg(not(target_arch = "wasm32"))]
pub mod quantize;
pub mod random;
pub mod runtime;
pub mod sampler;
pub mod settings;
