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
        // Where the reference is zero alone, the tolerance is of the smallest numbers.
        match self.worst < 1e6 {
            true => write!(f, "error {:.3}", self.worst)?,
            false => write!(f, "error {:.3e}", self.worst)?,
        }
        write!(f, " of the tolerance at element {}: got {}, want {}", self.index, self.got, self.want)?;
        if self.stray_bytes > 0 {
            write!(f, "; {} bytes outside the result were written", self.stray_bytes)?;
        }
        Ok(())
    }
}

/// Numbers above this are left out of the mean that small ones are held against: beside them any error would be small.
const LARGE: f32 = 4096.0;

/// Compares element by element; see [`Tolerance`] for the limit. The reference is rounded to the result's storage type
/// first, so that data movement compares exactly and overflow to infinity is the expected result where it is one.
///
/// Zero is right where the reference has a denormal: WGSL lets implementations flush operands, results and what lies between
/// ("Floating Point Evaluation"), and kernels load halves into f32.
///
/// A result that is zero everywhere, and was computed, is what is left of terms that cancel: operands are of about one, and so are
/// those terms, whose rounding errors need not cancel on every device.
pub fn compare(got: &HostTensor, want: &HostTensor, tolerance: Tolerance, stray_bytes: usize) -> Comparison {
    let relative = tolerance.relative(got.dtype());
    let rounded = want.cast(got.dtype()).to_f32_vec();
    let got_values = got.to_f32_vec();
    let smallest_normal = if got.dtype() == DType::F16 { 2f64.powi(-14) } else { f64::from(f32::MIN_POSITIVE) };
    let finite: Vec<f64> = rounded.iter().filter(|v| v.abs() <= LARGE).map(|&v| f64::from(v)).collect();
    let rms = (finite.iter().map(|v| v * v).sum::<f64>() / finite.len().max(1) as f64).sqrt();
    let cancelled = if rounded.iter().all(|v| *v == 0.0) { 1.0 } else { 0.0 };
    let mut result = Comparison { worst: 0.0, index: 0, got: 0.0, want: 0.0, stray_bytes };
    if got.shape() != want.shape() {
        result.worst = f64::INFINITY;
        return result;
    }
    for (index, (&g, &w)) in got_values.iter().zip(&rounded).enumerate() {
        let (g, w) = (f64::from(g), f64::from(w));
        let flushed = g == 0.0 && w.abs() < smallest_normal;
        let error = if flushed || g == w || (g.is_nan() && w.is_nan()) {
            0.0
        } else if !g.is_finite() || !w.is_finite() {
            // Half precision may round the largest finite values either way.
            let edge = got.dtype() == DType::F16 && g.abs().min(w.abs()) >= 65_000.0 && g.signum() == w.signum();
            if edge { 0.0 } else { f64::INFINITY }
        } else {
            (g - w).abs() / (relative * (w.abs() + rms + cancelled)).max(f64::MIN_POSITIVE)
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
    fn denormals_may_be_flushed_and_nothing_else() {
        let one = |v: f32| HostTensor::from_f32([1], vec![v]).unwrap();
        let passes = |got: f32, want: f32| compare(&one(got), &one(want), Tolerance::Exact, 0).passed();
        assert!(passes(-0.0, 1e-40) && passes(1e-40, 1e-40));
        assert!(!passes(0.0, f32::MIN_POSITIVE) && !passes(1e-40, 0.0) && !passes(2e-40, 1e-40));
    }

    #[test]
    fn large_numbers_make_no_room_for_errors_of_others() {
        let tensor = |v: f32| HostTensor::from_f32([3], vec![f32::MAX, f32::INFINITY, v]).unwrap();
        assert!(!compare(&tensor(1.5), &tensor(1.0), Tolerance::Pointwise, 0).passed());
        assert!(compare(&tensor(1.0 + f32::EPSILON), &tensor(1.0), Tolerance::Pointwise, 0).passed());
    }

    #[test]
    fn stray_writes_fail() {
        let want = HostTensor::zeros([2]);
        assert!(!compare(&want, &want, Tolerance::Exact, 1).passed());
    }
}
