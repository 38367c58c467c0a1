//! Diffusion samplers as state machines: the caller runs the network, the sampler does the arithmetic between calls.
//!
//! ```
//! use pulid::{random::TorchGenerator, sampler::{NoiseSchedule, Sampler, SamplerKind, SamplerOptions, SchedulerConfig}};
//!
//! let schedule = NoiseSchedule::new(&SchedulerConfig::default())?;
//! let options = SamplerOptions { seed: 7, ..SamplerOptions::new(SamplerKind::DpmPp2M, 4) };
//! let mut sampler = Sampler::new(&schedule, &options, TorchGenerator::new(7).randn(64))?;
//! while let Some(request) = sampler.next_request() {
//!     let epsilon = request.x_in.iter().map(|x| 0.5 * x).collect::<Vec<_>>(); // a network would stand here
//!     sampler.advance(&epsilon)?;
//! }
//! assert_eq!(sampler.latents().len(), 64);
//! # Ok::<(), pulid_tensor::Error>(())
//! ```

mod beta;
mod brownian;
mod classes;
mod config;
mod levels;
pub(crate) mod names;
mod options;
mod preconditioning;
mod schedule;
mod solver;
mod window;

pub use brownian::{BrownianPath, StepNoise};
pub use config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};
pub use levels::NoiseLevels;
pub use options::{FinalSigma, SamplerKind, SamplerOptions, Spacing};
pub use preconditioning::{Epsilon, Preconditioning, Velocity};
pub use schedule::NoiseSchedule;
pub use solver::{Request, Sampler};
pub use window::StepWindow;
