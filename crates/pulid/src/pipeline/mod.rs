//! From a prompt and, if wanted, an identity to images: PuLID's sampling around SDXL, in stages that one can hold.
//!
//! As in the official pipeline: latents are drawn as PyTorch's CPU generator draws them, an empty negative prompt is
//! encoded like any other, identity enters both guidance passes (the unconditional one its own), and both passes run as one batch.

mod denoise;
mod encode;
mod notes;
mod options;
mod rows;
mod start;

pub use denoise::Conditioning;
pub use encode::TextConditioning;
use encode::tokenize;
pub use notes::examine;
pub use options::{GenerateOptions, Generated, IdentityTokens, IdentityUse, LongPrompt, Storage};
pub use pulid_models::sdxl::SdxlModel;
pub use start::{Start, StartOptions};

use crate::identity::{ExtractOptions, FaceModels, Identity, extract};
use crate::image::rgb_from_tensor;
use crate::runtime::{Reporter, Runtime};
use crate::sampler::{NoiseSchedule, SchedulerConfig};
use crate::settings::{Setting, SettingValue};
use image::RgbImage;
use pulid_checkpoint::{Checkpoint, files};
use pulid_engine::Observer;
use pulid_graph::Graph;
use pulid_models::pulid::IdentityAdapter;
use pulid_models::sdxl::{TextEncoder, UnetSize, Vae};
use pulid_models::{ClipTokenizer, Precision};
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A model on a device, opened once and used many times.
///
/// Its stages stand alone: [`encode`](Pipeline::encode), [`identify`](Pipeline::identify), [`start`](Pipeline::start),
/// [`denoise`](Pipeline::denoise), [`decode`](Pipeline::decode). [`generate`](Pipeline::generate) is what they make together.
#[derive(Clone, Debug)]
pub struct Pipeline {
    runtime: Runtime,
    model: SdxlModel,
    precision: Precision,
    schedule: NoiseSchedule,
    vae: Vae,
    /// Read when the first prompt is.
    tokenizers: Arc<OnceLock<[ClipTokenizer; 2]>>,
}

impl Pipeline {
    /// A model's networks where `runtime` runs them. Nothing is read but configurations: networks load when a stage needs them,
    /// and stay as long as the runtime keeps them ([`Runtime::keeping`]).
    ///
    /// # Errors
    /// A broken configuration or noise schedule.
    pub fn open(runtime: Runtime, model: SdxlModel, storage: Storage) -> Result<Pipeline> {
        let precision = runtime.precision(storage.dtype, storage.quantize);
        let vae = model.vae(vae_precision(precision))?;
        let schedule = noise_schedule(&model)?;
        Ok(Pipeline { runtime, model, precision, schedule, vae, tokenizers: Arc::default() })
    }

    /// Where the networks run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The model.
    pub fn model(&self) -> &SdxlModel {
        &self.model
    }

    /// The noise schedule that the model was trained on.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Reads a person from photos: see [`extract`].
    ///
    /// # Errors
    /// As [`extract`].
    pub async fn identify(
        &self,
        faces: &FaceModels,
        adapter: &Path,
        photos: &[(String, Vec<u8>)],
        options: &ExtractOptions,
        reporter: &dyn Reporter,
    ) -> Result<Identity> {
        extract(&self.runtime, faces, adapter, photos, options, reporter).await
    }

    /// Images from latents [B, 4, h, w] as [`denoise`](Pipeline::denoise) gives them.
    ///
    /// # Errors
    /// Latents of another shape, unreadable weights, a lost device, cancellation, NaN.
    pub async fn decode(&self, latents: &HostTensor, observer: &dyn Observer) -> Result<Vec<RgbImage>> {
        let scale = self.vae.config().scaling_factor;
        let values = latents.as_f32()?.iter().map(|v| v / scale).collect();
        let latent = HostTensor::from_f32(latents.shape().clone(), values)?.nchw_to_nhwc()?;
        let &[batch, height, width, channels] = latent.shape().extents() else {
            return Err(Error::invalid("latents", format!("expected four axes, got {}", latent.shape())));
        };
        let mut loaded = self.runtime.load(&self.decoder([height, width])?, observer).await?;
        let mut images = Vec::with_capacity(batch);
        // One at a time: the decoder's activations are the largest of the whole pipeline.
        for one in latent.as_f32()?.chunks(height * width * channels) {
            loaded.write("latent", &HostTensor::from_f32([1, height, width, channels], one.to_vec())?)?;
            let mut outputs = loaded.run(observer).await?;
            images.extend(rgb_from_tensor(&take(&mut outputs, "sample")?)?);
        }
        Ok(images)
    }

    /// Makes images: every stage, one after another.
    ///
    /// # Errors
    /// Options the model cannot follow, unreadable weights, a lost device, cancellation, or NaN in latents or image
    /// ([`Error::NotFinite`] names the network and operator).
    pub async fn generate(&self, options: &GenerateOptions, reporter: &dyn Reporter) -> Result<Generated> {
        self.check(options)?;
        let start = self.start(StartOptions::from(options))?;
        self.check_memory(options, reporter).await?;
        let texts = encode::texts(&self.model, options)?;
        let mut encoded = self.encode_texts(&texts, options.long_prompt, reporter).await?.into_iter();
        let Some(text) = encoded.next() else { return Err(Error::invalid("prompt", "is missing")) };
        let unconditional = options.is_guided().then(|| encoded.next().unwrap_or_else(|| text.zeros()));
        let unconditional = unconditional.as_ref().map(|text| (text, options.guidance));
        let conditioning = Conditioning { text: &text, unconditional, identity: options.identity.as_ref() };
        let latents = self.denoise(start, &conditioning, reporter).await?;
        reporter.stage("decoding");
        let images = self.decode(&latents, reporter).await?;
        Ok(Generated { images, latents })
    }

    /// Refuses what [`generate`](Pipeline::generate) would refuse before its first network.
    ///
    /// # Errors
    /// A size, batch, guidance, number of steps or identity setting that cannot be.
    pub fn check(&self, options: &GenerateOptions) -> Result<()> {
        check(&self.vae, &self.schedule, options)?;
        tokenize(self.tokenizers()?, &encode::texts(&self.model, options)?, options.long_prompt).map(drop)
    }

    fn tokenizers(&self) -> Result<&[ClipTokenizer; 2]> {
        if let Some(known) = self.tokenizers.get() {
            return Ok(known);
        }
        let read = encode::tokenizers(&self.model)?;
        Ok(self.tokenizers.get_or_init(|| read))
    }

    /// Plans every network of an image where there is a budget of device memory, so that one too small is known before any work.
    ///
    /// # Errors
    /// Names the network that does not fit and what it needs.
    pub async fn check_memory(&self, options: &GenerateOptions, observer: &dyn Observer) -> Result<()> {
        if !self.runtime.has_budget() {
            return Ok(());
        }
        for graph in self.graphs(options)? {
            self.runtime.plan(&graph, observer).await?;
        }
        Ok(())
    }

    /// Compiles the kernels of an image's networks before anything runs: see [`pulid_engine::Device::precompile`]. The reference
    /// compiles nothing.
    ///
    /// # Errors
    /// As [`graphs`](Pipeline::graphs); a kernel that does not compile, a lost device, cancellation.
    pub async fn precompile(&self, options: &GenerateOptions, observer: &dyn Observer) -> Result<()> {
        let Runtime::Gpu { device, .. } = &self.runtime else { return Ok(()) };
        for graph in self.graphs(options)? {
            if let Some(planned) = self.runtime.plan(&graph, observer).await? {
                device.precompile(&planned.plan, observer).await?;
            }
        }
        Ok(())
    }

    /// The graphs of an image, in the order in which they run.
    ///
    /// # Errors
    /// Options the model cannot follow, weights that are missing or mismatched.
    pub fn graphs(&self, options: &GenerateOptions) -> Result<Vec<Graph>> {
        let size = latent_size([options.width, options.height], options.batch, self.vae.config().factor())?;
        let passes = if options.is_guided() { 2 } else { 1 };
        let mut graphs = Vec::new();
        let texts = encode::texts(&self.model, options)?;
        let encode::Tokenized { chunks, length, .. } = tokenize(self.tokenizers()?, &texts, options.long_prompt)?;
        for which in TextEncoder::BOTH {
            graphs.push(self.model.text_encoder(which, self.precision)?.graph(texts.len(), length)?);
        }
        let unet = self.model.unet(self.precision)?;
        let batch = passes * options.images();
        let mut inputs = None;
        if let Some(identity) = options.identity.as_ref().filter(|i| i.settings.id_scale != 0.0) {
            let tokens = identity.tokens.id_embedding.shape().get(1).copied().unwrap_or(0);
            let adapter = IdentityAdapter::new(&Checkpoint::open(&identity.adapter)?, self.precision)?;
            graphs.push(adapter.graph(&unet.identity_layers()?, batch, tokens)?);
            inputs = Some(identity.settings.inputs(tokens));
        }
        let [height, width] = size;
        graphs.push(unet.graph(UnetSize { batch, height, width, text_tokens: chunks * length, identity: inputs })?);
        graphs.push(self.decoder(size)?);
        Ok(graphs)
    }

    fn decoder(&self, [height, width]: [usize; 2]) -> Result<Graph> {
        self.vae.decoder(1, height, width)
    }
}

/// [`Pipeline::check`] without a device: what can be told from the options and the model's configurations alone. For whoever has
/// other work to do before one is opened.
///
/// # Errors
/// As [`Pipeline::check`], and for a broken configuration.
pub fn check_options(model: &SdxlModel, options: &GenerateOptions) -> Result<()> {
    check(&model.vae(Precision::F32)?, &noise_schedule(model)?, options)?;
    tokenize(&encode::tokenizers(model)?, &encode::texts(model, options)?, options.long_prompt).map(drop)
}

fn check(vae: &Vae, schedule: &NoiseSchedule, options: &GenerateOptions) -> Result<()> {
    latent_size([options.width, options.height], options.batch, vae.config().factor())?;
    start::members(options.batch, options.batch_index)?;
    check_setting("guidance", &options.guidance)?;
    schedule.levels(options.sampler.kind, options.sampler.spacing, options.sampler.steps)?;
    options.identity.as_ref().map_or(Ok(()), |identity| {
        check_setting("id_scale", &identity.settings.id_scale)?;
        identity.settings.check()
    })
}

/// Refuses a value that the list of settings does not allow, for whoever fills in options without it.
fn check_setting(name: &str, value: &impl SettingValue) -> Result<()> {
    Setting::named(name).map_or(Ok(()), |setting| setting.check(&value.to_json()))
}

/// The model's scheduler, or SDXL's where its folder has none; what the UNet's own file says of its predictions holds before that.
///
/// # Errors
/// When a file cannot be read, or the network is of a kind that is not built.
pub fn scheduler_config(model: &SdxlModel) -> Result<SchedulerConfig> {
    let config = match model.scheduler_file() {
        Some(path) => {
            let text = files::read_to_string(&path)?;
            SchedulerConfig::from_json(&text).map_err(|error| in_file(path, error))?
        }
        None => SchedulerConfig::default(),
    };
    Ok(config.marked(model.prediction()?, model.scheduler_is_own()))
}

/// An error of a key's value as one of the file that has it.
fn in_file(path: PathBuf, error: Error) -> Error {
    match error {
        Error::Invalid { what, detail } => Error::file(path, format!("{what} {detail}")),
        other => Error::file(path, other.to_string()),
    }
}

/// The noise levels of that schedule.
fn noise_schedule(model: &SdxlModel) -> Result<NoiseSchedule> {
    let found = NoiseSchedule::new(&scheduler_config(model)?);
    found.map_err(|error| match model.scheduler_file() {
        Some(path) => in_file(path, error),
        None => error,
    })
}

/// Rows and columns of the latents of an image of so many pixels.
fn latent_size([width, height]: [usize; 2], batch: usize, factor: usize) -> Result<[usize; 2]> {
    for (name, pixels) in [("width", width), ("height", height)] {
        if pixels == 0 || pixels % factor != 0 || pixels > 4096 {
            let detail = format!("{pixels} is not a multiple of {factor} from {factor} to 4096");
            return Err(Error::invalid(name, detail));
        }
    }
    if !(1..=64).contains(&batch) {
        return Err(Error::invalid("batch", format!("{batch} is not 1 to 64")));
    }
    Ok([height / factor, width / factor])
}

/// The VAE's precision beside the UNet's: f32 always.
fn vae_precision(precision: Precision) -> Precision {
    Precision { activations: DType::F32, weights: precision.weights.filter(|w| !w.is_quantized()) }
}

pub(crate) fn take(outputs: &mut HashMap<String, HostTensor>, name: &str) -> Result<HostTensor> {
    outputs.remove(name).ok_or_else(|| Error::invalid("network", format!("gave no output `{name}`")))
}
