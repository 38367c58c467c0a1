//! Random numbers that depend on nothing but what they are for, so that a resumed run draws what an unbroken one would have drawn.

use pulid::random::TorchGenerator;
use sha2::{Digest, Sha256};

/// Draws by (seed, step, sample, purpose).
#[derive(Clone, Copy, Debug)]
pub struct Keyed {
    seed: u64,
}

impl Keyed {
    /// All draws of a run.
    pub fn new(seed: u64) -> Keyed {
        Keyed { seed }
    }

    fn bits(self, step: u64, sample: usize, purpose: &str) -> u64 {
        let hash = Sha256::digest(format!("{}/{step}/{sample}/{purpose}", self.seed));
        hash[..8].iter().fold(0, |bits, &byte| bits << 8 | u64::from(byte))
    }

    /// A uniform number in [0, 1).
    pub fn uniform(self, step: u64, sample: usize, purpose: &str) -> f64 {
        (self.bits(step, sample, purpose) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A uniform whole number below `count`; 0 where there is none.
    pub fn below(self, step: u64, sample: usize, purpose: &str, count: usize) -> usize {
        let place = (self.uniform(step, sample, purpose) * count as f64) as usize;
        place.min(count.saturating_sub(1))
    }

    /// Standard normal numbers.
    pub fn normal(self, step: u64, sample: usize, purpose: &str, count: usize) -> Vec<f32> {
        TorchGenerator::new(self.bits(step, sample, purpose)).randn(count)
    }

    /// The order in which an epoch takes `count` items.
    pub fn order(self, epoch: u64, purpose: &str, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        let mut generator = TorchGenerator::new(self.bits(epoch, 0, purpose));
        for last in (1..count).rev() {
            let place = (generator.uniform_f64() * (last + 1) as f64) as usize;
            order.swap(last, place.min(last));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_each_part_of_their_key_and_on_nothing_else() {
        let keyed = Keyed::new(7);
        let drawn = keyed.normal(3, 1, "noise", 64);
        assert_eq!(drawn, Keyed::new(7).normal(3, 1, "noise", 64));
        for other in [
            Keyed::new(8).normal(3, 1, "noise", 64),
            keyed.normal(4, 1, "noise", 64),
            keyed.normal(3, 2, "noise", 64),
            keyed.normal(3, 1, "latents", 64),
        ] {
            assert_ne!(drawn, other);
        }
    }

    #[test]
    fn an_epoch_takes_each_item_once() {
        let keyed = Keyed::new(1);
        let mut order = keyed.order(0, "order", 50);
        assert_ne!(order, keyed.order(1, "order", 50));
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
        assert!(keyed.order(0, "order", 0).is_empty());
        let mean = (0..1000).map(|step| keyed.uniform(step, 0, "x")).sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        assert!((0..200).all(|step| keyed.below(step, 0, "x", 3) < 3));
    }
}
