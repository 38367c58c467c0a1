//! Settings that suit a model where nobody says otherwise: what its scheduler says of the steps.

use super::Choices;
use crate::sampler::{
    BetaSchedule, FinalSigma, NoiseSchedule, PredictionType, SamplerKind, SchedulerConfig, Spacing, TimestepSpacing,
};
use serde_json::Value;

/// Settings, and why they are taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suggestion {
    /// Its settings; none where something cannot be followed.
    pub choices: Choices,
    /// What it comes from, for a note: of a sampler that is not built, or of settings that differ from the list's. Empty where there
    /// is nothing to say.
    pub why: String,
}

/// A sampler, its spacing and where it ends.
type Steps = (SamplerKind, Spacing, FinalSigma);

impl SchedulerConfig {
    /// The sampler that a scheduler's class and options stand for, where it is built with its spacing and draws what diffusers' draws; else
    /// why it does not.
    pub fn suggestion(&self) -> Suggestion {
        let Some(class) = self.class_name.as_deref() else { return self.down_to_noise(Suggestion::default()) };
        match self.steps(class) {
            Ok((sampler, spacing, end)) => {
                // The list's own says the same.
                let final_sigma = Some(end).filter(|end| *end != FinalSigma::default());
                let choices =
                    Choices { sampler: Some(sampler), spacing: Some(spacing), final_sigma, ..Choices::default() };
                let seeded = sampler == SamplerKind::DpmPpSde && self.option("noise_sampler_seed").is_some();
                let why = if seeded {
                    format!(
                        "the model's scheduler is {class} with a `noise_sampler_seed`, in whose place `seed` is taken"
                    )
                } else {
                    String::new()
                };
                let found = Suggestion { choices, why };
                // The scheduler is the base model's, as it were, where only the weights' own mark says so.
                let unaware = !self.is_on("rescale_betas_zero_snr") && spacing != Spacing::Trailing;
                if unaware { self.down_to_noise(found) } else { found }
            }
            Err(what) => {
                let why = format!("the model's scheduler is {class}{what}, which is not built");
                self.down_to_noise(Suggestion { choices: Choices::default(), why })
            }
        }
    }

    /// A schedule down to pure noise has one step from there, and no use for many close to it, as Karras et al.'s levels have them (Lin
    /// et al. 2023, section 3.3).
    fn down_to_noise(&self, suggestion: Suggestion) -> Suggestion {
        if !self.rescale_betas_zero_snr {
            return suggestion;
        }
        let choices = Choices { spacing: Some(Spacing::Trailing), ..suggestion.choices };
        let own = "the model is trained down to pure noise (zero terminal SNR)";
        let why = if suggestion.why.is_empty() { own.to_owned() } else { format!("{}, and {own}", suggestion.why) };
        Suggestion { choices, why }
    }

    /// What the class does; else what of it is not built, as words that follow its name.
    fn steps(&self, class: &str) -> Result<Steps, String> {
        match class {
            "EulerDiscreteScheduler" => {
                self.expect("interpolation_type", &["linear"])?;
                Ok((SamplerKind::Euler, self.spacing()?, self.end()?))
            }
            "DPMSolverSDEScheduler" => Ok((SamplerKind::DpmPpSde, self.spacing()?, FinalSigma::Zero)),
            "DPMSolverMultistepScheduler" => self.multistep(),
            "DDIMScheduler" | "DDIMParallelScheduler" => self.ddim(),
            _ => Err(String::new()),
        }
    }

    fn multistep(&self) -> Result<Steps, String> {
        // What other classes' files have here is replaced by the class itself.
        self.expect("algorithm_type", &["dpmsolver++", "deis"])?;
        self.expect("solver_type", &["midpoint", "logrho", "bh1", "bh2"])?;
        if let Some(order) = self.option("solver_order").filter(|order| order.as_f64() != Some(2.0)) {
            return Err(format!(" of order {order}"));
        }
        if self.is_on("thresholding") {
            return Err(" with thresholding".into());
        }
        self.expect("variance_type", &[])?;
        let (spacing, end) = (self.spacing()?, self.end()?);
        // With nothing left the last step is of first order anyway.
        if end == FinalSigma::SigmaMin {
            let differs = |key: &str, usual: bool| self.option(key).is_some_and(|value| *value != Value::Bool(usual));
            if differs("euler_at_final", false) {
                return Err(" with `euler_at_final` before `sigma_min`".into());
            }
            if differs("lower_order_final", true) {
                return Err(" without `lower_order_final` before `sigma_min`".into());
            }
        }
        if spacing == Spacing::KarrasDiffusers && self.beta_schedule == BetaSchedule::SquaredcosCapV2 {
            // The network is told fractions of timesteps there, cut to whole ones.
            return Err(" with Karras noise levels on a cosine schedule".into());
        }
        if spacing != Spacing::KarrasDiffusers && self.is_on("use_lu_lambdas") {
            return Err(" with Lu's noise levels".into());
        }
        if matches!(spacing, Spacing::Leading | Spacing::Trailing | Spacing::Linspace) && self.clips_timesteps() {
            return Err(" with timesteps cut by `lambda_min_clipped`".into());
        }
        Ok((SamplerKind::DpmPp2M, spacing, end))
    }

    /// Whether `lambda_min_clipped`, the lowest log(alpha / sigma), lies within the schedule, so that the noisiest timesteps are left out.
    fn clips_timesteps(&self) -> bool {
        match self.option("lambda_min_clipped").map(|value| value.as_f64().ok_or(value)) {
            None => false,
            // A broken schedule is refused elsewhere.
            Some(Ok(least)) => NoiseSchedule::new(self).is_ok_and(|schedule| -schedule.sigma_max().ln() < least),
            Some(Err(word)) => word != "-Infinity",
        }
    }

    fn ddim(&self) -> Result<Steps, String> {
        // The class clips, and ends in clean latents, where its file does not say otherwise.
        let off = |key: &str| self.saved.get(key).is_some_and(|value| value.is_null() || *value == Value::Bool(false));
        if !off("clip_sample") {
            return Err(" with clipped latents (`clip_sample`)".into());
        }
        if self.is_on("thresholding") {
            return Err(" with thresholding".into());
        }
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            // Clean latents are noisy ones less the noise, over zero there.
            return Err(" with `rescale_betas_zero_snr` under a network that predicts the noise".into());
        }
        let end = if off("set_alpha_to_one") { FinalSigma::SigmaMin } else { FinalSigma::Zero };
        // It has no other levels than its timesteps'.
        Ok((SamplerKind::Ddim, self.of_timesteps(), end))
    }

    fn spacing(&self) -> Result<Spacing, String> {
        let curves = [
            ("Karras", "use_karras_sigmas", Spacing::KarrasDiffusers),
            ("exponential", "use_exponential_sigmas", Spacing::ExponentialDiffusers),
            ("beta", "use_beta_sigmas", Spacing::BetaDiffusers),
        ];
        let mut asked = curves.into_iter().filter(|(_, key, _)| self.is_on(key));
        let Some((name, key, spacing)) = asked.next() else { return Ok(self.of_timesteps()) };
        if let Some((_, other, _)) = asked.next() {
            return Err(format!(" with `{key}` and `{other}` at once"));
        }
        if let Some(key) = ["sigma_min", "sigma_max"].into_iter().find(|key| self.option(key).is_some()) {
            return Err(format!(" with {name} noise levels from a `{key}` of its own"));
        }
        Ok(spacing)
    }

    fn of_timesteps(&self) -> Spacing {
        match self.timestep_spacing {
            TimestepSpacing::Leading => Spacing::Leading,
            TimestepSpacing::Trailing => Spacing::Trailing,
            TimestepSpacing::Linspace => Spacing::Linspace,
        }
    }

    fn end(&self) -> Result<FinalSigma, String> {
        self.expect("final_sigmas_type", &["zero", "sigma_min"])?;
        let zero = self.option("final_sigmas_type").is_none_or(|value| value == "zero");
        Ok(if zero { FinalSigma::Zero } else { FinalSigma::SigmaMin })
    }

    /// Refuses an option that is there and none of the words that are built.
    fn expect(&self, key: &str, built: &[&str]) -> Result<(), String> {
        let built = |value: &Value| value.as_str().is_some_and(|word| built.contains(&word));
        match self.option(key).filter(|value| !built(value)) {
            None => Ok(()),
            Some(Value::String(word)) => Err(format!(" with `{key}` {word}")),
            Some(other) => Err(format!(" with `{key}` {other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn suggested(config: serde_json::Value) -> Suggestion {
        SchedulerConfig::from_json(&config.to_string()).unwrap().suggestion()
    }

    #[test]
    fn schedulers_that_are_built_are_followed() {
        use FinalSigma::{SigmaMin, Zero};
        use SamplerKind::{Ddim, DpmPp2M, DpmPpSde, Euler};
        use Spacing::{BetaDiffusers, ExponentialDiffusers, KarrasDiffusers, Leading, Linspace, Trailing};
        let multistep = |options: serde_json::Value| {
            let mut config = json!({"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                "beta_schedule": "scaled_linear"});
            config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
            config
        };
        let euler = "EulerDiscreteScheduler";
        for (config, (sampler, spacing, end)) in [
            (
                json!({"_class_name": euler, "timestep_spacing": "trailing", "use_karras_sigmas": false}),
                (Euler, Trailing, Zero),
            ),
            (json!({"_class_name": euler, "timestep_spacing": "leading", "steps_offset": 1}), (Euler, Leading, Zero)),
            (json!({"_class_name": euler}), (Euler, Linspace, Zero)),
            (
                json!({"_class_name": euler, "use_karras_sigmas": true, "timestep_spacing": "leading"}),
                (Euler, KarrasDiffusers, Zero),
            ),
            (
                json!({"_class_name": euler, "final_sigmas_type": "sigma_min", "use_lu_lambdas": true}),
                (Euler, Linspace, SigmaMin),
            ),
            (multistep(json!({})), (DpmPp2M, Linspace, Zero)),
            (
                multistep(
                    json!({"timestep_spacing": "leading", "use_karras_sigmas": true, "algorithm_type": "dpmsolver++",
                "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"}),
                ),
                (DpmPp2M, KarrasDiffusers, Zero),
            ),
            (
                multistep(json!({"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"})),
                (DpmPp2M, Trailing, SigmaMin),
            ),
            // What the class replaces, and what does nothing here.
            (
                multistep(
                    json!({"algorithm_type": "deis", "solver_type": "bh2", "timestep_spacing": "leading", "final_sigmas_type": "sigma_min"}),
                ),
                (DpmPp2M, Leading, SigmaMin),
            ),
            (
                multistep(
                    json!({"timestep_spacing": "leading", "euler_at_final": true, "lower_order_final": false, "lambda_min_clipped": -5.1}),
                ),
                (DpmPp2M, Leading, Zero),
            ),
            (
                json!({"_class_name": "DPMSolverSDEScheduler", "use_karras_sigmas": true}),
                (DpmPpSde, KarrasDiffusers, Zero),
            ),
            (json!({"_class_name": "DPMSolverSDEScheduler"}), (DpmPpSde, Linspace, Zero)),
            (
                json!({"_class_name": "DDIMScheduler", "clip_sample": false, "set_alpha_to_one": false}),
                (Ddim, Leading, SigmaMin),
            ),
            (json!({"_class_name": "DDIMParallelScheduler", "clip_sample": false}), (Ddim, Leading, Zero)),
            (
                json!({"_class_name": "DDIMScheduler", "clip_sample": false, "timestep_spacing": "trailing",
                    "rescale_betas_zero_snr": true, "prediction_type": "v_prediction", "use_karras_sigmas": true}),
                (Ddim, Trailing, Zero),
            ),
            (
                json!({"_class_name": euler, "use_exponential_sigmas": true, "timestep_spacing": "leading"}),
                (Euler, ExponentialDiffusers, Zero),
            ),
            (json!({"_class_name": euler, "use_beta_sigmas": true}), (Euler, BetaDiffusers, Zero)),
            (multistep(json!({"use_exponential_sigmas": true})), (DpmPp2M, ExponentialDiffusers, Zero)),
            (multistep(json!({"use_beta_sigmas": true, "lambda_min_clipped": -2.0})), (DpmPp2M, BetaDiffusers, Zero)),
        ] {
            let final_sigma = (end == SigmaMin).then_some(end);
            let choices = Choices { sampler: Some(sampler), spacing: Some(spacing), final_sigma, ..Choices::default() };
            assert_eq!(suggested(config.clone()), Suggestion { choices, why: String::new() }, "{config}");
        }
    }

    #[test]
    fn what_is_not_built_is_said_and_changes_nothing() {
        let euler = "EulerDiscreteScheduler";
        let multistep = "DPMSolverMultistepScheduler";
        for (config, part) in [
            (
                json!({"_class_name": euler, "use_exponential_sigmas": true, "use_beta_sigmas": true}),
                "`use_exponential_sigmas` and `use_beta_sigmas` at once",
            ),
            (
                json!({"_class_name": euler, "use_beta_sigmas": true, "sigma_min": 0.1}),
                "beta noise levels from a `sigma_min`",
            ),
            (json!({"_class_name": euler, "interpolation_type": "log_linear"}), "`interpolation_type` log_linear"),
            (json!({"_class_name": euler, "use_karras_sigmas": true, "sigma_max": 80.0}), "`sigma_max`"),
            (json!({"_class_name": euler, "final_sigmas_type": "sigma_max"}), "`final_sigmas_type` sigma_max"),
            (json!({"_class_name": "EulerAncestralDiscreteScheduler"}), "EulerAncestralDiscreteScheduler"),
            (json!({"_class_name": "OwnScheduler"}), "OwnScheduler"),
            (json!({"_class_name": "DDIMScheduler"}), "`clip_sample`"),
            (json!({"_class_name": "DDIMScheduler", "clip_sample": false, "thresholding": true}), "thresholding"),
            (json!({"_class_name": multistep, "algorithm_type": "sde-dpmsolver++"}), "sde-dpmsolver++"),
            (json!({"_class_name": multistep, "solver_type": "heun"}), "`solver_type` heun"),
            (json!({"_class_name": multistep, "solver_order": 3}), "order 3"),
            (json!({"_class_name": multistep, "use_lu_lambdas": true}), "Lu's"),
            (json!({"_class_name": multistep, "use_beta_sigmas": true, "use_lu_lambdas": true}), "Lu's"),
            (json!({"_class_name": multistep, "thresholding": true}), "thresholding"),
            (
                json!({"_class_name": multistep, "use_karras_sigmas": true, "beta_schedule": "squaredcos_cap_v2"}),
                "cosine schedule",
            ),
            (json!({"_class_name": multistep, "variance_type": "learned"}), "`variance_type` learned"),
            (json!({"_class_name": multistep, "lambda_min_clipped": -2.0}), "`lambda_min_clipped`"),
            (
                json!({"_class_name": multistep, "final_sigmas_type": "sigma_min", "euler_at_final": true}),
                "`euler_at_final`",
            ),
            (
                json!({"_class_name": multistep, "final_sigmas_type": "sigma_min", "lower_order_final": false}),
                "`lower_order_final`",
            ),
        ] {
            let found = suggested(config);
            assert_eq!(found.choices, Choices::default());
            assert!(found.why.contains(part) && found.why.contains("not built"), "{part}: {}", found.why);
        }
        assert_eq!(suggested(json!({})), Suggestion::default());
        let seeded = suggested(json!({"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}));
        assert!(seeded.choices.sampler.is_some() && seeded.why.contains("`noise_sampler_seed`"), "{}", seeded.why);
    }

    #[test]
    fn schedules_down_to_noise_are_spaced_from_there() {
        let found = suggested(json!({"rescale_betas_zero_snr": true}));
        assert_eq!(found.choices, Choices { spacing: Some(Spacing::Trailing), ..Choices::default() });
        let noise = json!({"_class_name": "DDIMScheduler", "clip_sample": false, "rescale_betas_zero_snr": true});
        let found = suggested(noise);
        assert_eq!((found.choices.sampler, found.choices.spacing), (None, Some(Spacing::Trailing)));
        assert!(found.why.contains("predicts the noise") && found.why.contains("zero terminal SNR"), "{}", found.why);
        // A file that knows of it is followed, one beside weights that say so themselves is not.
        let mut euler = json!({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"});
        let marked =
            SchedulerConfig { rescale_betas_zero_snr: true, ..SchedulerConfig::from_json(&euler.to_string()).unwrap() };
        let found = marked.suggestion();
        assert_eq!(found.choices.spacing, Some(Spacing::Trailing));
        assert!(found.why.contains("zero terminal SNR"), "{}", found.why);
        euler["rescale_betas_zero_snr"] = true.into();
        let found = suggested(euler);
        assert_eq!((found.choices.spacing, found.why.as_str()), (Some(Spacing::Leading), ""));
    }
}
