//! From a prompt and, if wanted, an identity to a picture: PuLID v1.1's sampling loop around SDXL.
//!
//! As in the official pipeline: latents are drawn as PyTorch's CPU generator draws them, the negative prompt is encoded
//! even when empty, identity enters both guidance passes (the unconditional one its own), and both passes run as one batch.

use crate::defaults::Defaults;
use crate::image::{parameters_text, rgb_from_latents, rgb_from_tensor};
use crate::random::TorchGenerator;
use crate::runtime::{Loaded, Reporter, Runtime};
use crate::sampler::{NoiseSchedule, Sampler, SamplerOptions, SchedulerConfig, StepWindow};
use image::RgbImage;
use pulid_checkpoint::{Checkpoint, files};
use pulid_engine::Observer;
use pulid_models::Precision;
use pulid_models::pulid::{IdentityAdapter, IdentitySettings};
pub use pulid_models::sdxl::SdxlModel;
use pulid_models::sdxl::{TextEncoder, UnetSize, Vae};
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Identity tokens for both guidance passes.
#[derive(Clone, Debug)]
pub struct IdentityTokens {
    /// [1, N, E] of the person.
    pub id_embedding: HostTensor,
    /// [1, N, E] of nobody: the identity encoder's answer to zeros.
    pub uncond_id_embedding: HostTensor,
}

/// How identity enters a picture.
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

/// What to make.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// What the picture shows.
    pub prompt: String,
    /// What it does not show.
    pub negative_prompt: String,
    /// Pixels, a multiple of the VAE's factor.
    pub width: usize,
    /// Pixels, a multiple of the VAE's factor.
    pub height: usize,
    /// Pictures at once.
    pub batch: usize,
    /// Classifier-free guidance; 1 leaves out the unconditional pass.
    pub guidance: f32,
    /// Seed of the noise, meaning what it means to PyTorch's CPU generator.
    pub seed: u64,
    /// Solver, spacing and number of steps.
    pub sampler: SamplerOptions,
    /// Storage type of the text encoders and the UNet. The VAE always runs in f32: stock SDXL weights overflow in f16.
    pub dtype: DType,
    /// Quantised blocks for the text encoders' and the UNet's weights, made while they load.
    pub quantize: Option<DType>,
    /// The person, if any.
    pub identity: Option<IdentityUse>,
}

impl GenerateOptions {
    /// What a picture's file says of how it was made, for [`PngMetadata`](crate::image::PngMetadata). `model` is where the model lies.
    pub fn parameters(&self, model: &Path) -> String {
        let mut settings = vec![
            ("Steps", self.sampler.steps.to_string()),
            ("Sampler", self.sampler.kind.to_string()),
            ("Schedule type", self.sampler.spacing.to_string()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.width, self.height)),
            ("Model", model.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        ];
        // At scale 0 the picture is the one without identity, and its file is too.
        if let Some(identity) = self.identity.as_ref().filter(|i| i.settings.id_scale != 0.0) {
            let s = identity.settings;
            settings.push(("PuLID scale", s.id_scale.to_string()));
            settings.push(("PuLID zero tokens", s.num_zero.to_string()));
            settings.push(("PuLID projection", s.ortho.to_string()));
        }
        settings.push(("Version", format!("pulid-wgpu {}", env!("CARGO_PKG_VERSION"))));
        parameters_text(&self.prompt, &self.negative_prompt, &settings)
    }
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Generated {
    /// One picture per batch member.
    pub images: Vec<RgbImage>,
    /// [B, 4, h, w] as the sampler leaves them, before the scaling factor.
    pub latents: HostTensor,
}

/// The model's noise schedule, or SDXL's where its folder has none.
pub(crate) fn scheduler_config(model: &SdxlModel) -> Result<SchedulerConfig> {
    Ok(match model.config_file("scheduler/scheduler_config.json") {
        Some(path) => {
            let text = files::read_to_string(&path)?;
            SchedulerConfig::from_json(&text).map_err(|e| Error::file(path, e.to_string()))?
        }
        None if model.predicts_velocity() => {
            let detail = "predicts velocity (it holds `v_pred`), which SDXL's own schedule is not made for; name a folder \
                          with its scheduler/scheduler_config.json (--config)";
            return Err(Error::file(model.path(), detail));
        }
        None => SchedulerConfig::default(),
    })
}

/// Texts as the UNet takes them.
struct Conditioning {
    /// [B, 77, D].
    hidden: HostTensor,
    /// [B, P].
    pooled: HostTensor,
}

/// Makes pictures.
///
/// # Errors
/// Options the model cannot follow, unreadable weights, a lost device, cancellation, or NaN in latents or picture
/// ([`Error::NotFinite`] names the network and operator).
pub async fn generate(
    runtime: &Runtime,
    model: &SdxlModel,
    options: &GenerateOptions,
    reporter: &dyn Reporter,
) -> Result<Generated> {
    let precision = runtime.precision(options.dtype, options.quantize);
    let vae = model.vae(vae_precision(precision))?;
    let [height, width] = latent_size(options, vae.config().factor())?;
    let schedule = NoiseSchedule::new(&scheduler_config(model)?)?;
    let channels = vae.config().latent_channels;
    let shape = [options.batch, channels, height, width];
    let noise = TorchGenerator::new(options.seed).randn(shape.iter().product());
    let mut sampler = Sampler::new(&schedule, &options.sampler, noise)?;

    let guided = options.guidance != 1.0;
    let texts: Vec<&str> = match guided {
        true => vec![&options.negative_prompt, &options.prompt],
        false => vec![&options.prompt],
    };
    check_memory(runtime, model, options, reporter).await?;
    let conditioning = encode(runtime, model, &texts, options.batch, precision, reporter).await?;

    reporter.stage("loading the UNet");
    let mut unet = Denoiser::load(runtime, model, options, &conditioning, [height, width], precision, reporter).await?;
    reporter.stage("denoising");
    let mut previous = 0;
    let latent_rgb = match reporter.wants_preview() {
        true => Some(Defaults::read(model.folder())?.latent_rgb.unwrap_or(SDXL_LATENT_RGB)),
        false => None,
    };
    while let Some(request) = sampler.next_request() {
        let prediction = unet.predict(&request, options, &shape, reporter).await?;
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
    drop(unet);
    let latents = HostTensor::from_f32(shape, sampler.into_latents()?)?;

    reporter.stage("decoding");
    let images = decode(runtime, &vae, &latents, reporter).await?;
    Ok(Generated { images, latents })
}

/// Refuses what [`generate`] would refuse before its first network: what can be told from the options and the model's
/// configurations alone. For whoever has other work to do before.
///
/// # Errors
/// A size, batch, guidance, number of steps or identity setting that cannot be, or a broken configuration.
pub fn check_options(model: &SdxlModel, options: &GenerateOptions) -> Result<()> {
    latent_size(options, model.vae(Precision::F32)?.config().factor())?;
    let schedule = NoiseSchedule::new(&scheduler_config(model)?)?;
    schedule.levels(options.sampler.spacing, options.sampler.steps)?;
    options.identity.as_ref().map_or(Ok(()), |identity| identity.settings.check())
}

fn latent_size(options: &GenerateOptions, factor: usize) -> Result<[usize; 2]> {
    for (flag, pixels) in [("--width", options.width), ("--height", options.height)] {
        if pixels == 0 || pixels % factor != 0 || pixels > 4096 {
            let detail = format!("{pixels} is not a multiple of {factor} from {factor} to 4096");
            return Err(Error::invalid(flag, detail));
        }
    }
    if !(1..=64).contains(&options.batch) {
        return Err(Error::invalid("--batch", format!("{} is not 1 to 64", options.batch)));
    }
    if !options.guidance.is_finite() {
        return Err(Error::invalid("--guidance", format!("{} is no finite number", options.guidance)));
    }
    Ok([options.height / factor, options.width / factor])
}

/// Plans every network of a picture where there is a budget of device memory, so that one too small is known before any
/// work.
///
/// # Errors
/// Names the network that does not fit and what it needs.
pub async fn check_memory(
    runtime: &Runtime,
    model: &SdxlModel,
    options: &GenerateOptions,
    observer: &dyn Observer,
) -> Result<()> {
    if !runtime.has_budget() {
        return Ok(());
    }
    let precision = runtime.precision(options.dtype, options.quantize);
    let vae = model.vae(vae_precision(precision))?;
    let [height, width] = latent_size(options, vae.config().factor())?;
    runtime.plan(&vae.decoder(1, height, width, runtime.max_tensor_bytes())?, observer).await?;
    let passes = if options.guidance == 1.0 { 1 } else { 2 };
    for which in TextEncoder::BOTH {
        runtime.plan(&model.text_encoder(which, precision)?.graph(passes, TEXT_TOKENS)?, observer).await?;
    }
    let unet = model.unet(precision)?;
    let batch = passes * options.batch;
    let identity = match options.identity.as_ref().filter(|i| i.settings.id_scale != 0.0) {
        Some(identity) => {
            let tokens = identity.tokens.id_embedding.shape().get(1).copied().unwrap_or(0);
            let adapter = IdentityAdapter::new(&Checkpoint::open(&identity.adapter)?, precision)?;
            runtime.plan(&adapter.graph(&unet.identity_layers()?, batch, tokens)?, observer).await?;
            Some(identity.settings.inputs(tokens))
        }
        None => None,
    };
    let size = UnetSize { batch, height, width, text_tokens: TEXT_TOKENS, identity };
    runtime.plan(&unet.graph(size)?, observer).await.map(drop)
}

/// [`Defaults::latent_rgb`] of SDXL's own VAE, as ComfyUI has it.
const SDXL_LATENT_RGB: [[f32; 3]; 5] = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
    [0.1084, -0.0175, -0.0011],
];

/// Tokens of a prompt.
const TEXT_TOKENS: usize = 77;

/// The VAE's precision beside the UNet's: f32 always.
fn vae_precision(precision: Precision) -> Precision {
    Precision { activations: DType::F32, weights: precision.weights.filter(|w| !w.is_quantized()) }
}

/// Encodes each text for `batch` pictures; the result holds all rows of the first text, then all of the second.
async fn encode(
    runtime: &Runtime,
    model: &SdxlModel,
    texts: &[&str],
    batch: usize,
    precision: Precision,
    reporter: &dyn Reporter,
) -> Result<Conditioning> {
    reporter.stage("reading the prompt");
    let mut hidden = Vec::new();
    let mut pooled = None;
    for which in TextEncoder::BOTH {
        let tokenizer = model.tokenizer(which)?;
        let encoder = model.text_encoder(which, precision)?;
        let mut ids = Vec::new();
        for text in texts {
            ids.extend(tokenizer.encode(text)?);
        }
        let ids = HostTensor::from_u32([texts.len(), ids.len() / texts.len()], ids)?;
        let inputs: HashMap<_, _> = encoder.inputs(&ids)?.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
        let graph = encoder.graph(texts.len(), ids.shape()[1])?;
        let mut outputs = runtime.run(&graph, &inputs, reporter).await?;
        hidden.push(take(&mut outputs, "hidden_states")?);
        pooled = Some(take(&mut outputs, "pooled")?);
    }
    let pooled = pooled.ok_or_else(|| Error::invalid("text encoders", "there are none"))?;
    Ok(Conditioning { hidden: repeat_rows(&join_last_axis(&hidden)?, batch)?, pooled: repeat_rows(&pooled, batch)? })
}

/// The UNet with everything set that does not change between steps.
struct Denoiser {
    unet: Loaded,
    /// The part of the steps in which the identity enters, and its strength there.
    identity: Option<(StepWindow, f32)>,
    passes: usize,
}

impl Denoiser {
    async fn load(
        runtime: &Runtime,
        model: &SdxlModel,
        options: &GenerateOptions,
        text: &Conditioning,
        [height, width]: [usize; 2],
        precision: Precision,
        reporter: &dyn Reporter,
    ) -> Result<Denoiser> {
        let steps = options.sampler.steps;
        let enters = |i: &&IdentityUse| i.settings.id_scale != 0.0 && (0..steps).any(|s| i.window.contains(s, steps));
        let identity = options.identity.as_ref().filter(enters);
        let rows = text.hidden.shape()[0];
        let passes = rows / options.batch.max(1);
        let (h, w) = (options.height as f32, options.width as f32);
        let time_ids = HostTensor::from_fn([rows, 6], |i| [h, w, 0.0, 0.0, h, w][i % 6]);
        let unet = model.unet(precision)?;
        let mut keys_values = HashMap::new();
        let mut inputs = None;
        if let Some(i) = identity {
            let tokens = match passes {
                2 => join_rows(&i.tokens.uncond_id_embedding, &i.tokens.id_embedding)?,
                _ => i.tokens.id_embedding.clone(),
            };
            let tokens = repeat_rows(&tokens, options.batch)?;
            let count = tokens.shape().get(1).copied().unwrap_or(0);
            let adapter = IdentityAdapter::new(&Checkpoint::open(&i.adapter)?, precision)?;
            let graph = adapter.graph(&unet.identity_layers()?, rows, count)?;
            keys_values = runtime.run(&graph, &HashMap::from([("id_embedding".to_owned(), tokens)]), reporter).await?;
            inputs = Some(i.settings.inputs(count));
        }
        let text_tokens = text.hidden.shape()[1];
        let graph = unet.graph(UnetSize { batch: rows, height, width, text_tokens, identity: inputs })?;
        let mut loaded = runtime.load(&graph, reporter).await?;
        if let Some(text) = loaded.streaming() {
            reporter.note(&text);
        }
        loaded.write("encoder_hidden_states", &text.hidden)?;
        if unet.config().pooled_dim().is_some() {
            loaded.write("text_embeds", &text.pooled)?;
            loaded.write("time_ids", &time_ids)?;
        }
        for (name, value) in &keys_values {
            loaded.write(name, value)?;
        }
        Ok(Denoiser { unet: loaded, identity: identity.map(|i| (i.window, i.settings.id_scale)), passes })
    }

    async fn predict(
        &mut self,
        request: &crate::sampler::Request,
        options: &GenerateOptions,
        shape: &[usize; 4],
        reporter: &dyn Reporter,
    ) -> Result<Vec<f32>> {
        let loaded = &mut self.unet;
        let sample = HostTensor::from_f32(*shape, request.x_in.clone())?.nchw_to_nhwc()?;
        let sample = (1..self.passes).try_fold(sample.clone(), |all, _| join_rows(&all, &sample))?;
        let rows = sample.shape()[0];
        loaded.write("sample", &sample)?;
        loaded.write("timestep", &HostTensor::from_fn([rows], |_| request.timestep as f32))?;
        if let Some((window, id_scale)) = self.identity {
            let strength = if window.contains(request.step, request.steps) { id_scale } else { 0.0 };
            loaded.write("id_scale", &HostTensor::from_fn([rows], |_| strength))?;
        }
        let mut outputs = loaded.run(reporter).await?;
        let prediction = take(&mut outputs, "sample")?.nhwc_to_nchw()?;
        let values = prediction.as_f32()?;
        if self.passes == 1 {
            return Ok(values.to_vec());
        }
        let (without, with_text) = values.split_at(values.len() / 2);
        Ok(without.iter().zip(with_text).map(|(&u, &c)| u + options.guidance * (c - u)).collect())
    }
}

async fn decode(runtime: &Runtime, vae: &Vae, latents: &HostTensor, observer: &dyn Observer) -> Result<Vec<RgbImage>> {
    let scale = vae.config().scaling_factor;
    let values = latents.as_f32()?.iter().map(|v| v / scale).collect();
    let latent = HostTensor::from_f32(latents.shape().clone(), values)?.nchw_to_nhwc()?;
    let &[batch, height, width, channels] = latent.shape().extents() else {
        return Err(Error::invalid("latents", format!("expected four axes, got {}", latent.shape())));
    };
    let graph = vae.decoder(1, height, width, runtime.max_tensor_bytes())?;
    let mut loaded = runtime.load(&graph, observer).await?;
    let mut images = Vec::with_capacity(batch);
    // One at a time: the decoder's activations are the largest of the whole pipeline.
    for one in latent.as_f32()?.chunks(height * width * channels) {
        loaded.write("latent", &HostTensor::from_f32([1, height, width, channels], one.to_vec())?)?;
        let mut outputs = loaded.run(observer).await?;
        images.extend(rgb_from_tensor(&take(&mut outputs, "sample")?)?);
    }
    Ok(images)
}

pub(crate) fn take(outputs: &mut HashMap<String, HostTensor>, name: &str) -> Result<HostTensor> {
    outputs.remove(name).ok_or_else(|| Error::invalid("network", format!("gave no output `{name}`")))
}

/// Every row `times` times, rows staying in order: [a, b] becomes [a, a, b, b].
fn repeat_rows(t: &HostTensor, times: usize) -> Result<HostTensor> {
    let mut shape = t.shape().to_vec();
    let row = t.shape().count() / shape[0].max(1);
    shape[0] *= times;
    let values = t.as_f32()?;
    let repeated = values.chunks(row.max(1)).flat_map(|r| std::iter::repeat_n(r, times)).flatten().copied().collect();
    HostTensor::from_f32(shape, repeated)
}

/// The rows of `a`, then those of `b`.
fn join_rows(a: &HostTensor, b: &HostTensor) -> Result<HostTensor> {
    if a.shape().is_empty() || a.shape()[1..] != b.shape()[1..] {
        return Err(Error::invalid("tensors", format!("{} and {} have different rows", a.shape(), b.shape())));
    }
    let mut shape = a.shape().to_vec();
    shape[0] += b.shape()[0];
    HostTensor::from_f32(shape, [a.as_f32()?, b.as_f32()?].concat())
}

/// Tensors of equal leading extents side by side along the last axis.
fn join_last_axis(parts: &[HostTensor]) -> Result<HostTensor> {
    let Some(first) = parts.first() else { return Err(Error::invalid("tensors", "nothing to join")) };
    let rows = first.shape().count() / first.shape().last().max(1);
    let mut shape = first.shape().to_vec();
    let mut joined = Vec::new();
    let values = parts.iter().map(HostTensor::as_f32).collect::<Result<Vec<_>>>()?;
    for row in 0..rows {
        for (part, values) in parts.iter().zip(&values) {
            let width = part.shape().last();
            let slice = values.get(row * width..(row + 1) * width);
            joined.extend_from_slice(slice.ok_or_else(|| Error::invalid("tensors", "rows differ"))?);
        }
    }
    if let Some(last) = shape.last_mut() {
        *last = parts.iter().map(|p| p.shape().last()).sum();
    }
    HostTensor::from_f32(shape, joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_repeat_in_order_and_join() {
        let t = HostTensor::from_fn([2, 1], |i| i as f32);
        assert_eq!(repeat_rows(&t, 2).unwrap().as_f32().unwrap(), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(join_rows(&t, &t).unwrap().shape().extents(), [4, 1]);
        let wide = join_last_axis(&[t.clone(), HostTensor::from_fn([2, 2], |i| i as f32 + 10.0)]).unwrap();
        assert_eq!(wide.as_f32().unwrap(), [0.0, 10.0, 11.0, 1.0, 12.0, 13.0]);
    }
}
