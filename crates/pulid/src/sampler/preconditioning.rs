//! What a network's prediction stands for, and the time that it is told: the one place that knows.

use super::PredictionType;
use std::fmt::Debug;

/// A network F as a denoiser: D(x; σ) = c_skip(σ)·x + c_out(σ)·F(c_in(σ)·x; c_noise(σ)) gives the clean latents that x, clean latents
/// plus σ times noise, stand for (Karras et al. 2022, equation 7 and table 1). Solvers see x, σ and D alone.
pub trait Preconditioning: Debug + Send + Sync {
    /// Factor of the noisy latents on their way into the network.
    fn c_in(&self, sigma: f64) -> f64;

    /// Share of the noisy latents in the clean ones.
    fn c_skip(&self, sigma: f64) -> f64;

    /// Factor of the prediction in the clean latents.
    fn c_out(&self, sigma: f64) -> f64;

    /// The time that the network is told at a noise level, which is that of a training timestep or lies between two.
    fn c_noise(&self, sigma: f64, timestep: f64) -> f64;
}

/// Networks trained on latents of variance one, x / sqrt(σ² + 1), and told the training timestep: 1 / sqrt(σ² + 1).
fn variance_preserving(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}

/// The network predicts the noise (Ho et al. 2020), as stock SDXL does.
#[derive(Clone, Copy, Debug)]
pub struct Epsilon;

impl Preconditioning for Epsilon {
    fn c_in(&self, sigma: f64) -> f64 {
        variance_preserving(sigma)
    }

    fn c_skip(&self, _: f64) -> f64 {
        1.0
    }

    fn c_out(&self, sigma: f64) -> f64 {
        -sigma
    }

    fn c_noise(&self, _: f64, timestep: f64) -> f64 {
        timestep
    }
}

/// The network predicts the velocity of Salimans and Ho (2022).
#[derive(Clone, Copy, Debug)]
pub struct Velocity;

impl Preconditioning for Velocity {
    fn c_in(&self, sigma: f64) -> f64 {
        variance_preserving(sigma)
    }

    fn c_skip(&self, sigma: f64) -> f64 {
        1.0 / (sigma * sigma + 1.0)
    }

    fn c_out(&self, sigma: f64) -> f64 {
        -sigma / (sigma * sigma + 1.0).sqrt()
    }

    fn c_noise(&self, _: f64, timestep: f64) -> f64 {
        timestep
    }
}

impl PredictionType {
    /// How such a network is used as a denoiser.
    pub fn preconditioning(self) -> &'static dyn Preconditioning {
        match self {
            PredictionType::Epsilon => &Epsilon,
            PredictionType::VPrediction => &Velocity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{NoiseSchedule, SchedulerConfig};

    /// Perfect networks of both kinds find the clean latents at every noise level, and are shown latents of variance one.
    #[test]
    fn perfect_predictions_give_the_clean_latents() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
        let (clean, noise) = (0.7, -1.3);
        for &sigma in schedule.sigmas().iter().step_by(111) {
            let x = clean + sigma * noise;
            // x / sqrt(σ² + 1) = α·clean + s·noise; v = α·noise - s·clean.
            let (alpha, s) = (variance_preserving(sigma), sigma * variance_preserving(sigma));
            let predictions: [(&dyn Preconditioning, f64); 2] =
                [(&Epsilon, noise), (&Velocity, alpha * noise - s * clean)];
            for (network, prediction) in predictions {
                let found = network.c_skip(sigma) * x + network.c_out(sigma) * prediction;
                assert!((found - clean).abs() < 1e-9, "{network:?} at {sigma}: {found}");
                let variance = network.c_in(sigma).powi(2) * (1.0 + sigma * sigma);
                assert!((variance - 1.0).abs() < 1e-12);
                assert_eq!(network.c_noise(sigma, 12.5), 12.5);
            }
        }
    }
}
