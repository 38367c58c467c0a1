//! The branch's sampler, forwards and backwards.

use pulid::sampler::{NoiseSchedule, SamplerKind, Spacing};
use pulid_tensor::{Error, HostTensor, Result};

/// A step of Euler's method on the probability flow, as a line of the latents x and of the network's prediction F:
/// x' = `keep` x + `take` F(`scale` x; `timestep`).
///
/// With D = c_skip x + c_out F, the clean latents that a prediction stands for, x' = D + (σ' / σ) (x - D).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EulerStep {
    /// What the network is told.
    pub timestep: f32,
    /// Factor of the latents on their way into the network.
    pub scale: f64,
    /// Share of the latents in the next ones.
    pub keep: f64,
    /// Share of the prediction in the next latents.
    pub take: f64,
}

impl EulerStep {
    /// Trailing steps from pure noise to clean latents, and the noise level that they begin at.
    ///
    /// # Errors
    /// As [`NoiseSchedule::levels`].
    pub fn all(schedule: &NoiseSchedule, steps: usize) -> Result<(f64, Vec<EulerStep>)> {
        let levels = schedule.levels(SamplerKind::Euler, Spacing::Trailing, steps)?;
        let network = schedule.network();
        let step = |i: usize| {
            let (sigma, timestep) = (levels.sigmas[i], levels.timesteps[i]);
            let rest = levels.targets[i] / sigma;
            EulerStep {
                timestep: network.c_noise(sigma, timestep) as f32,
                scale: network.c_in(sigma),
                keep: rest + (1.0 - rest) * network.c_skip(sigma),
                take: (1.0 - rest) * network.c_out(sigma),
            }
        };
        Ok((levels.sigmas[0], (0..steps).map(step).collect()))
    }

    /// The network's input.
    pub fn input(&self, x: &HostTensor) -> Result<HostTensor> {
        scaled(x, self.scale)
    }

    /// The next latents.
    pub fn advance(&self, x: &HostTensor, prediction: &HostTensor) -> Result<HostTensor> {
        mixed(x, self.keep, prediction, self.take)
    }

    /// The gradient in the prediction, of that in the next latents.
    pub fn upstream(&self, next: &HostTensor) -> Result<HostTensor> {
        scaled(next, self.take)
    }

    /// The gradient in the latents, of those in the next latents and in the network's input.
    pub fn before(&self, next: &HostTensor, input: &HostTensor) -> Result<HostTensor> {
        mixed(next, self.keep, input, self.scale)
    }
}

/// a x.
pub(super) fn scaled(x: &HostTensor, a: f64) -> Result<HostTensor> {
    let x_values = x.as_f32()?;
    Ok(HostTensor::from_fn(x.shape().clone(), |i| (a * f64::from(x_values[i])) as f32))
}

/// a x + b y.
fn mixed(x: &HostTensor, a: f64, y: &HostTensor, b: f64) -> Result<HostTensor> {
    if x.shape() != y.shape() {
        return Err(Error::invalid("branch", format!("latents are {}, the network gives {}", x.shape(), y.shape())));
    }
    let (x_values, y_values) = (x.as_f32()?, y.as_f32()?);
    let value = |i: usize| (a * f64::from(x_values[i]) + b * f64::from(y_values[i])) as f32;
    Ok(HostTensor::from_fn(x.shape().clone(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid::sampler::{PredictionType, Sampler, SamplerOptions, SchedulerConfig};

    fn schedule(prediction_type: PredictionType) -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig { prediction_type, ..SchedulerConfig::default() }).unwrap()
    }

    /// A network of one number whose derivative is known.
    fn network(x: f64, timestep: f32) -> f64 {
        (x * (1.0 + f64::from(timestep) * 1e-3)).sin()
    }

    /// The library's sampler takes the same steps; it is held to diffusers' `EulerDiscreteScheduler`.
    #[test]
    fn steps_are_the_sampler_s() {
        for prediction in [PredictionType::Epsilon, PredictionType::VPrediction] {
            let schedule = schedule(prediction);
            let options = SamplerOptions { spacing: Spacing::Trailing, ..SamplerOptions::new(SamplerKind::Euler, 4) };
            let mut sampler = Sampler::new(&schedule, &options, vec![0.3, -1.1]).unwrap();
            let (sigma, steps) = EulerStep::all(&schedule, 4).unwrap();
            let mut x = scaled(&HostTensor::from_f32([2], vec![0.3, -1.1]).unwrap(), sigma).unwrap();
            for step in &steps {
                let request = sampler.next_request().unwrap();
                let input = step.input(&x).unwrap().to_f32_vec();
                let difference = input.iter().zip(&request.x_in).map(|(a, b)| (a - b).abs());
                assert!(difference.fold(0.0, f32::max) < 1e-5, "{prediction:?}");
                assert_eq!(f64::from(step.timestep), request.timestep);
                let predicted: Vec<f32> = input.iter().map(|v| network(f64::from(*v), step.timestep) as f32).collect();
                sampler.advance(&predicted).unwrap();
                x = step.advance(&x, &HostTensor::from_f32([2], predicted).unwrap()).unwrap();
            }
            for (a, b) in x.to_f32_vec().iter().zip(sampler.latents()) {
                assert!((a - b).abs() < 1e-4, "{prediction:?}: {a} {b}");
            }
        }
    }

    /// The chain of gradients against a central difference.
    #[test]
    fn gradients_go_back_through_the_steps() {
        for prediction in [PredictionType::Epsilon, PredictionType::VPrediction] {
            let (sigma, steps) = EulerStep::all(&schedule(prediction), 4).unwrap();
            let run = |x: f64| {
                let next = |x: f64, s: &EulerStep| s.keep * x + s.take * network(s.scale * x, s.timestep);
                steps.iter().fold(x, next)
            };
            let start = 0.4 * sigma;
            let mut x = start;
            let mut inputs = Vec::new();
            for step in &steps {
                inputs.push(step.scale * x);
                x = step.keep * x + step.take * network(step.scale * x, step.timestep);
            }
            let one = |v: f64| HostTensor::from_f32([1], vec![v as f32]).unwrap();
            let mut gradient = one(1.0);
            for (step, input) in steps.iter().zip(&inputs).rev() {
                let upstream = f64::from(step.upstream(&gradient).unwrap().to_f32_vec()[0]);
                let slope = 1.0 + f64::from(step.timestep) * 1e-3;
                let of_input = one(upstream * slope * (input * slope).cos());
                gradient = step.before(&gradient, &of_input).unwrap();
            }
            let numeric = (run(start + 1e-5) - run(start - 1e-5)) / 2e-5;
            let found = f64::from(gradient.to_f32_vec()[0]);
            assert!((found / numeric - 1.0).abs() < 1e-4, "{prediction:?}: {found} {numeric}");
        }
    }
}
