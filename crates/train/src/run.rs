//! A run's folder.
//!
//! `run.toml`, `metrics.jsonl`, `events.out.tfevents.*`, `samples/STEP.png`, `steps/STEP.safetensors`, and of each checkpoint
//! `adapter-STEP.safetensors`, a PuLID file (`adapter-STEP-ema.safetensors` of moving averages), and `state-STEP/`, the optimiser's. A checkpoint is there once its `state-STEP` is, which
//! comes last and by a rename.

use crate::cache::{append, lines, write_whole};
use crate::objective::Weights;
use crate::optimizer::{LossScale, Moments, ParameterState, Rule};
use crate::options::TrainOptions;
use crate::tensorboard::EventFile;
use pulid_checkpoint::{Checkpoint, files, write_folder_atomically, write_safetensors};
use pulid_models::pulid::TrainedParameter;
use pulid_tensor::{Error, HostTensor, Result, Shape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const SETTINGS: &str = "run.toml";
const METRICS: &str = "metrics.jsonl";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// Counted from 1.
    pub step: u64,
    /// What is minimised, the losses by their weights; null where it was not finite, or no sample has a part in any.
    #[serde(default)]
    pub loss: Option<f64>,
    /// Each of them.
    #[serde(flatten)]
    pub losses: Losses,
    /// Norm of all gradients before clipping; null where it was not finite, or there are none.
    pub gradient_norm: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// The loss's factor.
    pub loss_scale: f64,
    /// Whether the step was left out because a gradient was not finite, or no loss had one.
    pub skipped: bool,
    /// Samples a second.
    pub images_per_second: f64,
}

/// The losses of a step. One that is left out, or that no sample has a part in, is not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// L_diff, a mean over the step's samples.
    #[serde(rename = "loss_diff", default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<f64>,
    /// L_id, a mean over the branch's pictures that show a face.
    #[serde(rename = "loss_id", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<f64>,
    /// L_align's semantic part, a mean over the samples with an identity.
    #[serde(rename = "loss_align_sem", default, skip_serializing_if = "Option::is_none")]
    pub align_sem: Option<f64>,
    /// L_align's part of the layout.
    #[serde(rename = "loss_align_layout", default, skip_serializing_if = "Option::is_none")]
    pub align_layout: Option<f64>,
    /// Share of the branch's pictures that show a face.
    #[serde(rename = "faces", default, skip_serializing_if = "Option::is_none")]
    pub faces: Option<f64>,
}

impl Losses {
    /// Their sum by weights.
    pub fn weighted(&self, weights: &Weights) -> f64 {
        let Weights { diff, id, align_sem, align_layout } = *weights;
        let all = [(self.diff, diff), (self.id, id), (self.align_sem, align_sem), (self.align_layout, align_layout)];
        all.into_iter().filter_map(|(loss, weight)| Some(loss? * weight)).sum()
    }

    /// Whether no sample has a part in any.
    pub fn is_empty(&self) -> bool {
        self.each().next().is_none()
    }

    /// Those that are there, by name.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all =
            [("diff", self.diff), ("id", self.id), ("align_sem", self.align_sem), ("align_layout", self.align_layout)];
        all.into_iter().filter_map(|(name, loss)| Some((name, loss?)))
    }
}

/// `state.json`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps that are done, skipped ones included.
    pub step: u64,
    /// Steps of the optimiser, which its bias corrections count.
    pub updates: u32,
    /// Half precision's.
    pub scale: LossScale,
}

/// A run's folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    keep: usize,
    tensorboard: bool,
    /// Begun with the first metrics, so that a run that only starts, or starts twice, leaves none without any.
    events: Option<EventFile>,
}

/// A parameter as a checkpoint takes it.
pub struct Saved<'a> {
    /// Its name and layout.
    pub parameter: &'a TrainedParameter,
    /// In the graph's layout.
    pub state: ParameterState,
    /// Its moving average, where there is one, in the graph's layout.
    pub average: Option<HostTensor>,
}

impl RunFolder {
    /// Begins a run in a new or empty folder.
    ///
    /// # Errors
    /// When the folder holds something, or cannot be written.
    pub fn create(path: impl Into<PathBuf>, options: &TrainOptions) -> Result<RunFolder> {
        let path = path.into();
        if files::is_file(path.join(SETTINGS)) {
            return Err(Error::file(path, "holds a run already; go on with it by --resume, or name another folder"));
        }
        if std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::file(path, "holds other files; name a new folder for the run"));
        }
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        write_whole(&path.join(SETTINGS), options.to_toml()?.as_bytes())?;
        Ok(RunFolder::of(path, options))
    }

    /// The settings of a run.
    ///
    /// # Errors
    /// When there is none, or they are malformed.
    pub fn settings(path: &Path) -> Result<TrainOptions> {
        if !files::is_file(path.join(SETTINGS)) {
            return Err(Error::file(path, "is no run: there is no run.toml in it"));
        }
        TrainOptions::read(&path.join(SETTINGS))
    }

    /// Goes on with a run: metrics of steps beyond its last checkpoint are taken back.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn resume(path: impl Into<PathBuf>, options: &TrainOptions, step: u64) -> Result<RunFolder> {
        let path = path.into();
        let metrics = path.join(METRICS);
        let all: Vec<Metrics> = lines(&metrics)?;
        if all.iter().any(|m| m.step > step) {
            let mut kept = Vec::new();
            for line in all.iter().filter(|m| m.step <= step) {
                serde_json::to_writer(&mut kept, line).map_err(|e| Error::file(&metrics, e.to_string()))?;
                kept.push(b'\n');
            }
            write_whole(&metrics, &kept)?;
        }
        Ok(RunFolder::of(path, options))
    }

    fn of(path: PathBuf, options: &TrainOptions) -> RunFolder {
        RunFolder { path, keep: options.keep, tensorboard: options.tensorboard, events: None }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a step's metrics.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn log(&mut self, metrics: &Metrics) -> Result<()> {
        append(&self.path.join(METRICS), metrics)?;
        if self.tensorboard && self.events.is_none() {
            self.events = Some(EventFile::create(&self.path, now())?);
        }
        let Some(events) = &mut self.events else { return Ok(()) };
        let tags = [
            ("loss/diff", metrics.losses.diff),
            ("loss/id", metrics.losses.id),
            ("loss/align_sem", metrics.losses.align_sem),
            ("loss/align_layout", metrics.losses.align_layout),
            ("faces", metrics.losses.faces),
        ];
        let mut scalars: Vec<_> = tags.into_iter().filter_map(|(tag, value)| Some((tag, value?))).collect();
        scalars.extend(metrics.loss.map(|loss| ("loss/all", loss)));
        scalars.extend([
            ("lr", metrics.lr),
            ("images_per_second", metrics.images_per_second),
            ("loss_scale", metrics.loss_scale),
        ]);
        scalars.extend(metrics.gradient_norm.map(|norm| ("gradient_norm", norm)));
        events.scalars(now(), metrics.step, &scalars)
    }

    /// A step's adapter file.
    pub fn adapter(path: &Path, step: u64) -> PathBuf {
        path.join(format!("adapter-{step}.safetensors"))
    }

    /// A step's adapter file of moving averages, where the run has them.
    pub fn average(path: &Path, step: u64) -> PathBuf {
        path.join(format!("adapter-{step}-ema.safetensors"))
    }

    fn state_folder(path: &Path, step: u64) -> PathBuf {
        path.join(format!("state-{step}"))
    }

    /// Writes the adapter of a step, in the published layout, in f32, and its moving averages beside it.
    ///
    /// # Errors
    /// When it cannot be written; nothing is left of it then.
    pub fn write_adapter(&self, step: u64, saved: &[Saved<'_>]) -> Result<PathBuf> {
        let path = RunFolder::adapter(&self.path, step);
        let (mut tensors, mut averages) = (BTreeMap::new(), BTreeMap::new());
        for Saved { parameter, state, average } in saved {
            tensors.insert(parameter.name.clone(), parameter.to_stored(state.value.clone())?);
            if let Some(average) = average {
                averages.insert(parameter.name.clone(), parameter.to_stored(average.clone())?);
            }
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("step".to_owned(), step.to_string())]);
        write_tensors(&path, &tensors, &metadata)?;
        if !averages.is_empty() {
            write_tensors(&RunFolder::average(&self.path, step), &averages, &metadata)?;
        }
        Ok(path)
    }

    /// Writes a checkpoint and lets the oldest go.
    ///
    /// # Errors
    /// When it cannot be written: those before it are untouched.
    pub fn save(&self, state: &State, saved: &[Saved<'_>]) -> Result<PathBuf> {
        let adapter = self.write_adapter(state.step, saved)?;
        let folder = RunFolder::state_folder(&self.path, state.step);
        if folder.is_dir() {
            return Ok(adapter);
        }
        let mut tensors = BTreeMap::new();
        for Saved { parameter, state, .. } in saved {
            for (moment, tensor) in state.moments.each() {
                tensors.insert(format!("{moment}.{}", parameter.name), parameter.to_stored(tensor.clone())?);
            }
        }
        let text = serde_json::to_vec_pretty(state).map_err(|e| Error::invalid(STATE, e.to_string()))?;
        write_folder_atomically(&folder, |inside| {
            write_tensors(&inside.join(OPTIMIZER), &tensors, &BTreeMap::new())?;
            write_whole(&inside.join(STATE), &text)
        })?;
        self.forget_old()?;
        Ok(adapter)
    }

    /// Removes all but the newest checkpoints.
    fn forget_old(&self) -> Result<()> {
        let steps = checkpoints(&self.path)?;
        for &step in steps.iter().rev().skip(self.keep) {
            // Under another name first: one that is only half removed is no checkpoint.
            let folder = RunFolder::state_folder(&self.path, step);
            let old = self.path.join(format!(".old-{step}"));
            std::fs::rename(&folder, &old).map_err(|e| Error::io(&folder, e))?;
            std::fs::remove_dir_all(&old).map_err(|e| Error::io(&old, e))?;
            let adapter = RunFolder::adapter(&self.path, step);
            std::fs::remove_file(&adapter).map_err(|e| Error::io(&adapter, e))?;
            let average = RunFolder::average(&self.path, step);
            if files::is_file(&average) {
                std::fs::remove_file(&average).map_err(|e| Error::io(&average, e))?;
            }
        }
        Ok(())
    }

    /// Exports tensors of a step.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn export(&self, step: u64, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
        let folder = self.path.join("steps");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        write_tensors(&folder.join(format!("{step}.safetensors")), tensors, &BTreeMap::new())
    }

    /// Where a step's sample images go; the folder is there afterwards.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn sample(&self, step: u64) -> Result<PathBuf> {
        let folder = self.path.join("samples");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(folder.join(format!("{step}.png")))
    }
}

/// Steps of whole checkpoints in a run's folder, in order.
///
/// # Errors
/// When the folder cannot be listed.
pub fn checkpoints(path: &Path) -> Result<Vec<u64>> {
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let steps = names.filter_map(|name| name.strip_prefix("state-")?.parse().ok());
    let whole = |step: &u64| {
        files::is_file(RunFolder::state_folder(path, *step).join(STATE))
            && files::is_file(RunFolder::adapter(path, *step))
    };
    let mut steps: Vec<u64> = steps.filter(whole).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// A checkpoint's state, and its moments.
#[derive(Debug)]
pub struct Resumed {
    /// Where the run stands.
    pub state: State,
    moments: Checkpoint,
    /// Of the moving averages.
    average: PathBuf,
}

impl Resumed {
    /// The newest checkpoint of a run, if there is one.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn newest(path: &Path) -> Result<Option<Resumed>> {
        let Some(&step) = checkpoints(path)?.last() else { return Ok(None) };
        let folder = RunFolder::state_folder(path, step);
        let file = folder.join(STATE);
        let text = files::read_to_string(&file)?;
        let state: State =
            pulid_checkpoint::json::from_str(&text).map_err(|e| Error::file(&file, format!("is malformed: {e}")))?;
        if state.step != step {
            return Err(Error::file(file, format!("says step {}, its folder {step}", state.step)));
        }
        Ok(Some(Resumed {
            state,
            moments: Checkpoint::open(folder.join(OPTIMIZER))?,
            average: RunFolder::average(path, step),
        }))
    }

    /// What a rule remembers of a parameter, in the graph's layout.
    ///
    /// # Errors
    /// When it is missing or of another shape.
    pub fn moments(&self, rule: Rule, parameter: &TrainedParameter, shape: &Shape) -> Result<Moments> {
        Moments::read(rule, |kind| stored(&self.moments, &format!("{kind}.{}", parameter.name), parameter, shape))
    }

    /// The moving averages of parameters, in the graph's layout.
    ///
    /// # Errors
    /// When their file is missing, malformed or of other extents.
    pub fn averages(&self, parameters: &[(TrainedParameter, Shape)]) -> Result<Vec<(String, HostTensor)>> {
        let file = Checkpoint::open(&self.average)?;
        let read = |(parameter, shape): &(TrainedParameter, Shape)| {
            Ok((parameter.name.clone(), stored(&file, &parameter.name, parameter, shape)?))
        };
        parameters.iter().map(read).collect()
    }
}

/// A tensor of a parameter's extents in a file, in the graph's layout.
fn stored(file: &Checkpoint, key: &str, parameter: &TrainedParameter, shape: &Shape) -> Result<HostTensor> {
    let tensor = parameter.to_graph(file.tensor(key)?)?;
    if tensor.shape() != shape {
        let detail = format!("expected {shape}, found {}", tensor.shape());
        return Err(Error::Weight { key: key.to_owned(), source_name: file.name().into(), detail });
    }
    Ok(tensor)
}

fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, HostTensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_safetensors(path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), metadata)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
