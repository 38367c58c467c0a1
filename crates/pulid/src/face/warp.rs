use super::Similarity;
use crate::image::RgbImage;
use pulid_tensor::{Error, Result};

/// Fraction bits of coordinates while they are added up, and of the interpolation (1/32 pixel), in OpenCV 4's
/// `warpAffine`.
const COORDINATE_BITS: u32 = 10;
const FRACTION_BITS: u32 = 5;
const FRACTION: i64 = 1 << FRACTION_BITS;

/// Moves an image by `transform` onto a `width` x `height` canvas, with `border` where the image does not reach.
///
/// Bit for bit OpenCV 4's `warpAffine(flags=INTER_LINEAR, borderMode=BORDER_CONSTANT)` for 8-bit images, which
/// interpolates at multiples of 1/32 pixel. (OpenCV 5 interpolates at full precision; the two differ by up to 1/64
/// pixel.)
///
/// # Errors
/// [`Error::Invalid`] when the transform is not finite or has no scale, or the canvas has no pixels.
pub fn warp(image: &RgbImage, transform: &Similarity, width: u32, height: u32, border: [u8; 3]) -> Result<RgbImage> {
    if !transform.is_usable() || width == 0 || height == 0 {
        return Err(Error::invalid("warp", format!("{transform:?} to {width} x {height} cannot be drawn")));
    }
    let Similarity { a, b, tx, ty } = *transform;
    // The inverse, in the order of operations that OpenCV uses.
    let inverse = 1.0 / (a * a + b * b);
    let (cos, sin) = (a * inverse, b * inverse);
    let shift = [-(cos * tx) - sin * ty, sin * tx - cos * ty];

    let one = f64::from(1u32 << COORDINATE_BITS);
    let fixed = |value: f64| i64::from((value * one).round_ties_even() as i32);
    let half = 1i64 << (COORDINATE_BITS - FRACTION_BITS - 1);
    let drop = COORDINATE_BITS - FRACTION_BITS;
    Ok(RgbImage::from_fn(width, height, |column, row| {
        let (x, y) = (f64::from(column), f64::from(row));
        let from_x = (fixed(sin * y + shift[0]) + half + fixed(cos * x)) >> drop;
        let from_y = (fixed(cos * y + shift[1]) + half + fixed(-sin * x)) >> drop;
        ::image::Rgb(interpolate(image, from_x, from_y, border))
    }))
}

/// The image at a position in 1/32 pixels.
fn interpolate(image: &RgbImage, x: i64, y: i64, border: [u8; 3]) -> [u8; 3] {
    let (column, row) = (x >> FRACTION_BITS, y >> FRACTION_BITS);
    let (right, below) = (x & (FRACTION - 1), y & (FRACTION - 1));
    let at = |dx: i64, dy: i64| match (u32::try_from(column + dx), u32::try_from(row + dy)) {
        (Ok(u), Ok(v)) if u < image.width() && v < image.height() => image.get_pixel(u, v).0,
        _ => border,
    };
    let corners = [at(0, 0), at(1, 0), at(0, 1), at(1, 1)];
    let weights = [
        (FRACTION - right) * (FRACTION - below),
        right * (FRACTION - below),
        (FRACTION - right) * below,
        right * below,
    ];
    std::array::from_fn(|c| {
        let sum: i64 = (0..4).map(|k| i64::from(corners[k][c]) * weights[k]).sum();
        ((sum + FRACTION * FRACTION / 2) / (FRACTION * FRACTION)) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::Hexed;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        image: Hexed,
        matrix: [[f64; 3]; 2],
        border: [u8; 3],
        warped: Hexed,
    }

    #[test]
    fn warping_is_opencv_s_to_the_last_bit() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/data/warp.json")).unwrap();
        assert!(goldens.len() >= 5);
        for (i, g) in goldens.iter().enumerate() {
            let [[a, _, tx], [b, _, ty]] = g.matrix;
            let expected = g.warped.image();
            let (w, h) = expected.dimensions();
            let warped = warp(&g.image.image(), &Similarity { a, b, tx, ty }, w, h, g.border).unwrap();
            let wrong = warped.iter().zip(expected.iter()).filter(|(x, y)| x != y).count();
            assert_eq!(wrong, 0, "case {i}");
        }
    }

    #[test]
    fn identity_copies_and_far_shifts_show_the_border() {
        let image = RgbImage::from_fn(9, 7, |x, y| ::image::Rgb([x as u8, y as u8, 200]));
        assert_eq!(warp(&image, &Similarity::IDENTITY, 9, 7, [0; 3]).unwrap(), image);
        for shift in [1e4, 1e18] {
            let away = Similarity { tx: shift, ..Similarity::IDENTITY };
            assert!(warp(&image, &away, 4, 4, [1, 2, 3]).unwrap().pixels().all(|p| p.0 == [1, 2, 3]));
        }
    }

    #[test]
    fn impossible_warps_are_refused() {
        let image = RgbImage::new(4, 4);
        assert!(warp(&image, &Similarity::IDENTITY, 0, 4, [0; 3]).is_err());
        for (a, tx) in [(0.0, 0.0), (f64::NAN, 0.0), (1.0, f64::INFINITY)] {
            assert!(warp(&image, &Similarity { a, b: 0.0, tx, ty: 0.0 }, 4, 4, [0; 3]).is_err());
        }
    }
}
