//! Images of what happens between photo and identity, for people to look at.

use super::{Face, LABELS, LabelMap};
use crate::image::RgbImage;
use ::image::Rgb;
use pulid_tensor::{Error, HostTensor, Result};

/// Colours of the labels: whole families (brows, eyes, ears, lips) share a hue.
const LABEL_COLORS: [[u8; 3]; LABELS.len()] = [
    [24, 24, 24],
    [236, 188, 160],
    [140, 84, 40],
    [168, 104, 52],
    [40, 120, 220],
    [80, 160, 240],
    [150, 220, 240],
    [220, 140, 120],
    [200, 116, 100],
    [250, 220, 60],
    [250, 160, 110],
    [140, 20, 40],
    [220, 60, 90],
    [190, 40, 70],
    [200, 160, 200],
    [250, 250, 120],
    [90, 150, 90],
    [110, 60, 150],
    [60, 180, 160],
];

/// Colours that [`feature_heat_map`] runs through from the least to the greatest norm; brightness grows throughout.
const HEAT_COLORS: [[f32; 3]; 5] =
    [[8.0, 8.0, 40.0], [110.0, 20.0, 110.0], [220.0, 70.0, 60.0], [250.0, 170.0, 50.0], [255.0, 250.0, 200.0]];

/// The label map in colours; labels that have no name are magenta.
pub fn color_labels(labels: &LabelMap) -> RgbImage {
    let color = |x: u32, y: u32| {
        let label = labels.labels()[y as usize * labels.width() + x as usize];
        Rgb(LABEL_COLORS.get(usize::from(label)).copied().unwrap_or([255, 0, 255]))
    };
    RgbImage::from_fn(labels.width() as u32, labels.height() as u32, color)
}

/// The Euclidean norm of each patch's features as a heat map of `pixels` x `pixels` squares, dark to bright.
///
/// `features` are one image's tokens [1, n, C], n a square number of patches, or one more: then the first is the
/// class token and is left out. The colours span the least to the greatest norm of this image.
///
/// # Errors
/// [`Error::Invalid`] for another shape or type, or NaN or infinity among the features.
pub fn feature_heat_map(features: &HostTensor, pixels: u32) -> Result<RgbImage> {
    let wrong = |detail: String| Error::invalid("feature image", detail);
    let &[1, tokens, channels] = features.shape().extents() else {
        return Err(wrong(format!("{} is not [1, tokens, channels]", features.shape())));
    };
    let side_of = |n: usize| Some(n.isqrt()).filter(|s| *s > 0 && s * s == n);
    let Some((skipped, side)) = side_of(tokens.saturating_sub(1)).map(|s| (1, s)).or(side_of(tokens).map(|s| (0, s)))
    else {
        return Err(wrong(format!("{tokens} tokens are no square of patches, with or without a class token")));
    };
    if channels == 0 || pixels == 0 || side > 4096 || pixels > 256 {
        return Err(wrong(format!(
            "{side} x {side} patches of {channels} channels at {pixels} pixels cannot be drawn"
        )));
    }
    let norm = |token: &[f32]| token.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = features.as_f32()?.chunks_exact(channels).skip(skipped).map(norm).collect();
    let (least, greatest) = norms.iter().fold((f64::MAX, f64::MIN), |(a, b), &n| (a.min(n), b.max(n)));
    if !norms.iter().all(|n| n.is_finite()) {
        return Err(wrong("the features hold NaN or infinity".into()));
    }
    let range = if greatest > least { greatest - least } else { 1.0 };
    let color = |x: u32, y: u32| {
        let patch = (y / pixels) as usize * side + (x / pixels) as usize;
        Rgb(heat(((norms[patch] - least) / range) as f32))
    };
    Ok(RgbImage::from_fn(side as u32 * pixels, side as u32 * pixels, color))
}

fn heat(value: f32) -> [u8; 3] {
    let position = value.clamp(0.0, 1.0) * (HEAT_COLORS.len() - 1) as f32;
    let below = (position as usize).min(HEAT_COLORS.len() - 2);
    let part = position - below as f32;
    std::array::from_fn(|c| (HEAT_COLORS[below][c] * (1.0 - part) + HEAT_COLORS[below + 1][c] * part).round() as u8)
}

/// The photo with every face's box (green, the others than the first yellow) and landmarks (red).
pub fn draw_faces(photo: &RgbImage, faces: &[Face]) -> RgbImage {
    let mut image = photo.clone();
    let thick = (photo.width().max(photo.height()) / 400 + 1) as i64;
    for (i, face) in faces.iter().enumerate() {
        let color = if i == 0 { [0, 220, 0] } else { [240, 220, 0] };
        let [left, top, right, bottom] = face.bbox.map(|v| v.round() as i64);
        fill(&mut image, [left, top, right, top + thick], color);
        fill(&mut image, [left, bottom - thick, right, bottom], color);
        fill(&mut image, [left, top, left + thick, bottom], color);
        fill(&mut image, [right - thick, top, right, bottom], color);
        for [x, y] in face.landmarks.map(|p| p.map(|v| v.round() as i64)) {
            let (x, y) = (x.saturating_sub(thick), y.saturating_sub(thick));
            fill(&mut image, [x, y, x.saturating_add(2 * thick + 1), y.saturating_add(2 * thick + 1)], [230, 0, 0]);
        }
    }
    image
}

/// Fills left..right by top..bottom, as far as it lies inside the image.
fn fill(image: &mut RgbImage, [left, top, right, bottom]: [i64; 4], color: [u8; 3]) {
    let inside = |low: i64, high: i64, size: u32| low.clamp(0, size.into()) as u32..high.clamp(0, size.into()) as u32;
    for y in inside(top, bottom, image.height()) {
        for x in inside(left, right, image.width()) {
            image.put_pixel(x, y, Rgb(color));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_has_its_own_colour() {
        let map = LabelMap::new(20, 1, (0..20).collect()).unwrap();
        let image = color_labels(&map);
        let mut colors: Vec<_> = image.pixels().map(|p| p.0).collect();
        colors.sort_unstable();
        colors.dedup();
        assert_eq!(colors.len(), 20);
    }

    #[test]
    fn heat_maps_show_where_features_are_strong() {
        let features = |tokens: usize, strong: usize| {
            HostTensor::from_fn([1, tokens, 4], move |i| if i / 4 == strong { 3.0 } else { 0.5 })
        };
        for (tokens, strong) in [(9, 5), (10, 6)] {
            let image = feature_heat_map(&features(tokens, strong), 2).unwrap();
            assert_eq!(image.dimensions(), (6, 6));
            let bright = |x, y| image.get_pixel(x, y).0.iter().map(|&v| u32::from(v)).sum::<u32>() > 400;
            for (x, y, _) in image.enumerate_pixels() {
                assert_eq!(bright(x, y), x / 2 == 2 && y / 2 == 1, "{tokens} tokens, {x} {y}");
            }
        }
        assert!(feature_heat_map(&HostTensor::zeros([1, 4, 8]), 3).is_ok());
    }

    #[test]
    fn undrawable_features_are_refused() {
        for shape in [vec![1, 12, 4], vec![2, 9, 4], vec![9, 4], vec![1, 0, 4], vec![1, 9, 0]] {
            assert!(feature_heat_map(&HostTensor::zeros(shape.clone()), 2).is_err(), "{shape:?}");
        }
        assert!(feature_heat_map(&HostTensor::from_fn([1, 9, 2], |_| f32::NAN), 2).is_err());
        assert!(feature_heat_map(&HostTensor::zeros([1, 9, 2]), 0).is_err());
    }

    #[test]
    fn boxes_and_points_are_drawn_even_beyond_the_edge() {
        let photo = RgbImage::new(40, 30);
        let inside = Face { bbox: [5.0, 5.0, 20.0, 20.0], score: 1.0, landmarks: [[12.0, 12.0]; 5] };
        let outside = Face { bbox: [-1e9, -5.0, 1e30, 999.0], score: 1.0, landmarks: [[f32::NAN, f32::INFINITY]; 5] };
        let image = draw_faces(&photo, &[inside, outside]);
        assert_eq!(image.get_pixel(10, 5).0, [0, 220, 0]);
        assert_eq!(image.get_pixel(12, 12).0, [230, 0, 0]);
        assert_eq!(image.get_pixel(30, 15).0, [0, 0, 0]);
    }
}
