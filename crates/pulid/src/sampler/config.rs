use super::classes;
use pulid_checkpoint::json;
use pulid_models::sdxl::{PredictionMarks, Predicts};
use pulid_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How the betas of the training schedule grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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

/// Which training timesteps a scheduler's steps take (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly from an offset up.
    Leading,
    /// Evenly from the last one down.
    Trailing,
    /// Evenly between both ends.
    Linspace,
}

/// A diffusers `scheduler/scheduler_config.json`: how a network was trained and how its images are made.
///
/// Keys that the file does not have are as in diffusers' class of that name, or as in SDXL's own file where no class is named or it is
/// not known. Every scheduler class says the same of the noise; of what it says of the steps see [`SchedulerConfig::suggestion`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchedulerConfig {
    /// The scheduler's class.
    #[serde(rename = "_class_name", skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// Beta of the first training timestep.
    pub beta_start: f64,
    /// Beta of the last training timestep.
    pub beta_end: f64,
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
    pub rescale_betas_zero_snr: bool,
    /// Which training timesteps the steps take.
    pub timestep_spacing: TimestepSpacing,
    /// The training timestep of the last step with leading timesteps.
    pub steps_offset: usize,
    /// Everything that the file says, as it stands there.
    #[serde(skip)]
    pub saved: Map<String, Value>,
}

impl Default for SchedulerConfig {
    /// SDXL's.
    fn default() -> Self {
        SchedulerConfig::with(classes::SDXL)
    }
}

/// What words stand for in such a file.
const BETA_SCHEDULES: [(&str, BetaSchedule); 3] = [
    ("linear", BetaSchedule::Linear),
    ("scaled_linear", BetaSchedule::ScaledLinear),
    ("squaredcos_cap_v2", BetaSchedule::SquaredcosCapV2),
];
const PREDICTIONS: [(&str, PredictionType); 2] =
    [("epsilon", PredictionType::Epsilon), ("v_prediction", PredictionType::VPrediction)];
const SPACINGS: [(&str, TimestepSpacing); 3] = [
    ("leading", TimestepSpacing::Leading),
    ("trailing", TimestepSpacing::Trailing),
    ("linspace", TimestepSpacing::Linspace),
];

impl SchedulerConfig {
    fn with(defaults: classes::Defaults) -> Self {
        let classes::Defaults { beta_start, beta_end, beta_schedule, timestep_spacing, steps_offset } = defaults;
        SchedulerConfig {
            class_name: None,
            beta_start,
            beta_end,
            beta_schedule,
            trained_betas: None,
            num_train_timesteps: 1000,
            prediction_type: PredictionType::Epsilon,
            rescale_betas_zero_snr: false,
            timestep_spacing,
            steps_offset,
            saved: Map::new(),
        }
    }

    /// Reads the text of a `scheduler_config.json`, as diffusers writes it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the key's name when it is no JSON object, a key has an unknown value, or the scheduler is for networks of
    /// another kind. The caller knows the file's name.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value =
            json::from_str(text).map_err(|e| Error::invalid("the scheduler", format!("is not JSON: {e}")))?;
        let Value::Object(map) = value else {
            return Err(Error::invalid("the scheduler", format!("is {value}; an object of settings is expected")));
        };
        let keys = Keys(&map);
        let class = keys.read("_class_name", "a name", |v| v.as_str().map(str::to_owned))?;
        let name = class.as_deref().unwrap_or_default();
        keys.refuse_foreign(name)?;
        let mut config = SchedulerConfig::with(classes::of(name).unwrap_or(classes::SDXL));
        keys.take("beta_start", "a number", Value::as_f64, &mut config.beta_start)?;
        keys.take("beta_end", "a number", Value::as_f64, &mut config.beta_end)?;
        keys.take("beta_schedule", &list(BETA_SCHEDULES), word(BETA_SCHEDULES), &mut config.beta_schedule)?;
        let number = |v: &Value| v.as_f64().map(|n| n as f32);
        let betas = |v: &Value| v.as_array()?.iter().map(number).collect::<Option<Vec<f32>>>();
        config.trained_betas = keys.read("trained_betas", "a list of numbers", betas)?;
        keys.take("num_train_timesteps", "a whole number", whole, &mut config.num_train_timesteps)?;
        if map.get("prediction_type").is_some_and(Value::is_null) {
            // There is no class that takes none for one of the others.
            return Err(keys.refusal("prediction_type", &list(PREDICTIONS)));
        }
        keys.take("prediction_type", &list(PREDICTIONS), word(PREDICTIONS), &mut config.prediction_type)?;
        keys.take("rescale_betas_zero_snr", FLAG, Value::as_bool, &mut config.rescale_betas_zero_snr)?;
        keys.take("timestep_spacing", &list(SPACINGS), word(SPACINGS), &mut config.timestep_spacing)?;
        keys.take("steps_offset", "a whole number", whole, &mut config.steps_offset)?;
        for key in FLAGS {
            keys.read(key, FLAG, Value::as_bool)?;
        }
        keys.read("solver_order", "a whole number", whole)?;
        Ok(SchedulerConfig { class_name: class, saved: map, ..config })
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

    /// Whether an option of the class is on in the file.
    pub(crate) fn is_on(&self, key: &str) -> bool {
        self.saved.get(key).and_then(Value::as_bool) == Some(true)
    }

    /// What an option of the class is in the file; `None` for nothing.
    pub(crate) fn option(&self, key: &str) -> Option<&Value> {
        self.saved.get(key).filter(|value| !value.is_null())
    }
}

/// Options that are on or off, of which [`SchedulerConfig::suggestion`] reads what they are.
const FLAGS: [&str; 10] = [
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "thresholding",
    "clip_sample",
    "set_alpha_to_one",
    "euler_at_final",
    "lower_order_final",
];
const FLAG: &str = "true or false";

/// A file's keys, and words for what is wrong with their values.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    /// The value under a key; nothing and null are none.
    fn read<T>(&self, key: &str, expected: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.0.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| self.refusal(key, expected)),
        }
    }

    /// Puts the value under a key, if there is one, in the place of a default.
    fn take<T>(&self, key: &str, expected: &str, convert: impl Fn(&Value) -> Option<T>, to: &mut T) -> Result<()> {
        if let Some(value) = self.read(key, expected, convert)? {
            *to = value;
        }
        Ok(())
    }

    fn refusal(&self, key: &str, expected: &str) -> Error {
        let found = match self.0.get(key).unwrap_or(&Value::Null) {
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Error::invalid(key, format!("is {found}; {expected} is expected"))
    }

    /// Refuses a scheduler for networks that SDXL's are not like.
    fn refuse_foreign(&self, class: &str) -> Result<()> {
        let is = |key: &str, text: &str| self.0.get(key).and_then(Value::as_str) == Some(text);
        let flow =
            self.0.get("use_flow_sigmas") == Some(&Value::Bool(true)) || is("prediction_type", "flow_prediction");
        let what = match classes::foreign(class, |key| self.0.get(key).is_some_and(|value| !value.is_null())) {
            Some(what) => what,
            None if flow => "flow matching",
            // The network is told the noise level's logarithm and no timestep.
            None if is("timestep_type", "continuous") && is("prediction_type", "v_prediction") => {
                "EDM's noise levels (`timestep_type` continuous)"
            }
            None => return Ok(()),
        };
        let name = if class.is_empty() { "the scheduler" } else { class };
        let detail = format!(
            "is for networks trained on {what}, which are not supported; SDXL's networks predict noise or velocity \
             on a schedule of betas"
        );
        Err(Error::invalid(name, detail))
    }
}

/// A whole number, also as a float.
fn whole(value: &Value) -> Option<usize> {
    let float = || value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=9e15).contains(n)).map(|n| n as u64);
    usize::try_from(value.as_u64().or_else(float)?).ok()
}

/// What one of the words stands for.
fn word<T: Copy, const N: usize>(words: [(&'static str, T); N]) -> impl Fn(&Value) -> Option<T> {
    move |value| words.iter().find(|(name, _)| value.as_str() == Some(name)).map(|(_, stands_for)| *stands_for)
}

/// The words, for people.
fn list<T, const N: usize>(words: [(&str, T); N]) -> String {
    words.map(|(name, _)| name).join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        SchedulerConfig::from_json(text).unwrap_err().to_string()
    }

    #[test]
    fn a_diffusers_file_is_read() {
        let text = r#"{"_class_name": "EulerDiscreteScheduler", "beta_end": 0.02, "beta_schedule": "linear",
            "num_train_timesteps": 500.0, "prediction_type": "v_prediction", "steps_offset": 1}"#;
        let config = SchedulerConfig::from_json(text).unwrap();
        assert_eq!(config.beta_schedule, BetaSchedule::Linear);
        assert_eq!(config.prediction_type, PredictionType::VPrediction);
        // The class's own where the file says nothing.
        assert_eq!((config.num_train_timesteps, config.beta_end, config.beta_start), (500, 0.02, 0.0001));
        assert_eq!((config.timestep_spacing, config.steps_offset), (TimestepSpacing::Linspace, 1));
        let unnamed = SchedulerConfig::from_json("{\"rescale_betas_zero_snr\": null}").unwrap();
        assert_eq!(unnamed, SchedulerConfig { saved: unnamed.saved.clone(), ..SchedulerConfig::default() });
    }

    #[test]
    fn what_cannot_be_is_said_with_its_key() {
        for (text, message) in [
            ("[1]", "is [1]; an object"),
            ("[", "is not JSON"),
            (
                r#"{"beta_schedule": "laplace"}"#,
                "beta_schedule: is laplace; linear or scaled_linear or squaredcos_cap_v2",
            ),
            (r#"{"prediction_type": null}"#, "prediction_type: is null; epsilon or v_prediction is expected"),
            (r#"{"prediction_type": "sample"}"#, "prediction_type: is sample; epsilon or v_prediction is expected"),
            (r#"{"beta_start": NaN}"#, "beta_start: is NaN; a number is expected"),
            (r#"{"num_train_timesteps": 1000.5}"#, "num_train_timesteps: is 1000.5; a whole number is expected"),
            (r#"{"num_train_timesteps": -1}"#, "num_train_timesteps: is -1; a whole number is expected"),
            (r#"{"trained_betas": [0.1, "a"]}"#, "trained_betas: is a list; a list of numbers"),
            (r#"{"use_karras_sigmas": "yes"}"#, "use_karras_sigmas: is yes; true or false is expected"),
            (r#"{"timestep_spacing": "even"}"#, "timestep_spacing: is even; leading or trailing or linspace"),
            (r#"{"solver_order": 1.5}"#, "solver_order: is 1.5; a whole number"),
            (r#"{"_class_name": 3}"#, "_class_name: is 3; a name"),
        ] {
            let found = refusal(text);
            assert!(found.contains(message), "{text}: {found}");
        }
    }

    #[test]
    fn schedulers_of_other_networks_are_refused_by_name() {
        for (class, what) in [
            ("FlowMatchHeunDiscreteScheduler", "flow matching"),
            ("FlowMapEulerDiscreteScheduler", "flow matching"),
            ("LTXEulerAncestralRFScheduler", "flow matching"),
            ("EDMEulerScheduler", "EDM"),
            ("CosineDPMSolverMultistepScheduler", "EDM"),
            ("ScoreSdeVeScheduler", "variance exploding"),
            ("KarrasVeScheduler", "variance exploding"),
            ("ScoreSdeVpScheduler", "continuous"),
            ("DDPMWuerstchenScheduler", "Stable Cascade"),
            ("CogVideoXDDIMScheduler", "snr_shift_scale"),
            ("VQDiffusionScheduler", "discrete tokens"),
            ("SCMScheduler", "TrigFlow"),
            ("IPNDMScheduler", "continuous"),
        ] {
            let message = refusal(&format!(r#"{{"_class_name": "{class}"}}"#));
            assert!(
                message.contains(&format!("{class}: is for networks trained on")) && message.contains(what),
                "{message}"
            );
        }
        for text in [
            r#"{"sigma_data": 0.5}"#,
            r#"{"_class_name": "OwnScheduler", "shift": 3.0}"#,
            r#"{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}"#,
            r#"{"prediction_type": "flow_prediction"}"#,
            r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "prediction_type": "v_prediction"}"#,
        ] {
            assert!(refusal(text).contains("not supported"), "{text}");
        }
        // Keys of another one's file that the class does not know, and options that are off.
        for text in [
            r#"{"_class_name": "EulerDiscreteScheduler", "shift": 3.0, "sigma_data": 0.5}"#,
            r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}"#,
            r#"{"_class_name": "OwnScheduler", "sigma_data": null}"#,
        ] {
            assert!(SchedulerConfig::from_json(text).is_ok(), "{text}");
        }
    }
}
