use pulid_tensor::{Error, Result};

/// A similarity transform of the plane: x' = a x - b y + tx, y' = b x + a y + ty (rotation, scale, shift; no mirror).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Similarity {
    /// Scale times cosine.
    pub a: f64,
    /// Scale times sine.
    pub b: f64,
    /// Shift along x, in pixels.
    pub tx: f64,
    /// Shift along y, in pixels.
    pub ty: f64,
}

impl Similarity {
    /// Leaves points where they are.
    pub const IDENTITY: Similarity = Similarity { a: 1.0, b: 0.0, tx: 0.0, ty: 0.0 };

    /// The transform with the least sum of squared distances between the moved `from` and `to` (Umeyama 1991).
    ///
    /// # Errors
    /// [`Error::Invalid`] for fewer than two points, unequal numbers, or points that all coincide or are not finite.
    pub fn least_squares(from: &[[f64; 2]], to: &[[f64; 2]]) -> Result<Self> {
        if from.len() != to.len() || from.len() < 2 {
            let detail = format!("{} points cannot be laid on {}", from.len(), to.len());
            return Err(Error::invalid("alignment", detail));
        }
        let n = from.len() as f64;
        let mean = |points: &[[f64; 2]], axis: usize| points.iter().map(|p| p[axis]).sum::<f64>() / n;
        let (from_mean, to_mean) = ([mean(from, 0), mean(from, 1)], [mean(to, 0), mean(to, 1)]);
        let (mut along, mut across, mut spread) = (0.0, 0.0, 0.0);
        for (p, q) in from.iter().zip(to) {
            let (x, y) = (p[0] - from_mean[0], p[1] - from_mean[1]);
            let (u, v) = (q[0] - to_mean[0], q[1] - to_mean[1]);
            along += x * u + y * v;
            across += x * v - y * u;
            spread += x * x + y * y;
        }
        let (a, b) = (along / spread, across / spread);
        let found = Similarity {
            a,
            b,
            tx: to_mean[0] - a * from_mean[0] + b * from_mean[1],
            ty: to_mean[1] - b * from_mean[0] - a * from_mean[1],
        };
        if !found.is_usable() {
            return Err(Error::invalid("alignment", "the points coincide or are not finite"));
        }
        Ok(found)
    }

    /// Where a point goes.
    pub fn apply(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [self.a * x - self.b * y + self.tx, self.b * x + self.a * y + self.ty]
    }

    /// The transform back; not usable where this one is not.
    pub fn inverse(&self) -> Similarity {
        let square = self.a * self.a + self.b * self.b;
        let (a, b) = (self.a / square, -self.b / square);
        Similarity { a, b, tx: -(a * self.tx - b * self.ty), ty: -(b * self.tx + a * self.ty) }
    }

    /// The matrix [[a, -b, tx], [b, a, ty]] that takes (x, y, 1) to where it goes.
    pub fn matrix(&self) -> [[f64; 3]; 2] {
        [[self.a, -self.b, self.tx], [self.b, self.a, self.ty]]
    }

    /// Whether every number is finite and the scale is not zero.
    pub fn is_usable(&self) -> bool {
        [self.a, self.b, self.tx, self.ty].iter().all(|v| v.is_finite()) && self.a * self.a + self.b * self.b > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        from: Vec<[f64; 2]>,
        to: Vec<[f64; 2]>,
        matrix: [[f64; 3]; 2],
    }

    #[test]
    fn least_squares_is_scikit_image_s() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/data/umeyama.json")).unwrap();
        assert!(goldens.len() >= 10);
        for (i, g) in goldens.iter().enumerate() {
            let found = Similarity::least_squares(&g.from, &g.to).unwrap();
            let ours = found.matrix();
            for (x, y) in ours.as_flattened().iter().zip(g.matrix.as_flattened()) {
                assert!((x - y).abs() < 1e-9 * (1.0 + y.abs()), "case {i}: {ours:?} for {:?}", g.matrix);
            }
        }
    }

    #[test]
    fn degenerate_points_are_refused() {
        let same = [[3.0, 4.0]; 5];
        let to = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]];
        assert!(Similarity::least_squares(&same, &to).is_err());
        assert!(Similarity::least_squares(&to, &same).is_err());
        assert!(Similarity::least_squares(&to[..1], &to[..1]).is_err());
        assert!(Similarity::least_squares(&to, &to[..4]).is_err());
        assert!(Similarity::least_squares(&[[f64::NAN; 2]; 5], &to).is_err());
    }

    proptest! {
        #[test]
        fn an_exact_transform_is_recovered(angle in -3.0f64..3.0, scale in 0.01f64..50.0, tx in -500f64..500.0, ty in -500f64..500.0) {
            let wanted = Similarity { a: scale * angle.cos(), b: scale * angle.sin(), tx, ty };
            let from = [[0.0, 0.0], [10.0, 3.0], [-4.0, 7.0]];
            let found = Similarity::least_squares(&from, &from.map(|p| wanted.apply(p))).unwrap();
            prop_assert!((found.a - wanted.a).abs() + (found.b - wanted.b).abs() < 1e-9 * (1.0 + scale));
            prop_assert!((found.tx - tx).abs() + (found.ty - ty).abs() < 1e-7);
            let [x, y] = wanted.inverse().apply(wanted.apply([3.0, -5.0]));
            prop_assert!((x - 3.0).abs() + (y + 5.0).abs() < 1e-9 * (1.0 + 1.0 / scale) * 1e3);
        }
    }
}
