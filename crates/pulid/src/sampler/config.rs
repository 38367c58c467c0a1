use pulid_checkpoint::json;
use pulid_models::sdxl::{PredictionMarks, Predicts};
use pulid_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// How the betas of the training schedule grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Linear in beta.
    Linear,
    /// Linear in the square root of beta, as Stable Diffusion.
    ScaledLinear,
    /// By a squared cosine of the product (Nichol and Dhariwal 2021); `beta_start` and `beta_end` do not count.
    SquaredcosCapV2,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity of Salimans and Ho (2022).
    VPrediction,
}

/// The fields of a diffusers `scheduler/scheduler_config.json` that say how a network was trained and how its images are made.
///
/// Missing fields take SDXL's values; fields not listed here are ignored. Every scheduler class says the same of the noise; of what it
/// says of the steps see [`SchedulerConfig::choices`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// The scheduler's class.
    #[serde(rename = "_class_name", skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// Beta of the first training timestep.
    pub beta_start: f32,
    /// Beta of the last training timestep.
    pub beta_end: f32,
    /// How beta grows between them.
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, one for each training timestep, where they follow no formula.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_betas: Option<Vec<f32>>,
    /// Number of training timesteps.
    pub num_train_timesteps: usize,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Whether the last timestep is pure noise (Lin et al. 2023).
    #[serde(deserialize_with = "null_is_default")]
    pub rescale_betas_zero_snr: bool,
    /// Where the steps lie: `leading`, `trailing` or `linspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<String>,
    /// Whether the steps' noise levels are Karras et al.'s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_karras_sigmas: Option<bool>,
    /// The DPM-Solver's kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm_type: Option<String>,
    /// The solver's order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_order: Option<usize>,
    /// The DPM-Solver's second order: `midpoint` or `heun`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_type: Option<String>,
    /// The noise level after the last step: `zero` or `sigma_min`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_sigmas_type: Option<String>,
    /// What else changes the steps: options of which `true` stands for something that is not built.
    #[serde(flatten)]
    pub others: Others,
}

/// Options of schedulers' classes that are off in most files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Others {
    /// Levels spaced evenly in log sigma.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_exponential_sigmas: Option<bool>,
    /// Levels by a beta distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_beta_sigmas: Option<bool>,
    /// Levels of flow matching.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_flow_sigmas: Option<bool>,
    /// Lu et al.'s levels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_lu_lambdas: Option<bool>,
    /// Clean latents cut at a quantile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thresholding: Option<bool>,
}

/// `null` is as good as nothing.
fn null_is_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            class_name: None,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            num_train_timesteps: 1000,
            prediction_type: PredictionType::Epsilon,
            rescale_betas_zero_snr: false,
            timestep_spacing: None,
            use_karras_sigmas: None,
            algorithm_type: None,
            solver_order: None,
            solver_type: None,
            final_sigmas_type: None,
            others: Others::default(),
        }
    }
}

/// What only schedulers for networks of other kinds say, and what these are.
const FOREIGN: [(&str, &str); 2] =
    [("sigma_data", "EDM's noise levels (`sigma_data`)"), ("base_shift", "flow matching")];

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`, as diffusers writes it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no JSON object, a field has an unknown value, or the scheduler is for networks of another kind.
    pub fn from_json(text: &str) -> Result<Self> {
        let invalid = |detail: String| Error::invalid("scheduler_config.json", detail);
        let value: Value = json::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let class = value["_class_name"].as_str().unwrap_or_default();
        let edm = ["EDM", "CosineDPM", "CMStochastic"];
        let by_class = match class {
            _ if edm.iter().any(|name| class.starts_with(name)) => Some("EDM's noise levels (`sigma_data`)"),
            _ if class.starts_with("FlowMatch") || value["use_flow_sigmas"] == true => Some("flow matching"),
            _ => None,
        };
        // A scheduler that was made of another one's configuration keeps keys that its class does not know.
        let telling = |(key, _): &&(&str, &str)| class.is_empty() && !value[*key].is_null();
        let by_key = || FOREIGN.iter().find(telling).map(|(_, what)| *what);
        if let Some(what) = by_class.or_else(by_key) {
            let name = if class.is_empty() { "this scheduler" } else { class };
            return Err(invalid(format!(
                "{name} is for networks trained on {what}, which are not supported; SDXL's networks predict noise or velocity \
                 on a schedule of betas"
            )));
        }
        serde_json::from_value(value).map_err(|e| invalid(e.to_string()))
    }

    /// The schedule of a network whose own file says this of its predictions: nearer to it than a folder's scheduler, which may be the
    /// base model's. `own` says whether scheduler and file are of the same model, so that what the file leaves open holds.
    pub fn marked(mut self, marks: PredictionMarks, own: bool) -> Self {
        let Some(predicts) = marks.predicts else { return self };
        let prediction_type = match predicts {
            Predicts::Noise => PredictionType::Epsilon,
            Predicts::Velocity => PredictionType::VPrediction,
        };
        let keeps = own && prediction_type == self.prediction_type && self.rescale_betas_zero_snr;
        self.rescale_betas_zero_snr = marks.zero_terminal_snr || keeps;
        SchedulerConfig { prediction_type, ..self }
    }
}

/// The solver that turns predictions into latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SamplerKind {
    /// DPM-Solver++ of second order, multistep: one call a step (Lu et al. 2022).
    #[serde(rename = "dpmpp_2m")]
    DpmPp2M,
    /// DPM-Solver++ as a stochastic equation, eta 1, r 1/2: two calls a step, one in the last.
    #[serde(rename = "dpmpp_sde")]
    DpmPpSde,
    /// Euler's method: one call a step.
    #[serde(rename = "euler")]
    Euler,
}

/// Where on the noise schedule the steps lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Karras et al. (2022), rho 7, over the whole schedule.
    Karras,
    /// Evenly spaced training timesteps from the last one down, as SDXL-Lightning was distilled: 4 steps are
    /// t = 999, 749, 499, 249.
    Trailing,
}

/// The noise level after the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// None: the latents are clean.
    #[default]
    Zero,
    /// That of training timestep 0, as diffusers' DPM-Solver ended before its 0.26, and with it PuLID v1's application.
    SigmaMin,
}

impl SamplerKind {
    /// Every kind, in the order in which people see them.
    pub const ALL: [SamplerKind; 3] = [SamplerKind::DpmPp2M, SamplerKind::DpmPpSde, SamplerKind::Euler];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            SamplerKind::DpmPp2M => "dpmpp_2m",
            SamplerKind::DpmPpSde => "dpmpp_sde",
            SamplerKind::Euler => "euler",
        }
    }

    /// The spacing used unless the caller says otherwise.
    pub const fn default_spacing(self) -> Spacing {
        match self {
            SamplerKind::DpmPp2M | SamplerKind::DpmPpSde => Spacing::Karras,
            SamplerKind::Euler => Spacing::Trailing,
        }
    }

    /// Network calls that `steps` steps take.
    pub const fn calls(self, steps: usize) -> usize {
        match self {
            SamplerKind::DpmPp2M | SamplerKind::Euler => steps,
            SamplerKind::DpmPpSde => (2 * steps).saturating_sub(1),
        }
    }
}

impl Spacing {
    /// Every spacing, in the order in which people see them.
    pub const ALL: [Spacing; 2] = [Spacing::Karras, Spacing::Trailing];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Spacing::Karras => "karras",
            Spacing::Trailing => "trailing",
        }
    }
}

impl FinalSigma {
    /// Both, in the order in which people see them.
    pub const ALL: [FinalSigma; 2] = [FinalSigma::Zero, FinalSigma::SigmaMin];

    /// The name on the command line, which is diffusers'.
    pub const fn name(self) -> &'static str {
        match self {
            FinalSigma::Zero => "zero",
            FinalSigma::SigmaMin => "sigma_min",
        }
    }
}

impl fmt::Display for FinalSigma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FinalSigma {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let detail = || format!("`{text}` is none of {}", FinalSigma::ALL.map(FinalSigma::name).join(", "));
        FinalSigma::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| Error::invalid("final_sigma", detail()))
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let detail =
            || format!("`{text}` is no sampler; there are {}", SamplerKind::ALL.map(SamplerKind::name).join(", "));
        SamplerKind::ALL.into_iter().find(|k| k.name() == text).ok_or_else(|| Error::invalid("sampler", detail()))
    }
}

impl FromStr for Spacing {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let detail = || format!("`{text}` is no spacing; there are {}", Spacing::ALL.map(Spacing::name).join(", "));
        Spacing::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| Error::invalid("spacing", detail()))
    }
}

/// What a run of a sampler depends on besides the schedule and the noise.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// The solver.
    pub kind: SamplerKind,
    /// Where the steps lie.
    pub spacing: Spacing,
    /// Where they end.
    pub final_sigma: FinalSigma,
    /// Number of steps, 1 to the number of training timesteps.
    pub steps: usize,
    /// Seed of the Brownian path of stochastic solvers; the others ignore it.
    pub seed: u64,
}

impl SamplerOptions {
    /// The kind's default spacing, clean latents at the end, and seed 0.
    pub const fn new(kind: SamplerKind, steps: usize) -> Self {
        SamplerOptions { kind, spacing: kind.default_spacing(), final_sigma: FinalSigma::Zero, steps, seed: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.name().parse::<SamplerKind>().unwrap(), kind);
        }
        for spacing in Spacing::ALL {
            assert_eq!(spacing.name().parse::<Spacing>().unwrap(), spacing);
        }
        for end in FinalSigma::ALL {
            assert_eq!(end.name().parse::<FinalSigma>().unwrap(), end);
        }
        assert!("sigma_max".parse::<FinalSigma>().is_err());
        let message = "ddim".parse::<SamplerKind>().unwrap_err().to_string();
        assert!(message.contains("ddim") && message.contains("dpmpp_2m"), "{message}");
        assert!("linear".parse::<Spacing>().is_err());
    }

    #[test]
    fn a_diffusers_file_is_read() {
        let text = r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": 0.02, "beta_schedule": "linear",
            "num_train_timesteps": 500, "prediction_type": "v_prediction", "steps_offset": 1}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(config.beta_schedule, BetaSchedule::Linear);
        assert_eq!(config.prediction_type, PredictionType::VPrediction);
        assert_eq!((config.num_train_timesteps, config.beta_end, config.beta_start), (500, 0.02, 0.00085));
        assert!(SchedulerConfig::from_json(r#"{"beta_schedule": "laplace"}"#).is_err());
        assert!(SchedulerConfig::from_json("[").is_err());
    }
}
