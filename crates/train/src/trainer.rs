//! The steps of a run.

use crate::adapter::Adapter;
use crate::average::Average;
use crate::batch::{Batch, Batches};
use crate::branch::{Branch, BranchAnswer, BranchSetup, Micro};
use crate::cache::Cache;
use crate::face::{FaceAnswer, FaceSetup};
use crate::objective::Weights;
use crate::one_step::OneStep;
use crate::optimizer::{LossScale, Moments, Optimizer, ParameterState, Settings};
use crate::options::{Recompute, TrainOptions};
use crate::run::{Losses, Metrics, Resumed, Saved, State};
use crate::terms::{Call, Diffusion, Gradients, Room};
use pulid::identity::FaceModels;
use pulid::pipeline::{SdxlModel, Storage, scheduler_config};
use pulid::runtime::{Reporter, Runtime, Tensor};
use pulid::sampler::{NoiseSchedule, PredictionType};
use pulid_checkpoint::Checkpoint;
use pulid_graph::Checkpointing;
use pulid_models::Precision;
use pulid_models::pulid::{IdentityInputs, TrainedAdapter};
use pulid_models::sdxl::Unet;
use pulid_models::training::{IdentityLossSize, MuonRate, MuonStep};
use pulid_ops::AdamWStep;
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Instant;

/// AdamW's betas and epsilon, PyTorch's defaults.
const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

/// Muon's momentum, `torch.optim.Muon`'s default.
const MOMENTUM: f32 = 0.95;

/// Everything of a run that is on the device, and where it stands.
pub struct Trainer {
    options: TrainOptions,
    batches: Batches,
    diffusion: Option<Diffusion>,
    /// L_id, where it does not look at the branch.
    one_step: Option<OneStep>,
    branch: Option<Branch>,
    adapter: Adapter,
    optimizer: Optimizer,
    average: Option<Average>,
    state: State,
    recomputed: bool,
    version: String,
}

/// Tensors of a step for whoever holds it against another implementation, by the names of [`Trainer::step`].
pub type Exported = BTreeMap<String, HostTensor>;

/// What a run takes, for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    /// What is trained: `PuLID v1.1`.
    pub adapter: String,
    /// Tensors and numbers that are trained.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Images in the cache.
    pub images: usize,
    /// Whether blocks of the UNet are computed again in the backward pass.
    pub recomputed: bool,
    /// Bytes on the device, by part.
    pub memory: Vec<(String, usize)>,
}

impl Trainer {
    /// Loads all that a run needs, at its beginning or at a checkpoint.
    ///
    /// # Errors
    /// Files that do not fit each other, weights that are missing, mismatched or not finite, a device out of memory, cancellation.
    pub async fn open(
        runtime: &Runtime,
        model: &SdxlModel,
        faces: &FaceModels,
        adapter: &Path,
        cache: Cache,
        options: &TrainOptions,
        resumed: Option<&Resumed>,
        reporter: &dyn Reporter,
    ) -> Result<Trainer> {
        options.check()?;
        let config = scheduler_config(model)?;
        let schedule = NoiseSchedule::new(&config)?;
        let predicts_v = config.prediction_type == PredictionType::VPrediction;
        let scaling = model.vae(Precision::F32)?.config().scaling_factor;
        let batches = Batches::new(cache, &schedule, predicts_v, scaling, options)?;
        let first = batches.first()?;
        let trained = TrainedAdapter::new(&Checkpoint::open(adapter)?)?;
        let condition = first.id_cond.shape().count();
        if trained.condition_dim() != condition {
            let detail = format!(
                "takes {} dimensions of each photo, the cache has {condition}: it was made with other face networks",
                trained.condition_dim()
            );
            return Err(Error::file(adapter, detail));
        }
        let unet = model.unet(runtime.precision(options.dtype()?, None))?;
        let call = call(&unet, &trained, &first, options)?;
        let layers = unet.identity_layers()?;
        let half = runtime.precision(options.dtype()?, None).activations == DType::F16;

        reporter.stage("loading the adapter");
        let vision = first.hidden.first().map_or(0, |h| h.shape()[1]);
        let accumulates = options.accumulate > 1;
        let extents = [options.batch, vision];
        let mut adapter = Adapter::load(runtime, &trained, &layers, extents, accumulates, reporter).await?;
        let mut optimizer = Optimizer::new(runtime, options.optimizer);
        let initial: Vec<_> =
            adapter.parameters.iter().map(|(p, _)| Ok((p.name.clone(), p.load()?))).collect::<Result<_>>()?;
        for ((parameter, shape), (_, value)) in adapter.parameters.iter().zip(&initial) {
            if value.as_f32()?.iter().any(|v| !v.is_finite()) {
                return Err(Error::Weight {
                    key: parameter.name.clone(),
                    source_name: options.from.display().to_string(),
                    detail: "holds NaN or infinity; training cannot start from it".into(),
                });
            }
            let rule = options.optimizer.of(shape);
            let moments = match resumed {
                Some(resumed) => resumed.moments(rule, parameter, shape)?,
                None => Moments::read(rule, |_| Ok(HostTensor::zeros(shape.clone())))?,
            };
            optimizer.set(&parameter.name, &ParameterState { value: value.clone(), moments })?;
        }
        let shapes: Vec<_> = adapter.parameters.iter().map(|(p, shape)| (shape.clone(), p.name.clone())).collect();
        optimizer.load(&shapes, reporter).await?;
        for (name, value) in &initial {
            adapter.write(name, value)?;
        }
        let average = match options.ema {
            0.0 => None,
            decay => {
                let values = match resumed {
                    Some(resumed) => resumed.averages(&adapter.parameters)?,
                    None => initial,
                };
                Some(Average::load(runtime, decay, values, reporter).await?)
            }
        };

        let room = || {
            let averages = average.as_ref().map_or(0, Average::memory);
            let held = runtime.device_memory().held() + (optimizer.memory()[0] + averages) as u64;
            let bytes = device_bytes(runtime).map(|all| all.saturating_sub(held));
            Room { recompute: options.checkpointing, bytes }
        };
        let mut diffusion = None;
        let mut recomputed = options.checkpointing == Recompute::Block;
        let estimates = options.one_step.as_ref().filter(|_| options.weights.id > 0.0);
        if options.weights.diff > 0.0 || estimates.is_some() {
            reporter.stage("loading the UNet");
            let more = estimates.is_some();
            let (loaded, checkpointing) = Diffusion::load(runtime, &unet, &call, more, room(), reporter).await?;
            recomputed = matches!(checkpointing, Checkpointing::Blocks(_));
            diffusion = Some(loaded);
        }
        let one_step = match estimates {
            Some(estimates) => {
                let [height, width] = call.latent;
                let size = IdentityLossSize { batch: options.batch, height, width };
                let vae = model.vae(Precision::F32)?;
                let recogniser = &estimates.recogniser;
                let setup = FaceSetup { runtime, faces, vae: &vae, recogniser, size, room: &room };
                Some(OneStep::load(&setup, predicts_v, reporter).await?)
            }
            None => None,
        };
        let of_branch = options.weights.of_branch(options.one_step.is_some());
        let branch = match options.branch.as_ref().filter(|_| of_branch.branches()) {
            Some(branch) => {
                let model = branch.open_model()?;
                let setup = BranchSetup {
                    runtime,
                    model: &model,
                    faces,
                    storage: Storage { dtype: options.dtype()?, quantize: None },
                    options: branch,
                    weights: of_branch,
                    batch: options.batch,
                    identity: call.identity,
                    layers: &layers,
                    seed: options.seed,
                    room: &room,
                };
                Some(Branch::load(&setup, reporter).await?)
            }
            None => None,
        };
        let state = match resumed {
            Some(resumed) => resumed.state,
            None => State { step: 0, updates: 0, scale: LossScale::new(half) },
        };
        let version = trained.version().to_string();
        Ok(Trainer {
            options: options.clone(),
            batches,
            diffusion,
            one_step,
            branch,
            adapter,
            optimizer,
            average,
            state,
            recomputed,
            version,
        })
    }

    /// Where the run stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// What it takes.
    pub fn plan(&self) -> Plan {
        let parameters = &self.adapter.parameters;
        let mut memory = Vec::new();
        if let Some([weights, values]) = self.diffusion.as_ref().and_then(Diffusion::memory) {
            memory.push(("UNet, weights".to_owned(), weights));
            memory.push(("UNet, values and their gradients".to_owned(), values));
        }
        let one_step = self.one_step.iter().map(OneStep::memory);
        memory.extend(one_step.map(|bytes| ("L_id: VAE's and recogniser's values and gradients".to_owned(), bytes)));
        memory.extend(self.branch.iter().flat_map(Branch::memory).filter(|(_, bytes)| *bytes > 0));
        if let Some([weights, values]) = self.adapter.memory() {
            memory.push(("adapter, values, parameters and their gradients".to_owned(), weights + values));
        }
        let [states, networks] = self.optimizer.memory();
        memory.push(("parameters and the optimiser's moments".to_owned(), states));
        memory.push(("the optimiser's steps".to_owned(), networks));
        memory.extend(self.average.as_ref().map(|average| ("moving averages".to_owned(), average.memory())));
        Plan {
            adapter: self.version.clone(),
            tensors: parameters.len(),
            parameters: parameters.iter().map(|(_, shape)| shape.count()).sum(),
            images: self.batches.cache().entries().len(),
            recomputed: self.recomputed,
            memory,
        }
    }

    /// One step. With `export`, also its tensors: `sample, timestep, encoder_hidden_states, text_embeds, time_ids, id_cond,
    /// hidden_0..4, target`, and of the branch `noise` (of variance one), `branch.time_ids`, for L_id `crop_matrix` [B, 2, 3] (from (u, v, 1) in
    /// the recogniser's crop to the picture's pixels), `photo_embedding`, `face_found`, `id.encoder_hidden_states` and `id.text_embeds`, for L_align
    /// `align.encoder_hidden_states`, `align.text_embeds` and `align.steps` (1 for each step that is compared). With gradients summed over
    /// several micro-batches each of these has `.MICRO` behind its name. Further `loss.diff`, `loss.id`, `loss.align_sem` and
    /// `loss.align_layout`, `lr` and of each parameter `d.`, before clipping, `before.` and `after.`, all in PyTorch's layout and without the
    /// loss's factor.
    ///
    /// A step whose gradients are not finite changes nothing, lowers the loss's factor in half precision, and is told by
    /// [`Metrics::skipped`].
    ///
    /// # Errors
    /// Unreadable samples, gradients that are not finite where no factor helps, a lost device, cancellation: the parameters are as
    /// they were before the step then, but for a failure while they change.
    pub async fn step(&mut self, export: bool, reporter: &dyn Reporter) -> Result<(Metrics, Option<Exported>)> {
        let begun = Instant::now();
        let step = self.state.step + 1;
        let micros = self.options.accumulate;
        let factor = self.state.scale.factor;
        let mut exported = export.then(BTreeMap::new);
        let (mut sum, mut sums, mut norms) = (LossSum::default(), None, Vec::new());
        for micro in 0..micros {
            let at = Micro { step, micro, factor: factor / micros as f64 };
            let upstream = self.micro_batch(at, &mut sum, exported.as_mut(), reporter).await?;
            let before = sums.take();
            let (gradients, squares) = self.adapter.gradients(upstream, before, reporter).await?;
            (sums, norms) = (Some(gradients), squares);
        }
        let losses = sum.means();
        let loss = losses.weighted(&self.options.weights);
        let gradients = sums.unwrap_or_default();
        let norm = norms.iter().sum::<f64>().sqrt() / factor;
        let finite = norm.is_finite() && loss.is_finite();
        let lr = self.options.rate(step);
        if finite {
            if let Some(exported) = &mut exported {
                self.export_parameters(Some(&gradients), "before", factor, exported).await?;
            }
            self.update(gradients, norm, lr, reporter).await?;
            if let Some(exported) = &mut exported {
                self.export_parameters(None, "after", factor, exported).await?;
                for (name, loss) in losses.each() {
                    exported.insert(format!("loss.{name}"), HostTensor::from_f32([1], vec![loss as f32])?);
                }
                exported.insert("lr".into(), HostTensor::from_f32([1], vec![lr as f32])?);
            }
        } else if !self.state.scale.can_fall() {
            return Err(Error::NotFinite {
                network: "training".into(),
                operator: format!("step {step}"),
                detail: format!(
                    "the loss is {loss}, the norm of the gradients {norm}; what was trained before is as it was. A lower `lr`, \
                     `clip` or `dtype` f32 may help"
                ),
            });
        }
        self.state.scale.update(finite);
        self.state.step = step;
        self.state.updates += u32::from(finite);
        let samples = (self.options.batch * micros) as f64;
        let metrics = Metrics {
            step,
            loss: loss.is_finite().then_some(loss),
            losses,
            gradient_norm: finite.then_some(norm),
            lr,
            loss_scale: factor,
            skipped: !finite,
            images_per_second: samples / begun.elapsed().as_secs_f64().max(1e-9),
        };
        Ok((metrics, exported.filter(|_| finite)))
    }

    /// The gradients of all terms in a micro-batch's keys and values.
    async fn micro_batch(
        &mut self,
        at: Micro,
        sum: &mut LossSum,
        exported: Option<&mut Exported>,
        reporter: &dyn Reporter,
    ) -> Result<Gradients> {
        let batch = self.batches.draw(at.step, at.micro)?;
        let keys_values = self.adapter.keys_values(&batch, reporter).await?;
        let (mut gradients, mut inputs, mut of_face) = (None, Exported::new(), None);
        let Weights { diff, id, .. } = self.options.weights;
        if let (Some(diffusion), Some(one_step)) = (&mut self.diffusion, &mut self.one_step) {
            let prediction = diffusion.predict(&batch, &keys_values, reporter).await?;
            let answer = one_step.run(&batch, &prediction, id * at.factor, reporter).await?;
            of_face = sum.add_face(answer, &mut inputs);
        }
        if let Some(diffusion) = &mut self.diffusion
            && (diff > 0.0 || of_face.is_some())
        {
            let answer = diffusion.run(&batch, &keys_values, diff * at.factor, of_face, reporter).await?;
            if diff > 0.0 {
                sum.diff.add(answer.loss);
            }
            gradients = Some(answer.gradients);
        }
        if let Some(branch) = &mut self.branch {
            let answer = branch.run(at, &batch, &keys_values, gradients, reporter).await?;
            sum.add(&answer);
            gradients = answer.gradients;
            inputs.extend(answer.inputs);
        }
        if let Some(exported) = exported {
            export_batch(&batch, &mut inputs)?;
            let behind = if self.options.accumulate == 1 { String::new() } else { format!(".{}", at.micro) };
            exported.extend(inputs.into_iter().map(|(name, tensor)| (format!("{name}{behind}"), tensor)));
        }
        // Where no term has anything to say, there is nothing to learn.
        Ok(gradients.unwrap_or_else(|| self.adapter.no_gradients()))
    }

    /// Changes every parameter by its gradient.
    async fn update(
        &mut self,
        mut gradients: HashMap<String, Tensor>,
        norm: f64,
        lr: f64,
        reporter: &dyn Reporter,
    ) -> Result<()> {
        // As `torch.nn.utils.clip_grad_norm_` has it.
        let clipped = match self.options.clip {
            0.0 => 1.0,
            most => (most / (norm + 1e-6)).min(1.0),
        };
        let update = self.state.updates + 1;
        let (rate, decay) = (lr as f32, self.options.weight_decay as f32);
        let factor = (clipped / self.state.scale.factor) as f32;
        let settings = Settings {
            adamw: AdamWStep { rate, decay, betas: BETAS, epsilon: EPSILON, step: update, factor },
            muon: MuonStep { rate, adjust: MuonRate::MatchRmsAdamW, decay, momentum: MOMENTUM, factor },
        };
        let unstoppable = Unstoppable;
        for index in 0..self.adapter.parameters.len() {
            let (parameter, shape) = &self.adapter.parameters[index];
            let name = parameter.name.clone();
            let none = || Error::invalid(&name, "has no gradient");
            let gradient = gradients.remove(&format!("d.{name}")).ok_or_else(none)?;
            let mut value = self.optimizer.step(&name, shape, gradient, settings, &unstoppable).await?;
            if let Some(average) = &mut self.average {
                value = average.follow(&name, shape, value, update, &unstoppable).await?;
            }
            self.adapter.write_tensor(&name, value).await?;
            reporter.progress(index as u64 + 1, self.adapter.parameters.len() as u64);
        }
        Ok(())
    }

    async fn export_parameters(
        &self,
        gradients: Option<&HashMap<String, Tensor>>,
        prefix: &str,
        factor: f64,
        exported: &mut Exported,
    ) -> Result<()> {
        for (parameter, shape) in &self.adapter.parameters {
            let name = &parameter.name;
            let value = self.optimizer.read(parameter, shape).await?.value;
            exported.insert(format!("{prefix}.{name}"), parameter.to_stored(value)?);
            let Some(gradient) = gradients.and_then(|all| all.get(&format!("d.{name}"))) else { continue };
            let scaled = gradient.read().await?.to_f32_vec();
            let plain = HostTensor::from_fn(shape.clone(), |i| (f64::from(scaled[i]) / factor) as f32);
            exported.insert(format!("d.{name}"), parameter.to_stored(plain)?);
        }
        Ok(())
    }

    /// Every parameter and its moments, for a checkpoint.
    ///
    /// # Errors
    /// A lost device.
    pub async fn saved(&self) -> Result<Vec<Saved<'_>>> {
        let mut all = Vec::with_capacity(self.adapter.parameters.len());
        for (parameter, shape) in &self.adapter.parameters {
            let average = match &self.average {
                Some(average) => Some(average.read(&parameter.name, shape).await?),
                None => None,
            };
            all.push(Saved { parameter, state: self.optimizer.read(parameter, shape).await?, average });
        }
        Ok(all)
    }
}

/// An update is done whole or, where the device fails, told: Ctrl-C waits for it.
struct Unstoppable;

impl pulid_engine::Observer for Unstoppable {}

/// Sizes of the UNet's calls, checked against each other.
fn call(unet: &Unet, adapter: &TrainedAdapter, first: &crate::cache::Sample, options: &TrainOptions) -> Result<Call> {
    let [tokens, _] = adapter.output_shape();
    let &[_, height, width, channels] = first.mean.shape().extents() else {
        return Err(Error::invalid("cache", format!("holds latents {}", first.mean.shape())));
    };
    let &[_, text_tokens, text_width] = first.text.hidden.shape().extents() else {
        return Err(Error::invalid("cache", format!("holds text states {}", first.text.hidden.shape())));
    };
    let config = unet.config();
    if channels != config.in_channels || text_width != config.cross_attention_dim {
        let detail = format!(
            "has latents of {channels} channels and text states of {text_width}, the UNet takes {} and {}: it was made with another model",
            config.in_channels, config.cross_attention_dim
        );
        return Err(Error::invalid("cache", detail));
    }
    if config.pooled_dim() != Some(first.text.pooled.shape().count()) {
        return Err(Error::invalid("model", "takes another pooled text embedding than SDXL's; an SDXL is trained on"));
    }
    let identity = IdentityInputs { tokens, num_zero: options.num_zero, ortho: options.ortho()? };
    Ok(Call { batch: options.batch, latent: [height, width], text_tokens, identity })
}

/// Bytes of the device's memory, or of the budget, where either is known.
fn device_bytes(runtime: &Runtime) -> Option<u64> {
    match runtime {
        Runtime::Gpu { device, memory, .. } => memory.or(device.memory_bytes()),
        Runtime::Reference => None,
    }
}

/// The batch in PyTorch's layout.
fn export_batch(batch: &Batch, exported: &mut Exported) -> Result<()> {
    for (name, tensor) in batch.for_unet() {
        let tensor = match name {
            "sample" | "target" => tensor.nhwc_to_nchw()?,
            _ => tensor.clone(),
        };
        exported.insert(name.to_owned(), tensor);
    }
    exported.insert("id_cond".into(), batch.id_cond.clone());
    for (i, hidden) in batch.hidden.iter().enumerate() {
        exported.insert(format!("hidden_{i}"), hidden.clone());
    }
    Ok(())
}

/// A mean over micro-batches.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// The losses of a step's micro-batches so far.
#[derive(Clone, Copy, Debug, Default)]
struct LossSum {
    diff: Mean,
    id: Mean,
    align: [Mean; 2],
    /// Pictures that were looked at, and those with a face.
    faces: [usize; 2],
}

impl LossSum {
    fn add(&mut self, answer: &BranchAnswer) {
        answer.id.into_iter().for_each(|loss| self.id.add(loss));
        let parts = answer.align.into_iter().flatten().zip(&mut self.align);
        parts.for_each(|(loss, mean)| mean.add(loss));
        self.faces = [0, 1].map(|i| self.faces[i] + answer.faces[i]);
    }

    /// Adds L_id of one-step estimates; its gradient in the prediction is handed on.
    fn add_face(&mut self, answer: FaceAnswer, inputs: &mut Exported) -> Option<HostTensor> {
        inputs.extend(answer.inputs);
        self.faces = [0, 1].map(|i| self.faces[i] + answer.faces[i]);
        let (loss, gradient) = answer.loss?;
        self.id.add(loss);
        Some(gradient)
    }

    fn means(&self) -> Losses {
        let [looked, found] = self.faces;
        Losses {
            diff: self.diff.value(),
            id: self.id.value(),
            align_sem: self.align[0].value(),
            align_layout: self.align[1].value(),
            faces: (looked > 0).then(|| found as f64 / looked as f64),
        }
    }
}
