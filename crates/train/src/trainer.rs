//! The steps of a run.

use crate::adapter::Adapter;
use crate::average::Average;
use crate::batch::{Batch, Batches, People};
use crate::branch::Micro;
use crate::buckets::Size;
use crate::cache::{Cache, Sample};
use crate::losses::LossSums;
use crate::memory::Planner;
use crate::optimizer::{LossScale, Moments, Optimizer, ParameterState, Settings};
use crate::options::TrainOptions;
use crate::plan::Own;
use crate::run::{Metrics, Resumed, Saved, State};
use crate::terms::Call;
use crate::worker::{DeviceWorker, Request, Worker, WorkerSetup, named, on_host, together};
use pulid::identity::FaceModels;
use pulid::pipeline::SdxlModel;
use pulid::runtime::{Reporter, Runtime};
use pulid_checkpoint::Checkpoint;
use pulid_models::pulid::{IdentityInputs, TrainedAdapter};
use pulid_models::sdxl::Unet;
use pulid_models::training::{MuonRate, MuonStep};
use pulid_ops::AdamWStep;
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::collections::BTreeMap;
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
    /// The first works on the device where everything else is.
    workers: Vec<Box<dyn Worker>>,
    adapter: Adapter,
    optimizer: Optimizer,
    average: Option<Average>,
    state: State,
    /// Pixels to a latent, each way.
    factor: usize,
    /// Whether an update broke off.
    torn: bool,
}

/// Tensors of a step for whoever holds it against another implementation, by the names of [`Trainer::step`].
pub type Exported = BTreeMap<String, HostTensor>;

impl Trainer {
    /// Loads all that a run needs, at its beginning or at a checkpoint. What is trained is on the device of `runtime`; losses are computed
    /// there and on `others`, each of which takes every so many-th of a step's micro-batches.
    ///
    /// # Errors
    /// Files that do not fit each other, weights that are missing, mismatched or not finite, a device out of memory, cancellation.
    pub async fn open(
        runtime: &Runtime,
        others: &[Runtime],
        model: &SdxlModel,
        faces: &FaceModels,
        adapter: &Path,
        cache: Cache,
        options: &TrainOptions,
        resumed: Option<&Resumed>,
        reporter: &dyn Reporter,
    ) -> Result<Trainer> {
        options.check()?;
        check_devices(1 + others.len(), options)?;
        let batches = Batches::of_model(cache, model, options)?;
        let (size, first) = batches.largest()?;
        let trained = TrainedAdapter::new(&Checkpoint::open(adapter)?)?;
        let condition = first.id_cond.shape().count();
        if trained.condition_dim() != condition {
            let detail = format!(
                "takes {} dimensions of each photo, the cache has {condition}: it was made with other face networks",
                trained.condition_dim()
            );
            return Err(Error::file(adapter, detail));
        }
        let unet = model.unet(Planner::Device(runtime).precision(options.storage()?))?;
        let call = call(&unet, &trained, size, &first, options)?;
        let layers = unet.identity_layers()?;
        let dtype = options.dtype()?;
        let in_half = |runtime: &Runtime| runtime.precision(dtype, None).activations == DType::F16;
        let half = in_half(runtime) || others.iter().any(in_half);

        let vision = first.hidden.first().map_or(0, |h| h.shape()[1]);
        let own = Own::plan(&Planner::Device(runtime), &trained, &layers, vision, options, reporter).await?;
        let setup = WorkerSetup { model, faces, options, call, layers: &layers };
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        let (sharing, nothing) = (runtime.sharing_scratch(), Own::default());
        let mut runtimes = vec![sharing.clone()];
        runtimes.extend(others.iter().map(Runtime::sharing_scratch));
        for (place, runtime) in runtimes.iter().enumerate() {
            let own = if place == 0 { &own } else { &nothing };
            let loaded = DeviceWorker::load(runtime, &setup, place == 0, own, reporter).await;
            let worker =
                loaded.map_err(|error| if others.is_empty() { error } else { named(&runtime.name(), error) })?;
            workers.push(Box::new(worker));
        }
        let runtime = &sharing;
        // Gradients are in the shared memory while these run.
        let of_updates = sharing.sharing_scratch();
        reporter.stage("loading the adapter");
        let accumulates = options.accumulate > 1;
        let extents = [options.batch, vision];
        let mut adapter = Adapter::load(runtime, &trained, &layers, extents, accumulates, reporter).await?;
        let shapes: Vec<_> = adapter.parameters.iter().map(|(_, shape)| shape.clone()).collect();
        let mut optimizer = Optimizer::load(&of_updates, options.optimizer, &shapes, reporter).await?;
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
            optimizer.set(&parameter.name, shape, &moments).await?;
        }
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
                Some(Average::load(&of_updates, decay, values, reporter).await?)
            }
        };

        let state = match resumed {
            Some(resumed) => resumed.state,
            None => State { step: 0, updates: 0, scale: LossScale::new(half) },
        };
        Ok(Trainer {
            options: options.clone(),
            batches,
            workers,
            adapter,
            optimizer,
            average,
            state,
            factor: call.factor,
            torn: false,
        })
    }

    /// Where the run stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether an update broke off, so that some parameters have changed and others have not: not to be kept.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Loads what each size of the images needs, which otherwise comes with the first batch of the size.
    ///
    /// # Errors
    /// A device out of memory, cancellation.
    pub fn load_sizes(&mut self, reporter: &dyn Reporter) -> Result<()> {
        let latents: Vec<_> = self.batches.sizes().map(|(size, _)| size.map(|side| side / self.factor)).collect();
        self.workers.iter_mut().try_for_each(|worker| worker.load(&latents, reporter))
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
    /// [`Metrics::skipped`]; nor does one of which no loss has a gradient, as where no picture shows a face and L_id stands alone.
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
        let (mut sum, mut squares) = (LossSums::default(), None);
        for first in (0..micros).step_by(self.workers.len()) {
            let round = first..micros.min(first + self.workers.len());
            let (mut requests, mut people) = (Vec::new(), Vec::new());
            for (worker, micro) in self.workers.iter().zip(round) {
                let (batch, whose) = self.batches.draw(step, micro)?;
                let mut keys_values = self.adapter.keys_values(&whose, reporter).await?;
                if !worker.is_local() {
                    keys_values = on_host(&keys_values).await?;
                }
                let at = Micro { step, micro, factor: factor / micros as f64 };
                requests.push(Request { at, batch, keys_values });
                people.push(whose);
            }
            let responses = together(&mut self.workers, &requests, reporter)?;
            // In the order of the samples, whoever was the first to answer.
            for ((request, whose), response) in requests.iter().zip(&people).zip(responses) {
                sum.merge(&response.losses);
                if let Some(exported) = &mut exported {
                    let behind = if micros == 1 { String::new() } else { format!(".{}", request.at.micro) };
                    let inputs = export_batch(&request.batch, whose, response.inputs)?;
                    exported.extend(inputs.into_iter().map(|(name, tensor)| (format!("{name}{behind}"), tensor)));
                }
                // Where no loss has anything to say, there is nothing to learn.
                let Some(upstream) = response.gradients else { continue };
                let before = squares.is_some();
                squares = Some(self.adapter.gradients(whose, upstream, before, reporter).await?);
            }
        }
        let losses = sum.means();
        let loss = losses.weighted(&self.options.weights);
        let norm = squares.map_or(0.0, f64::sqrt) / factor;
        let finite = norm.is_finite() && loss.is_finite();
        let lr = self.options.rate(step);
        let learns = squares.is_some();
        if learns && finite {
            if let Some(exported) = &mut exported {
                self.export_parameters(true, "before", factor, exported).await?;
            }
            self.torn = true;
            self.update(norm, lr, reporter).await?;
            self.torn = false;
            if let Some(exported) = &mut exported {
                self.export_parameters(false, "after", factor, exported).await?;
                for (name, loss) in losses.each() {
                    exported.insert(format!("loss.{name}"), HostTensor::from_f32([1], vec![loss as f32])?);
                }
                exported.insert("lr".into(), HostTensor::from_f32([1], vec![lr as f32])?);
            }
        } else if !finite && !self.state.scale.can_fall() {
            return Err(Error::NotFinite {
                network: "training".into(),
                operator: format!("step {step}"),
                detail: format!(
                    "the loss is {loss}, the norm of the gradients {norm}; what was trained before is as it was. A lower `lr`, \
                     `clip` or `dtype` f32 may help"
                ),
            });
        }
        let updated = learns && finite;
        if learns {
            self.state.scale.update(finite);
        }
        self.state.step = step;
        self.state.updates += u32::from(updated);
        let samples = (self.options.batch * micros) as f64;
        let metrics = Metrics {
            step,
            loss: (learns && loss.is_finite()).then_some(loss),
            losses,
            gradient_norm: updated.then_some(norm),
            lr,
            loss_scale: factor,
            skipped: !updated,
            images_per_second: samples / begun.elapsed().as_secs_f64().max(1e-9),
        };
        Ok((metrics, exported.filter(|_| updated)))
    }

    /// Changes every parameter by its gradient.
    async fn update(&mut self, norm: f64, lr: f64, reporter: &dyn Reporter) -> Result<()> {
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
        self.optimizer.step(&mut self.adapter, settings, reporter).await?;
        if let Some(average) = &mut self.average {
            average.follow(&self.adapter, update, reporter).await?;
        }
        Ok(())
    }

    async fn export_parameters(
        &self,
        gradients: bool,
        prefix: &str,
        factor: f64,
        exported: &mut Exported,
    ) -> Result<()> {
        for (parameter, shape) in &self.adapter.parameters {
            let name = &parameter.name;
            let value = self.adapter.value(name)?.read().await?.reshape(shape.clone())?;
            exported.insert(format!("{prefix}.{name}"), parameter.to_stored(value)?);
            if !gradients {
                continue;
            }
            let scaled = self.adapter.gradient(name)?.read().await?.to_f32_vec();
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
            let value = self.adapter.value(&parameter.name)?.read().await?.reshape(shape.clone())?;
            let state = ParameterState { value, moments: self.optimizer.read(&parameter.name, shape).await? };
            all.push(Saved { parameter, state, average });
        }
        Ok(all)
    }
}

/// Sizes of the UNet's calls, checked against each other.
fn call(unet: &Unet, adapter: &TrainedAdapter, size: Size, first: &Sample, options: &TrainOptions) -> Result<Call> {
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
    let factor = size[0] / height.max(1);
    if [height * factor, width * factor] != size || factor == 0 {
        let detail = format!("has latents of {height} x {width} for an image of {} x {}", size[0], size[1]);
        return Err(Error::invalid("cache", detail));
    }
    Ok(Call { batch: options.batch, latent: [height, width], factor, text_tokens, identity })
}

/// Refuses more devices than a step has micro-batches for.
///
/// # Errors
/// Says which settings would do.
pub fn check_devices(devices: usize, options: &TrainOptions) -> Result<()> {
    if devices > options.accumulate {
        let detail = format!(
            "are {devices}, but a step has {} micro-batch(es), of which each is one device's work: `accumulate` {devices} with a smaller \
             `batch` makes enough of them",
            options.accumulate
        );
        return Err(Error::invalid("devices", detail));
    }
    Ok(())
}

/// A micro-batch in PyTorch's layout, beside what else went into its losses.
fn export_batch(batch: &Batch, people: &People, mut exported: Exported) -> Result<Exported> {
    for (name, tensor) in batch.for_unet() {
        let tensor = match name {
            "sample" | "target" => tensor.nhwc_to_nchw()?,
            _ => tensor.clone(),
        };
        exported.insert(name.to_owned(), tensor);
    }
    exported.insert("id_cond".into(), people.id_cond.clone());
    for (i, hidden) in people.hidden.iter().enumerate() {
        exported.insert(format!("hidden_{i}"), hidden.clone());
    }
    Ok(exported)
}
