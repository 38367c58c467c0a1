//! How much work one submission holds: long enough to hide what a submission costs, short enough for progress, cancel and drivers'
//! watchdogs (two seconds and more).

use crate::DeviceOptions;
use pulid_ops::DeviceKind;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Seconds of a submission that change nothing.
const FEW_SECONDS: f64 = 0.02;
const MANY_SECONDS: f64 = 0.1;
/// Seconds that a change aims at.
const WANTED_SECONDS: f64 = 0.05;
/// Least and most floating-point operations of a portion.
const LEAST: u64 = 1_000_000_000;
const MOST: u64 = 20_000_000_000_000;

/// Floating-point operations that submissions of a device hold, as its sessions found by their time.
#[derive(Debug)]
pub(crate) struct Portion {
    flops: AtomicU64,
    /// It stays as it is.
    fixed: bool,
    /// Submissions that are under way at a time.
    pub in_flight: usize,
}

impl Portion {
    pub fn new(kind: DeviceKind, options: &DeviceOptions) -> Portion {
        let (flops, fixed) = match (options.submission_flops, kind) {
            (Some(flops), _) => (flops, true),
            // A tenth of a second at 40 GFLOP/s, which two cores reach. Drivers there compile within submissions, whose time says
            // little then.
            (None, DeviceKind::Cpu) => (4_000_000_000, true),
            // A tenth of a second at 2 TFLOP/s, to begin with.
            (None, DeviceKind::Discrete) => (200_000_000_000, false),
            (None, _) => (100_000_000_000, false),
        };
        // The host's part of a submission takes the very cores of a CPU device.
        let in_flight = if kind == DeviceKind::Cpu && options.submission_flops.is_none() { 1 } else { 3 };
        Portion { flops: AtomicU64::new(flops), fixed, in_flight }
    }

    pub fn flops(&self) -> u64 {
        self.flops.load(Relaxed)
    }

    /// Takes note of a submission that was over after these seconds.
    pub fn measured(&self, submitted: u64, seconds: f64) {
        if !self.fixed {
            self.flops.store(adapted(self.flops(), submitted, seconds), Relaxed);
        }
    }
}

/// The portion to go on with, after so many operations took so long. What a network's end left short says nothing against more.
fn adapted(portion: u64, submitted: u64, seconds: f64) -> u64 {
    let short = seconds < FEW_SECONDS && submitted >= portion;
    if !short && seconds <= MANY_SECONDS {
        return portion;
    }
    let wanted = submitted as f64 * (WANTED_SECONDS / seconds.max(1e-6));
    // Work differs in how many operations it does in a second: no change is trusted further than this.
    let (least, most) = if short { (portion, portion.saturating_mul(4)) } else { (portion / 8, portion) };
    (wanted as u64).clamp(least, most).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The portion after so many submissions at that speed, and the seconds that one takes then.
    fn settled(mut portion: u64, flops_a_second: f64, submissions: usize) -> (u64, f64) {
        for _ in 0..submissions {
            portion = adapted(portion, portion, portion as f64 / flops_a_second);
        }
        (portion, portion as f64 / flops_a_second)
    }

    #[test]
    fn portions_follow_the_device() {
        let start = Portion::new(DeviceKind::Discrete, &DeviceOptions::default()).flops();
        for speed in [5e11, 2e12, 2e13, 1e14] {
            let (portion, seconds) = settled(start, speed, 4);
            assert!((FEW_SECONDS..=MANY_SECONDS).contains(&seconds), "{speed}: {portion} in {seconds} s");
            assert_eq!(settled(portion, speed, 1).0, portion, "it stays");
        }
        assert_eq!(settled(start, 1e3, 20).0, LEAST);
        assert_eq!(settled(start, 1e18, 20).0, MOST);
    }

    #[test]
    fn one_measurement_moves_a_portion_only_so_far() {
        assert_eq!(adapted(200 << 30, 200 << 30, 1e-4), 800 << 30);
        assert_eq!(adapted(200 << 30, 200 << 30, 100.0), 25 << 30);
        assert_eq!(adapted(200 << 30, 200 << 30, 0.0), 800 << 30);
        // The end of a network, and one step that is more than a portion.
        assert_eq!(adapted(200 << 30, 1 << 30, 1e-3), 200 << 30);
        assert_eq!(adapted(200 << 30, 1 << 30, 0.2), 25 << 30);
        assert_eq!(adapted(200 << 30, 800 << 30, 0.2), 200 << 30);
        assert_eq!(adapted(200 << 30, 800 << 30, 0.01), 800 << 30);
    }

    #[test]
    fn cpu_devices_and_asked_for_portions_stay() {
        let cpu = Portion::new(DeviceKind::Cpu, &DeviceOptions::default());
        cpu.measured(cpu.flops(), 1e-3);
        assert_eq!((cpu.flops(), cpu.in_flight), (4_000_000_000, 1));
        let options = DeviceOptions { submission_flops: Some(5), ..DeviceOptions::default() };
        let fixed = Portion::new(DeviceKind::Discrete, &options);
        fixed.measured(5, 1e-3);
        assert_eq!((fixed.flops(), fixed.in_flight), (5, 3));
    }
}
