//! Training PuLID: what changes are the identity encoder and the identity attention's projections; every other network is frozen.
//!
//! [`data`] lists images, [`prepare`] makes a [`cache`] of what of them does not change, [`Trainer`] trains on it, and [`run`] keeps what
//! comes out. A loss is a term ([`terms`]): it reads the identity's keys and values and gives its gradients in them, so that the UNet holds
//! nothing that is trained and the adapter's own gradients run once for all terms.

mod adapter;
mod average;
mod batch;
mod branch;
mod buckets;
pub mod cache;
pub mod data;
mod drive;
mod face;
mod initial;
mod losses;
mod memory;
mod objective;
mod one_step;
mod optimizer;
mod options;
mod packs;
mod plan;
mod prepare;
mod random;
pub mod run;
mod samples;
mod tensorboard;
pub mod terms;
mod trainer;
mod worker;

pub use batch::{Batch, People};
pub use branch::{EulerStep, Micro};
pub use buckets::{Size, buckets, nearest};
pub use drive::{Dry, Finished, Progress, Run, Stopped, Watcher, check_branch, check_data, reopen};
pub use initial::write_untrained;
pub use losses::{LossSums, Mean};
pub use objective::{BranchOptions, OneStepOptions, Weights};
pub use optimizer::{LossScale, Moments, ParameterState, Rule};
pub use options::{Pair, Recompute, Schedule, TrainOptions};
pub use plan::{Plan, plan_on};
pub use prepare::{Prepared, Preparing, prepare};
pub use run::Metrics;
pub use samples::Sampling;
pub use trainer::{Exported, Trainer, check_devices};
pub use worker::{Request, Response, Worker};
