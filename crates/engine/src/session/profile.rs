//! Where the time of a network goes, and that of several.

use super::{Session, encode};
use crate::time::Instant;
use crate::timing::Clock;
use crate::{Device, Silent};
use pulid_ops::DeviceKind;
use pulid_tensor::Result;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Time of one operator of a plan.
#[derive(Clone, Debug, serde::Serialize)]
pub struct StepProfile {
    /// Place in the network.
    pub label: String,
    /// Operator and attributes.
    pub operator: String,
    /// Kernel variant.
    pub variant: &'static str,
    /// Median time in seconds; submission included where the device's clock does not tell.
    pub seconds: f64,
    /// Work.
    pub cost: pulid_ops::Cost,
}

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
    /// From here on sessions run as [`Session::profile`] times each operator, which takes longer.
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

impl Session {
    /// Times each operator, `repeats` times after one warm-up: by the device's own clock, in the order and company of a call, where
    /// it was opened for that ([`DeviceOptions::timestamps`](crate::DeviceOptions)) and no weights stream; else alone, each waited for.
    /// Inputs hold whatever was written last.
    ///
    /// # Errors
    /// A lost device.
    pub async fn profile(&mut self, repeats: usize) -> Result<Vec<StepProfile>> {
        self.run(&Silent).await?;
        self.profile_steps(0..self.steps.len(), repeats).await
    }

    /// [`Session::profile`] of some steps, without the warm-up.
    pub(super) async fn profile_steps(&self, range: Range<usize>, repeats: usize) -> Result<Vec<StepProfile>> {
        let needed: Vec<usize> = range.filter(|&i| self.is_needed(&self.plan.steps[i])).collect();
        let clocked = self.device.capabilities().kind != DeviceKind::Cpu && self.plan.stages.is_empty();
        let clock = if clocked { Clock::new(&self.device, Clock::MOST).await? } else { None };
        let mut seconds = vec![Vec::with_capacity(repeats); needed.len()];
        if let Some(clock) = clock {
            for _ in 0..repeats.max(1) {
                let mut done = 0;
                while done < needed.len() {
                    let times = self.clocked(&needed[done..], &clock).await?;
                    times.iter().zip(&mut seconds[done..]).for_each(|(time, all)| all.push(*time));
                    done += times.len();
                }
            }
        } else {
            for (&i, seconds) in needed.iter().zip(&mut seconds) {
                self.upload_at(&self.plan.stages, i);
                for _ in 0..repeats.max(1) {
                    let start = Instant::now();
                    self.submit(&self.steps[i]).await?;
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
        }
        let profile = |(&i, mut seconds): (&usize, Vec<f64>)| {
            let step = &self.plan.steps[i];
            seconds.sort_by(f64::total_cmp);
            StepProfile {
                label: step.label.clone(),
                operator: step.operator.clone(),
                variant: step.variant,
                seconds: seconds[seconds.len() / 2],
                cost: step.cost,
            }
        };
        Ok(needed.iter().zip(seconds).map(profile).collect())
    }

    /// Runs the first of these steps, as many as make a submission, each in a pass of its own; their seconds by the device's clock.
    async fn clocked(&self, steps: &[usize], clock: &Clock) -> Result<Vec<f64>> {
        let mut flops = 0;
        let mut count = 0;
        while count < steps.len().min(Clock::MOST) && flops < self.device.inner.portion.flops() {
            flops += self.steps[steps[count]].flops;
            count += 1;
        }
        let submission = self.device.scoped(|| {
            let mut encoder = self.device.inner.device.create_command_encoder(&Default::default());
            for (pass, &i) in steps[..count].iter().enumerate() {
                let timestamp_writes = Some(clock.around(pass));
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
                encode(&mut encoder.begin_compute_pass(&descriptor), &self.steps[i]);
            }
            clock.resolve(&mut encoder, count);
            self.device.inner.queue.submit([encoder.finish()]);
            Ok(())
        });
        submission.await?;
        self.device.finished().await?;
        clock.read(&self.device, count).await
    }
}
