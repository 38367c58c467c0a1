//! Resizing as Pillow does it, which most image encoders' preprocessing was written with.

use ::image::RgbImage;
use pulid_tensor::{Error, Result};

/// Bits after the point of Pillow's 8-bit weights (`PRECISION_BITS` in its `Resample.c`).
const BITS: u32 = 32 - 8 - 2;

/// The parameter of Keys' kernel that Pillow takes.
const A: f64 = -0.5;

/// The source pixels that one pixel is made of, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// For each of `to` pixels its window into `from`; when shrinking the kernel is as much wider.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let wider = scale.max(1.0);
    let (support, narrower) = (2.0 * wider, 1.0 / wider);
    let one = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // Truncated towards zero, as C's casts are.
        let first = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = (((centre + support + 0.5) as i64).max(0) as usize).min(from);
        let raw: Vec<f64> = (first..end).map(|j| cubic((j as f64 - centre + 0.5) * narrower)).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |weight: &f64| {
            let scaled = weight / if sum == 0.0 { 1.0 } else { sum } * f64::from(1u32 << BITS);
            // Halves away from zero.
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        Window { first, weights: raw.iter().map(fixed).collect() }
    };
    (0..to).map(one).collect()
}

fn rounded(sum: i32) -> u8 {
    (sum.wrapping_add(1 << (BITS - 1)) >> BITS).clamp(0, 255) as u8
}

/// Resizes as Pillow's `Image.resize(size, Image.BICUBIC)`, to the last bit: Keys' kernel with A = -0.5, widened when shrinking, rows and
/// then columns, each rounded to 8 bits. Pillow 13 takes columns before rows in some images that are more than twice as high as wide or
/// change their proportions, which may move single pixels by some levels; at SDXL's own sizes it does not.
///
/// # Errors
/// [`Error::Invalid`] when either image has no pixels.
pub fn resize_pillow_bicubic(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (from_w, from_h) = (image.width() as usize, image.height() as usize);
    if [image.width(), image.height(), width, height].contains(&0) {
        return Err(Error::invalid("resize", format!("{from_w} x {from_h} to {width} x {height} has no pixels")));
    }
    let across = (image.width() != width).then(|| windows(from_w, width as usize));
    let down = (image.height() != height).then(|| windows(from_h, height as usize));
    let mut lines = image.as_raw().clone();
    if let Some(across) = across {
        let mut out = Vec::with_capacity(across.len() * from_h * 3);
        for row in lines.chunks_exact(from_w * 3) {
            for window in &across {
                for channel in 0..3 {
                    let pixels = row[window.first * 3..].chunks_exact(3);
                    let products = pixels.zip(&window.weights).map(|(p, w)| i32::from(p[channel]).wrapping_mul(*w));
                    out.push(rounded(products.fold(0, i32::wrapping_add)));
                }
            }
        }
        lines = out;
    }
    if let Some(down) = down {
        let stride = width as usize * 3;
        let mut out = Vec::with_capacity(down.len() * stride);
        for window in &down {
            for x in 0..stride {
                let rows = lines[window.first * stride..].chunks_exact(stride);
                let products = rows.zip(&window.weights).map(|(row, w)| i32::from(row[x]).wrapping_mul(*w));
                out.push(rounded(products.fold(0, i32::wrapping_add)));
            }
        }
        lines = out;
    }
    RgbImage::from_raw(width, height, lines).ok_or_else(|| Error::invalid("resize", "the image is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_where_the_size_does_not_and_flat_stays_flat() {
        let image = RgbImage::from_fn(9, 5, |x, y| ::image::Rgb([x as u8 * 20, y as u8 * 40, 7]));
        assert_eq!(resize_pillow_bicubic(&image, 9, 5).unwrap(), image);
        let flat = RgbImage::from_pixel(31, 17, ::image::Rgb([3, 128, 255]));
        for (w, h) in [(7, 5), (64, 40), (1, 1)] {
            assert!(resize_pillow_bicubic(&flat, w, h).unwrap().pixels().all(|p| p.0 == [3, 128, 255]));
        }
        assert!(resize_pillow_bicubic(&flat, 0, 3).is_err());
    }
}
