//! Settings that suit a model where nobody says otherwise: what its scheduler says of the steps, and what a distilled UNet needs.

use super::Choices;
use crate::sampler::{FinalSigma, SamplerKind, SchedulerConfig, Spacing};
use pulid_checkpoint::Checkpoint;
use pulid_models::sdxl::SdxlModel;
use std::path::Path;

/// Settings, and why they are taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suggestion {
    /// Its settings; none where something cannot be followed.
    pub choices: Choices,
    /// What it comes from, for a note: of a sampler that is not built, or of settings that differ from the list's. Empty where there
    /// is nothing to say.
    pub why: String,
}

impl SchedulerConfig {
    /// The sampler that a scheduler's class and options stand for, where it is built with its spacing; else why it is not.
    pub fn suggestion(&self) -> Suggestion {
        let Some(class) = self.class_name.as_deref() else { return self.down_to_noise(Suggestion::default()) };
        let found = self.sampler(class).and_then(|sampler| Ok((sampler, self.spacing(sampler)?)));
        match found {
            Ok((sampler, spacing)) => {
                let final_sigma =
                    (self.final_sigmas_type.as_deref() == Some("sigma_min")).then_some(FinalSigma::SigmaMin);
                let choices =
                    Choices { sampler: Some(sampler), spacing: Some(spacing), final_sigma, ..Choices::default() };
                Suggestion { choices, why: String::new() }
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

    fn sampler(&self, class: &str) -> Result<SamplerKind, String> {
        let is = |value: &Option<String>, wanted: &str| value.as_deref().is_none_or(|value| value == wanted);
        match class {
            "EulerDiscreteScheduler" => Ok(SamplerKind::Euler),
            "DPMSolverSDEScheduler" => Ok(SamplerKind::DpmPpSde),
            "DPMSolverMultistepScheduler" if !is(&self.algorithm_type, "dpmsolver++") => {
                Err(format!(" with `{}`", self.algorithm_type.as_deref().unwrap_or_default()))
            }
            "DPMSolverMultistepScheduler" if self.solver_order.is_some_and(|order| order != 2) => {
                Err(format!(" of order {}", self.solver_order.unwrap_or_default()))
            }
            "DPMSolverMultistepScheduler" if !is(&self.solver_type, "midpoint") => {
                Err(format!(" with `{}`", self.solver_type.as_deref().unwrap_or_default()))
            }
            "DPMSolverMultistepScheduler" if self.others.thresholding == Some(true) => Err(" with thresholding".into()),
            "DPMSolverMultistepScheduler" => Ok(SamplerKind::DpmPp2M),
            _ => Err(String::new()),
        }
    }

    fn spacing(&self, sampler: SamplerKind) -> Result<Spacing, String> {
        let others = [
            ("exponential", self.others.use_exponential_sigmas),
            ("beta", self.others.use_beta_sigmas),
            ("Lu's", self.others.use_lu_lambdas),
        ];
        if let Some((name, _)) = others.into_iter().find(|(_, on)| *on == Some(true)) {
            return Err(format!(" with {name} noise levels"));
        }
        // Every class has this where its file says nothing.
        let spacing = self.timestep_spacing.as_deref().unwrap_or("linspace");
        match self.use_karras_sigmas == Some(true) {
            // Of diffusers' classes only the multistep solver takes Karras et al.'s levels over the whole schedule; the others take them
            // between the first and the last timestep of the spacing.
            true if sampler == SamplerKind::DpmPp2M || spacing == "linspace" => Ok(Spacing::Karras),
            true => Err(format!(" with Karras noise levels between `{spacing}` timesteps")),
            false if spacing == "trailing" => Ok(Spacing::Trailing),
            false => Err(format!(" with `{spacing}` timesteps")),
        }
    }
}

/// Networks that were distilled to take few steps without guidance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distilled {
    Lightning,
    Turbo,
    Hyper,
    Dmd2,
    Lcm,
    Tcd,
}

/// Steps of a distilled UNet that does not say of how many it is: what most of them are published for.
const USUAL_STEPS: usize = 4;

/// More steps than any of them is made for.
const MOST_STEPS: usize = 16;

impl Distilled {
    const fn name(self) -> &'static str {
        match self {
            Distilled::Lightning => "SDXL-Lightning",
            Distilled::Turbo => "SDXL Turbo",
            Distilled::Hyper => "Hyper-SD",
            Distilled::Dmd2 => "DMD2",
            Distilled::Lcm => "a latent consistency model (LCM)",
            Distilled::Tcd => "trajectory consistency distillation (TCD)",
        }
    }

    /// What its own pipelines sample with, where that is not built.
    const fn own_sampler(self) -> Option<&'static str> {
        match self {
            // Hyper-SD's own is DDIM, which is Euler's method.
            Distilled::Lightning | Distilled::Hyper => None,
            Distilled::Turbo => Some("ancestral Euler"),
            Distilled::Dmd2 | Distilled::Lcm => Some("LCM"),
            Distilled::Tcd => Some("TCD"),
        }
    }

    /// By a name that people gave a file or a model.
    fn named(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        let word = |wanted: &str| name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == wanted);
        let begins =
            |wanted: &str| name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word.starts_with(wanted));
        match () {
            () if name.contains("lightning") => Some(Distilled::Lightning),
            () if name.contains("dmd2") => Some(Distilled::Dmd2),
            // Not what is hyperrealistic.
            () if word("hyper") || begins("hypersd") => Some(Distilled::Hyper),
            () if name.contains("turbo") => Some(Distilled::Turbo),
            () if word("lcm") => Some(Distilled::Lcm),
            () if word("tcd") => Some(Distilled::Tcd),
            () => None,
        }
    }

    /// By the class of the scheduler that lies beside it.
    fn scheduled(class: &str) -> Option<Self> {
        match class {
            "LCMScheduler" => Some(Distilled::Lcm),
            "TCDScheduler" => Some(Distilled::Tcd),
            _ => None,
        }
    }
}

/// The number before `step`, as in `sdxl_lightning_4step_unet` and `Hyper-SDXL-8steps`.
fn steps_named(name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    name.match_indices("step").find_map(|(at, _)| {
        let before = name[..at].trim_end_matches([' ', '-', '_']);
        let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(before, |end| {
            let start = end + before[end..].chars().next().map_or(1, char::len_utf8);
            &before[start..]
        });
        digits.parse().ok().filter(|steps| (1..=MOST_STEPS).contains(steps))
    })
}

/// What a file or folder is called by those who published it: without the names that diffusers and the hub's cache give every file.
fn published_name(path: &Path) -> String {
    const COMMON: [&str; 5] = ["unet", "diffusion_pytorch_model", "model", "pytorch_model", "snapshots"];
    for part in path.ancestors() {
        let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap_or_default().to_lowercase();
        let in_cache = part.parent().is_some_and(|parent| parent.ends_with("snapshots"));
        if !in_cache && !COMMON.contains(&stem.as_str()) {
            return name;
        }
    }
    String::new()
}

/// What suits a UNet that was distilled, told by its file's name, the title in its metadata or its scheduler's class.
pub(super) fn distilled(model: &SdxlModel, scheduler: &SchedulerConfig) -> Option<Suggestion> {
    let path = model.other_unet().unwrap_or(model.path());
    let file = Checkpoint::open(path).ok();
    let written = ["modelspec.title", "ss_output_name", "title"];
    let titles = written.iter().filter_map(|key| file.as_ref()?.metadata().get(*key).cloned());
    let names: Vec<_> = std::iter::once(published_name(path)).chain(titles).collect();
    let class = scheduler.class_name.as_deref().filter(|_| model.scheduler_is_own()).unwrap_or_default();
    let kind = names.iter().find_map(|name| Distilled::named(name)).or_else(|| Distilled::scheduled(class))?;
    let steps = names.iter().find_map(|name| steps_named(name));
    let choices = Choices {
        steps: Some(steps.unwrap_or(USUAL_STEPS)),
        guidance: Some(1.0),
        sampler: Some(SamplerKind::Euler),
        spacing: Some(Spacing::Trailing),
        ..Choices::default()
    };
    let of = steps.map_or(String::new(), |steps| format!(" of {steps} step{}", if steps == 1 { "" } else { "s" }));
    let mut why = format!("{} looks like {}{of}", path.display(), kind.name());
    if let Some(own) = kind.own_sampler() {
        why += &format!(", whose own sampler, {own}, is not built: the nearest one is taken");
    }
    Some(Suggestion { choices, why })
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
        let built = |sampler, spacing, end| Choices {
            sampler: Some(sampler),
            spacing: Some(spacing),
            final_sigma: end,
            ..Choices::default()
        };
        let euler = "EulerDiscreteScheduler";
        let multistep = "DPMSolverMultistepScheduler";
        for (config, want) in [
            (
                json!({"_class_name": euler, "timestep_spacing": "trailing", "use_karras_sigmas": false}),
                built(SamplerKind::Euler, Spacing::Trailing, None),
            ),
            (
                json!({"_class_name": euler, "use_karras_sigmas": true}),
                built(SamplerKind::Euler, Spacing::Karras, None),
            ),
            (
                json!({"_class_name": multistep, "timestep_spacing": "leading", "use_karras_sigmas": true,
                    "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"}),
                built(SamplerKind::DpmPp2M, Spacing::Karras, None),
            ),
            (
                json!({"_class_name": multistep, "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}),
                built(SamplerKind::DpmPp2M, Spacing::Trailing, Some(FinalSigma::SigmaMin)),
            ),
            (
                json!({"_class_name": "DPMSolverSDEScheduler", "use_karras_sigmas": true, "timestep_spacing": "linspace"}),
                built(SamplerKind::DpmPpSde, Spacing::Karras, None),
            ),
        ] {
            assert_eq!(suggested(config.clone()), Suggestion { choices: want, why: String::new() }, "{config}");
        }
    }

    #[test]
    fn what_is_not_built_is_said_and_changes_nothing() {
        let multistep = "DPMSolverMultistepScheduler";
        for (config, part) in [
            (json!({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}), "`leading`"),
            (json!({"_class_name": "EulerDiscreteScheduler"}), "`linspace`"),
            (json!({"_class_name": "EulerAncestralDiscreteScheduler"}), "EulerAncestralDiscreteScheduler"),
            (json!({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}), "DDIMScheduler"),
            (json!({"_class_name": multistep, "algorithm_type": "sde-dpmsolver++"}), "`sde-dpmsolver++`"),
            (json!({"_class_name": multistep, "solver_order": 3}), "order 3"),
            (json!({"_class_name": multistep, "use_lu_lambdas": true}), "Lu's"),
        ] {
            let found = suggested(config);
            assert_eq!(found.choices, Choices::default());
            assert!(found.why.contains(part) && found.why.contains("not built"), "{}", found.why);
        }
        assert_eq!(suggested(json!({})), Suggestion::default());
    }

    #[test]
    fn schedules_down_to_noise_are_spaced_from_there() {
        let found = suggested(json!({"rescale_betas_zero_snr": true}));
        assert_eq!(found.choices, Choices { spacing: Some(Spacing::Trailing), ..Choices::default() });
        let found = suggested(json!({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true}));
        assert_eq!(found.choices.spacing, Some(Spacing::Trailing));
        assert!(found.why.contains("DDIMScheduler") && found.why.contains("zero terminal SNR"), "{}", found.why);
    }

    #[test]
    fn distilled_networks_are_told_by_their_names() {
        for (path, kind, steps) in [
            ("a/sdxl_lightning_4step_unet.safetensors", Some(Distilled::Lightning), Some(4)),
            ("sdxl_lightning_8step.safetensors", Some(Distilled::Lightning), Some(8)),
            ("models--Lykon--dreamshaper-xl-lightning/snapshots/0a1b", Some(Distilled::Lightning), None),
            ("dreamshaperXL_v21TurboDPMSDE.safetensors", Some(Distilled::Turbo), None),
            ("sd_xl_turbo_1.0_fp16.safetensors", Some(Distilled::Turbo), None),
            ("Hyper-SDXL-1step-Unet.safetensors", Some(Distilled::Hyper), Some(1)),
            ("Hyper-SDXL-8steps.safetensors", Some(Distilled::Hyper), Some(8)),
            ("dmd2_sdxl_4step_unet_fp16.bin", Some(Distilled::Dmd2), Some(4)),
            ("lcm-sdxl/unet/diffusion_pytorch_model.safetensors", Some(Distilled::Lcm), None),
            ("sdxl-turbo/unet", Some(Distilled::Turbo), None),
            ("hyperrealism_xl.safetensors", None, None),
            ("juggernaut_30000steps.safetensors", None, None),
            ("turbo/juggernaut.safetensors", None, None),
        ] {
            let name = published_name(Path::new(path));
            assert_eq!((Distilled::named(&name), steps_named(&name)), (kind, steps), "{path}");
        }
    }
}
