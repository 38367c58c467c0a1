use super::scrfd::suppress;
use super::{Face, NMS_THRESHOLD};
use crate::image::RgbImage;
use pulid_tensor::{Error, HostTensor, Result};

/// Detections have to score above this, in the official pipelines' call of facexlib.
pub const RETINAFACE_SCORE_THRESHOLD: f32 = 0.97;

/// For each level the pixels between neighbouring anchors, and the sides of the anchors at each place.
const LEVELS: [(usize, [f64; 2]); 3] = [(8, [16.0, 32.0]), (16, [64.0, 128.0]), (32, [256.0, 512.0])];

/// What the network's outputs are multiplied with: offsets in sides of the anchor, and logarithms of sizes.
const VARIANCES: [f32; 2] = [0.1, 0.2];

/// What is subtracted from blue, green and red.
const MEANS: [f32; 3] = [104.0, 117.0, 123.0];

/// RetinaFace's input [1, H, W, 3] in blue, green, red order: the photo at its own size.
pub fn retinaface_input(photo: &RgbImage) -> HostTensor {
    let raw = photo.as_raw();
    HostTensor::from_fn([1, photo.height() as usize, photo.width() as usize, 3], |i| {
        let channel = i % 3;
        f32::from(raw[i - channel + 2 - channel]) - MEANS[channel]
    })
}

/// Faces from RetinaFace's outputs, as [`retinaface_candidates`] without overlaps.
///
/// # Errors
/// As [`retinaface_candidates`].
pub fn decode_retinaface(outputs: [&HostTensor; 3], size: (u32, u32), threshold: f32) -> Result<Vec<Face>> {
    Ok(suppress(retinaface_candidates(outputs, size, threshold)?, NMS_THRESHOLD, 0.0))
}

/// All detections in RetinaFace's outputs that score above `threshold`, in pixels of its input, best score first.
///
/// `loc` [1, A, 4], `conf` [1, A, 2] (background, face) and `landms` [1, A, 10] are the network's outputs for an image
/// of `size` (width, height), A two anchors at each place of the levels of 8, 16 and 32 pixels, the finest first. In
/// f32, operation by operation as facexlib decodes them.
///
/// # Errors
/// [`Error::Invalid`] when an output has another shape, or a score is not a number.
pub fn retinaface_candidates(
    [loc, conf, landms]: [&HostTensor; 3],
    size: (u32, u32),
    threshold: f32,
) -> Result<Vec<Face>> {
    let anchors = anchors(size);
    let values = |name: &str, tensor: &'_ HostTensor, width: usize| -> Result<Vec<f32>> {
        if *tensor.shape().extents() != [1, anchors.len(), width] {
            let detail = format!("`{name}` is {}, expected [1, {}, {width}]", tensor.shape(), anchors.len());
            return Err(Error::invalid("RetinaFace", detail));
        }
        Ok(tensor.as_f32()?.to_vec())
    };
    let (loc, conf, landms) = (values("loc", loc, 4)?, values("conf", conf, 2)?, values("landms", landms, 10)?);
    let (width, height) = (size.0 as f32, size.1 as f32);
    let mut faces = Vec::new();
    for (i, anchor) in anchors.iter().enumerate() {
        let score = conf[2 * i + 1];
        if score.is_nan() {
            return Err(Error::invalid("RetinaFace", "a score is NaN; the detector's weights or input are broken"));
        }
        if score <= threshold {
            continue;
        }
        let &[cx, cy, w, h] = anchor;
        let place = |centre: f32, offset: f32, side: f32| centre + offset * VARIANCES[0] * side;
        let loc = &loc[4 * i..4 * i + 4];
        let (sx, sy) = (w * (loc[2] * VARIANCES[1]).exp(), h * (loc[3] * VARIANCES[1]).exp());
        let (left, top) = (place(cx, loc[0], w) - sx / 2.0, place(cy, loc[1], h) - sy / 2.0);
        let points = &landms[10 * i..10 * i + 10];
        faces.push(Face {
            bbox: [left * width, top * height, (sx + left) * width, (sy + top) * height],
            score,
            landmarks: std::array::from_fn(|k| {
                [place(cx, points[2 * k], w) * width, place(cy, points[2 * k + 1], h) * height]
            }),
        });
    }
    faces.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(faces)
}

/// The number of the face whose box's middle is nearest to the middle of an image of `size` (width, height), the first
/// of equals: facexlib's `only_center_face`.
pub fn centre_most_face(faces: &[Face], size: (u32, u32)) -> Option<usize> {
    let (x, y) = (f64::from(size.0) / 2.0, f64::from(size.1) / 2.0);
    let distance = |face: &Face| {
        let [left, top, right, bottom] = face.bbox;
        (f64::from((left + right) / 2.0) - x).hypot(f64::from((top + bottom) / 2.0) - y)
    };
    (0..faces.len()).min_by(|&a, &b| distance(&faces[a]).total_cmp(&distance(&faces[b])))
}

/// Centre and sides of every anchor, in fractions of the image.
fn anchors((width, height): (u32, u32)) -> Vec<[f32; 4]> {
    let (width, height) = (width as usize, height as usize);
    let mut anchors = Vec::new();
    for (pixels, sides) in LEVELS {
        for row in 0..height.div_ceil(pixels) {
            for column in 0..width.div_ceil(pixels) {
                let at = |index: usize, extent: usize| (index as f64 + 0.5) * pixels as f64 / extent as f64;
                let (x, y) = (at(column, width) as f32, at(row, height) as f32);
                anchors.extend(sides.map(|side| [x, y, (side / width as f64) as f32, (side / height as f64) as f32]));
            }
        }
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Outputs of an image of 70 x 40 pixels in which the given anchors score so.
    fn outputs(scores: &[(usize, f32)]) -> ([HostTensor; 3], (u32, u32)) {
        let size = (70, 40);
        let count = anchors(size).len();
        assert_eq!(count, 2 * (9 * 5 + 5 * 3 + 3 * 2));
        let mut conf = vec![0.0; 2 * count];
        scores.iter().for_each(|&(i, score)| conf[2 * i + 1] = score);
        let conf = HostTensor::from_f32([1, count, 2], conf).unwrap();
        ([HostTensor::zeros([1, count, 4]), conf, HostTensor::zeros([1, count, 10])], size)
    }

    fn decode(scores: &[(usize, f32)]) -> Vec<Face> {
        let ([loc, conf, landms], size) = outputs(scores);
        decode_retinaface([&loc, &conf, &landms], size, RETINAFACE_SCORE_THRESHOLD).unwrap()
    }

    #[test]
    fn an_anchor_without_offsets_is_its_own_square() {
        // The third place of the second row has its middle at (20, 12); its second anchor has 32 pixels.
        let faces = decode(&[(2 * (9 + 2) + 1, 0.98)]);
        let [left, top, right, bottom] = faces[0].bbox;
        for (found, expected) in [(left, 4.0), (top, -4.0), (right, 36.0), (bottom, 28.0)] {
            assert!((found - expected).abs() < 1e-4, "{:?}", faces[0]);
        }
        assert!(faces[0].landmarks.iter().all(|[x, y]| (x - 20.0).abs() < 1e-4 && (y - 12.0).abs() < 1e-4));
    }

    #[test]
    fn scores_have_to_be_above_the_threshold_and_the_best_comes_first() {
        // Anchors of 16 pixels, far from each other, and a neighbour of the first that overlaps it.
        let faces = decode(&[(0, 0.98), (2, 0.975), (8, 0.99), (16, 0.97)]);
        assert_eq!(faces.iter().map(|f| f.score).collect::<Vec<_>>(), [0.99, 0.98, 0.975]);
        // Neighbours 8 pixels apart share a third of their union, those of the coarse levels much more.
        let coarse = 2 * 45;
        assert_eq!(decode(&[(coarse, 0.98), (coarse + 2, 0.99)]).len(), 1);
    }

    #[test]
    fn the_face_in_the_middle_is_chosen() {
        let face =
            |x: f32, side: f32| Face { bbox: [x, 10.0, x + side, 10.0 + side], score: 0.9, landmarks: [[0.0; 2]; 5] };
        let faces = [face(0.0, 60.0), face(85.0, 20.0), face(95.0, 20.0)];
        assert_eq!(centre_most_face(&faces, (200, 40)), Some(1));
        assert_eq!(centre_most_face(&faces, (30, 80)), Some(0));
        assert_eq!(centre_most_face(&[], (30, 80)), None);
    }

    #[test]
    fn the_input_is_blue_green_red() {
        let photo = RgbImage::from_raw(2, 1, vec![1, 2, 3, 200, 210, 220]).unwrap();
        let input = retinaface_input(&photo);
        assert_eq!(input.shape().extents(), [1, 1, 2, 3]);
        assert_eq!(input.as_f32().unwrap(), [-101.0, -115.0, -122.0, 116.0, 93.0, 77.0]);
    }

    #[test]
    fn broken_outputs_are_refused() {
        let ([loc, conf, landms], size) = outputs(&[(3, f32::NAN)]);
        assert!(decode_retinaface([&loc, &conf, &landms], size, 0.5).is_err());
        assert!(decode_retinaface([&loc, &loc, &landms], size, 0.5).is_err());
        assert!(decode_retinaface([&loc, &conf, &landms], (71, 41), 0.5).is_err());
    }
}
