use pulid_ops::Tolerance;
use pulid_tensor::{DType, HostTensor};
use std::fmt;

/// How a kernel's result compares with the reference.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Comparison {
    /// Largest error in units of the tolerance: 1 is the limit. Infinite where one side is NaN or infinite alone.
    pub worst: f64,
    /// Flat index of the largest error.
    pub index: usize,
    /// The kernel's value there.
    pub got: f64,
    /// The reference's value there.
    pub want: f64,
    /// Bytes written outside the result.
    pub stray_bytes: usize,
}

impl Comparison {
    /// Whether the kernel is right.
    pub fn passed(&self) -> bool {
        self.worst <= 1.0 && self.stray_bytes == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error {:.3} of the tolerance at element {}: got {}, want {}",
            self.worst, self.index, self.got, self.want
        )?;
        if self.stray_bytes > 0 {
            write!(f, "; {} bytes outside the result were written", self.stray_bytes)?;
        }
        Ok(())
    }
}

/// Compares element by element; see [`Tolerance`] for the limit. The reference is rounded to the result's storage type
/// first, so that data movement compares exactly and overflow to infinity is the expected result where it is one.
pub fn compare(got: &HostTensor, want: &HostTensor, tolerance: Tolerance, stray_bytes: usize) -> Comparison {
    let relative = tolerance.relative(got.dtype());
    let rounded = want.cast(got.dtype()).to_f32_vec();
    let got_values = got.to_f32_vec();
    let finite: Vec<f64> = rounded.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v)).collect();
    let rms = (finite.iter().map(|v| v * v).sum::<f64>() / finite.len().max(1) as f64).sqrt();
    let mut result = Comparison { worst: 0.0, index: 0, got: 0.0, want: 0.0, stray_bytes };
    if got.shape() != want.shape() {
        result.worst = f64::INFINITY;
        return result;
    }
    for (index, (&g, &w)) in got_values.iter().zip(&rounded).enumerate() {
        let (g, w) = (f64::from(g), f64::from(w));
        let error = if g == w || (g.is_nan() && w.is_nan()) {
            0.0
        } else if !g.is_finite() || !w.is_finite() {
            // Half precision may round the largest finite values either way.
            let edge = got.dtype() == DType::F16 && g.abs().min(w.abs()) >= 65_000.0 && g.signum() == w.signum();
            if edge { 0.0 } else { f64::INFINITY }
        } else {
            (g - w).abs() / (relative * (w.abs() + rms)).max(f64::MIN_POSITIVE)
        };
        if error > result.worst {
            result = Comparison { worst: error, index, got: g, want: w, stray_bytes };
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_on_one_side_fails() {
        let want = HostTensor::zeros([2]);
        let got = HostTensor::from_fn([2], |i| if i == 1 { f32::NAN } else { 0.0 });
        assert!(!compare(&got, &want, Tolerance::Sum(100), 0).passed());
        assert!(compare(&got, &got, Tolerance::Exact, 0).passed());
    }

    #[test]
    fn stray_writes_fail() {
        let want = HostTensor::zeros([2]);
        assert!(!compare(&want, &want, Tolerance::Exact, 1).passed());
    }
}
