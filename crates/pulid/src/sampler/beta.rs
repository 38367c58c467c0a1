//! The beta distribution of `beta` noise levels.

/// Both parameters: Lee et al. (2024), "Beta Sampling is All You Need", as every program has them.
const A: f64 = 0.6;

/// Terms of the series at most: at 1/2 each is less than half of the one before.
const TERMS: usize = 60;

/// The value below which a share `share`, 0 to 1, of the distribution Beta(0.6, 0.6) lies: scipy's `beta.ppf(share, 0.6, 0.6)`.
///
/// For this one distribution, symmetric and of a fixed parameter, a series and a bisection are less than a library of statistics.
pub(super) fn quantile(share: f64) -> f64 {
    if share <= 0.0 {
        return 0.0;
    }
    // Symmetric, and the series is for the lower half.
    if share > 0.5 {
        return 1.0 - quantile(1.0 - share);
    }
    let wanted = share * 2.0 * incomplete(0.5);
    let (mut low, mut high) = (0.0f64, 0.5);
    // Until the middle is one of the ends: some 1100 halvings for the smallest numbers.
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return high;
        }
        if incomplete(middle) < wanted { low = middle } else { high = middle }
    }
}

/// The integral of (t (1 - t))^(A - 1) from 0 to `x`, at most 1/2: x^A times the sum of (1 - A)_n x^n / (n! (A + n)) (DLMF 8.17.7).
fn incomplete(x: f64) -> f64 {
    let (mut factor, mut sum) = (1.0, 0.0);
    for n in 0..TERMS {
        let n = n as f64;
        sum += factor / (A + n);
        factor *= (1.0 - A + n) * x / (n + 1.0);
    }
    x.powf(A) * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        beta_quantiles: Vec<[f64; 2]>,
    }

    #[test]
    fn quantiles_are_those_of_scipy() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../../../tests/goldens/samplers/spacings.json")).unwrap();
        assert!(golden.beta_quantiles.len() > 20);
        for [share, value] in golden.beta_quantiles {
            let ours = quantile(share);
            assert!((ours - value).abs() <= 1e-12 * value, "{share}: {ours} for {value}");
        }
    }
}
