//! Where on the noise schedule the steps of a run lie: k-diffusion's levels, and those of diffusers' schedulers.

use super::beta::quantile;
use super::{NoiseSchedule, SamplerKind, Spacing, TimestepSpacing};
use pulid_tensor::{Error, Result};

/// Karras et al. (2022), equation 5: how much more densely the low noise levels are sampled.
const KARRAS_RHO: f64 = 7.0;

/// The noise level of pure noise for DDIM, whose latents have variance one, so that it could be infinite: no clean latents are left
/// beside it in f32. diffusers' `DDIMScheduler` has none there, where its other schedulers compute with a level of 4096.
const PURE_NOISE: f64 = (1u64 << 30) as f64;

/// Levels from a highest to a lowest one in a number of steps.
type Curve = fn(f64, f64, usize) -> Vec<f64>;

/// The noise levels that a run of `steps` steps visits.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseLevels {
    /// Sigma before each step, decreasing, and a last 0 unless another end is asked for: `steps + 1` values.
    pub sigmas: Vec<f64>,
    /// The training timestep of each step: `steps` values, which may lie between two timesteps.
    pub timesteps: Vec<f64>,
    /// Sigma that each step leads to: `steps` values. That is where the next step begins, but for DDIM: there all steps are as long in
    /// timesteps, and where these are rounded the next one begins a little beside.
    pub targets: Vec<f64>,
}

impl NoiseSchedule {
    /// The levels of a run.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `steps` is 0, more than there are training timesteps, or more than the spacing has timesteps for.
    pub fn levels(&self, kind: SamplerKind, spacing: Spacing, steps: usize) -> Result<NoiseLevels> {
        let n = self.sigmas().len();
        if !(1..=n).contains(&steps) {
            return Err(Error::invalid("steps", format!("{steps} is not in 1 to {n}")));
        }
        let (mut sigmas, timesteps) = match spacing {
            Spacing::Karras => self.whole(karras, steps),
            Spacing::Exponential => self.whole(exponential, steps),
            Spacing::Beta => self.whole(beta, steps),
            Spacing::KarrasDiffusers if kind == SamplerKind::DpmPp2M => self.whole(karras, steps),
            Spacing::KarrasDiffusers => self.diffusers(karras, kind, steps)?,
            Spacing::ExponentialDiffusers => self.diffusers(exponential, kind, steps)?,
            Spacing::BetaDiffusers => self.diffusers(beta, kind, steps)?,
            Spacing::Trailing => self.at(self.timesteps(kind, TimestepSpacing::Trailing, steps)?),
            Spacing::Leading => self.at(self.timesteps(kind, TimestepSpacing::Leading, steps)?),
            Spacing::Linspace => self.at(self.timesteps(kind, TimestepSpacing::Linspace, steps)?),
        };
        sigmas.push(0.0);
        let mut targets = sigmas[1..].to_vec();
        if kind == SamplerKind::Ddim && matches!(spacing, Spacing::Trailing | Spacing::Leading | Spacing::Linspace) {
            let length = (n / steps) as f64;
            let target = |t: &f64| if *t >= length { self.sigma_at(t - length) } else { 0.0 };
            targets = timesteps.iter().map(target).collect();
            if self.zero_terminal_snr && timesteps[0] == (n - 1) as f64 {
                sigmas[0] = PURE_NOISE;
            }
        }
        Ok(NoiseLevels { sigmas, timesteps, targets })
    }

    /// The time that belongs to a level between two steps.
    pub(super) fn timestep_within(&self, spacing: Spacing, sigma: f64) -> f64 {
        match spacing {
            Spacing::Karras | Spacing::Exponential | Spacing::Beta | Spacing::Trailing => self.timestep(sigma) as f64,
            Spacing::Leading
            | Spacing::Linspace
            | Spacing::KarrasDiffusers
            | Spacing::ExponentialDiffusers
            | Spacing::BetaDiffusers => self.fractional_timestep(sigma),
        }
    }

    fn at(&self, timesteps: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
        (timesteps.iter().map(|&t| self.sigma_at(t)).collect(), timesteps)
    }

    /// A curve over the whole schedule, with the nearest timesteps.
    fn whole(&self, curve: Curve, steps: usize) -> (Vec<f64>, Vec<f64>) {
        let sigmas = curve(self.sigma_max(), self.sigma_min(), steps);
        let timesteps = sigmas.iter().map(|&sigma| self.timestep(sigma) as f64).collect();
        (sigmas, timesteps)
    }

    /// DPM-Solver++ takes the whole schedule and cuts times to whole timesteps (`DPMSolverMultistepScheduler`; Karras' alone it rounds,
    /// which is [`NoiseSchedule::whole`]); the others what lies between the ends of their timesteps, and fractions.
    fn diffusers(&self, curve: Curve, kind: SamplerKind, steps: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let multistep = kind == SamplerKind::DpmPp2M;
        let [highest, lowest] = if multistep {
            [self.sigma_max(), self.sigma_min()]
        } else {
            let (ends, _) = self.at(self.timesteps(kind, self.spacing, steps)?);
            [ends[0], ends[steps - 1]]
        };
        let sigmas = curve(highest, lowest, steps);
        let time = |&sigma: &f64| if multistep { self.cut_timestep(sigma) } else { self.fractional_timestep(sigma) };
        let timesteps = sigmas.iter().map(time).collect();
        Ok((sigmas, timesteps))
    }

    /// The training timesteps as diffusers' schedulers space them. `DPMSolverMultistepScheduler` counts one step more and leaves its
    /// last timestep out, where the others end at the lowest one.
    fn timesteps(&self, kind: SamplerKind, spacing: TimestepSpacing, steps: usize) -> Result<Vec<f64>> {
        let (n, multistep) = (self.sigmas().len(), kind == SamplerKind::DpmPp2M);
        let last = (n - 1) as f64;
        // Of steps that are counted from the end of the run.
        let indices = || if multistep { (1..=steps).rev() } else { (0..=steps - 1).rev() };
        Ok(match spacing {
            TimestepSpacing::Trailing => {
                let width = n as f64 / steps as f64;
                // Halves are rounded to even before one is subtracted.
                (0..steps).map(|i| (n as f64 - i as f64 * width).round_ties_even().clamp(1.0, n as f64) - 1.0).collect()
            }
            TimestepSpacing::Linspace if multistep => {
                indices().map(|i| (i as f64 * (last / steps as f64)).round_ties_even()).collect()
            }
            TimestepSpacing::Linspace if kind == SamplerKind::Ddim => {
                let width = last / (steps.max(2) - 1) as f64;
                indices().map(|i| (i as f64 * width).round_ties_even()).collect()
            }
            // Kept in f32 there. One step alone is the lowest one.
            TimestepSpacing::Linspace => {
                let width = last / (steps.max(2) - 1) as f64;
                indices().map(|i| f64::from((i as f64 * width) as f32)).collect()
            }
            TimestepSpacing::Leading => {
                let width = n / (steps + usize::from(multistep));
                if width == 0 {
                    let detail =
                        format!("{steps} is more than leading timesteps of dpmpp_2m can be; at most {} can", n - 1);
                    return Err(Error::invalid("steps", detail));
                }
                indices().map(|i| ((i * width + self.steps_offset) as f64).min(last)).collect()
            }
        })
    }
}

/// 0 for the first step to 1 for the last one.
fn ramp(steps: usize) -> impl Iterator<Item = f64> {
    (0..steps).map(move |i| if steps == 1 { 0.0 } else { i as f64 / (steps - 1) as f64 })
}

fn karras(highest: f64, lowest: f64, steps: usize) -> Vec<f64> {
    let root = |sigma: f64| sigma.powf(1.0 / KARRAS_RHO);
    ramp(steps).map(|at| (root(highest) + at * (root(lowest) - root(highest))).powf(KARRAS_RHO)).collect()
}

/// k-diffusion's `get_sigmas_exponential`.
fn exponential(highest: f64, lowest: f64, steps: usize) -> Vec<f64> {
    ramp(steps).map(|at| highest * (lowest / highest).powf(at)).collect()
}

/// The web UI's `beta_scheduler` and diffusers' `_convert_to_beta`: linear in sigma. ComfyUI's scheduler of that name takes quantiles of
/// timesteps instead.
fn beta(highest: f64, lowest: f64, steps: usize) -> Vec<f64> {
    ramp(steps).map(|at| lowest + quantile(1.0 - at) * (highest - lowest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SchedulerConfig;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        table: Vec<f64>,
        karras: Vec<Levels>,
        trailing: Vec<Levels>,
    }

    #[derive(Deserialize)]
    struct Levels {
        steps: usize,
        sigmas: Vec<f64>,
        timesteps: Vec<f64>,
    }

    fn sdxl() -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig::default()).unwrap()
    }

    fn assert_near(ours: &[f64], theirs: &[f64], relative: f64, name: &str) {
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            assert!((a - b).abs() <= relative * b.abs(), "{name}[{i}]: {a} for {b}");
        }
    }

    #[test]
    fn table_and_levels_are_those_of_diffusers_and_k_diffusion() {
        let golden: Golden = serde_json::from_str(include_str!("../../tests/data/schedule.json")).unwrap();
        let schedule = sdxl();
        assert_near(schedule.sigmas(), &golden.table, 2e-7, "table");
        assert!(golden.karras.len() >= 5 && golden.trailing.len() >= 5);
        let cases = golden.karras.iter().map(|g| (Spacing::Karras, g));
        for (spacing, g) in cases.chain(golden.trailing.iter().map(|g| (Spacing::Trailing, g))) {
            let levels = schedule.levels(SamplerKind::DpmPp2M, spacing, g.steps).unwrap();
            let name = format!("{spacing} {}", g.steps);
            assert_near(&levels.sigmas, &g.sigmas, 5e-6, &name);
            assert_eq!(levels.timesteps, g.timesteps, "{name}");
        }
    }

    #[test]
    fn the_published_pipelines_timesteps() {
        let schedule = sdxl();
        let told = |spacing, steps| schedule.levels(SamplerKind::DpmPp2M, spacing, steps).unwrap().timesteps;
        assert_eq!(told(Spacing::Karras, 5), [999.0, 786.0, 427.0, 59.0, 0.0]);
        assert_eq!(told(Spacing::Trailing, 4), [999.0, 749.0, 499.0, 249.0]);
        assert!((schedule.sigma_max() - 14.6146).abs() < 1e-3 && (schedule.sigma_min() - 0.02917).abs() < 1e-5);
    }

    #[test]
    fn numbers_of_steps_that_cannot_be_are_refused() {
        let levels = |kind, spacing, steps| sdxl().levels(kind, spacing, steps);
        assert!(levels(SamplerKind::Euler, Spacing::Karras, 0).is_err());
        assert!(levels(SamplerKind::Euler, Spacing::Trailing, 1001).is_err());
        assert!(levels(SamplerKind::Euler, Spacing::Leading, 1000).is_ok());
        let message = levels(SamplerKind::DpmPp2M, Spacing::Leading, 1000).unwrap_err().to_string();
        assert!(message.contains("steps") && message.contains("at most 999"), "{message}");
    }

    proptest! {
        #[test]
        fn levels_fall_to_zero(steps in 1usize..=1000, kind in 0..4usize, spacing in 0..9usize) {
            let (kind, spacing) = (SamplerKind::ALL[kind], Spacing::ALL[spacing]);
            prop_assume!(kind != SamplerKind::DpmPp2M || spacing != Spacing::Leading || steps < 1000);
            let levels = sdxl().levels(kind, spacing, steps).unwrap();
            prop_assert_eq!((levels.sigmas.len(), levels.timesteps.len()), (steps + 1, steps));
            // With as many steps as timesteps an offset puts two at the end.
            let falling = if steps < 999 { &levels.sigmas[..] } else { &levels.sigmas[1..] };
            prop_assert!(falling.windows(2).all(|w| w[0] > w[1]));
            prop_assert_eq!(levels.sigmas[steps], 0.0);
            prop_assert!(levels.timesteps.iter().all(|t| (0.0..=999.0).contains(t)));
            if matches!(spacing, Spacing::Karras | Spacing::Exponential | Spacing::Beta | Spacing::Trailing) {
                prop_assert_eq!(levels.timesteps[0], 999.0);
            }
        }
    }
}
