//! Where on the noise schedule the steps of a run lie: k-diffusion's levels, and those of diffusers' schedulers.

use super::{NoiseSchedule, SamplerKind, Spacing, TimestepSpacing};
use pulid_tensor::{Error, Result};

/// Karras et al. (2022), equation 5: how much more densely the low noise levels are sampled.
const KARRAS_RHO: f64 = 7.0;

/// The noise levels that a run of `steps` steps visits.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseLevels {
    /// Sigma before each step, decreasing, and a last 0 unless another end is asked for: `steps + 1` values.
    pub sigmas: Vec<f64>,
    /// The training timestep of each step: `steps` values, which may lie between two timesteps.
    pub timesteps: Vec<f64>,
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
            Spacing::Karras => {
                let sigmas = karras(self.sigma_max(), self.sigma_min(), steps);
                let timesteps = sigmas.iter().map(|&sigma| self.timestep(sigma) as f64).collect();
                (sigmas, timesteps)
            }
            Spacing::KarrasDiffusers => self.karras_diffusers(kind, steps)?,
            Spacing::Trailing => self.at(self.timesteps(kind, TimestepSpacing::Trailing, steps)?),
            Spacing::Leading => self.at(self.timesteps(kind, TimestepSpacing::Leading, steps)?),
            Spacing::Linspace => self.at(self.timesteps(kind, TimestepSpacing::Linspace, steps)?),
        };
        sigmas.push(0.0);
        Ok(NoiseLevels { sigmas, timesteps })
    }

    /// The time that belongs to a level between two steps.
    pub(super) fn timestep_within(&self, spacing: Spacing, sigma: f64) -> f64 {
        match spacing {
            Spacing::Karras | Spacing::Trailing => self.timestep(sigma) as f64,
            Spacing::Leading | Spacing::Linspace | Spacing::KarrasDiffusers => self.fractional_timestep(sigma),
        }
    }

    fn at(&self, timesteps: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
        (timesteps.iter().map(|&t| self.sigma_at(t)).collect(), timesteps)
    }

    /// DPM-Solver++ takes the whole schedule and whole timesteps (`DPMSolverMultistepScheduler`); the others what lies between the ends
    /// of their timesteps, and fractions.
    fn karras_diffusers(&self, kind: SamplerKind, steps: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        if kind == SamplerKind::DpmPp2M {
            let sigmas = karras(self.sigma_max(), self.sigma_min(), steps);
            let timesteps = sigmas.iter().map(|&sigma| self.timestep(sigma) as f64).collect();
            return Ok((sigmas, timesteps));
        }
        let (ends, _) = self.at(self.timesteps(kind, self.spacing, steps)?);
        let sigmas = karras(ends[0], ends[steps - 1], steps);
        let timesteps = sigmas.iter().map(|&sigma| self.fractional_timestep(sigma)).collect();
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

/// Levels from the highest to the lowest.
fn karras(highest: f64, lowest: f64, steps: usize) -> Vec<f64> {
    let root = |sigma: f64| sigma.powf(1.0 / KARRAS_RHO);
    let level = |i: usize| {
        let ramp = if steps == 1 { 0.0 } else { i as f64 / (steps - 1) as f64 };
        (root(highest) + ramp * (root(lowest) - root(highest))).powf(KARRAS_RHO)
    };
    (0..steps).map(level).collect()
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
        assert_near(schedule.sigmas(), &golden.table, 2e-6, "table");
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
        fn levels_fall_to_zero(steps in 1usize..=1000, kind in 0..3usize, spacing in 0..5usize) {
            let (kind, spacing) = (SamplerKind::ALL[kind], Spacing::ALL[spacing]);
            prop_assume!(kind != SamplerKind::DpmPp2M || spacing != Spacing::Leading || steps < 1000);
            let levels = sdxl().levels(kind, spacing, steps).unwrap();
            prop_assert_eq!((levels.sigmas.len(), levels.timesteps.len()), (steps + 1, steps));
            // With as many steps as timesteps an offset puts two at the end.
            let falling = if steps < 999 { &levels.sigmas[..] } else { &levels.sigmas[1..] };
            prop_assert!(falling.windows(2).all(|w| w[0] > w[1]));
            prop_assert_eq!(levels.sigmas[steps], 0.0);
            prop_assert!(levels.timesteps.iter().all(|t| (0.0..=999.0).contains(t)));
            if matches!(spacing, Spacing::Karras | Spacing::Trailing) {
                prop_assert_eq!(levels.timesteps[0], 999.0);
            }
        }
    }
}
