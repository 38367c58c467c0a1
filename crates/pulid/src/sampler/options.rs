use pulid_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

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
    /// DDIM without noise on the way (Song et al. 2020, eta 0), as diffusers' `DDIMScheduler` has it: Euler's method on latents of
    /// variance one. One call a step.
    #[serde(rename = "ddim")]
    Ddim,
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
    /// Evenly spaced training timesteps from the model's offset (`steps_offset`) up, as SDXL's own scheduler has them: 4 steps of
    /// Euler's method are t = 751, 501, 251, 1.
    Leading,
    /// Timesteps spaced evenly over all of the training timesteps, with both ends.
    Linspace,
    /// Karras et al. (2022) as diffusers' schedulers have them (`use_karras_sigmas`): between the ends of the model's own
    /// `timestep_spacing`, for DPM-Solver++ over the whole schedule.
    KarrasDiffusers,
    /// Evenly spaced in log sigma over the whole schedule, as k-diffusion and the web UI have them.
    Exponential,
    /// By the quantiles of a beta distribution (Lee et al. 2024) over the whole schedule, as the web UI has them.
    Beta,
    /// [`Spacing::Exponential`] as diffusers' schedulers have it (`use_exponential_sigmas`), between the ends of
    /// [`Spacing::KarrasDiffusers`].
    ExponentialDiffusers,
    /// [`Spacing::Beta`] as diffusers' schedulers have it (`use_beta_sigmas`), between the ends of [`Spacing::KarrasDiffusers`].
    BetaDiffusers,
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
    pub const ALL: [SamplerKind; 4] =
        [SamplerKind::DpmPp2M, SamplerKind::DpmPpSde, SamplerKind::Euler, SamplerKind::Ddim];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            SamplerKind::DpmPp2M => "dpmpp_2m",
            SamplerKind::DpmPpSde => "dpmpp_sde",
            SamplerKind::Euler => "euler",
            SamplerKind::Ddim => "ddim",
        }
    }

    /// The spacing used unless the caller says otherwise.
    pub const fn default_spacing(self) -> Spacing {
        match self {
            SamplerKind::DpmPp2M | SamplerKind::DpmPpSde => Spacing::Karras,
            SamplerKind::Euler => Spacing::Trailing,
            SamplerKind::Ddim => Spacing::Leading,
        }
    }

    /// Network calls that `steps` steps take.
    pub const fn calls(self, steps: usize) -> usize {
        match self {
            SamplerKind::DpmPp2M | SamplerKind::Euler | SamplerKind::Ddim => steps,
            SamplerKind::DpmPpSde => (2 * steps).saturating_sub(1),
        }
    }
}

impl Spacing {
    /// Every spacing, in the order in which people see them.
    pub const ALL: [Spacing; 9] = [
        Spacing::Karras,
        Spacing::Trailing,
        Spacing::Leading,
        Spacing::Linspace,
        Spacing::KarrasDiffusers,
        Spacing::Exponential,
        Spacing::Beta,
        Spacing::ExponentialDiffusers,
        Spacing::BetaDiffusers,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Spacing::Karras => "karras",
            Spacing::Trailing => "trailing",
            Spacing::Leading => "leading",
            Spacing::Linspace => "linspace",
            Spacing::KarrasDiffusers => "karras_diffusers",
            Spacing::Exponential => "exponential",
            Spacing::Beta => "beta",
            Spacing::ExponentialDiffusers => "exponential_diffusers",
            Spacing::BetaDiffusers => "beta_diffusers",
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
        let message = "heun".parse::<SamplerKind>().unwrap_err().to_string();
        assert!(message.contains("heun") && message.contains("dpmpp_2m"), "{message}");
        assert!("linear".parse::<Spacing>().is_err());
    }
}
