use ::image::RgbImage;
use pulid_tensor::{Error, Result};

/// Fraction bits of the weights in OpenCV's 8-bit resizing (`INTER_RESIZE_COEF_BITS`).
const WEIGHT_BITS: u32 = 11;

/// Where each output position along one axis reads, and with which weights; N taps.
struct Taps<const N: usize> {
    index: Vec<[usize; N]>,
    weight: Vec<[i32; N]>,
}

impl<const N: usize> Taps<N> {
    /// Pixel centres are aligned, positions outside repeat the edge, weights are rounded to [`WEIGHT_BITS`].
    fn new(from: u32, to: u32, kernel: impl Fn(f64) -> [f64; N]) -> Self {
        let scale = 1.0 / (f64::from(to) / f64::from(from));
        let last = i64::from(from) - 1;
        let (index, weight) = (0..to)
            .map(|i| {
                let position = ((f64::from(i) + 0.5) * scale - 0.5) as f32;
                let base = position.floor();
                let first = base as i64 - (N as i64 / 2 - 1);
                let index = std::array::from_fn(|k| (first + k as i64).clamp(0, last) as usize);
                let weights = kernel(f64::from(position - base));
                let fixed = weights.map(|w| (w as f32 * (1 << WEIGHT_BITS) as f32).round_ties_even() as i32);
                (index, fixed)
            })
            .unzip();
        Taps { index, weight }
    }

    /// Every row of `image` resized along x: [H, `to`, 3], scaled by 2^[`WEIGHT_BITS`].
    fn rows(&self, image: &RgbImage) -> Vec<i32> {
        let (source, width) = (image.as_raw(), image.width() as usize);
        let mut out = Vec::with_capacity(image.height() as usize * self.index.len() * 3);
        for row in source.chunks_exact(width * 3) {
            for (index, weight) in self.index.iter().zip(&self.weight) {
                for channel in 0..3 {
                    out.push((0..N).map(|k| i32::from(row[index[k] * 3 + channel]) * weight[k]).sum());
                }
            }
        }
        out
    }
}

fn check(image: &RgbImage, width: u32, height: u32) -> Result<()> {
    if width == 0 || height == 0 || image.width() == 0 || image.height() == 0 {
        let (w, h) = image.dimensions();
        return Err(Error::invalid("resize", format!("{w} x {h} to {width} x {height} has no pixels")));
    }
    Ok(())
}

/// Resizes as OpenCV's `INTER_LANCZOS4` does: eight taps a side, without widening the kernel when shrinking.
///
/// # Errors
/// [`Error::Invalid`] when either image has no pixels.
pub fn resize_lanczos4(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    check(image, width, height)?;
    let horizontal = Taps::new(image.width(), width, lanczos4);
    let vertical = Taps::new(image.height(), height, lanczos4);
    let rows = horizontal.rows(image);
    let stride = width as usize * 3;
    let mut out = RgbImage::new(width, height);
    for (line, (index, weight)) in out.chunks_exact_mut(stride).zip(vertical.index.iter().zip(&vertical.weight)) {
        for (x, value) in line.iter_mut().enumerate() {
            let sum: i64 = (0..8).map(|k| i64::from(rows[index[k] * stride + x]) * i64::from(weight[k])).sum();
            let half = 1i64 << (2 * WEIGHT_BITS - 1);
            *value = ((sum + half) >> (2 * WEIGHT_BITS)).clamp(0, 255) as u8;
        }
    }
    Ok(out)
}

/// Resizes as OpenCV's `INTER_LINEAR` does for 8-bit images, to the last bit.
///
/// # Errors
/// [`Error::Invalid`] when either image has no pixels.
pub fn resize_bilinear(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    check(image, width, height)?;
    let linear = |f: f64| [1.0 - f, f];
    let horizontal = Taps::new(image.width(), width, linear);
    let vertical = Taps::new(image.height(), height, linear);
    let halved = (image.width(), image.height()) == (2 * width, 2 * height);
    let rows = horizontal.rows(image);
    let stride = width as usize * 3;
    let mut out = RgbImage::new(width, height);
    for (line, (index, weight)) in out.chunks_exact_mut(stride).zip(vertical.index.iter().zip(&vertical.weight)) {
        for (x, value) in line.iter_mut().enumerate() {
            let pair = [rows[index[0] * stride + x], rows[index[1] * stride + x]];
            let rounded = if halved {
                // OpenCV takes its area path here: the mean of four pixels, rounded once.
                (pair[0] + pair[1] + (1 << WEIGHT_BITS)) >> (WEIGHT_BITS + 1)
            } else {
                // Each product loses 4 + 16 bits before the sum, as OpenCV's vector code does.
                let part = |k: usize| ((pair[k] >> 4) * weight[k]) >> 16;
                (part(0) + part(1) + 2) >> 2
            };
            *value = rounded.clamp(0, 255) as u8;
        }
    }
    Ok(out)
}

/// Shrinks with Lanczos so that the longer side is at most `long_side`; a smaller image is returned as it is.
///
/// # Errors
/// [`Error::Invalid`] when `long_side` is 0.
pub fn shrink_to_long_side(image: RgbImage, long_side: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let longest = width.max(height);
    if longest <= long_side {
        return Ok(image);
    }
    // Rounded down from floating point, as the published pipeline does: the longer side may lose one pixel.
    let scale = f64::from(long_side) / f64::from(longest);
    let side = |s: u32| ((f64::from(s) * scale) as u32).max(1);
    if long_side == 0 {
        return Err(Error::invalid("long side", "it must be at least 1 pixel"));
    }
    resize_lanczos4(&image, side(width), side(height))
}

/// Weights of the eight pixels around a position `f` right of the fourth one, normalised.
fn lanczos4(f: f64) -> [f64; 8] {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) };
    let raw: [f64; 8] = std::array::from_fn(|k| {
        let distance = f + 3.0 - k as f64;
        sinc(distance) * sinc(distance / 4.0)
    });
    let sum: f64 = raw.iter().sum();
    raw.map(|w| w / sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::Hexed;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        image: Hexed,
        lanczos4: Vec<Hexed>,
        bilinear: Vec<Hexed>,
    }

    #[test]
    fn resizing_is_opencv_s_to_the_last_bit() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/data/resize.json")).unwrap();
        for golden in goldens {
            let image = golden.image.image();
            assert!(golden.lanczos4.len() >= 2 && golden.bilinear.len() >= 3);
            for expected in golden.lanczos4.iter().map(Hexed::image) {
                let (w, h) = expected.dimensions();
                assert_eq!(resize_lanczos4(&image, w, h).unwrap(), expected, "Lanczos to {w} x {h}");
            }
            for expected in golden.bilinear.iter().map(Hexed::image) {
                let (w, h) = expected.dimensions();
                assert_eq!(resize_bilinear(&image, w, h).unwrap(), expected, "bilinear to {w} x {h}");
            }
        }
    }

    #[test]
    fn only_long_photos_shrink() {
        let image = RgbImage::from_fn(300, 200, |x, y| ::image::Rgb([x as u8, y as u8, 7]));
        assert_eq!(shrink_to_long_side(image.clone(), 300).unwrap(), image);
        let small = shrink_to_long_side(image.clone(), 100).unwrap();
        assert_eq!(small.dimensions(), (100, 66));
        assert!(small.pixels().all(|p| p[2] == 7));
        assert!(shrink_to_long_side(image, 0).is_err());
        assert_eq!(shrink_to_long_side(RgbImage::new(5000, 1), 10).unwrap().dimensions(), (10, 1));
    }

    #[test]
    fn empty_images_are_refused() {
        assert!(resize_bilinear(&RgbImage::new(4, 4), 0, 3).is_err());
        assert!(resize_lanczos4(&RgbImage::new(0, 4), 3, 3).is_err());
    }
}
