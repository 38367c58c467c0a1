//! What to make, and what was made.

use crate::image::{parameters_text, sampler_name, schedule_name};
use crate::sampler::{FinalSigma, SamplerOptions, StepWindow};
use image::RgbImage;
use pulid_models::pulid::IdentitySettings;
use pulid_tensor::{DType, HostTensor};
use std::path::{Path, PathBuf};

/// How a pipeline's networks are stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Storage {
    /// Type of the text encoders and the UNet. The VAE always runs in f32: stock SDXL weights overflow in f16.
    pub dtype: DType,
    /// Quantised blocks for the text encoders' and the UNet's weights, made while they load.
    pub quantize: Option<DType>,
}

impl Default for Storage {
    fn default() -> Self {
        Storage { dtype: DType::F32, quantize: None }
    }
}

/// Identity tokens for both guidance passes.
#[derive(Clone, Debug)]
pub struct IdentityTokens {
    /// [1, N, E] of the person.
    pub id_embedding: HostTensor,
    /// [1, N, E], unconditional: the identity encoder's answer to zeros.
    pub uncond_id_embedding: HostTensor,
}

/// How identity enters an image.
#[derive(Clone, Debug)]
pub struct IdentityUse {
    /// The tokens.
    pub tokens: IdentityTokens,
    /// A PuLID file with the identity attention's weights.
    pub adapter: PathBuf,
    /// Scale, zero tokens and projection.
    pub settings: IdentitySettings,
    /// The part of the schedule in which identity enters.
    pub window: StepWindow,
}

/// What becomes of a prompt of more tokens than the text encoders take at once, 75 besides begin and end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LongPrompt {
    /// Chunks of 75 tokens are encoded one by one, and the UNet reads them all; the pooled embedding is the first one's. A shorter prompt
    /// beside it gets empty chunks. As AUTOMATIC1111's web UI and ComfyUI, without their moving of words between chunks.
    #[default]
    Chunks,
    /// The first 75 tokens are read, as in diffusers; a note quotes the others.
    Cut,
}

impl LongPrompt {
    /// Both, in the order in which people see them.
    pub const ALL: [LongPrompt; 2] = [LongPrompt::Chunks, LongPrompt::Cut];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            LongPrompt::Chunks => "chunks",
            LongPrompt::Cut => "cut",
        }
    }
}

/// What to make.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// What the image shows.
    pub prompt: String,
    /// What it does not show. Without one, the unconditional pass reads zeros where the model says so
    /// ([`SdxlModel::zeros_for_no_prompt`](super::SdxlModel::zeros_for_no_prompt)) and no identity enters, else an empty prompt; as diffusers
    /// and PuLID have it.
    pub negative_prompt: Option<String>,
    /// What becomes of longer prompts than the text encoders take at once.
    pub long_prompt: LongPrompt,
    /// Pixels, a multiple of the VAE's factor.
    pub width: usize,
    /// Pixels, a multiple of the VAE's factor.
    pub height: usize,
    /// Images at once.
    pub batch: usize,
    /// The one member of the batch that is made, counted from 0, if not all are: the image that the whole batch would have at this
    /// position. A batch of 1 stands for one that ends with it.
    pub batch_index: Option<usize>,
    /// Classifier-free guidance; up to 1 there is none, and no unconditional pass, as in diffusers.
    pub guidance: f32,
    /// Seed of the noise, meaning what it means to PyTorch's CPU generator.
    pub seed: u64,
    /// Solver, spacing and number of steps.
    pub sampler: SamplerOptions,
    /// The person, if any.
    pub identity: Option<IdentityUse>,
}

impl GenerateOptions {
    /// Whether there is an unconditional pass to guide away from.
    pub fn is_guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// The person, where the strength and the part of the steps let it enter at all: otherwise the image is the one without.
    pub fn entering(&self) -> Option<&IdentityUse> {
        let steps = self.sampler.steps;
        let enters =
            |i: &&IdentityUse| i.settings.id_scale != 0.0 && (0..steps).any(|step| i.window.contains(step, steps));
        self.identity.as_ref().filter(enters)
    }

    /// The images that are made.
    pub fn images(&self) -> usize {
        if self.batch_index.is_some() { 1 } else { self.batch }
    }

    /// What the file of the image `index`, counted from 0, says of how it was made, for [`ImageMetadata`](crate::image::ImageMetadata). `model`
    /// is where the model lies. With batch size and position in it each image can be made again alone.
    pub fn parameters(&self, model: &Path, index: usize) -> String {
        let position = self.batch_index.unwrap_or(index);
        let batch = self.batch.max(position + 1);
        let negative = self.negative_prompt.as_deref().unwrap_or_default();
        let mut settings = vec![
            ("Steps", self.sampler.steps.to_string()),
            ("Sampler", sampler_name(self.sampler.kind).to_owned()),
            ("Schedule type", schedule_name(self.sampler.spacing).to_owned()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.width, self.height)),
            ("Model", model_name(model)),
        ];
        if batch > 1 {
            settings.push(("Batch size", batch.to_string()));
            settings.push(("Batch pos", position.to_string()));
        }
        if self.sampler.final_sigma != FinalSigma::Zero {
            settings.push(("Final sigma", self.sampler.final_sigma.to_string()));
        }
        // No text has more tokens than bytes, and 75 fit.
        if self.long_prompt == LongPrompt::Cut && self.prompt.len().max(negative.len()) > 75 {
            settings.push(("Long prompt", self.long_prompt.name().to_owned()));
        }
        // The text has no line for one that is empty, which is another thing than none.
        if self.negative_prompt.is_some() && negative.trim().is_empty() {
            settings.push(("Empty negative prompt", "encoded".to_owned()));
        }
        // At scale 0 the image is the one without identity, and its file is too.
        if let Some(identity) = self.identity.as_ref().filter(|i| i.settings.id_scale != 0.0) {
            let s = identity.settings;
            settings.push(("PuLID scale", s.id_scale.to_string()));
            settings.push(("PuLID zero tokens", s.num_zero.to_string()));
            settings.push(("PuLID projection", s.ortho.to_string()));
            if identity.window != StepWindow::ALL {
                let (start, end) = identity.window.ends();
                settings.push(("PuLID start", start.to_string()));
                settings.push(("PuLID end", end.to_string()));
            }
        }
        settings.push(("Version", format!("pulid-wgpu {}", env!("CARGO_PKG_VERSION"))));
        parameters_text(&self.prompt, negative, &settings)
    }
}

/// A model's name as the web UI has it: without the extension of a file.
fn model_name(model: &Path) -> String {
    let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = [".safetensors", ".ckpt"].iter().find_map(|extension| name.strip_suffix(extension));
    stem.unwrap_or(&name).to_owned()
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Generated {
    /// One image per batch member.
    pub images: Vec<RgbImage>,
    /// [B, 4, h, w] as the sampler leaves them, before the scaling factor.
    pub latents: HostTensor,
}
