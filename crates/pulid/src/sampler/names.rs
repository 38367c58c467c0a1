//! Samplers and schedules as other programs call them: AUTOMATIC1111's web UI, ComfyUI, InvokeAI, k-diffusion and diffusers.
//!
//! Names compare by their letters, digits and plus signs, in any case: `DPM++ 2M`, `dpmpp_2m` and `dpm++-2m` are one.

use super::{SamplerKind, Spacing};

/// What a sampler that we have is called elsewhere, by [`letters`].
const SAMPLERS: [(SamplerKind, &[&str]); 4] = [
    (SamplerKind::DpmPp2M, &["dpmpp2m", "dpmsolvermultistep", "dpmsolverpp", "dpmpp2mgpu"]),
    (SamplerKind::DpmPpSde, &["dpmppsde", "dpmppsdegpu", "dpmsolversde"]),
    (SamplerKind::Euler, &["euler", "eulerdiscrete"]),
    (SamplerKind::Ddim, &["ddim", "ddimparallel"]),
];

/// What a spacing that we have is called elsewhere. ComfyUI's and the web UI's SGM Uniform begins at the last training timestep and
/// goes down evenly, as diffusers' trailing does.
const SPACINGS: [(Spacing, &[&str]); 9] = [
    (Spacing::Karras, &["karras", "usekarrassigmas", "k"]),
    (Spacing::Trailing, &["trailing", "sgmuniform"]),
    (Spacing::Leading, &["leading"]),
    (Spacing::Linspace, &["linspace"]),
    (Spacing::KarrasDiffusers, &["karrasdiffusers"]),
    (Spacing::Exponential, &["exponential", "useexponentialsigmas"]),
    (Spacing::Beta, &["beta", "usebetasigmas"]),
    (Spacing::ExponentialDiffusers, &["exponentialdiffusers"]),
    (Spacing::BetaDiffusers, &["betadiffusers"]),
];

/// Samplers that are elsewhere and not here.
const OTHER_SAMPLERS: &[&str] = &[
    "euler a",
    "euler ancestral",
    "euler cfg pp",
    "euler smea",
    "euler dy",
    "heun",
    "heunpp2",
    "heun discrete",
    "lms",
    "lms discrete",
    "ddim cfg++",
    "ddpm",
    "pndm",
    "plms",
    "lcm",
    "tcd",
    "unipc",
    "unipc bh2",
    "unipc multistep",
    "deis",
    "deis multistep",
    "restart",
    "dpm2",
    "dpm2 a",
    "dpm2 ancestral",
    "kdpm2",
    "kdpm2 discrete",
    "kdpm2 ancestral discrete",
    "dpm fast",
    "dpm adaptive",
    "dpm++ 2s",
    "dpm++ 2s a",
    "dpm++ 2s ancestral",
    "dpm++ 2m sde",
    "dpm++ 2m sde gpu",
    "dpm++ 2m sde heun",
    "dpm++ 3m",
    "dpm++ 3m sde",
    "dpm++ 3m sde gpu",
    "dpmsolver singlestep",
    "euler ancestral discrete",
    "edm euler",
    "edm dpmsolver multistep",
    "ipndm",
    "ipndm v",
    "res multistep",
    "er sde",
    "sa solver",
    "gradient estimation",
    "seeds 2",
    "seeds 3",
    "exp heun 2 x0",
    "cosine dpmsolver multistep",
];

/// Schedules that are elsewhere and not here.
const OTHER_SPACINGS: &[&str] = &[
    "polyexponential",
    "normal",
    "simple",
    "uniform",
    "ddim",
    "ddim uniform",
    "beta57",
    "linear quadratic",
    "kl optimal",
    "align your steps",
    "ays",
    "gits",
    "turbo",
    "lu",
    "laplace",
    "flow",
];

/// The name of the sampler that another program's name stands for, with or without a schedule; the text itself where nobody has it.
///
/// # Errors
/// For a sampler or a schedule that is elsewhere and not here, with what there is.
pub(crate) fn sampler(text: &str) -> Result<String, String> {
    match parts(text) {
        Some((kind, Schedule::Other(name))) => Err(format!(
            "`{text}` asks for the schedule {name}, which is not here; name the sampler alone, {kind}, and a `spacing` of {}",
            list(Spacing::ALL.map(Spacing::name))
        )),
        Some((kind, _)) => Ok(kind.name().to_owned()),
        None if elsewhere(text) => Err(format!(
            "`{text}` is a sampler that is not here; there are dpmpp_2m, dpmpp_sde, euler, ddim (elsewhere DPM++ 2M, DPM++ SDE, Euler, DDIM)"
        )),
        None => Ok(text.to_owned()),
    }
}

/// The schedule that a sampler's name brings along, as in `DPM++ 2M Karras`.
pub(crate) fn spacing_within(text: &str) -> Option<Spacing> {
    match parts(text)? {
        (_, Schedule::Ours(spacing)) => Some(spacing),
        _ => None,
    }
}

/// The name of the spacing that another program's name stands for; the text itself where nobody has it.
///
/// # Errors
/// For a schedule that is elsewhere and not here, with what there is.
pub(crate) fn spacing(text: &str) -> Result<String, String> {
    match schedule(&letters(text)) {
        Some(Schedule::Ours(spacing)) => Ok(spacing.name().to_owned()),
        Some(Schedule::Other(_)) => Err(format!(
            "`{text}` is a schedule that is not here; there are {} (trailing is SGM Uniform elsewhere)",
            list(Spacing::ALL.map(Spacing::name))
        )),
        _ => Ok(text.to_owned()),
    }
}

enum Schedule {
    /// What the sampler brings, or `Automatic`.
    None,
    Ours(Spacing),
    Other(&'static str),
}

/// A sampler of ours, and the schedule that follows it.
fn parts(text: &str) -> Option<(SamplerKind, Schedule)> {
    let letters = bare(text);
    SAMPLERS.into_iter().flat_map(|(kind, names)| names.iter().map(move |name| (kind, *name))).find_map(
        |(kind, name)| {
            let rest = letters.strip_prefix(name)?;
            if rest.is_empty() { Some((kind, Schedule::None)) } else { schedule(rest).map(|schedule| (kind, schedule)) }
        },
    )
}

fn schedule(letters: &str) -> Option<Schedule> {
    if letters == "automatic" {
        return Some(Schedule::None);
    }
    let ours =
        SPACINGS.into_iter().find(|(_, names)| names.contains(&letters)).map(|(spacing, _)| Schedule::Ours(spacing));
    ours.or_else(|| OTHER_SPACINGS.iter().find(|name| self::letters(name) == letters).map(|name| Schedule::Other(name)))
}

/// Whether another program has a sampler of this name, with or without a schedule.
fn elsewhere(text: &str) -> bool {
    let letters = bare(text);
    OTHER_SAMPLERS.iter().any(|name| {
        let rest = letters.strip_prefix(&bare(name));
        rest.is_some_and(|rest| rest.is_empty() || schedule(rest).is_some())
    })
}

/// [`letters`] without what marks a name as k-diffusion's or diffusers', and with one spelling of `++`.
fn bare(text: &str) -> String {
    let letters = letters(text).replace("++", "pp");
    let name = letters.strip_suffix("scheduler").unwrap_or(&letters);
    let name = name.strip_prefix("sample").unwrap_or(name);
    name.strip_prefix('k')
        .filter(|rest| ["dpm", "euler", "heun", "lms"].iter().any(|own| rest.starts_with(own)))
        .unwrap_or(name)
        .to_owned()
}

fn letters(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric() || *c == '+').flat_map(char::to_lowercase).collect()
}

fn list<const N: usize>(names: [&str; N]) -> String {
    let [first @ .., last] = &names[..] else { return String::new() };
    format!("{} and {last}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_elsewhere_are_understood() {
        for (text, name, schedule) in [
            ("DPM++ 2M", "dpmpp_2m", None),
            ("dpmpp_2m", "dpmpp_2m", None),
            ("DPM++ 2M Karras", "dpmpp_2m", Some(Spacing::Karras)),
            ("dpmpp_2m_k", "dpmpp_2m", Some(Spacing::Karras)),
            ("DPM++ 2M SGM Uniform", "dpmpp_2m", Some(Spacing::Trailing)),
            ("DPM++ 2M Automatic", "dpmpp_2m", None),
            ("DPMSolverMultistepScheduler", "dpmpp_2m", None),
            ("sample_dpmpp_2m", "dpmpp_2m", None),
            ("DPM++ SDE", "dpmpp_sde", None),
            ("DPM++ SDE Karras", "dpmpp_sde", Some(Spacing::Karras)),
            ("dpmpp_sde_gpu", "dpmpp_sde", None),
            ("DPMSolverSDEScheduler", "dpmpp_sde", None),
            ("Euler", "euler", None),
            ("k_euler", "euler", None),
            ("EulerDiscreteScheduler", "euler", None),
            ("euler trailing", "euler", Some(Spacing::Trailing)),
            ("euler leading", "euler", Some(Spacing::Leading)),
            ("DDIM", "ddim", None),
            ("DDIMScheduler", "ddim", None),
            ("DDIMParallelScheduler", "ddim", None),
            ("DPM++ 2M Exponential", "dpmpp_2m", Some(Spacing::Exponential)),
            ("Euler Beta", "euler", Some(Spacing::Beta)),
        ] {
            assert_eq!(sampler(text).as_deref(), Ok(name), "{text}");
            assert_eq!(spacing_within(text), schedule, "{text}");
        }
        for (text, name) in [
            ("Karras", "karras"),
            ("SGM Uniform", "trailing"),
            ("sgm_uniform", "trailing"),
            ("use_karras_sigmas", "karras"),
            ("leading", "leading"),
            ("Linspace", "linspace"),
            ("karras_diffusers", "karras_diffusers"),
            ("Exponential", "exponential"),
            ("Beta", "beta"),
            ("use_beta_sigmas", "beta"),
            ("beta_diffusers", "beta_diffusers"),
        ] {
            assert_eq!(spacing(text).as_deref(), Ok(name), "{text}");
        }
    }

    #[test]
    fn what_is_only_elsewhere_is_refused_by_name() {
        for text in [
            "Euler a",
            "euler_ancestral",
            "EulerAncestralDiscreteScheduler",
            "DDIM CFG++",
            "LCM",
            "UniPC",
            "uni_pc",
            "UniPCMultistepScheduler",
            "DPM++ 2M SDE Karras",
            "dpmpp_2m_sde_gpu",
            "DPM++ 3M SDE Exponential",
            "DPM++ 2S a",
            "Heun",
            "PNDMScheduler",
            "LMSDiscreteScheduler",
            "dpm_adaptive",
            "Restart",
        ] {
            let message = sampler(text).unwrap_err();
            assert!(
                message.starts_with(&format!("`{text}` is a sampler that is not here; there are dpmpp_2m")),
                "{message}"
            );
        }
        let message = sampler("DPM++ 2M Simple").unwrap_err();
        assert!(message.contains("schedule simple") && message.contains("`spacing`"), "{message}");
        for text in ["Polyexponential", "simple", "beta57", "Align Your Steps"] {
            assert!(spacing(text).unwrap_err().contains("there are karras, trailing, leading, linspace,"), "{text}");
        }
        // The list of what there is answers what nobody has.
        assert_eq!(sampler("quick").as_deref(), Ok("quick"));
        assert_eq!(spacing("quick").as_deref(), Ok("quick"));
    }
}
