use super::{Landmarks, Similarity, estimate_lmeds, warp};
use crate::image::RgbImage;
use pulid_tensor::{Error, Result};

/// Side of ArcFace's input in pixels.
pub const ARCFACE_SIDE: u32 = 112;

/// Where ArcFace expects the landmarks in its 112 x 112 input (insightface).
pub const ARCFACE_TEMPLATE: Landmarks =
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/// Where facexlib puts the landmarks in a crop of 512 x 512.
pub const FACEXLIB_TEMPLATE: Landmarks = [
    [192.98138, 239.94708],
    [318.90277, 240.1936],
    [256.63416, 314.01935],
    [201.26117, 371.41043],
    [313.08905, 371.15118],
];

/// Side of the crop that [`FACEXLIB_TEMPLATE`] describes.
const FACEXLIB_SIDE: f32 = 512.0;

/// facexlib fills with (135, 133, 132) in its blue, green, red order.
const FACEXLIB_BORDER: [u8; 3] = [132, 133, 135];

/// The 112 x 112 crop for ArcFace: least squares onto its template, black outside the photo.
///
/// # Errors
/// [`Error::Photo`] when the landmarks coincide; `name` is the photo's.
pub fn arcface_crop(name: &str, photo: &RgbImage, landmarks: &Landmarks) -> Result<RgbImage> {
    let transform = arcface_transform(landmarks).map_err(|e| degenerate(name, &e))?;
    warp(photo, &transform, ARCFACE_SIDE, ARCFACE_SIDE, [0; 3])
}

/// What takes a photo's pixels to those of its 112 x 112 crop for ArcFace: least squares onto its template.
///
/// # Errors
/// [`Error::Invalid`] when the landmarks coincide or are not finite.
pub fn arcface_transform(landmarks: &Landmarks) -> Result<Similarity> {
    let wide = |points: &Landmarks| points.map(|p| p.map(f64::from));
    Similarity::least_squares(&wide(landmarks), &wide(&ARCFACE_TEMPLATE))
}

/// The square crop of `side` pixels for parsing and the vision tower: a robust fit onto facexlib's template, gray
/// outside.
///
/// # Errors
/// [`Error::Photo`] when the landmarks coincide, [`Error::Invalid`] when `side` is 0; `name` is the photo's.
pub fn facexlib_crop(name: &str, photo: &RgbImage, landmarks: &Landmarks, side: u32) -> Result<RgbImage> {
    if side == 0 {
        return Err(Error::invalid("face crop", "its side must be at least 1 pixel"));
    }
    let template = FACEXLIB_TEMPLATE.map(|p| p.map(|v| v * (side as f32 / FACEXLIB_SIDE)));
    let transform = estimate_lmeds(landmarks, &template).map_err(|e| degenerate(name, &e))?;
    warp(photo, &transform, side, side, FACEXLIB_BORDER)
}

fn degenerate(name: &str, error: &Error) -> Error {
    Error::photo(name, format!("the face that was found has no usable landmarks ({error}); use another photo"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::Hexed;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        photo: Hexed,
        landmarks: Landmarks,
        arcface: Hexed,
        facexlib: Hexed,
    }

    fn differences(ours: &RgbImage, theirs: &RgbImage) -> (u8, f64) {
        assert_eq!(ours.dimensions(), theirs.dimensions());
        let each = ours.iter().zip(theirs.iter()).map(|(a, b)| a.abs_diff(*b));
        let mean = each.clone().map(f64::from).sum::<f64>() / ours.len() as f64;
        (each.max().unwrap(), mean)
    }

    #[test]
    fn crops_are_those_of_insightface_and_facexlib() {
        let golden: Golden = serde_json::from_str(include_str!("../../tests/data/crops.json")).unwrap();
        let photo = golden.photo.image();
        let arcface = arcface_crop("a", &photo, &golden.landmarks).unwrap();
        assert_eq!(arcface, golden.arcface.image());
        let expected = golden.facexlib.image();
        let crop = facexlib_crop("a", &photo, &golden.landmarks, expected.width()).unwrap();
        // The transforms differ by 1e-4 pixel, which now and then falls on another 1/32 step.
        let (worst, mean) = differences(&crop, &expected);
        assert!(worst <= 6 && mean < 0.02, "{worst} {mean}");
    }

    #[test]
    fn landmarks_that_coincide_blame_the_photo() {
        let photo = RgbImage::new(20, 20);
        let same = [[4.0, 4.0]; 5];
        for result in [arcface_crop("me.jpg", &photo, &same), facexlib_crop("me.jpg", &photo, &same, 64)] {
            let error = result.unwrap_err();
            assert!(matches!(&error, Error::Photo { name, .. } if name == "me.jpg"), "{error}");
        }
        assert!(facexlib_crop("a", &photo, &ARCFACE_TEMPLATE, 0).is_err());
    }
}
