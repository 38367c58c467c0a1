use super::Mt19937;

/// Elements of one block of PyTorch's vectorised normal transform.
const BLOCK: usize = 16;

/// Normal and uniform draws of `torch.Generator(device="cpu").manual_seed(seed)`.
///
/// Consecutive calls share the state just as calls with one `torch.Generator` do. The words are PyTorch's exactly; a
/// normal may differ in the last bits, because PyTorch evaluates its logarithm and sine by vectorised polynomials
/// that change with the processor. Source: PyTorch's `MT19937RNGEngine.h` and `DistributionTemplates.h`.
#[derive(Clone)]
pub struct TorchGenerator {
    engine: Mt19937,
    /// The sine half of the last scalar Box-Muller pair; only draws of fewer than 16 numbers make or use it.
    spare: Option<f64>,
}

impl TorchGenerator {
    /// The state after `manual_seed(seed)`. Only the low 32 bits count, as in PyTorch.
    pub fn new(seed: u64) -> Self {
        TorchGenerator { engine: Mt19937::new(seed as u32), spare: None }
    }

    /// The next 32-bit word.
    pub fn next_u32(&mut self) -> u32 {
        self.engine.next_u32()
    }

    /// The next 64-bit word: two 32-bit words, the first one high.
    pub fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.engine.next_u32());
        high << 32 | u64::from(self.engine.next_u32())
    }

    /// A uniform number in [0, 1) with 24 random bits, as `torch.rand` draws in float32.
    pub fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// A uniform number in [0, 1) with 53 random bits, as `torch.rand` draws in float64.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// `torch.randn(count)` in float32: standard normal numbers.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        self.fill_randn(&mut values);
        values
    }

    /// Overwrites `values` with what `torch.randn(values.len())` gives in float32.
    ///
    /// The length matters: fewer than 16 numbers come from another transform than 16 and more, and where it is not a
    /// multiple of 16 the last 16 numbers are drawn a second time.
    pub fn fill_randn(&mut self, values: &mut [f32]) {
        if values.len() < BLOCK {
            for value in values {
                *value = self.scalar_normal() as f32;
            }
            return;
        }
        for value in values.iter_mut() {
            *value = self.uniform_f32();
        }
        for block in values.chunks_exact_mut(BLOCK) {
            normal_block(block);
        }
        if !values.len().is_multiple_of(BLOCK) {
            let tail = values.len() - BLOCK;
            for value in &mut values[tail..] {
                *value = self.uniform_f32();
            }
            normal_block(&mut values[tail..]);
        }
    }

    fn scalar_normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

/// Box-Muller on 16 uniform numbers in place: element j pairs with element j + 8.
///
/// Intermediates are rounded to f32 where PyTorch rounds them; the functions themselves are taken in f64.
fn normal_block(block: &mut [f32]) {
    for j in 0..BLOCK / 2 {
        let u1 = 1.0 - block[j];
        let log = f64::from(u1).ln() as f32;
        let radius = (-2.0 * log).sqrt();
        let theta = std::f32::consts::TAU * block[j + 8];
        let (sin, cos) = f64::from(theta).sin_cos();
        block[j] = radius * cos as f32;
        block[j + 8] = radius * sin as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Draws {
        seed: u64,
        counts: Vec<usize>,
        /// For each draw: up to 40 values from its beginning and its last 17.
        head: Vec<Vec<f32>>,
        tail: Vec<Vec<f32>>,
        /// Sum of each draw in f64, which sees every element.
        sum: Vec<f64>,
    }

    #[test]
    fn consecutive_draws_are_pytorch_s() {
        let golden: Vec<Draws> = serde_json::from_str(include_str!("../../tests/data/randn.json")).unwrap();
        assert!(golden.len() >= 4);
        for case in golden {
            let mut generator = TorchGenerator::new(case.seed);
            for (i, &count) in case.counts.iter().enumerate() {
                let draw = generator.randn(count);
                let name = format!("seed {} draw {i} of {count}", case.seed);
                let head = draw.iter().zip(&case.head[i]);
                let tail = draw.iter().rev().zip(case.tail[i].iter().rev());
                for (ours, theirs) in head.chain(tail) {
                    assert!((ours - theirs).abs() <= 1e-6 * theirs.abs().max(1.0), "{name}: {ours} for {theirs}");
                }
                let sum: f64 = draw.iter().map(|&x| f64::from(x)).sum();
                assert!(
                    (sum - case.sum[i]).abs() < 1e-7 * count as f64 + 1e-6,
                    "{name}: sum {sum} for {}",
                    case.sum[i]
                );
            }
        }
    }

    #[test]
    fn only_the_low_word_of_the_seed_counts() {
        let a = TorchGenerator::new(7).randn(20);
        assert_eq!(a, TorchGenerator::new(7 + (1 << 32)).randn(20));
        assert_ne!(a, TorchGenerator::new(8).randn(20));
    }

    #[test]
    fn large_draws_have_unit_variance() {
        let draw = TorchGenerator::new(1).randn(100_003);
        let n = draw.len() as f64;
        let mean = draw.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = draw.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
