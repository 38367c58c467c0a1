//! Where denoising begins.

use super::{GenerateOptions, Pipeline, latent_size};
use crate::random::TorchGenerator;
use crate::sampler::{BrownianPath, Sampler, SamplerOptions};
use pulid_tensor::{Error, HostTensor, Result};
use std::ops::Range;

/// What [`Pipeline::start`] is told.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Pixels, a multiple of the VAE's factor.
    pub width: usize,
    /// Pixels, a multiple of the VAE's factor.
    pub height: usize,
    /// Images at once.
    pub batch: usize,
    /// The one member of the batch that is made, if not all are; see [`GenerateOptions::batch_index`].
    pub batch_index: Option<usize>,
    /// Seed of the noise, meaning what it means to PyTorch's CPU generator.
    pub seed: u64,
    /// Solver, spacing and number of steps.
    pub sampler: SamplerOptions,
    /// Latents [B, 4, h, w] to begin from, of one image where one member is made, as [`Pipeline::decode`] takes them, and how much of the schedule is run on them: 1 leaves
    /// little of them, 0 all. Without them the run begins from noise alone.
    pub from: Option<(HostTensor, f64)>,
}

impl From<&GenerateOptions> for StartOptions {
    fn from(options: &GenerateOptions) -> Self {
        let &GenerateOptions { width, height, batch, batch_index, seed, .. } = options;
        StartOptions { width, height, batch, batch_index, seed, sampler: options.sampler.clone(), from: None }
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
        let StartOptions { width, height, batch, batch_index, seed, sampler, from } = options;
        let [rows, columns] = latent_size([width, height], batch, self.vae.config().factor())?;
        let (drawn, members) = members(batch, batch_index)?;
        let shape = [members.len(), self.vae.config().latent_channels, rows, columns];
        let one = shape[1..].iter().product::<usize>();
        // PyTorch draws the batch as one, and the last numbers of a draw depend on its length.
        let part = members.start * one..members.end * one;
        let mut noise = TorchGenerator::new(seed).randn(drawn * one);
        noise.truncate(part.end);
        noise.drain(..part.start);
        let path = BrownianPath::of_part(&self.schedule, drawn * one, part, sampler.seed);
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
        let sampler = sampler.with_step_noise(Box::new(path));
        Ok(Start { sampler, shape, pixels: [height, width] })
    }
}

/// The members that are drawn, and of these the ones that are made.
///
/// # Errors
/// A member that the batch does not have.
pub(super) fn members(batch: usize, index: Option<usize>) -> Result<(usize, Range<usize>)> {
    match index {
        None => Ok((batch, 0..batch)),
        Some(index) if index >= 64 || batch > 1 && index >= batch => {
            let last = if batch > 1 { batch } else { 64 } - 1;
            Err(Error::invalid(
                "batch_index",
                format!("{index} is no image of the `batch`, which are counted from 0 to {last}"),
            ))
        }
        Some(index) => Ok((batch.max(index + 1), index..index + 1)),
    }
}
