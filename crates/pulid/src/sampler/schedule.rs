use super::{BetaSchedule, Preconditioning, PredictionType, SchedulerConfig, TimestepSpacing};
use pulid_tensor::{Error, Result};

/// A schedule longer than this is a broken file, not a model.
const MAX_TRAIN_TIMESTEPS: usize = 1 << 20;

/// The product at a last timestep of pure noise, whose noise level would be infinite: diffusers has its schedulers compute with this
/// instead, a noise level of 4096.
const LAST_PRODUCT: f32 = 1.0 / (1 << 24) as f32;

/// Noise levels of the training timesteps: sigma(t) = sqrt((1 - a(t)) / a(t)), a the cumulative product of 1 - beta.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    /// Strictly increasing, one per training timestep.
    sigmas: Vec<f64>,
    network: &'static dyn Preconditioning,
    /// Of the model's scheduler.
    pub(super) spacing: TimestepSpacing,
    pub(super) steps_offset: usize,
    /// Whether the last timestep is pure noise under a network that can tell something of it.
    pub(super) zero_terminal_snr: bool,
}

impl NoiseSchedule {
    /// The schedule of a model, computed as diffusers does: betas in f32, their product in f64 rounded to f32.
    ///
    /// # Errors
    /// [`Error::Invalid`] for betas outside (0, 1) or a schedule that this crate does not support.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        let invalid = |key: &str, detail: String| Err(Error::invalid(key, detail));
        let n = config.num_train_timesteps;
        if config.steps_offset >= n {
            let detail = format!("is {}; {n} training timesteps are counted from 0", config.steps_offset);
            return invalid("steps_offset", detail);
        }
        if !(2..=MAX_TRAIN_TIMESTEPS).contains(&n) {
            return invalid("num_train_timesteps", format!("is {n}; 2 to {MAX_TRAIN_TIMESTEPS} can be used"));
        }
        let in_range = |beta: f64| beta > 0.0 && beta < 1.0;
        let formula = config.trained_betas.is_none() && config.beta_schedule != BetaSchedule::SquaredcosCapV2;
        if formula && (!in_range(config.beta_start) || !in_range(config.beta_end)) {
            let detail =
                format!("is {} and beta_end is {}; both must be in (0, 1)", config.beta_start, config.beta_end);
            return invalid("beta_start", detail);
        }
        let betas = match &config.trained_betas {
            Some(betas) if betas.len() != n || !betas.iter().copied().map(f64::from).all(in_range) => {
                let detail = format!("must be {n} numbers in (0, 1), as num_train_timesteps says");
                return invalid("trained_betas", detail);
            }
            Some(betas) => betas.clone(),
            None => betas(config),
        };
        let mut products = cumulative_products(&betas);
        if config.rescale_betas_zero_snr {
            products = cumulative_products(&zero_terminal_snr(&products));
            if let Some(last) = products.last_mut() {
                *last = LAST_PRODUCT;
            }
        }
        let sigmas: Vec<f64> = products.iter().map(|a| f64::from(((1.0 - a) / a).sqrt())).collect();
        if !sigmas.iter().all(|s| s.is_finite() && *s > 0.0) || sigmas.windows(2).any(|w| w[0] >= w[1]) {
            return invalid(
                "the noise schedule",
                "has betas whose noise levels do not grow; check beta_start and beta_end".into(),
            );
        }
        Ok(NoiseSchedule {
            sigmas,
            network: config.prediction_type.preconditioning(),
            spacing: config.timestep_spacing,
            steps_offset: config.steps_offset,
            zero_terminal_snr: config.rescale_betas_zero_snr && config.prediction_type == PredictionType::VPrediction,
        })
    }

    /// Sigma of each training timestep.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// The lowest noise level, of timestep 0.
    pub fn sigma_min(&self) -> f64 {
        self.sigmas[0]
    }

    /// The highest noise level, of the last timestep.
    pub fn sigma_max(&self) -> f64 {
        self.sigmas[self.sigmas.len() - 1]
    }

    /// What the network's predictions stand for.
    pub fn network(&self) -> &'static dyn Preconditioning {
        self.network
    }

    /// The training timestep whose log sigma is nearest; the lower one of two equally near.
    pub fn timestep(&self, sigma: f64) -> usize {
        let above = self.sigmas.partition_point(|&s| s < sigma);
        if above == 0 {
            return 0;
        }
        if above == self.sigmas.len() {
            return above - 1;
        }
        let distance = |i: usize| (sigma.ln() - self.sigmas[i].ln()).abs();
        if distance(above) < distance(above - 1) { above } else { above - 1 }
    }

    /// A time between training timesteps, by log sigma: diffusers' `_sigma_to_t`.
    pub fn fractional_timestep(&self, sigma: f64) -> f64 {
        self.between(sigma, f64::ln)
    }

    /// A time between training timesteps cut to a whole one, as diffusers' `DPMSolverMultistepScheduler` does where it does not round.
    /// The schedule's logarithms are in f32 there, which decides whether the highest level is that of the last timestep or falls
    /// just short of it.
    pub(super) fn cut_timestep(&self, sigma: f64) -> f64 {
        self.between(sigma, |level| f64::from(level.ln() as f32)).floor()
    }

    fn between(&self, sigma: f64, log: fn(f64) -> f64) -> f64 {
        let above = self.sigmas.partition_point(|&s| s <= sigma).clamp(1, self.sigmas.len() - 1);
        let [low, high] = [log(self.sigmas[above - 1]), log(self.sigmas[above])];
        (above - 1) as f64 + ((sigma.ln() - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// Sigma at a time between training timesteps, linear in sigma as in diffusers; the highest one beyond the last.
    pub(super) fn sigma_at(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let below = (timestep.max(0.0) as usize).min(last);
        let rest = (timestep - below as f64).clamp(0.0, 1.0);
        self.sigmas[below] + rest * (self.sigmas[(below + 1).min(last)] - self.sigmas[below])
    }
}

/// The betas of a formula: as `torch.linspace` spaces them, from both ends towards the middle, in f32; or diffusers'
/// `betas_for_alpha_bar`.
fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let n = config.num_train_timesteps;
    let spaced = |ends: [f32; 2], map: fn(f32) -> f32| {
        let [first, last] = ends;
        let step = (last - first) / (n - 1) as f32;
        // Rounded once, as by torch's vector instructions.
        let up = |i: usize| step.mul_add(i as f32, first);
        let down = |i: usize| (-step).mul_add(i as f32, last);
        let at = |i: usize| if i < n / 2 { up(i) } else { down(n - 1 - i) };
        (0..n).map(|i| map(at(i))).collect()
    };
    let ends = [config.beta_start, config.beta_end];
    match config.beta_schedule {
        BetaSchedule::Linear => spaced(ends.map(|beta| beta as f32), |x| x),
        // The root is of the number as it is written, not of what f32 makes of it.
        BetaSchedule::ScaledLinear => spaced(ends.map(|beta| beta.sqrt() as f32), |x| x * x),
        BetaSchedule::SquaredcosCapV2 => {
            let product =
                |i: usize| ((i as f64 / n as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            (0..n).map(|i| (1.0 - product(i + 1) / product(i)).min(0.999) as f32).collect()
        }
    }
}

/// The product of 1 - beta up to each timestep, as `torch.cumprod` has it: in f64, rounded to f32.
fn cumulative_products(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

/// Betas under which nothing of the image is left at the last timestep: Lin et al. (2023), algorithm 1, as diffusers'
/// `rescale_zero_terminal_snr` computes it in f32.
fn zero_terminal_snr(products: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products.iter().map(|a| a.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Vec::new() };
    let scale = first / (first - last);
    let rescaled: Vec<f32> = roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let before = std::iter::once(1.0).chain(rescaled.iter().copied());
    rescaled.iter().zip(before).map(|(a, before)| 1.0 - a / before).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sdxl() -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig::default()).unwrap()
    }

    #[test]
    fn times_lie_between_timesteps() {
        let schedule = sdxl();
        for t in [0.0, 17.0, 998.0, 999.0] {
            assert!((schedule.fractional_timestep(schedule.sigma_at(t)) - t).abs() < 1e-6, "{t}");
        }
        let (low, high) = (schedule.sigmas()[17], schedule.sigmas()[18]);
        assert!((schedule.fractional_timestep((low * high).sqrt()) - 17.5).abs() < 1e-6);
        assert!((schedule.sigma_at(17.25) - (0.75 * low + 0.25 * high)).abs() < 1e-9);
        assert_eq!((schedule.fractional_timestep(1e-9), schedule.fractional_timestep(1e9)), (0.0, 999.0));
        assert_eq!(schedule.sigma_at(1000.0), schedule.sigma_max());
    }

    #[test]
    fn unusable_schedules_are_refused() {
        for broken in [
            SchedulerConfig { beta_start: -1.0, ..Default::default() },
            SchedulerConfig { beta_end: f64::NAN, ..Default::default() },
            SchedulerConfig { steps_offset: 1000, ..Default::default() },
            SchedulerConfig { num_train_timesteps: 1, ..Default::default() },
            SchedulerConfig { num_train_timesteps: usize::MAX, ..Default::default() },
            SchedulerConfig { trained_betas: Some(vec![0.1; 3]), ..Default::default() },
            SchedulerConfig { trained_betas: Some(vec![1.5; 1000]), ..Default::default() },
            SchedulerConfig { beta_end: 0.999, ..Default::default() },
        ] {
            assert!(NoiseSchedule::new(&broken).is_err(), "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn the_nearest_timestep_is_nearest(sigma in 0.001f64..100.0) {
            let schedule = sdxl();
            let distance = |s: f64| (s.ln() - sigma.ln()).abs();
            let best = schedule.sigmas().iter().map(|&s| distance(s)).fold(f64::MAX, f64::min);
            prop_assert_eq!(distance(schedule.sigmas()[schedule.timestep(sigma)]), best);
        }
    }
}
