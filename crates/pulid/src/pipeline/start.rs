//! Where denoising begins.

use super::{GenerateOptions, Pipeline, latent_size};
use crate::random::TorchGenerator;
use crate::sampler::{Sampler, SamplerOptions};
use pulid_tensor::{Error, HostTensor, Result};

/// What [`Pipeline::start`] is told.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Pixels, a multiple of the VAE's factor.
    pub width: usize,
    /// Pixels, a multiple of the VAE's factor.
    pub height: usize,
    /// Images at once.
    pub batch: usize,
    /// Seed of the noise, meaning what it means to PyTorch's CPU generator.
    pub seed: u64,
    /// Solver, spacing and number of steps.
    pub sampler: SamplerOptions,
    /// Latents [B, 4, h, w] to begin from, as [`Pipeline::decode`] takes them, and how much of the schedule is run on them: 1 leaves
    /// little of them, 0 all. Without them the run begins from noise alone.
    pub from: Option<(HostTensor, f64)>,
}

impl From<&GenerateOptions> for StartOptions {
    fn from(options: &GenerateOptions) -> Self {
        let &GenerateOptions { width, height, batch, seed, .. } = options;
        StartOptions { width, height, batch, seed, sampler: options.sampler.clone(), from: None }
    }
}

/// Latents at a noise level and the solver that will take them down from it.
pub struct Start {
    pub(super) sampler: Sampler,
    /// [B, 4, h, w].
    pub(super) shape: [usize; 4],
    /// Height and width in pixels.
    pub(super) pixels: [usize; 2],
}

impl Pipeline {
    /// Noise, or latents with noise, at the level where the run begins.
    ///
    /// # Errors
    /// A size, batch, strength or number of steps that cannot be, or latents of another shape.
    pub fn start(&self, options: StartOptions) -> Result<Start> {
        let StartOptions { width, height, batch, seed, sampler, from } = options;
        let [rows, columns] = latent_size([width, height], batch, self.vae.config().factor())?;
        let shape = [batch, self.vae.config().latent_channels, rows, columns];
        let noise = TorchGenerator::new(seed).randn(shape.iter().product());
        let sampler = match from {
            None => Sampler::new(&self.schedule, &sampler, noise)?,
            Some((latents, _)) if latents.shape().extents() != shape => {
                let detail = format!("are {}, this size and batch take {shape:?}", latents.shape());
                return Err(Error::invalid("latents", detail));
            }
            Some((latents, strength)) => {
                Sampler::from_latents(&self.schedule, &sampler, latents.as_f32()?, noise, strength)?
            }
        };
        Ok(Start { sampler, shape, pixels: [height, width] })
    }
}
