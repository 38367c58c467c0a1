//! The UNet's steps.

use super::rows::{join_rows, repeat_rows};
use super::{IdentityUse, Pipeline, Start, TextConditioning, take};
use crate::blame::Suspects;
use crate::image::rgb_from_latents;
use crate::runtime::{Loaded, Reporter, Tensor};
use crate::sampler::{Request, StepWindow};
use crate::settings::ModelDefaults;
use pulid_checkpoint::Checkpoint;
use pulid_models::pulid::{IdentityAdapter, IdentityInputs, IdentityLayer};
use pulid_models::sdxl::UnetSize;
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::HashMap;

/// What the image is to show.
#[derive(Clone, Copy, Debug)]
pub struct Conditioning<'a> {
    /// The prompt.
    pub text: &'a TextConditioning,
    /// The negative prompt and the strength of classifier-free guidance away from it; without it there is one pass.
    pub unconditional: Option<(&'a TextConditioning, f32)>,
    /// The person, if any.
    pub identity: Option<&'a IdentityUse>,
}

/// [`ModelDefaults::latent_rgb`] of SDXL's own VAE, as ComfyUI has it.
const SDXL_LATENT_RGB: [[f32; 3]; 5] = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
    [0.1084, -0.0175, -0.0011],
];

impl Pipeline {
    /// Latents [B, 4, h, w] as the sampler leaves them, before the scaling factor. The reporter is told of each step, can show what
    /// there is so far, and can cancel.
    ///
    /// # Errors
    /// Conditioning that does not fit the model, unreadable weights, a lost device, cancellation, NaN.
    pub async fn denoise(
        &self,
        start: Start,
        conditioning: &Conditioning<'_>,
        reporter: &dyn Reporter,
    ) -> Result<HostTensor> {
        let Start { mut sampler, shape, pixels } = start;
        reporter.stage("loading the UNet");
        let mut unet = self.denoiser(pixels, shape, sampler.remaining(), conditioning, reporter).await?;
        reporter.stage("denoising");
        let mut previous = 0;
        let latent_rgb = match reporter.wants_preview() {
            true => Some(ModelDefaults::read(self.model().folder())?.latent_rgb.unwrap_or(SDXL_LATENT_RGB)),
            false => None,
        };
        while let Some(request) = sampler.next_request() {
            let prediction = unet.predict(&request, &shape, reporter).await?;
            if let Some(map) = &latent_rgb {
                let clean = HostTensor::from_f32(shape, sampler.clean_latents(&prediction)?)?;
                reporter.preview(&rgb_from_latents(&clean, map)?);
            }
            sampler.advance(&prediction)?;
            let done = sampler.next_request().map_or(request.steps, |next| next.step);
            if done > previous {
                reporter.step(done, request.steps);
                previous = done;
            }
        }
        HostTensor::from_f32(shape, sampler.into_latents()?)
    }

    /// The UNet with everything set that does not change between steps.
    async fn denoiser(
        &self,
        [pixel_rows, pixel_columns]: [usize; 2],
        [batch, _, height, width]: [usize; 4],
        steps: std::ops::Range<usize>,
        conditioning: &Conditioning<'_>,
        reporter: &dyn Reporter,
    ) -> Result<Denoiser> {
        let Conditioning { text, unconditional, identity } = *conditioning;
        let guidance = unconditional.map(|(_, guidance)| guidance);
        // The unconditional rows come first.
        let texts: Vec<_> = unconditional.map(|(text, _)| text).into_iter().chain([text]).collect();
        if let [a, b] = texts[..]
            && a.chunks.len() != b.chunks.len()
        {
            let detail = format!(
                "has {} chunks, and the negative prompt {}; encode both together",
                b.chunks.len(),
                a.chunks.len()
            );
            return Err(Error::invalid("prompt", detail));
        }
        let hidden = repeat_rows(&stacked(texts.iter().map(|t| t.tokens()))?, batch)?;
        let pooled = repeat_rows(&stacked(texts.iter().map(|t| Ok(t.pooled.clone())))?, batch)?;
        let rows = batch * texts.len();

        let unet = self.model().unet(self.precision)?;
        let enters = |i: &&IdentityUse| {
            i.settings.id_scale != 0.0 && steps.clone().any(|step| i.window.contains(step, steps.end))
        };
        let identity = identity.filter(enters);
        let mut inputs = None;
        let (mut keys_values, mut suspects) = (HashMap::new(), Suspects::default());
        if let Some(identity) = identity {
            let (found, values, read) =
                self.keys_values(identity, &unet.identity_layers()?, texts.len(), batch, reporter).await?;
            (inputs, keys_values, suspects) = (Some(found), values, read);
        }
        let size = UnetSize { batch: rows, height, width, text_tokens: hidden.shape()[1], identity: inputs };
        let mut loaded = self.runtime().load(&unet.graph(size)?, reporter).await?;
        if let Some(text) = loaded.streaming() {
            reporter.note(&text);
        }
        loaded.write("encoder_hidden_states", &hidden)?;
        if unet.config().pooled_dim().is_some() {
            let (h, w) = (pixel_rows as f32, pixel_columns as f32);
            loaded.write("text_embeds", &pooled)?;
            loaded.write("time_ids", &HostTensor::from_fn([rows, 6], |i| [h, w, 0.0, 0.0, h, w][i % 6]))?;
        }
        loaded.write_tensors(&keys_values).await?;
        // What the adapter gives nobody has looked at.
        loaded.suspects().extend(suspects);
        Ok(Denoiser { unet: loaded, identity: identity.map(|i| (i.window, i.settings.id_scale)), guidance })
    }

    /// The identity's keys and values for each image of a batch and each guidance pass, by their names in the UNet's graph, and the weights
    /// that they are made with.
    async fn keys_values(
        &self,
        identity: &IdentityUse,
        layers: &[IdentityLayer],
        passes: usize,
        batch: usize,
        reporter: &dyn Reporter,
    ) -> Result<(IdentityInputs, HashMap<String, Tensor>, Suspects)> {
        let tokens = match passes {
            1 => identity.tokens.id_embedding.clone(),
            _ => join_rows(&identity.tokens.uncond_id_embedding, &identity.tokens.id_embedding)?,
        };
        let tokens = repeat_rows(&tokens, batch)?;
        let count = tokens.shape().get(1).copied().unwrap_or(0);
        let adapter = IdentityAdapter::new(&Checkpoint::open(&identity.adapter)?, self.precision)?;
        let graph = adapter.graph(layers, passes * batch, count)?;
        let mut loaded = self.runtime().load(&graph, reporter).await?;
        loaded.write("id_embedding", &tokens)?;
        let values = loaded.run_to_tensors(reporter).await?;
        Ok((identity.settings.inputs(count), values, std::mem::take(loaded.suspects())))
    }
}

impl TextConditioning {
    /// [1, 77 x chunks, D].
    fn tokens(&self) -> Result<HostTensor> {
        let Some(first) = self.chunks.first() else {
            return Err(Error::invalid("prompt", "was encoded to nothing"));
        };
        let mut shape = first.shape().to_vec();
        if self.chunks.iter().any(|chunk| chunk.shape() != first.shape()) || shape.len() != 3 || shape[0] != 1 {
            return Err(Error::invalid("prompt", "has chunks of different shapes"));
        }
        shape[1] *= self.chunks.len();
        let values = self.chunks.iter().map(HostTensor::as_f32).collect::<Result<Vec<_>>>()?;
        HostTensor::from_f32(shape, values.concat())
    }
}

/// One below the other.
fn stacked(parts: impl Iterator<Item = Result<HostTensor>>) -> Result<HostTensor> {
    let mut all: Option<HostTensor> = None;
    for part in parts {
        let part = part?;
        all = Some(match all {
            Some(all) => join_rows(&all, &part)?,
            None => part,
        });
    }
    all.ok_or_else(|| Error::invalid("prompt", "there is none"))
}

/// The UNet between steps.
struct Denoiser {
    unet: Loaded,
    /// The part of the steps in which the identity enters, and its strength there.
    identity: Option<(StepWindow, f32)>,
    /// Strength of guidance where there are two passes.
    guidance: Option<f32>,
}

impl Denoiser {
    /// The prediction for a sampler's request, guided.
    async fn predict(&mut self, request: &Request, shape: &[usize; 4], reporter: &dyn Reporter) -> Result<Vec<f32>> {
        let unet = &mut self.unet;
        let mut sample = HostTensor::from_f32(*shape, request.x_in.clone())?.nchw_to_nhwc()?;
        if self.guidance.is_some() {
            sample = join_rows(&sample, &sample)?;
        }
        let rows = sample.shape()[0];
        unet.write("sample", &sample)?;
        unet.write("timestep", &HostTensor::from_fn([rows], |_| request.timestep as f32))?;
        if let Some((window, id_scale)) = self.identity {
            let strength = if window.contains(request.step, request.steps) { id_scale } else { 0.0 };
            unet.write("id_scale", &HostTensor::from_fn([rows], |_| strength))?;
        }
        let mut outputs = match unet.run_outputs(reporter).await {
            Err(error @ Error::NotFinite { .. }) => {
                // A full-sized UNet's take a while.
                reporter.stage("looking for weights that are not finite");
                return Err(unet.suspects().blame(error, reporter));
            }
            other => other?,
        };
        let prediction = take(&mut outputs, "sample")?.nhwc_to_nchw()?;
        let values = prediction.as_f32()?;
        let Some(guidance) = self.guidance else { return Ok(values.to_vec()) };
        let (without, with_text) = values.split_at(values.len() / 2);
        Ok(without.iter().zip(with_text).map(|(&u, &c)| u + guidance * (c - u)).collect())
    }
}
