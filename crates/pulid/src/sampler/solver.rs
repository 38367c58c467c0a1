use super::{
    BrownianPath, FinalSigma, NoiseLevels, NoiseSchedule, SamplerKind, SamplerOptions, Spacing, StepNoise,
    TimestepSpacing,
};
use pulid_tensor::{Error, Result};

/// One network call that a [`Sampler`] asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The network's input: the noisy latents times [`Preconditioning::c_in`](super::Preconditioning::c_in), in the order given to
    /// [`Sampler::new`].
    pub x_in: Vec<f32>,
    /// The time to tell the network: [`Preconditioning::c_noise`](super::Preconditioning::c_noise).
    pub timestep: f64,
    /// The noise level of the latents.
    pub sigma: f64,
    /// The step this call belongs to, from 0.
    pub step: usize,
    /// Number of steps.
    pub steps: usize,
    /// Number of the call, from 0.
    pub call: usize,
    /// Number of calls in the whole run.
    pub calls: usize,
}

/// A diffusion sampler between two network calls.
///
/// Ask for the next call with [`Sampler::next_request`], run the network (with guidance, if any), and hand its
/// prediction to [`Sampler::advance`], until no request comes. Dropping the sampler at any time cancels the run.
///
/// Latents are kept unscaled: clean latents plus sigma times noise, f32, with each update computed in f64. Sources:
/// k-diffusion's `sample_dpmpp_2m`, `sample_dpmpp_sde` and `sample_euler`; diffusers' `DPMSolverMultistepScheduler`
/// (order 2, midpoint), whose variance-preserving form is the same DPM++ 2M under another scale; `DDIMScheduler` without noise, which
/// is Euler's method under that scale. Where these two end in a noise level, the finished latents keep that scale, as there.
pub struct Sampler {
    kind: SamplerKind,
    spacing: Spacing,
    /// Whether the solver's own latents have variance one: these over sqrt(sigma^2 + 1).
    preserving: bool,
    schedule: NoiseSchedule,
    levels: NoiseLevels,
    noise: Box<dyn StepNoise + Send>,
    latents: Vec<f32>,
    step: usize,
    call: usize,
    /// DPM++ 2M: the clean latents that the previous step predicted.
    previous: Option<Vec<f32>>,
    /// DPM++ SDE: set between the two calls of a step.
    midway: Option<Midway>,
}

/// Below this many steps diffusers' DPM-Solver ends in first order.
const SHORT_RUN: usize = 15;

struct Midway {
    sigma: f64,
    latents: Vec<f32>,
}

impl Sampler {
    /// Begins a run from standard normal `noise` (any layout, batch first), which becomes the noisiest latents.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no noise at all or a number of steps that the schedule does not have.
    pub fn new(schedule: &NoiseSchedule, options: &SamplerOptions, noise: Vec<f32>) -> Result<Self> {
        let path = BrownianPath::new(schedule, noise.len(), options.seed);
        Self::with_noise(schedule, options, noise, Box::new(path))
    }

    /// [`Sampler::new`] with the caller's own noise for the steps of stochastic solvers.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn with_noise(
        schedule: &NoiseSchedule,
        options: &SamplerOptions,
        noise: Vec<f32>,
        step_noise: Box<dyn StepNoise + Send>,
    ) -> Result<Self> {
        if noise.is_empty() {
            return Err(Error::invalid("latents", "there are none to sample; check width, height and batch"));
        }
        let mut levels = schedule.levels(options.kind, options.spacing, options.steps)?;
        if let (FinalSigma::SigmaMin, [.., before, last]) = (options.final_sigma, levels.sigmas.as_mut_slice()) {
            // Karras levels come down to the lowest one themselves.
            *last = schedule.sigma_min().min(*before);
            // DDIM may reach the end of the schedule before its last step.
            levels.targets.iter_mut().filter(|target| **target == 0.0).for_each(|target| *target = *last);
        }
        let scale = initial_scale(schedule, options.kind, options.spacing, levels.sigmas[0]);
        let latents = noise.iter().map(|&x| (f64::from(x) * scale) as f32).collect();
        Ok(Sampler {
            kind: options.kind,
            spacing: options.spacing,
            preserving: preserves_variance(options.kind, options.spacing),
            schedule: schedule.clone(),
            levels,
            noise: step_noise,
            latents,
            step: 0,
            call: 0,
            previous: None,
            midway: None,
        })
    }

    /// Begins from clean `latents`, to which so much of `noise` is added that `strength` of the steps are left to take: diffusers'
    /// image to image.
    ///
    /// # Errors
    /// As [`Sampler::new`]; for another number of latents than of noise, or a strength outside 0 to 1 or that leaves no step.
    pub fn from_latents(
        schedule: &NoiseSchedule,
        options: &SamplerOptions,
        latents: &[f32],
        noise: Vec<f32>,
        strength: f64,
    ) -> Result<Self> {
        if latents.len() != noise.len() {
            return Err(Error::invalid("latents", format!("{} for {} of noise", latents.len(), noise.len())));
        }
        if !(0.0..=1.0).contains(&strength) {
            return Err(Error::invalid("strength", format!("{strength} is not in 0 to 1")));
        }
        let mut sampler = Self::new(schedule, options, noise.clone())?;
        let left = (sampler.steps() as f64 * strength) as usize;
        if left == 0 {
            return Err(Error::invalid("strength", format!("{strength} of {} steps is none", sampler.steps())));
        }
        sampler.step = sampler.steps() - left;
        sampler.call = options.kind.calls(sampler.steps()) - options.kind.calls(left);
        sampler.latents = combine(1.0, latents, sampler.levels.sigmas[sampler.step], &noise);
        Ok(sampler)
    }

    /// The same run with other noise for the steps of stochastic solvers, one number per latent element.
    pub fn with_step_noise(self, noise: Box<dyn StepNoise + Send>) -> Self {
        Sampler { noise, ..self }
    }

    /// The steps that are left, of all that the run has.
    pub fn remaining(&self) -> std::ops::Range<usize> {
        self.step..self.steps()
    }

    /// The network call that the run needs next, or `None` when it is finished. Asking twice changes nothing.
    pub fn next_request(&self) -> Option<Request> {
        if self.step == self.steps() {
            return None;
        }
        let (sigma, timestep, latents) = match &self.midway {
            Some(midway) => (midway.sigma, self.schedule.timestep_within(self.spacing, midway.sigma), &midway.latents),
            None => (self.levels.sigmas[self.step], self.levels.timesteps[self.step], &self.latents),
        };
        let network = self.schedule.network();
        let scale = network.c_in(sigma);
        Some(Request {
            x_in: latents.iter().map(|&x| (f64::from(x) * scale) as f32).collect(),
            timestep: network.c_noise(sigma, timestep),
            sigma,
            step: self.step,
            steps: self.steps(),
            call: self.call,
            calls: self.kind.calls(self.steps()),
        })
    }

    /// Takes the network's prediction for the latest request, of the kind that the schedule's network gives, and moves on.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the run is finished or the prediction has another number of elements than the latents.
    pub fn advance(&mut self, prediction: &[f32]) -> Result<()> {
        let denoised = self.clean_latents(prediction)?;
        self.call += 1;
        let (sigma, next) = (self.levels.sigmas[self.step], self.levels.targets[self.step]);
        match self.kind {
            SamplerKind::DpmPp2M => self.multistep(denoised, sigma, next),
            SamplerKind::Euler | SamplerKind::Ddim => self.move_towards(&denoised, next / sigma),
            SamplerKind::DpmPpSde if next == 0.0 => self.latents = denoised,
            SamplerKind::DpmPpSde => return self.stochastic(&denoised, sigma, next),
        }
        self.step += 1;
        self.begin_from(next);
        Ok(())
    }

    /// Latents of variance one are taken as they are for those of the level where the next step begins, be it another one than was
    /// `reached`, and for clean ones in the end. Here the factor between both forms changes with the level.
    fn begin_from(&mut self, reached: f64) {
        let begin = if self.step == self.steps() { 0.0 } else { self.levels.sigmas[self.step] };
        if self.preserving && begin != reached {
            let factor = ((begin * begin + 1.0) / (reached * reached + 1.0)).sqrt();
            self.latents.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        }
    }

    /// The latents now; after the last step the finished ones, not yet divided by the VAE's scaling factor.
    pub fn latents(&self) -> &[f32] {
        &self.latents
    }

    /// The finished latents without a copy.
    ///
    /// # Errors
    /// [`Error::Invalid`] when steps are left.
    pub fn into_latents(self) -> Result<Vec<f32>> {
        if self.step < self.steps() {
            return Err(Error::invalid(
                "sampler",
                format!("{} of {} steps are left", self.steps() - self.step, self.steps()),
            ));
        }
        Ok(self.latents)
    }

    /// The noise levels of this run.
    pub fn levels(&self) -> &NoiseLevels {
        &self.levels
    }

    fn steps(&self) -> usize {
        self.levels.sigmas.len() - 1
    }

    /// The clean latents that a prediction for the latest request stands for.
    ///
    /// # Errors
    /// As [`Sampler::advance`].
    pub fn clean_latents(&self, prediction: &[f32]) -> Result<Vec<f32>> {
        let Some((sigma, latents)) = (match &self.midway {
            Some(midway) => Some((midway.sigma, &midway.latents)),
            None if self.step < self.steps() => Some((self.levels.sigmas[self.step], &self.latents)),
            None => None,
        }) else {
            return Err(Error::invalid("sampler", "the run is finished and takes no further prediction"));
        };
        if prediction.len() != latents.len() {
            let detail = format!("{} elements for {} latents", prediction.len(), latents.len());
            return Err(Error::invalid("prediction", detail));
        }
        let network = self.schedule.network();
        Ok(combine(network.c_skip(sigma), latents, network.c_out(sigma), prediction))
    }

    /// x <- ratio x + (1 - ratio) target: an exact step of the equation if `target` were the clean latents throughout.
    fn move_towards(&mut self, target: &[f32], ratio: f64) {
        self.latents = combine(ratio, &self.latents, 1.0 - ratio, target);
    }

    fn multistep(&mut self, denoised: Vec<f32>, sigma: f64, next: f64) {
        match &self.previous {
            // Two steps may lie at the schedule's end, where an offset leads beyond it.
            Some(previous) if !self.ends_in_first_order(next) && self.levels.sigmas[self.step - 1] > sigma => {
                let h = (sigma / next).ln();
                let before = (self.levels.sigmas[self.step - 1] / sigma).ln();
                let slope = h / (2.0 * before);
                let target = combine(1.0 + slope, &denoised, -slope, previous);
                self.move_towards(&target, next / sigma);
            }
            _ => self.move_towards(&denoised, next / sigma),
        }
        self.previous = Some(denoised);
    }

    /// A step to sigma 0 goes an infinite distance in log sigma and is of first order. So is the last step of short runs
    /// that end elsewhere: diffusers' `lower_order_final`.
    fn ends_in_first_order(&self, next: f64) -> bool {
        next == 0.0 || self.step + 1 == self.steps() && self.steps() < SHORT_RUN
    }

    /// One call of a DPM++ SDE step with eta 1 and r 1/2, whose midpoint lies halfway in log sigma.
    fn stochastic(&mut self, denoised: &[f32], sigma: f64, next: f64) -> Result<()> {
        if self.midway.is_some() {
            // With r = 1/2 this second prediction has weight 1 / (2 r) = 1, and the first one has none.
            self.latents = self.noisy_move(denoised, sigma, next)?;
            self.midway = None;
            self.step += 1;
        } else {
            let middle = (sigma * next).sqrt();
            let latents = self.noisy_move(denoised, sigma, middle)?;
            self.midway = Some(Midway { sigma: middle, latents });
        }
        Ok(())
    }

    /// The latents moved from `sigma` to `next` towards `target`, part of the way down and back up by fresh noise.
    fn noisy_move(&mut self, target: &[f32], sigma: f64, next: f64) -> Result<Vec<f32>> {
        let (down, up) = ancestral(sigma, next);
        let mut moved = combine(down / sigma, &self.latents, 1.0 - down / sigma, target);
        let noise = self.noise.between(sigma, next);
        if noise.len() != moved.len() {
            return Err(Error::invalid("step noise", format!("{} values for {} latents", noise.len(), moved.len())));
        }
        for (x, n) in moved.iter_mut().zip(noise) {
            *x = (f64::from(*x) + up * n) as f32;
        }
        Ok(moved)
    }
}

/// What the noise is multiplied with to become the first latents.
///
/// k-diffusion multiplies by sigma, and so does diffusers' Euler from the last training timestep. diffusers' DPM-Solver starts its
/// variance-preserving latents as the noise itself, which is sqrt(sigma^2 + 1) here: 0.2 % more at SDXL's highest noise level. So do
/// DDIM, and Euler with leading timesteps (`init_noise_sigma`).
fn initial_scale(schedule: &NoiseSchedule, kind: SamplerKind, spacing: Spacing, sigma: f64) -> f64 {
    let begins_preserving = match spacing {
        Spacing::Leading => true,
        Spacing::KarrasDiffusers | Spacing::ExponentialDiffusers | Spacing::BetaDiffusers => {
            schedule.spacing == TimestepSpacing::Leading
        }
        Spacing::Karras | Spacing::Exponential | Spacing::Beta | Spacing::Trailing | Spacing::Linspace => false,
    };
    if begins_preserving || preserves_variance(kind, spacing) { (sigma * sigma + 1.0).sqrt() } else { sigma }
}

/// Whether a solver is one of diffusers' whose latents have variance one; k-diffusion's have clean latents plus sigma times noise.
fn preserves_variance(kind: SamplerKind, spacing: Spacing) -> bool {
    match kind {
        SamplerKind::Ddim => true,
        SamplerKind::DpmPp2M => !matches!(spacing, Spacing::Karras | Spacing::Exponential | Spacing::Beta),
        SamplerKind::DpmPpSde | SamplerKind::Euler => false,
    }
}

/// The level to step down to and the noise to add, so that together they give `next` (eta 1).
fn ancestral(sigma: f64, next: f64) -> (f64, f64) {
    let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt().min(next);
    ((next * next - up * up).max(0.0).sqrt(), up)
}

/// a x + b y in f64, rounded once.
fn combine(a: f64, x: &[f32], b: f64, y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(&x, &y)| (a * f64::from(x) + b * f64::from(y)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::TorchGenerator;
    use crate::sampler::{PredictionType, SchedulerConfig};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        sampler: SamplerKind,
        spacing: Spacing,
        prediction_type: PredictionType,
        steps: usize,
        noise: Vec<f32>,
        latents: Vec<f32>,
        timesteps: Vec<f64>,
    }

    /// The toy network of the generator script: it depends on element, level and timestep without being linear.
    fn toy(request: &Request) -> Vec<f32> {
        let gain = 0.9 - 0.0003 * request.timestep;
        let one = |(i, &x): (usize, &f32)| ((1.1 * f64::from(x) + 0.3 * (i as f64).sin()).tanh() * gain) as f32;
        request.x_in.iter().enumerate().map(one).collect()
    }

    struct Formula;

    impl StepNoise for Formula {
        fn between(&mut self, sigma: f64, next: f64) -> Vec<f64> {
            let phase = 3.1 * sigma.ln() + 1.7 * next.ln();
            (1..=8).map(|i| 1.3 * (12.9898 * f64::from(i) + phase).sin()).collect()
        }
    }

    fn sdxl() -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig::default()).unwrap()
    }

    fn run(mut sampler: Sampler, mut network: impl FnMut(&Request) -> Vec<f32>) -> Vec<f32> {
        while let Some(request) = sampler.next_request() {
            sampler.advance(&network(&request)).unwrap();
        }
        sampler.into_latents().unwrap()
    }

    #[test]
    fn latents_are_those_of_diffusers_and_k_diffusion() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/data/samplers.json")).unwrap();
        assert!(goldens.len() >= 10);
        for golden in goldens {
            let options =
                SamplerOptions { spacing: golden.spacing, ..SamplerOptions::new(golden.sampler, golden.steps) };
            let config = SchedulerConfig { prediction_type: golden.prediction_type, ..Default::default() };
            let schedule = NoiseSchedule::new(&config).unwrap();
            let sampler = Sampler::with_noise(&schedule, &options, golden.noise, Box::new(Formula)).unwrap();
            let mut timesteps = Vec::new();
            let latents = run(sampler, |request| {
                assert_eq!((request.call, request.calls), (timesteps.len(), golden.timesteps.len()));
                timesteps.push(request.timestep);
                toy(request)
            });
            let name = format!("{} {} {}", golden.sampler, golden.spacing, golden.steps);
            assert_eq!(timesteps, golden.timesteps, "{name}");
            for (i, (ours, theirs)) in latents.iter().zip(&golden.latents).enumerate() {
                // diffusers keeps sigmas and latents in f32, which leaves about 1e-6 of relative error a step.
                assert!((ours - theirs).abs() < 3e-5, "{name}[{i}]: {ours} for {theirs}");
            }
        }
    }

    /// Latents drawn from a normal distribution of this deviation have a known best prediction.
    const DEVIATION: f64 = 0.7;

    fn gaussian(request: &Request) -> Vec<f32> {
        let s2 = request.sigma * request.sigma;
        let scale = (request.sigma * (s2 + 1.0).sqrt() / (s2 + DEVIATION * DEVIATION)) as f32;
        request.x_in.iter().map(|x| x * scale).collect()
    }

    #[test]
    fn every_sampler_draws_a_gaussian_with_its_variance() {
        for kind in SamplerKind::ALL {
            // Euler's error falls with the first power of the number of steps only.
            let steps = if matches!(kind, SamplerKind::Euler | SamplerKind::Ddim) { 150 } else { 30 };
            let options = SamplerOptions { seed: 2, spacing: Spacing::Karras, ..SamplerOptions::new(kind, steps) };
            let sampler = Sampler::new(&sdxl(), &options, TorchGenerator::new(1).randn(16384)).unwrap();
            let latents = run(sampler, gaussian);
            let square = latents.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / latents.len() as f64;
            assert!((square.sqrt() - DEVIATION).abs() < 0.02, "{kind}: {}", square.sqrt());
        }
    }

    #[test]
    fn stochastic_runs_of_different_length_approach_one_image() {
        let latents = |steps, seed| {
            let options = SamplerOptions { seed, ..SamplerOptions::new(SamplerKind::DpmPpSde, steps) };
            run(Sampler::new(&sdxl(), &options, TorchGenerator::new(1).randn(1024)).unwrap(), gaussian)
        };
        let distance = |a: &[f32], b: &[f32]| {
            (a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
        };
        let best = latents(300, 5);
        let (coarse, fine) = (distance(&latents(20, 5), &best), distance(&latents(80, 5), &best));
        let other = distance(&latents(300, 6), &best);
        assert!(fine < 0.5 * coarse && coarse < 0.6 * other, "20 steps {coarse}, 80 steps {fine}, other seed {other}");
    }

    #[test]
    fn a_run_from_latents_takes_the_last_steps() {
        let options = SamplerOptions::new(SamplerKind::Euler, 10);
        let start = |strength| Sampler::from_latents(&sdxl(), &options, &[0.5; 4], vec![1.0, -1.0, 0.0, 2.0], strength);
        let sampler = start(0.35).unwrap();
        assert_eq!(sampler.remaining(), 7..10);
        let sigma = sampler.levels().sigmas[7];
        assert_eq!(
            sampler.next_request().map(|r| (r.step, r.steps, r.call, r.calls, r.sigma)),
            Some((7, 10, 7, 10, sigma))
        );
        assert!((f64::from(sampler.latents()[3]) - (0.5 + 2.0 * sigma)).abs() < 1e-6);
        // A network that sees the clean latents through any noise gives them back.
        let seeing = |r: &Request| {
            let noisy = r.x_in.iter().map(|&x| f64::from(x) * (r.sigma * r.sigma + 1.0).sqrt());
            noisy.map(|x| ((x - 0.5) / r.sigma) as f32).collect()
        };
        assert!(run(start(0.35).unwrap(), seeing).iter().all(|x| (x - 0.5).abs() < 1e-5));
        // Nothing in, all of the schedule: noise alone.
        let noise = vec![1.0, -1.0, 0.0, 2.0];
        let whole = Sampler::from_latents(&sdxl(), &options, &[0.0; 4], noise.clone(), 1.0).unwrap();
        assert_eq!(whole.latents(), Sampler::new(&sdxl(), &options, noise).unwrap().latents());
        assert!([0.05, -0.1, 1.1, f64::NAN].into_iter().all(|strength| start(strength).is_err()));
    }

    #[test]
    fn misuse_is_an_error() {
        let schedule = sdxl();
        let options = SamplerOptions::new(SamplerKind::DpmPpSde, 1);
        assert!(Sampler::new(&schedule, &options, vec![]).is_err());
        let mut sampler = Sampler::new(&schedule, &options, vec![1.0; 4]).unwrap();
        assert!(sampler.advance(&[0.0; 3]).is_err());
        assert_eq!(sampler.next_request(), sampler.next_request());
        sampler.advance(&[0.0; 4]).unwrap();
        assert_eq!(sampler.next_request(), None);
        assert!(sampler.advance(&[0.0; 4]).is_err());
        let unfinished = Sampler::new(&schedule, &options, vec![1.0; 4]).unwrap();
        assert!(unfinished.into_latents().is_err());
        struct Short;
        impl StepNoise for Short {
            fn between(&mut self, _: f64, _: f64) -> Vec<f64> {
                vec![0.0]
            }
        }
        let options = SamplerOptions::new(SamplerKind::DpmPpSde, 2);
        let mut sampler = Sampler::with_noise(&schedule, &options, vec![1.0; 4], Box::new(Short)).unwrap();
        assert!(sampler.advance(&[0.0; 4]).is_err());
    }
}
