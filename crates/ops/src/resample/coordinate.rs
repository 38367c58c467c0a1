use pulid_tensor::{Error, Result};

/// Which input position an output position of a resized axis stands for. Names follow ONNX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coordinates {
    /// Pixels are areas: (d + 0.5) · in / out - 0.5. PyTorch's `align_corners=False`.
    #[default]
    HalfPixel,
    /// The corner pixels coincide: d · (in - 1) / (out - 1). PyTorch's `align_corners=True`.
    AlignCorners,
    /// d · in / out. PyTorch's `nearest` with [`Rounding::Floor`].
    Asymmetric,
}

/// How nearest interpolation rounds a position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// Down.
    #[default]
    Floor,
    /// Up.
    Ceil,
    /// To the nearest, halves down.
    RoundPreferFloor,
    /// To the nearest, halves up.
    RoundPreferCeil,
}

/// Input position of output d along one axis, as the exact fraction (scale · d + offset) / divisor. Fractions, because a
/// position that falls on a pixel must not land on its neighbour by a rounding error that differs between devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fraction {
    pub scale: i32,
    pub offset: i32,
    pub divisor: i32,
}

impl Fraction {
    /// The position for an axis of `input` pixels resized to `output`, by a factor of `factor` where one is given (it may
    /// differ from output / input) and rounded down, up or to the nearest if `rounding` is given.
    ///
    /// # Errors
    /// When the sizes are too large for exact positions, or the factor is not positive.
    pub fn new(
        coordinates: Coordinates,
        rounding: Option<Rounding>,
        input: usize,
        output: usize,
        factor: Option<f64>,
    ) -> Result<Fraction> {
        let fail = |why: String| Error::operator("resize2d", why);
        let (n, m) = match factor {
            None => (input as i64, output as i64),
            Some(f) if f.is_finite() && f > 0.0 => {
                let (numerator, denominator) = approximate(f);
                (denominator, numerator)
            }
            Some(f) => return Err(fail(format!("the scale {f} is not a positive number"))),
        };
        let (mut scale, mut offset, mut divisor) = match coordinates {
            Coordinates::HalfPixel => (2 * n, n - m, 2 * m),
            Coordinates::Asymmetric => (n, 0, m),
            Coordinates::AlignCorners if output > 1 => (input as i64 - 1, 0, output as i64 - 1),
            Coordinates::AlignCorners => (0, 0, 1),
        };
        match rounding {
            None | Some(Rounding::Floor) => {}
            Some(Rounding::Ceil) => offset += divisor - 1,
            Some(half) => {
                offset = 2 * offset + divisor - i64::from(half == Rounding::RoundPreferFloor);
                scale *= 2;
                divisor *= 2;
            }
        }
        // The shader divides non-negative numbers only: it adds one divisor, and subtracts one from the quotient.
        let largest = scale.checked_mul(output as i64).and_then(|v| v.checked_add(offset)?.checked_add(divisor));
        match (largest, i32::try_from(divisor)) {
            (Some(0..=0x7fff_ffff), Ok(divisor)) => {
                Ok(Fraction { scale: scale as i32, offset: offset as i32, divisor })
            }
            _ => Err(fail(format!("resizing {input} pixels to {output} needs positions beyond 31 bits"))),
        }
    }

    /// Integer part (may be -1) and remainder in [0, 1) of the position of output `d`.
    pub fn at(&self, d: usize) -> (i64, f64) {
        let position = i64::from(self.scale) * d as i64 + i64::from(self.offset);
        let divisor = i64::from(self.divisor);
        (position.div_euclid(divisor), position.rem_euclid(divisor) as f64 / divisor as f64)
    }
}

/// The simplest fraction within f32 rounding of a positive factor, by continued fractions: files say 1.7 in f32 and mean
/// 17/10.
fn approximate(factor: f64) -> (i64, i64) {
    let (mut p, mut q) = ((1i64, 0i64), (0i64, 1i64));
    let mut rest = factor;
    for _ in 0..24 {
        let whole = rest.floor();
        if whole > 1e6 {
            break;
        }
        p = (whole as i64 * p.0 + p.1, p.0);
        q = (whole as i64 * q.0 + q.1, q.0);
        let close = (p.0 as f64 / q.0 as f64 - factor).abs() <= factor * 1e-7;
        if close || p.0 > 1 << 20 || q.0 > 1 << 20 {
            break;
        }
        rest = 1.0 / (rest - whole);
    }
    (p.0.max(1), q.0.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_become_simple_fractions() {
        assert_eq!(approximate(f64::from(1.7f32)), (17, 10));
        assert_eq!(approximate(2.0), (2, 1));
        assert_eq!(approximate(f64::from(1.0f32 / 3.0)), (1, 3));
    }

    #[test]
    fn positions_follow_the_rule() {
        let positions = |c, r, input, output| -> Vec<i64> {
            let f = Fraction::new(c, r, input, output, None).unwrap();
            (0..output).map(|d| f.at(d).0).collect()
        };
        use Coordinates::*;
        assert_eq!(positions(Asymmetric, Some(Rounding::Floor), 3, 6), [0, 0, 1, 1, 2, 2]);
        assert_eq!(positions(Asymmetric, Some(Rounding::RoundPreferFloor), 2, 4), [0, 0, 1, 1]);
        assert_eq!(positions(Asymmetric, Some(Rounding::RoundPreferCeil), 2, 4), [0, 1, 1, 2]);
        assert_eq!(positions(HalfPixel, Some(Rounding::Floor), 2, 4), [-1, 0, 0, 1]);
        assert_eq!(positions(AlignCorners, Some(Rounding::Ceil), 3, 5), [0, 1, 1, 2, 2]);
        assert_eq!(positions(AlignCorners, None, 7, 1), [0]);
        let (whole, part) = Fraction::new(HalfPixel, None, 5, 8, None).unwrap().at(2);
        assert_eq!((whole, part), (1, 0.0625));
    }

    #[test]
    fn hostile_sizes_are_refused() {
        assert!(Fraction::new(Coordinates::HalfPixel, None, 1 << 30, 1 << 30, None).is_err());
        assert!(Fraction::new(Coordinates::HalfPixel, None, 4, 4, Some(0.0)).is_err());
        assert!(Fraction::new(Coordinates::Asymmetric, None, 4, 4, Some(f64::NAN)).is_err());
    }
}
