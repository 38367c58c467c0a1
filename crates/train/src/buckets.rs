//! Sizes of training images: a square, or buckets of about its area for images of different shapes.

use pulid_tensor::{Error, Result};

/// Pixels that the sides of buckets are multiples of, as with other trainers of SDXL.
pub const STEP: usize = 64;

/// How many times longer than the other a side may be.
const LONGEST: usize = 4;

/// Height and width of an image in pixels.
pub type Size = [usize; 2];

/// The buckets of a resolution: for each width the largest height with which the area is not above the square's, and the other way
/// round, up to four times as long as wide.
///
/// # Errors
/// When the resolution is no multiple of [`STEP`].
pub fn buckets(resolution: usize) -> Result<Vec<Size>> {
    if resolution == 0 || !resolution.is_multiple_of(STEP) {
        let detail = format!("{resolution} is not a multiple of {STEP}, which the sides of buckets are");
        return Err(Error::invalid("resolution", detail));
    }
    let other = |side: usize| resolution * resolution / side / STEP * STEP;
    let pairs =
        (1..).map(|n| n * STEP).take_while(|&side| side <= LONGEST * resolution).map(|side| [side, other(side)]);
    let allowed = |&[a, b]: &Size| b > 0 && a.max(b) <= LONGEST * a.min(b);
    let mut all: Vec<Size> = pairs.filter(allowed).flat_map(|[a, b]| [[a, b], [b, a]]).collect();
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The bucket whose proportions are nearest to an image's, of equally near ones the larger.
pub fn nearest(buckets: &[Size], [height, width]: Size) -> Option<Size> {
    let proportion = |height: usize, width: usize| (height as f64 / width as f64).ln();
    let off = |&[h, w]: &Size| (proportion(h, w) - proportion(height, width)).abs();
    let area = |&[h, w]: &Size| h * w;
    buckets.iter().copied().min_by(|a, b| off(a).total_cmp(&off(b)).then(area(b).cmp(&area(a))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_about_the_square_s_area() {
        let all = buckets(1024).unwrap();
        // Of the list in SDXL's paper (arXiv 2307.01952, appendix I).
        for size in
            [[512, 2048], [512, 1984], [640, 1600], [768, 1344], [832, 1216], [896, 1152], [1024, 1024], [2048, 512]]
        {
            assert!(all.contains(&size), "{size:?} of {all:?}");
        }
        for &[height, width] in &all {
            assert!(height % 64 == 0 && width % 64 == 0 && all.contains(&[width, height]));
            // No row or column more would fit, the other way round at least.
            let (short, long) = (height.min(width), height.max(width));
            assert!(long * short <= 1 << 20 && (long + 64) * (short + 64) > 1 << 20, "{height} x {width}");
            assert!(long <= 4 * short);
        }
        assert_eq!(buckets(128).unwrap(), [[64, 192], [64, 256], [128, 128], [192, 64], [256, 64]]);
        assert!(buckets(100).unwrap_err().to_string().contains("multiple of 64"));
    }

    #[test]
    fn an_image_goes_to_the_bucket_of_its_shape() {
        let all = buckets(1024).unwrap();
        for (size, bucket) in [
            ([3000, 2000], [1216, 832]),
            ([2000, 3000], [832, 1216]),
            ([500, 500], [1024, 1024]),
            ([400, 301], [1152, 896]),
            ([100, 9000], [512, 2048]),
        ] {
            let found = nearest(&all, size).unwrap();
            assert_eq!(found, bucket, "{size:?}");
        }
        assert_eq!(nearest(&[], [1, 1]), None);
    }
}
