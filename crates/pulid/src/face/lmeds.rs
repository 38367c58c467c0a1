use super::Similarity;
use pulid_tensor::{Error, Result};

/// Confidence that one of the drawn pairs is free of outliers, and the share of outliers assumed; OpenCV's values.
const CONFIDENCE: f64 = 0.99;
const OUTLIERS: f64 = 0.45;

/// The robust similarity transform of OpenCV's `estimateAffinePartial2D(from, to, method=LMEDS)`.
///
/// Least median of squares (Rousseeuw 1984): pairs of points are drawn, each fixes a transform, and the one with the
/// least median of squared distances over all points wins. Points within 2.5 robust deviations of it are inliers, and
/// the result is the least-squares transform of the inliers. OpenCV draws its pairs from a generator with a fixed
/// seed, so not every pair is tried; the same pairs are drawn here, and both agree on outliers.
///
/// # Errors
/// [`Error::Invalid`] for fewer than three points, unequal numbers, or points that no pair of which fixes a transform.
pub fn estimate_lmeds(from: &[[f32; 2]], to: &[[f32; 2]]) -> Result<Similarity> {
    let n = from.len();
    if n != to.len() || n < 3 {
        return Err(Error::invalid("alignment", format!("{n} points cannot be laid on {}", to.len())));
    }
    let (from, to) = (widen(from), widen(to));
    let mut draws = PairDraws::new();
    let mut best: Option<(f32, Similarity)> = None;
    for _ in 0..pairs_to_draw() {
        let [i, j] = draws.next(n);
        let Ok(candidate) = Similarity::least_squares(&[from[i], from[j]], &[to[i], to[j]]) else {
            continue;
        };
        let mut errors = squared_errors(&candidate, &from, &to);
        let (_, &mut median, _) = errors.select_nth_unstable_by(n / 2, f32::total_cmp);
        if median.is_finite() && best.is_none_or(|(least, _)| median < least) {
            best = Some((median, candidate));
        }
    }
    let Some((median, candidate)) = best else {
        return Err(Error::invalid("alignment", "the points coincide or are not finite"));
    };
    // 1.4826 makes a median absolute deviation that of a normal distribution; the factor after it is for few points.
    let deviation = 2.5 * 1.4826 * (1.0 + 5.0 / (n as f64 - 2.0)) * f64::from(median).sqrt();
    let limit = deviation.max(1e-3).powi(2);
    let errors = squared_errors(&candidate, &from, &to);
    let inliers = |points: &[[f64; 2]]| -> Vec<[f64; 2]> {
        points.iter().zip(&errors).filter(|&(_, &e)| f64::from(e) <= limit).map(|(&p, _)| p).collect()
    };
    Similarity::least_squares(&inliers(&from), &inliers(&to))
}

fn widen(points: &[[f32; 2]]) -> Vec<[f64; 2]> {
    points.iter().map(|p| p.map(f64::from)).collect()
}

fn squared_errors(transform: &Similarity, from: &[[f64; 2]], to: &[[f64; 2]]) -> Vec<f32> {
    let error = |(&p, q): (&[f64; 2], &[f64; 2])| {
        let [x, y] = transform.apply(p);
        let (dx, dy) = ((x - q[0]) as f32, (y - q[1]) as f32);
        dx * dx + dy * dy
    };
    from.iter().zip(to).map(error).collect()
}

/// How many pairs make one without an outlier likely enough: 13.
fn pairs_to_draw() -> usize {
    let clean = (1.0 - OUTLIERS).powi(2);
    ((1.0 - CONFIDENCE).ln() / (1.0 - clean).ln()).round() as usize
}

/// The draws of OpenCV's `cv::RNG`, a multiply-with-carry generator, from the state that its estimators begin with.
struct PairDraws {
    state: u64,
}

impl PairDraws {
    fn new() -> Self {
        PairDraws { state: u64::MAX }
    }

    fn below(&mut self, n: usize) -> usize {
        self.state = (self.state & 0xffff_ffff) * 4_164_903_690 + (self.state >> 32);
        (self.state as u32 as usize) % n
    }

    /// Two different numbers below `n`, which is at least 2.
    fn next(&mut self, n: usize) -> [usize; 2] {
        let first = self.below(n);
        loop {
            let second = self.below(n);
            if second != first {
                return [first, second];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::FACEXLIB_TEMPLATE;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        from: Vec<[f32; 2]>,
        to: Vec<[f32; 2]>,
        matrix: [[f64; 3]; 2],
        inliers: usize,
    }

    #[test]
    fn estimates_are_opencv_s() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/data/lmeds.json")).unwrap();
        // The set must hold cases where a point is left out, or plain least squares would pass as well.
        assert!(goldens.iter().filter(|g| g.inliers < g.from.len()).count() >= 5);
        for (i, g) in goldens.iter().enumerate() {
            let found = estimate_lmeds(&g.from, &g.to).unwrap();
            // OpenCV refines the inliers' least squares iteratively; compare where the photo's points go, in pixels.
            for p in widen(&g.from) {
                let [x, y] = found.apply(p);
                let [[a, b, c], [d, e, f]] = g.matrix;
                let (u, v) = (a * p[0] + b * p[1] + c, d * p[0] + e * p[1] + f);
                assert!((x - u).abs() < 2e-3 && (y - v).abs() < 2e-3, "case {i}: ({x}, {y}) for ({u}, {v})");
            }
        }
    }

    #[test]
    fn one_wrong_point_does_not_count() {
        let mut from = FACEXLIB_TEMPLATE.map(|[x, y]| [x * 0.5 + 30.0, y * 0.5 - 10.0]);
        from[2] = [900.0, -400.0];
        let found = estimate_lmeds(&from, &FACEXLIB_TEMPLATE).unwrap();
        assert!((found.a - 2.0).abs() < 1e-4 && found.b.abs() < 1e-4, "{found:?}");
    }

    #[test]
    fn degenerate_points_are_refused() {
        assert!(estimate_lmeds(&[[1.0, 1.0]; 5], &FACEXLIB_TEMPLATE).is_err());
        assert!(estimate_lmeds(&[[f32::NAN, 1.0]; 5], &FACEXLIB_TEMPLATE).is_err());
        assert!(estimate_lmeds(&FACEXLIB_TEMPLATE[..2], &FACEXLIB_TEMPLATE[..2]).is_err());
        assert!(estimate_lmeds(&FACEXLIB_TEMPLATE[..4], &FACEXLIB_TEMPLATE).is_err());
    }
}
