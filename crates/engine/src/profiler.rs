//! Where the time of several networks goes.

use crate::{Device, StepProfile};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The operators that ran on a device, while somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Profiler {
    on: AtomicBool,
    profiles: Mutex<Vec<(String, StepProfile)>>,
}

impl Profiler {
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    pub fn add(&self, network: &str, steps: Vec<StepProfile>) {
        let mut profiles = self.profiles.lock().unwrap_or_else(PoisonError::into_inner);
        profiles.extend(steps.into_iter().map(|step| (network.to_owned(), step)));
    }
}

impl Device {
    /// From here on every run of a session is made twice, the second time as [`Session::profile`](crate::Session::profile) times each operator.
    pub fn start_profile(&self) {
        self.inner.profiler.on.store(true, Relaxed);
    }

    /// The operators that ran since [`Device::start_profile`], in their order, each with its network's name; no more are timed. Prologues are
    /// left out.
    pub fn finish_profile(&self) -> Vec<(String, StepProfile)> {
        self.inner.profiler.on.store(false, Relaxed);
        std::mem::take(&mut self.inner.profiler.profiles.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
