//! What diffusers' scheduler classes stand for: the noise that a network was trained on. How a class samples from it is for
//! `settings/suited.rs` to say.

use super::config::{BetaSchedule, TimestepSpacing};
use BetaSchedule::{Linear, ScaledLinear, SquaredcosCapV2};
use TimestepSpacing::{Leading, Linspace};

/// What a class takes for keys that its file does not have: the defaults of its constructor in diffusers 0.42.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Defaults {
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: BetaSchedule,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: usize,
}

const fn defaults(
    beta_start: f64,
    beta_end: f64,
    beta_schedule: BetaSchedule,
    timestep_spacing: TimestepSpacing,
) -> Defaults {
    Defaults { beta_start, beta_end, beta_schedule, timestep_spacing, steps_offset: 0 }
}

/// Ho et al.'s betas (2020).
const DDPM: Defaults = defaults(0.0001, 0.02, Linear, Leading);
const DDPM_LINSPACE: Defaults = defaults(0.0001, 0.02, Linear, Linspace);
/// Stable Diffusion's ends, but linear.
const K_DIFFUSION: Defaults = defaults(0.00085, 0.012, Linear, Linspace);
/// Stable Diffusion's betas.
const CONSISTENCY: Defaults = defaults(0.00085, 0.012, ScaledLinear, Leading);
const UNCLIP: Defaults = defaults(0.0001, 0.02, SquaredcosCapV2, Linspace);

/// SDXL's own, where no class is named: `scheduler/scheduler_config.json` of its base model.
pub(super) const SDXL: Defaults = Defaults { steps_offset: 1, ..CONSISTENCY };

/// Classes whose noise is a table of betas, so that SDXL's networks may be trained on it. They differ in how they sample.
const OF_BETAS: &[(&str, Defaults)] = &[
    ("DDIM", DDPM),
    ("DDIMInverse", DDPM),
    ("DDIMParallel", DDPM),
    ("DDPM", DDPM),
    ("DDPMParallel", DDPM),
    ("PNDM", DDPM),
    ("DEISMultistep", DDPM_LINSPACE),
    ("DPMSolverMultistep", DDPM_LINSPACE),
    ("DPMSolverMultistepInverse", DDPM_LINSPACE),
    ("DPMSolverSinglestep", DDPM_LINSPACE),
    ("EulerAncestralDiscrete", DDPM_LINSPACE),
    ("EulerDiscrete", DDPM_LINSPACE),
    ("LMSDiscrete", DDPM_LINSPACE),
    ("RePaint", DDPM_LINSPACE),
    ("SASolver", DDPM_LINSPACE),
    ("UniPCMultistep", DDPM_LINSPACE),
    ("DPMSolverSDE", K_DIFFUSION),
    ("HeunDiscrete", K_DIFFUSION),
    ("KDPM2AncestralDiscrete", K_DIFFUSION),
    ("KDPM2Discrete", K_DIFFUSION),
    ("LCM", CONSISTENCY),
    ("TCD", CONSISTENCY),
    ("UnCLIP", UNCLIP),
];

const EDM: &str = "EDM's noise levels (`sigma_data`)";
const FLOW: &str = "flow matching";
const EXPLODING: &str = "noise levels without betas (variance exploding)";
const TOKENS: &str = "discrete tokens";
const SHIFTED: &str = "CogVideoX's shifted schedule (`snr_shift_scale`)";

/// Classes for networks of other kinds by what their names begin with, and what those networks are trained on.
const FOREIGN: &[(&str, &str)] = &[
    ("EDM", EDM),
    ("CosineDPM", EDM),
    ("CMStochastic", EDM),
    ("FlowM", FLOW),
    ("LTX", FLOW),
    ("Helios", FLOW),
    ("MiniMax", FLOW),
    ("Piflow", FLOW),
    ("SCM", "TrigFlow"),
    ("KarrasVe", EXPLODING),
    ("ScoreSdeVe", EXPLODING),
    ("ScoreSdeVp", "a continuous schedule (`beta_min`, `beta_max`)"),
    ("IPNDM", "a continuous schedule"),
    ("DDPMWuerstchen", "Stable Cascade's continuous schedule"),
    ("CogVideoX", SHIFTED),
    ("ConsistencyDecoder", "DALL-E's consistency decoder's schedule"),
    ("VQDiffusion", TOKENS),
    ("Amused", TOKENS),
    ("BlockRefinement", TOKENS),
    ("EntropyBound", TOKENS),
    ("DiscreteDDIM", TOKENS),
    ("RFD4", "coordinates of proteins"),
];

/// Keys that tell such a network where the class does not.
const FOREIGN_KEYS: [(&str, &str); 4] =
    [("sigma_data", EDM), ("base_shift", FLOW), ("shift", FLOW), ("snr_shift_scale", SHIFTED)];

/// A class's name without what all have; Flax' schedulers have the keys of PyTorch's.
pub(super) fn bare(class: &str) -> &str {
    let name = class.strip_suffix("Scheduler").unwrap_or(class);
    name.strip_prefix("Flax").unwrap_or(name)
}

/// The defaults of a class for networks like SDXL's; `None` for a class that is not known.
pub(super) fn of(class: &str) -> Option<Defaults> {
    OF_BETAS.iter().find(|(name, _)| *name == bare(class)).map(|(_, defaults)| *defaults)
}

/// What the networks are trained on that a scheduler of another kind belongs to; `None` for schedulers that SDXL's may have.
///
/// `has` says whether the file has a value under a key: keys tell where the class is not known, since a scheduler that was made of
/// another one's configuration keeps keys that its class does not know.
pub(super) fn foreign(class: &str, has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let begins = |(begin, _): &&(&str, &str)| bare(class).starts_with(begin);
    if of(class).is_some() {
        return None;
    }
    let by_key = || FOREIGN_KEYS.iter().find(|(key, _)| has(key)).map(|(_, what)| *what);
    FOREIGN.iter().find(begins).map(|(_, what)| *what).or_else(by_key)
}
