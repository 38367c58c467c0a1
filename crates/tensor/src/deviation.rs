//! The one measure by which results are held to expected ones.

use crate::HostTensor;

/// The standard deviation of values; 0 of none.
pub fn standard_deviation(values: &[f32]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// The largest difference of any value over the standard deviation of the expected ones: infinite for another number of values, for
/// NaN and infinity, and for any difference from a constant.
pub fn deviation(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let differences = got.iter().zip(expected).map(|(&g, &e)| f64::from((g - e).abs()));
    // `f64::max` would drop NaN.
    let largest = differences.map(|d| if d.is_nan() { f64::INFINITY } else { d }).fold(0.0, f64::max);
    if largest == 0.0 { 0.0 } else { largest / standard_deviation(expected) }
}

impl HostTensor {
    /// [`deviation`] from the expected tensor; infinite for another shape too.
    pub fn deviation_from(&self, expected: &HostTensor) -> f64 {
        match self.shape() == expected.shape() {
            true => deviation(&self.to_f32_vec(), &expected.to_f32_vec()),
            false => f64::INFINITY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_measured_in_standard_deviations() {
        // Of -1 and 1 it is 1.
        let expected = [-1.0, 1.0, -1.0, 1.0];
        assert_eq!(standard_deviation(&expected), 1.0);
        assert_eq!(deviation(&expected, &expected), 0.0);
        assert_eq!(deviation(&[-1.0, 1.25, -1.5, 1.0], &expected), 0.5);
        assert_eq!(deviation(&[2.0, 2.0], &[2.0, 2.0]), 0.0);
    }

    #[test]
    fn what_cannot_be_right_is_infinitely_far() {
        let expected = [0.0, 1.0, 2.0];
        for got in [&[f32::NAN, 1.0, 2.0][..], &[f32::INFINITY, 1.0, 2.0], &[0.0, 1.0], &[]] {
            assert_eq!(deviation(got, &expected), f64::INFINITY, "{got:?}");
        }
        assert_eq!(deviation(&[2.0, 2.1], &[2.0, 2.0]), f64::INFINITY);
        let tensor = HostTensor::from_fn([4], |i| i as f32);
        assert_eq!(tensor.deviation_from(&tensor), 0.0);
        assert_eq!(tensor.clone().reshape([2, 2]).unwrap().deviation_from(&tensor), f64::INFINITY);
    }
}
