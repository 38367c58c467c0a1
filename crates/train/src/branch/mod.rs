//! The branch of few steps without guidance, and the losses that look at it: L_id and L_align (arXiv 2404.16022, section 3).
//!
//! A picture is made from pure noise by [`EulerStep`]s, each one call of a network; latents pass through the host, which keeps those of
//! every step. For gradients the last steps keep their values until the loss is known, each in memory of its own; where that does not fit,
//! they run once more, one at a time and backwards, so that memory does not grow with their number.

mod alignment;
mod euler;
mod identity;

pub use euler::EulerStep;

use crate::batch::{Batch, stack};
use crate::face::read;
use crate::memory::{Decided, Part};
use crate::objective::{BranchOptions, Weights};
use crate::random::Keyed;
use crate::terms::{Gradients, Sums};
use alignment::AlignmentLoss;
use identity::IdentityLoss;
use pulid::identity::FaceModels;
use pulid::pipeline::{Pipeline, SdxlModel, Storage, TextConditioning};
use pulid::runtime::{Loaded, Quiet, Reporter, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::Graph;
use pulid_models::Precision;
use pulid_models::pulid::{IdentityInputs, IdentityLayer};
use pulid_models::sdxl::{Unet, UnetSize, Vae};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};

/// Its UNet's weights in a run's memory.
const WEIGHTS: &str = "branch: UNet, weights";

/// What the branch is made with.
pub(crate) struct BranchSetup<'a> {
    pub runtime: &'a Runtime,
    pub model: &'a SdxlModel,
    pub faces: &'a FaceModels,
    pub storage: Storage,
    pub options: &'a BranchOptions,
    pub weights: Weights,
    pub batch: usize,
    pub identity: IdentityInputs,
    /// Of the network whose keys and values are trained.
    pub layers: &'a [IdentityLayer],
    pub seed: u64,
    /// How backward passes are built.
    pub decided: &'a Decided,
}

/// The branch's networks, where they run.
pub(crate) struct Branch {
    weights: Weights,
    keyed: Keyed,
    batch: usize,
    sampler: Sampler,
    /// A call with identity and without gradients.
    forward: Loaded,
    identity: Option<IdentityLoss>,
    alignment: Option<AlignmentLoss>,
}

/// The steps and what is common to their calls.
pub(crate) struct Sampler {
    steps: Vec<EulerStep>,
    /// Noise level of the first latents.
    sigma: f64,
    /// Of the latents, [B, h, w, C].
    shape: [usize; 4],
    /// [B, 6].
    time_ids: HostTensor,
}

/// What both text encoders make of a prompt for each sample: [B, 77, D] and [B, P].
#[derive(Clone, Debug)]
pub(crate) struct Prompts {
    hidden: HostTensor,
    pooled: HostTensor,
}

/// What the branch answers for a micro-batch.
#[derive(Debug, Default)]
pub(crate) struct BranchAnswer {
    /// L_id, a mean over the pictures with a face; none without any.
    pub id: Option<f64>,
    /// L_align's semantic part and its part of the layout, means over samples and steps; none without an identity.
    pub align: Option<[f64; 2]>,
    /// Pictures that were looked at for a face, and those that show one.
    pub faces: [usize; 2],
    /// Gradients with those that were given, if there are any.
    pub gradients: Option<Gradients>,
    /// What went into it, in PyTorch's layout.
    pub inputs: BTreeMap<String, HostTensor>,
}

/// Where a micro-batch stands, and how much its losses count.
#[derive(Clone, Copy, Debug)]
pub struct Micro {
    /// The step, counted from 1.
    pub step: u64,
    /// Its place in the step.
    pub micro: usize,
    /// Factor of all losses: the loss's scale over the number of micro-batches.
    pub factor: f64,
}

/// Refuses a branch whose pictures its model cannot make, or that the adapter of attention `layers` cannot serve.
///
/// # Errors
/// As said, and a model that cannot be read.
pub(crate) fn check(options: &BranchOptions, model: &SdxlModel, layers: &[IdentityLayer]) -> Result<()> {
    let own = model.unet(Precision::F32)?.identity_layers()?;
    if own != layers {
        let detail = format!(
            "its UNet has {} cross-attentions, the one that is trained on {}, or of other widths: one adapter cannot serve both",
            own.len(),
            layers.len()
        );
        return Err(Error::file(model.path(), detail));
    }
    let factor = model.vae(Precision::F32)?.config().factor();
    if !options.resolution.is_multiple_of(factor) {
        let detail = format!("{} is not a multiple of {factor}", options.resolution);
        return Err(Error::invalid("branch_resolution", detail));
    }
    Ok(())
}

impl Branch {
    /// Loads what the weights ask for.
    ///
    /// # Errors
    /// A model whose attention differs from the one that is trained on, files that are missing or of another kind, a device out of memory,
    /// cancellation.
    pub async fn load(setup: &BranchSetup<'_>, reporter: &dyn Reporter) -> Result<Branch> {
        let BranchSetup { runtime, model, options, weights, batch, .. } = *setup;
        // Prompts are encoded as those of the cache.
        let storage = Storage { quantize: None, ..setup.storage };
        let pipeline = Pipeline::open(runtime.clone(), model.clone(), storage)?;
        let unet = model.unet(runtime.precision(setup.storage.dtype, setup.storage.quantize))?;
        let vae = model.vae(Precision::F32)?;
        check(options, model, setup.layers)?;

        let prompts = std::iter::once(&options.id_prompt).chain(&options.align_prompts);
        let prompts: Vec<&str> = prompts.map(String::as_str).collect();
        let mut encoded = pipeline.encode(&prompts, reporter).await?.into_iter();
        let of_id = encoded.next().ok_or_else(|| Error::invalid("prompt", "was encoded to nothing"))?;
        let of_align: Vec<TextConditioning> = encoded.collect();
        runtime.clear();

        let text_tokens = of_id.chunks.first().map_or(0, |chunk| chunk.shape()[1]);
        let networks = Networks::new(setup, &unet, &vae, text_tokens);
        let UnetSize { height, width, .. } = networks.size;
        let (sigma, steps) = EulerStep::all(pipeline.schedule(), options.steps)?;
        let pixels = options.resolution as f32;
        let time_ids = [pixels, pixels, 0.0, 0.0, pixels, pixels];
        let sampler = Sampler {
            steps,
            sigma,
            shape: [batch, height, width, unet.config().in_channels],
            time_ids: HostTensor::from_fn([batch, 6], |i| time_ids[i % 6]),
        };
        reporter.stage("loading the branch");
        let mut forward = runtime.load(&networks.forward()?, reporter).await?;
        forward.write("id_scale", &HostTensor::from_fn([batch], |_| 1.0))?;
        let identity = match weights.id > 0.0 {
            true => Some(IdentityLoss::load(&networks, &of_id, reporter).await?),
            false => None,
        };
        let alignment = match weights.aligns() {
            true => Some(AlignmentLoss::load(&networks, &of_align, reporter).await?),
            false => None,
        };
        Ok(Branch { weights, keyed: Keyed::new(setup.seed), batch, sampler, forward, identity, alignment })
    }

    /// The losses of a micro-batch, and their gradients beside those of the terms `before` it.
    ///
    /// Samples without an identity have no part in them, and in L_id pictures without a face.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn run(
        &mut self,
        at: Micro,
        batch: &Batch,
        keys_values: &HashMap<String, Tensor>,
        before: Option<Gradients>,
        reporter: &dyn Reporter,
    ) -> Result<BranchAnswer> {
        let mut answer = BranchAnswer { gradients: before, ..BranchAnswer::default() };
        let observer = Quiet(reporter);
        let noise = self.noise(at)?;
        answer.inputs.insert("noise".into(), noise.nhwc_to_nchw()?);
        answer.inputs.insert("branch.time_ids".into(), self.sampler.time_ids.clone());
        if !batch.identified.contains(&true) {
            return Ok(answer);
        }
        self.forward.write_tensors(keys_values).await?;
        if let Some(identity) = &mut self.identity {
            let weight = self.weights.id * at.factor;
            let run =
                identity::Run { sampler: &self.sampler, forward: &mut self.forward, noise: &noise, batch, weight };
            identity.run(run, keys_values, &mut answer, &observer).await?;
        }
        if let Some(alignment) = &mut self.alignment {
            let weights = [self.weights.align_sem, self.weights.align_layout].map(|weight| weight * at.factor);
            let run = alignment::Run {
                sampler: &self.sampler,
                forward: &mut self.forward,
                noise: &noise,
                identified: &batch.identified,
                weights,
                keyed: self.keyed,
                at,
            };
            alignment.run(run, keys_values, &mut answer, &observer).await?;
        }
        Ok(answer)
    }

    /// Noise of each sample, [B, h, w, C] of variance one.
    fn noise(&self, at: Micro) -> Result<HostTensor> {
        let [batch, height, width, channels] = self.sampler.shape;
        let of_sample = |place: usize| {
            let number = at.micro * self.batch + place;
            let values = self.keyed.normal(at.step, number, "branch noise", height * width * channels);
            HostTensor::from_f32([1, height, width, channels], values)
        };
        stack(&(0..batch).map(of_sample).collect::<Result<Vec<_>>>()?)
    }
}

/// What the losses' own networks are built of.
pub(crate) struct Networks<'a> {
    pub setup: &'a BranchSetup<'a>,
    pub unet: &'a Unet,
    pub vae: &'a Vae,
    pub size: UnetSize,
}

impl<'a> Networks<'a> {
    pub fn new(setup: &'a BranchSetup<'a>, unet: &'a Unet, vae: &'a Vae, text_tokens: usize) -> Networks<'a> {
        let side = setup.options.resolution / vae.config().factor();
        let (batch, identity) = (setup.batch, Some(setup.identity));
        Networks { setup, unet, vae, size: UnetSize { batch, height: side, width: side, text_tokens, identity } }
    }

    /// A call with identity and without gradients.
    fn forward(&self) -> Result<Graph> {
        self.unet.graph(self.size)
    }

    /// All that the weights of the losses ask for. Weights that the branch shares with the UNet that is trained on are that one's.
    pub fn parts(&self) -> Result<Vec<Part<'_>>> {
        let mut parts = vec![Part::forward("branch: a step's values", WEIGHTS, || self.forward())];
        if self.setup.weights.id > 0.0 {
            parts.extend(IdentityLoss::parts(self)?);
        }
        if self.setup.weights.aligns() {
            parts.extend(AlignmentLoss::parts(self));
        }
        Ok(parts)
    }

    /// Keys and values, whose gradients are wanted.
    fn targets(&self) -> Vec<String> {
        self.setup.layers.iter().flat_map(|layer| layer.names()).collect()
    }

    /// A graph that holds the gradients in [`Networks::targets`], with their sums.
    fn summed(&self, mut graph: Graph) -> Result<(Graph, Sums)> {
        let sums = Sums::add(&mut graph, &self.targets())?;
        Ok((graph, sums))
    }

    /// A step's call with the identity at full strength, which adds its gradients to those before.
    async fn step(&self, runtime: &Runtime, graph: &Graph, reporter: &dyn Reporter) -> Result<Loaded> {
        let batch = self.setup.batch;
        let mut loaded = runtime.load(graph, reporter).await?;
        loaded.write("id_scale", &HostTensor::from_fn([batch], |_| 1.0))?;
        Ok(loaded)
    }
}

impl Prompts {
    /// Of a prompt for each sample: its first chunk, as in training.
    fn of(prompts: &[&TextConditioning]) -> Result<Prompts> {
        let none = || Error::invalid("prompt", "was encoded to nothing");
        let hidden = prompts.iter().map(|p| p.chunks.first().cloned().ok_or_else(none)).collect::<Result<Vec<_>>>()?;
        let pooled = prompts.iter().map(|p| p.pooled.clone()).collect::<Vec<_>>();
        Ok(Prompts { hidden: stack(&hidden)?, pooled: stack(&pooled)? })
    }

    /// Adds them to what is exported.
    fn export(&self, before: &str, inputs: &mut BTreeMap<String, HostTensor>) {
        inputs.insert(format!("{before}.encoder_hidden_states"), self.hidden.clone());
        inputs.insert(format!("{before}.text_embeds"), self.pooled.clone());
    }
}

impl Sampler {
    /// Sets what does not change between the steps.
    fn condition(&self, network: &mut Loaded, prompts: &Prompts) -> Result<()> {
        network.write("encoder_hidden_states", &prompts.hidden)?;
        network.write("text_embeds", &prompts.pooled)?;
        network.write("time_ids", &self.time_ids)
    }

    /// Latents of pure noise.
    fn start(&self, noise: &HostTensor) -> Result<HostTensor> {
        euler::scaled(noise, self.sigma)
    }

    /// Sets what a step's call of a network is given.
    fn write(&self, network: &mut Loaded, step: &EulerStep, x: &HostTensor) -> Result<()> {
        network.write("sample", &step.input(x)?)?;
        let timestep = step.timestep;
        network.write("timestep", &HostTensor::from_fn([self.shape[0]], |_| timestep))
    }

    /// The latents after a step.
    async fn step(
        &self,
        network: &mut Loaded,
        step: &EulerStep,
        x: &HostTensor,
        observer: &dyn Observer,
    ) -> Result<HostTensor> {
        self.write(network, step, x)?;
        let mut outputs = network.run_to(&["sample"], observer).await?;
        step.advance(x, &read(&mut outputs, "sample").await?)
    }
}
