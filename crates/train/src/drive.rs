//! A run from its data to its last step.

use crate::batch::Batches;
use crate::cache::Cache;
use crate::data;
use crate::memory::Planner;
use crate::options::TrainOptions;
use crate::plan::{Plan, plan};
use crate::prepare::{Preparing, prepare};
use crate::run::{Metrics, Resumed, RunFolder};
use crate::samples::Sampling;
use crate::trainer::Trainer;
use crate::write_untrained;
use pulid::identity::FaceModels;
use pulid::pipeline::{Pipeline, SdxlModel, Storage};
use pulid::runtime::{Reporter, Runtime};
use pulid_engine::StepProfile;
use pulid_models::Precision;
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a person watching training is told.
pub trait Watcher: Reporter {
    /// A step is done.
    fn trained(&self, progress: &Progress);
}

/// Where a run stands after a step.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The step's.
    pub metrics: Metrics,
    /// Steps in all.
    pub steps: u64,
    /// Seconds that the rest will take, by the steps of this start.
    pub seconds_left: f64,
    /// Bytes held on the device.
    pub memory: u64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The last step.
    pub step: u64,
    /// Its adapter file.
    pub adapter: PathBuf,
    /// Metrics of the last step, if one was done.
    pub last: Option<Metrics>,
}

/// What a run would take.
#[derive(Clone, Debug)]
pub struct Dry {
    /// Memory.
    pub plan: Plan,
    /// Time.
    pub seconds_a_step: f64,
    /// Where it goes, by the name of a network: none unless asked for.
    pub operators: Vec<(String, StepProfile)>,
}

/// A run that is not finished: what it needs besides its settings.
pub struct Run<'a> {
    /// The model, where it runs.
    pub pipeline: &'a Pipeline,
    /// Further devices for a step's micro-batches.
    pub others: &'a [Runtime],
    /// The networks that read photos.
    pub faces: &'a FaceModels,
    /// The settings.
    pub options: &'a TrainOptions,
    /// The folder.
    pub folder: PathBuf,
    /// How sample images are made.
    pub sampling: Sampling,
}

/// Why a run ended early, and what of it is kept.
#[derive(Debug)]
pub struct Stopped {
    /// Why.
    pub error: Error,
    /// The step of the last checkpoint, if there is one.
    pub kept: Option<u64>,
}

impl Run<'_> {
    /// The prepared images: of a cache, else made in the run's folder.
    async fn cache(&self, begun: bool, reporter: &dyn Reporter) -> Result<Cache> {
        if Cache::is_cache(&self.options.data) {
            return open_cache(self.options);
        }
        let folder = self.folder.join("cache");
        if begun {
            // What was trained on is trained on.
            return Cache::open(folder);
        }
        // Text is kept in the precision that `train prepare` keeps it in.
        let (runtime, model) = (self.pipeline.runtime().clone(), self.pipeline.model().clone());
        let storage = Storage { quantize: None, ..self.options.storage()? };
        let pipeline = Pipeline::open(runtime, model, storage)?;
        let preparing = Preparing {
            pipeline: &pipeline,
            faces: self.faces,
            resolution: self.options.resolution,
            buckets: self.options.buckets,
            dtype: self.options.dtype()?,
        };
        let prepared = prepare(&data::list(&self.options.data)?, &folder, &preparing, reporter).await?;
        if prepared.rejected > 0 {
            let path = folder.join("rejected.jsonl");
            reporter.note(&format!("{} images were left out; {} says why", prepared.rejected, path.display()));
        }
        Ok(prepared.cache)
    }

    /// The adapter file that training starts or goes on with.
    fn adapter(&self, resumed: Option<&Resumed>) -> Result<PathBuf> {
        if let Some(resumed) = resumed {
            return Ok(RunFolder::adapter(&self.folder, resumed.state.step));
        }
        if !self.options.from_none {
            return Ok(self.options.from.clone());
        }
        let path = RunFolder::adapter(&self.folder, 0);
        let layers = self.pipeline.model().unet(Precision::F32)?.identity_layers()?;
        write_untrained(&self.options.from, &layers, self.options.seed, &path)?;
        Ok(path)
    }

    async fn open(&self, resumed: Option<&Resumed>, reporter: &dyn Reporter) -> Result<Trainer> {
        let cache = self.cache(resumed.is_some(), reporter).await?;
        self.open_on(cache, resumed, reporter).await
    }

    async fn open_on(&self, cache: Cache, resumed: Option<&Resumed>, reporter: &dyn Reporter) -> Result<Trainer> {
        let adapter = self.adapter(resumed)?;
        // What prepared the images is needed no more.
        self.pipeline.runtime().clear();
        let (runtime, model) = (self.pipeline.runtime(), self.pipeline.model());
        Trainer::open(runtime, self.others, model, self.faces, &adapter, cache, self.options, resumed, reporter).await
    }

    /// What the run takes, with the seconds of a step: measured on three after one that compiles. With `profile` the operators of one more on the
    /// first device, each with its network's name. Nothing is kept of them.
    ///
    /// # Errors
    /// As [`Run::train`].
    pub async fn dry(&self, profile: bool, watcher: &dyn Watcher) -> Result<Dry> {
        let cache = self.cache(false, watcher).await?;
        let (runtime, model) = (self.pipeline.runtime(), self.pipeline.model());
        let batches = Batches::of_model(cache.clone(), model, self.options)?;
        let plan = plan(&Planner::Device(runtime), model, self.faces, Some(&batches), self.options, watcher).await?;
        let mut trainer = self.open_on(cache, None, watcher).await?;
        // So that what does not fit is found now.
        trainer.load_sizes(watcher)?;
        watcher.stage("measuring three steps");
        trainer.step(false, watcher).await?;
        let begun = Instant::now();
        for _ in 0..3 {
            trainer.step(false, watcher).await?;
        }
        let seconds_a_step = begun.elapsed().as_secs_f64() / 3.0;
        let mut operators = Vec::new();
        if let (true, Runtime::Gpu { device, .. }) = (profile, runtime) {
            watcher.stage("timing each operator of a step");
            device.start_profile();
            let stepped = trainer.step(false, watcher).await;
            operators = device.finish_profile();
            stepped?;
        }
        Ok(Dry { plan, seconds_a_step, operators })
    }

    /// Trains to the last step.
    ///
    /// # Errors
    /// [`Stopped`] says what of it is kept: a checkpoint is written first, unless what is trained is lost with its device.
    pub async fn train(
        &self,
        resumed: Option<Resumed>,
        watcher: &dyn Watcher,
    ) -> std::result::Result<Finished, Stopped> {
        let kept = resumed.as_ref().map(|r| r.state.step);
        let early = |error| Stopped { error, kept };
        let at = resumed.as_ref().map_or(0, |r| r.state.step);
        let mut folder = RunFolder::resume(&self.folder, self.options, at).map_err(early)?;
        let mut trainer = self.open(resumed.as_ref(), watcher).await.map_err(early)?;
        drop(resumed);
        watcher.stage("training");
        let mut last = None;
        let mut kept = kept;
        let result = self.steps(&mut trainer, &mut folder, &mut last, &mut kept, watcher).await;
        let step = trainer.state().step;
        let keeps = match &result {
            Ok(()) => kept != Some(step),
            Err(_) => step > 0 && kept != Some(step) && !trainer.is_torn(),
        };
        if keeps {
            match save(&trainer, &folder).await {
                Ok(_) => kept = Some(step),
                Err(error) if result.is_ok() => return Err(Stopped { error, kept }),
                // The first error is the one to tell.
                Err(_) => {}
            }
        }
        match result {
            Ok(()) => Ok(Finished { step, adapter: RunFolder::adapter(folder.path(), step), last }),
            Err(error) => Err(Stopped { error, kept }),
        }
    }

    async fn steps(
        &self,
        trainer: &mut Trainer,
        folder: &mut RunFolder,
        last: &mut Option<Metrics>,
        kept: &mut Option<u64>,
        watcher: &dyn Watcher,
    ) -> Result<()> {
        let steps = self.options.steps;
        let begun = Instant::now();
        let first = trainer.state().step;
        while trainer.state().step < steps {
            if watcher.cancelled() {
                return Err(Error::Cancelled);
            }
            let export = trainer.state().step < self.options.export_steps;
            let (metrics, exported) = trainer.step(export, watcher).await?;
            let step = metrics.step;
            if let Some(exported) = exported {
                folder.export(step, &exported)?;
            }
            folder.log(&metrics)?;
            if metrics.skipped && metrics.losses.is_empty() {
                watcher.note(&format!(
                    "step {step} was left out: no sample has a part in any loss, as where no picture shows a face; what is trained is as it was"
                ));
            } else if metrics.skipped {
                watcher.note(&format!(
                    "step {step} was left out: a gradient was not finite in half precision; the loss is scaled by {} from here on",
                    trainer.state().scale.factor
                ));
            }
            let done = (step - first) as f64;
            let seconds_left = begun.elapsed().as_secs_f64() / done * (steps - step) as f64;
            let memory = self.pipeline.runtime().device_memory().held();
            watcher.trained(&Progress { metrics: metrics.clone(), steps, seconds_left, memory });
            *last = Some(metrics);
            let samples = is_due(step, self.options.sample_every) && !self.sampling.is_empty();
            if is_due(step, self.options.save_every) || samples {
                let adapter = save(trainer, folder).await?;
                *kept = Some(step);
                if samples {
                    let adapter =
                        if self.options.ema > 0.0 { RunFolder::average(folder.path(), step) } else { adapter };
                    let image = self.sampling.make(self.pipeline, self.faces, &adapter, watcher).await?;
                    crate::cache::write_whole(&folder.sample(step)?, &image)?;
                    watcher.stage("training");
                }
            }
        }
        Ok(())
    }
}

async fn save(trainer: &Trainer, folder: &RunFolder) -> Result<PathBuf> {
    folder.save(&trainer.state(), &trainer.saved().await?)
}

fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// Looks at a run's data before anything is written or opened.
///
/// # Errors
/// When there is none, or a cache of another resolution.
pub fn check_data(options: &TrainOptions) -> Result<()> {
    if !Cache::is_cache(&options.data) {
        return data::list(&options.data).map(drop);
    }
    open_cache(options).map(drop)
}

/// Looks at a run's branch before anything is written or opened; `model` is the base that is trained on.
///
/// # Errors
/// A branch whose model cannot be read, cannot make such pictures or has other attention than the base.
pub fn check_branch(options: &TrainOptions, model: &SdxlModel) -> Result<()> {
    let Some(branch) = options.needed_branch() else { return Ok(()) };
    let layers = model.unet(Precision::F32)?.identity_layers()?;
    crate::branch::check(branch, &branch.open_model()?, &layers)
}

pub(crate) fn open_cache(options: &TrainOptions) -> Result<Cache> {
    let cache = Cache::open(&options.data)?;
    let resolution = cache.description().resolution;
    if resolution != options.resolution {
        let detail = format!("{} was given, the cache holds images of {resolution}", options.resolution);
        return Err(Error::invalid("resolution", detail));
    }
    match (options.buckets, cache.description().buckets) {
        (true, false) => Err(Error::invalid("buckets", "are asked for, the cache holds squares")),
        (false, true) => Err(Error::invalid("buckets", "are not asked for, the cache holds images of different sizes")),
        _ => Ok(cache),
    }
}

/// The newest checkpoint of a run and its settings.
///
/// # Errors
/// When there is no run, or it is malformed.
pub fn reopen(folder: &Path) -> Result<(TrainOptions, Option<Resumed>)> {
    Ok((RunFolder::settings(folder)?, Resumed::newest(folder)?))
}

#[cfg(test)]
mod tests;
