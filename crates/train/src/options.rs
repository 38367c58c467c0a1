//! What a training run is told: `run.toml`.

use crate::objective::{self, BranchOptions, OneStepOptions, Weights};
use crate::optimizer::Rule;
use pulid::pipeline::Storage;
use pulid_models::pulid::Ortho;
use pulid_tensor::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// From which photo of the person the identity comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pair {
    /// The very image that is to be denoised.
    #[default]
    Same,
    /// Another image of the person, where there is one.
    Other,
    /// Either, half of the time each.
    Mix,
}

/// How the learning rate changes after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// Half a cosine down to 0 at the last step.
    Cosine,
    /// A line down to 0 at the last step.
    Linear,
}

/// Which values the backward pass finds stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Blocks are computed again where the device's memory, or the budget, would not hold all that is stored.
    #[default]
    Auto,
    /// All is stored.
    Off,
    /// Blocks are computed again.
    Block,
}

/// A run's settings. Paths are as they were given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Cache, folder, JSONL or tar of images.
    pub data: PathBuf,
    /// The base model.
    pub model: PathBuf,
    /// Another UNet over it.
    pub unet: Option<PathBuf>,
    /// The PuLID file that training starts from.
    pub from: PathBuf,
    /// Whether `from` gives extents alone, and values are drawn.
    pub from_none: bool,
    /// Where the networks that read photos lie.
    pub faces: PathBuf,
    /// Steps in all.
    pub steps: u64,
    /// Pixels of a side of the training images.
    pub resolution: usize,
    /// Whether images keep about their shape, with the area of such a square.
    #[serde(default)]
    pub buckets: bool,
    /// Samples that go through the networks at once.
    pub batch: usize,
    /// Such batches whose gradients are summed in a step.
    pub accumulate: usize,
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps in which the learning rate grows from 0.
    pub warmup: u64,
    /// Its course afterwards.
    pub schedule: Schedule,
    /// Largest norm of all gradients together; 0 does not clip.
    pub clip: f64,
    /// Where the identity comes from.
    pub pair: Pair,
    /// Share of samples whose text alone is dropped for an empty one.
    pub drop_text: f64,
    /// Share of samples whose identity alone is dropped for the unconditional one.
    pub drop_id: f64,
    /// Share of samples that lose both.
    pub drop_both: f64,
    /// Zero tokens beside the identity's.
    pub num_zero: usize,
    /// Treatment of the part along the text features: off, v1 or v2.
    pub ortho: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// f16 or f32: how the frozen networks are stored and, where the device can, compute.
    pub dtype: String,
    /// q8 or q4: blocks in which the frozen UNets' matrices and filters are stored, in place of `dtype`.
    #[serde(default)]
    pub quantize: Option<String>,
    /// What is computed again.
    pub checkpointing: Recompute,
    /// A checkpoint each so many steps; 0 at the end alone.
    pub save_every: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Sample images each so many steps; 0 none.
    pub sample_every: u64,
    /// Prompts of the sample images.
    pub prompts: Vec<String>,
    /// Faces of the sample images.
    pub photos: Vec<PathBuf>,
    /// Steps that are exported.
    pub export_steps: u64,
    /// Whether metrics go to TensorBoard's event files too.
    pub tensorboard: bool,
    /// How parameters are changed.
    #[serde(default)]
    pub optimizer: Rule,
    /// Decay of the moving average of the parameters; 0 keeps none.
    #[serde(default)]
    pub ema: f64,
    /// Factors of the losses.
    #[serde(default)]
    pub weights: Weights,
    /// The most that the ratio of signal to noise counts for in L_diff (Min-SNR weighting); 0 weighs all timesteps alike.
    #[serde(default)]
    pub snr_gamma: f64,
    /// Whether the timesteps of a step's images are spread evenly: one from each of as many equal parts of all timesteps.
    #[serde(default)]
    pub stratified_timesteps: bool,
    /// The branch of few steps, where a loss looks at it.
    #[serde(default)]
    pub branch: Option<BranchOptions>,
    /// Where L_id looks at one-step estimates, not at the branch.
    #[serde(default)]
    pub one_step: Option<OneStepOptions>,
}

impl TrainOptions {
    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the setting and what is accepted.
    pub fn check(&self) -> Result<()> {
        let wrong = |name: &str, detail: String| Err(Error::invalid(name, detail));
        if self.steps == 0 {
            return wrong("steps", "is 0; 1 or more are trained".into());
        }
        for (name, value, most) in
            [("batch", self.batch, 256), ("accumulate", self.accumulate, 4096), ("keep", self.keep, 1 << 20)]
        {
            if !(1..=most).contains(&value) {
                return wrong(name, format!("{value} is not 1 to {most}"));
            }
        }
        if !(self.lr.is_finite() && self.lr > 0.0 && self.lr <= 10.0) {
            return wrong("lr", format!("{} is not above 0 and up to 10", self.lr));
        }
        if !(self.weight_decay.is_finite() && (0.0..=1.0).contains(&self.weight_decay)) {
            return wrong("weight_decay", format!("{} is not 0 to 1", self.weight_decay));
        }
        if !(self.clip.is_finite() && self.clip >= 0.0) {
            return wrong("clip", format!("{} is no finite number from 0", self.clip));
        }
        if !(0.0..1.0).contains(&self.ema) {
            return wrong("ema", format!("{} is no decay from 0 to below 1", self.ema));
        }
        if !(self.snr_gamma.is_finite() && self.snr_gamma >= 0.0) {
            return wrong("snr_gamma", format!("{} is no finite number from 0", self.snr_gamma));
        }
        let drops = [("drop_text", self.drop_text), ("drop_id", self.drop_id), ("drop_both", self.drop_both)];
        for (name, share) in drops {
            if !(0.0..=1.0).contains(&share) {
                return wrong(name, format!("{share} is no share from 0 to 1"));
            }
        }
        let all: f64 = drops.iter().map(|(_, share)| share).sum();
        if all > 1.0 {
            return wrong("drop_both", format!("with drop_text and drop_id is {all}; the three are shares of 1"));
        }
        self.storage()?;
        self.ortho()?;
        objective::check(&self.weights, self.branch.as_ref(), self.one_step.as_ref())
    }

    /// Every path in it.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let own = [&mut self.data, &mut self.model, &mut self.from, &mut self.faces];
        let branch = self.branch.iter_mut();
        let branch = branch.flat_map(|b| [&mut b.model, &mut b.recogniser].into_iter().chain(&mut b.unet));
        let one_step = self.one_step.iter_mut().map(|one_step| &mut one_step.recogniser);
        own.into_iter().chain(&mut self.unet).chain(&mut self.photos).chain(branch).chain(one_step)
    }

    /// Storage type of the frozen networks.
    ///
    /// # Errors
    /// For another word than f16 and f32.
    pub fn dtype(&self) -> Result<DType> {
        match self.dtype.as_str() {
            "f16" => Ok(DType::F16),
            "f32" => Ok(DType::F32),
            other => Err(Error::invalid("dtype", format!("{other} is none of f16, f32"))),
        }
    }

    /// How the frozen networks are stored.
    ///
    /// # Errors
    /// For another word than f16 and f32, q8 and q4.
    pub fn storage(&self) -> Result<Storage> {
        let quantize = match self.quantize.as_deref() {
            None => None,
            Some("q8") => Some(DType::Q8),
            Some("q4") => Some(DType::Q4),
            Some(other) => return Err(Error::invalid("quantize", format!("{other} is none of q8, q4"))),
        };
        Ok(Storage { dtype: self.dtype()?, quantize })
    }

    /// The branch of few steps, where a loss looks at it.
    pub fn needed_branch(&self) -> Option<&BranchOptions> {
        self.branch.as_ref().filter(|_| self.branch_weights().branches())
    }

    /// Factors of the losses that look at the branch.
    pub fn branch_weights(&self) -> Weights {
        self.weights.of_branch(self.one_step.is_some())
    }

    /// L_id on one-step estimates, where there is any.
    pub fn needed_one_step(&self) -> Option<&OneStepOptions> {
        self.one_step.as_ref().filter(|_| self.weights.id > 0.0)
    }

    /// Whether the network is called on images with noise, for L_diff or for one-step estimates.
    pub fn predicts(&self) -> bool {
        self.weights.diff > 0.0 || self.needed_one_step().is_some()
    }

    /// Treatment of the part along the text features.
    ///
    /// # Errors
    /// For another word than off, v1 and v2.
    pub fn ortho(&self) -> Result<Ortho> {
        match self.ortho.as_str() {
            "off" => Ok(Ortho::Off),
            "v1" => Ok(Ortho::V1),
            "v2" => Ok(Ortho::V2),
            other => Err(Error::invalid("ortho", format!("{other} is none of off, v1, v2"))),
        }
    }

    /// The learning rate of a step, counted from 1.
    pub fn rate(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.lr * step as f64 / self.warmup as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup).max(1);
        // The first step after the warm-up has the whole rate, and what would be the step after the last has none.
        let done = ((step - self.warmup - 1) as f64 / rest as f64).min(1.0);
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Linear => self.lr * (1.0 - done),
            Schedule::Cosine => self.lr * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
    }

    /// As `run.toml` has it.
    ///
    /// # Errors
    /// When a path is no text.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::invalid("run.toml", e.to_string()))
    }

    /// Reads `run.toml`.
    ///
    /// # Errors
    /// When it cannot be read, is malformed or holds what cannot be.
    pub fn read(path: &Path) -> Result<TrainOptions> {
        let text = pulid_checkpoint::files::read_to_string(path)?;
        let options: TrainOptions =
            toml::from_str(&text).map_err(|e| Error::file(path, format!("is malformed: {}", e.message())))?;
        options.check().map_err(|e| Error::file(path, e.to_string()))?;
        Ok(options)
    }
}

#[cfg(test)]
pub(crate) fn example() -> TrainOptions {
    TrainOptions {
        data: "data".into(),
        model: "model".into(),
        unet: None,
        from: "adapter".into(),
        from_none: false,
        faces: "faces".into(),
        steps: 110,
        resolution: 128,
        buckets: false,
        batch: 2,
        accumulate: 1,
        lr: 1.0,
        weight_decay: 0.01,
        warmup: 10,
        schedule: Schedule::Constant,
        clip: 1.0,
        pair: Pair::Same,
        drop_text: 0.05,
        drop_id: 0.05,
        drop_both: 0.05,
        num_zero: 20,
        ortho: "v2".into(),
        seed: 0,
        dtype: "f32".into(),
        quantize: None,
        checkpointing: Recompute::Auto,
        save_every: 0,
        keep: 2,
        sample_every: 0,
        prompts: Vec::new(),
        photos: Vec::new(),
        export_steps: 0,
        tensorboard: true,
        optimizer: Rule::AdamW,
        ema: 0.0,
        weights: Weights::default(),
        snr_gamma: 0.0,
        stratified_timesteps: false,
        branch: None,
        one_step: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_warms_up_and_falls_as_its_schedule_says() {
        let rates = |schedule, steps: [u64; 4]| {
            let options = TrainOptions { schedule, ..example() };
            steps.map(|step| (options.rate(step) * 1e6).round() / 1e6)
        };
        // diffusers' `get_linear_schedule_with_warmup` and its siblings, whose first call is for step 0.
        assert_eq!(rates(Schedule::Constant, [1, 10, 11, 110]), [0.1, 1.0, 1.0, 1.0]);
        assert_eq!(rates(Schedule::Linear, [5, 11, 61, 110]), [0.5, 1.0, 0.5, 0.01]);
        assert_eq!(rates(Schedule::Cosine, [10, 11, 61, 110]), [1.0, 1.0, 0.5, 0.000_247]);
    }

    #[test]
    fn a_run_s_file_gives_back_what_was_written() {
        let branch = Some(objective::example());
        let options = TrainOptions { unet: Some("u".into()), prompts: vec!["a \"b\"".into()], branch, ..example() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, options.to_toml().unwrap()).unwrap();
        assert_eq!(TrainOptions::read(&path).unwrap(), options);
        std::fs::write(&path, options.to_toml().unwrap().replace("steps = 110", "steps = 0")).unwrap();
        let message = TrainOptions::read(&path).unwrap_err().to_string();
        assert!(message.contains("run.toml") && message.contains("steps"), "{message}");
        std::fs::write(&path, "steps = [").unwrap();
        assert!(TrainOptions::read(&path).unwrap_err().to_string().contains("malformed"));
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (options, name) in [
            (TrainOptions { batch: 0, ..example() }, "batch"),
            (TrainOptions { lr: f64::NAN, ..example() }, "lr"),
            (TrainOptions { drop_text: 0.6, drop_id: 0.6, ..example() }, "drop_both"),
            (TrainOptions { clip: -1.0, ..example() }, "clip"),
            (TrainOptions { ema: 1.0, ..example() }, "ema"),
            (TrainOptions { dtype: "bf16".into(), ..example() }, "dtype"),
            (TrainOptions { quantize: Some("q5".into()), ..example() }, "quantize"),
            (TrainOptions { snr_gamma: f64::NAN, ..example() }, "snr_gamma"),
            (TrainOptions { ortho: "v3".into(), ..example() }, "ortho"),
        ] {
            let message = options.check().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
        example().check().unwrap();
    }
}
