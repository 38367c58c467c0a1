use super::NoiseSchedule;
use crate::random::TorchGenerator;
use std::ops::Range;

/// Noise that a stochastic solver adds between two noise levels.
pub trait StepNoise {
    /// Standard normal numbers, one per latent element, for the move from `sigma` down to `sigma_next`.
    ///
    /// Moves over parts of the schedule that do not overlap must get independent numbers.
    fn between(&mut self, sigma: f64, sigma_next: f64) -> Vec<f64>;
}

/// Halvings of the schedule: the finest interval is 2^-18 of it, a hundred times less than one training timestep.
const DEPTH: u32 = 18;

/// A Brownian path over log sigma, one per latent element, that exists in all its detail before anybody looks.
///
/// Time is log sigma, from the schedule's lowest level (where the path is 0) to its highest. Its value at a time comes
/// from halving this interval towards it; the midpoint of each interval is a Brownian bridge whose noise depends on
/// the seed and on the interval alone. So the path depends neither on where it is read nor on how often, and runs
/// with different numbers of steps follow one path. Below the last halving it is a straight line.
pub struct BrownianPath {
    seed: u64,
    /// Elements that are drawn.
    count: usize,
    /// Those that are kept.
    part: Range<usize>,
    start: f64,
    span: f64,
    /// The two latest reads, the last one first: the moves of a step share their beginning, and steps share ends.
    recent: Vec<(f64, Vec<f64>)>,
}

impl BrownianPath {
    /// A path of `count` elements over the noise levels of `schedule`.
    pub fn new(schedule: &NoiseSchedule, count: usize, seed: u64) -> Self {
        Self::of_part(schedule, count, 0..count, seed)
    }

    /// A part of the elements of a path of `count`: one image of a batch, as it is in the whole.
    pub fn of_part(schedule: &NoiseSchedule, count: usize, part: Range<usize>, seed: u64) -> Self {
        let (start, end) = (schedule.sigma_min().ln(), schedule.sigma_max().ln());
        let part = part.start.min(count)..part.end.min(count);
        BrownianPath { seed, count, part, start, span: end - start, recent: Vec::new() }
    }

    /// The path at a noise level; the difference of two values has variance |log(sigma_a / sigma_b)|.
    ///
    /// Levels outside the schedule give its nearer end.
    pub fn value(&mut self, sigma: f64) -> Vec<f64> {
        let time = ((sigma.ln() - self.start) / self.span).clamp(0.0, 1.0);
        let read = match self.recent.iter().position(|(at, _)| *at == time) {
            Some(known) => self.recent.remove(known),
            None => (time, self.descend(time)),
        };
        let value = read.1.clone();
        self.recent.insert(0, read);
        self.recent.truncate(2);
        value
    }

    fn descend(&self, time: f64) -> Vec<f64> {
        let mut left = vec![0.0; self.part.len()];
        let mut right = self.noise(0);
        scale(&mut right, self.span.sqrt());
        let (mut low, mut width) = (0.0, 1.0);
        // Intervals are numbered as in a heap: 1 is the whole, 2 n and 2 n + 1 are the halves of n; 0 is the end.
        let mut node = 1u64;
        for _ in 0..DEPTH {
            let deviation = 0.5 * (self.span * width).sqrt();
            let mut middle = self.noise(node);
            for ((m, l), r) in middle.iter_mut().zip(&left).zip(&right) {
                *m = 0.5 * (l + r) + deviation * *m;
            }
            width *= 0.5;
            if time < low + width {
                right = middle;
                node *= 2;
            } else {
                left = middle;
                low += width;
                node = 2 * node + 1;
            }
        }
        let part = (time - low) / width;
        for (l, r) in left.iter_mut().zip(&right) {
            *l += part * (r - *l);
        }
        left
    }

    fn noise(&self, node: u64) -> Vec<f64> {
        let word = scramble(self.seed ^ scramble(node));
        let drawn = TorchGenerator::new(word).randn(self.count);
        drawn.get(self.part.clone()).unwrap_or_default().iter().copied().map(f64::from).collect()
    }
}

impl StepNoise for BrownianPath {
    fn between(&mut self, sigma: f64, sigma_next: f64) -> Vec<f64> {
        let from = self.value(sigma);
        let mut to = self.value(sigma_next);
        let deviation = (sigma / sigma_next).ln().abs().sqrt();
        for (t, f) in to.iter_mut().zip(&from) {
            *t = if deviation > 0.0 { (*t - f) / deviation } else { 0.0 };
        }
        to
    }
}

fn scale(values: &mut [f64], factor: f64) {
    for value in values {
        *value *= factor;
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): neighbouring inputs give unrelated outputs.
fn scramble(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{SamplerKind, SchedulerConfig, Spacing};
    use proptest::prelude::*;

    fn schedule() -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig::default()).unwrap()
    }

    fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        (mean, values.map(|x| (x - mean) * (x - mean)).sum::<f64>() / n)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn increments_add_up(mut s in proptest::array::uniform3(0.03f64..14.6), seed: u64) {
            s.sort_by(|a, b| b.total_cmp(a));
            prop_assume!(s[0] > s[1] && s[1] > s[2]);
            let move_of = |a: f64, b: f64| -> Vec<f64> {
                // A fresh path per move: nothing may depend on the order of reads.
                let noise = BrownianPath::new(&schedule(), 20, seed).between(a, b);
                noise.into_iter().map(|x| x * (a / b).ln().sqrt()).collect()
            };
            let (first, second, both) = (move_of(s[0], s[1]), move_of(s[1], s[2]), move_of(s[0], s[2]));
            for i in 0..20 {
                prop_assert!((first[i] + second[i] - both[i]).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn reads_do_not_change_the_path() {
        let schedule = schedule();
        let mut path = BrownianPath::new(&schedule, 16, 3);
        let direct = path.value(1.5);
        for steps in [3, 7, 50] {
            for sigma in schedule.levels(SamplerKind::DpmPpSde, Spacing::Karras, steps).unwrap().sigmas {
                path.value(sigma.max(1e-3));
            }
        }
        assert_eq!(path.value(1.5), direct);
        assert_ne!(BrownianPath::new(&schedule, 16, 4).value(1.5), direct);
    }

    #[test]
    fn moves_are_standard_normal_and_independent() {
        let schedule = schedule();
        let mut path = BrownianPath::new(&schedule, 16384, 11);
        let levels = schedule.levels(SamplerKind::DpmPpSde, Spacing::Karras, 8).unwrap().sigmas;
        let moves: Vec<Vec<f64>> = levels[..8].windows(2).map(|w| path.between(w[0], w[1])).collect();
        for (i, a) in moves.iter().enumerate() {
            let (mean, variance) = moments(a.iter().copied());
            assert!(mean.abs() < 0.04 && (variance - 1.0).abs() < 0.05, "move {i}: {mean} {variance}");
            for b in &moves[..i] {
                let (covariance, _) = moments(a.iter().zip(b).map(|(x, y)| x * y));
                assert!(covariance.abs() < 0.04, "move {i}: {covariance}");
            }
        }
        // Neighbouring elements are independent, too.
        let (covariance, _) = moments(moves[0].windows(2).map(|w| w[0] * w[1]));
        assert!(covariance.abs() < 0.04, "{covariance}");
    }

    #[test]
    fn the_finest_moves_keep_their_variance() {
        let schedule = schedule();
        let mut path = BrownianPath::new(&schedule, 4096, 5);
        let s = schedule.sigmas();
        let (_, variance) = moments(path.between(s[999], s[998]).into_iter());
        assert!((variance - 1.0).abs() < 0.1, "{variance}");
    }

    #[test]
    fn a_batch_begins_with_the_path_of_a_single_image() {
        let schedule = schedule();
        let single = BrownianPath::new(&schedule, 64, 9).value(2.0);
        let both = BrownianPath::new(&schedule, 128, 9).value(2.0);
        assert_eq!(both[..64], single);
        assert_eq!(BrownianPath::of_part(&schedule, 128, 64..128, 9).value(2.0), both[64..]);
    }
}
