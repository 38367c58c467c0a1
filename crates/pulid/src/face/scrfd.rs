use super::Landmarks;
use crate::image::{Normalization, RgbImage, resize_bilinear, tensor_from_rgb};
use pulid_tensor::{Error, HostTensor, Result};
use serde::Serialize;

/// Pixels between neighbouring anchors on the detector's three levels.
const STRIDES: [usize; 3] = [8, 16, 32];

/// Anchors at each position.
const ANCHORS: usize = 2;

/// Detections below this score are dropped, as insightface does.
pub const SCORE_THRESHOLD: f32 = 0.5;

/// Of two detections that overlap more than this (intersection over union), the lower one is dropped.
pub const NMS_THRESHOLD: f32 = 0.4;

/// A face whose score is at least this share of the surest one's is nearly as sure. The detector gives clear faces 0.75 or more, and most
/// of what is no face less than two thirds of that.
pub const NEARLY_AS_SURE: f32 = 2.0 / 3.0;

/// A face whose box has a shorter side than this many pixels carries too little detail for an identity.
pub const MIN_FACE_SIDE: f32 = 24.0;

/// A detected face, in pixels of the photo.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Face {
    /// Left, top, right, bottom; may reach beyond the photo.
    pub bbox: [f32; 4],
    /// Confidence in 0..1.
    pub score: f32,
    /// The five landmarks.
    pub landmarks: Landmarks,
}

impl Face {
    /// Width and height of the box.
    pub fn size(&self) -> (f32, f32) {
        (self.bbox[2] - self.bbox[0], self.bbox[3] - self.bbox[1])
    }

    /// Whether each of two boxes holds the other's middle: they are of one face then, by whatever detectors.
    pub fn overlaps(&self, other: &Face) -> bool {
        let holds = |a: &Face, b: &Face| {
            let middle = [(b.bbox[0] + b.bbox[2]) / 2.0, (b.bbox[1] + b.bbox[3]) / 2.0];
            (0..2).all(|axis| (a.bbox[axis]..=a.bbox[axis + 2]).contains(&middle[axis]))
        };
        holds(self, other) && holds(other, self)
    }

    /// Width times height of the box; the person is who has the largest.
    pub fn area(&self) -> f32 {
        let (width, height) = self.size();
        width * height
    }
}

/// A photo fitted into the detector's square input.
#[derive(Clone, Debug)]
pub struct Letterbox {
    /// The photo in the top left corner, black elsewhere.
    pub image: RgbImage,
    /// Pixels of the input per pixel of the photo.
    pub scale: f32,
}

impl Letterbox {
    /// The detector's input [1, S, S, 3]: RGB, (value - 127.5) / 128.
    pub fn tensor(&self) -> HostTensor {
        tensor_from_rgb(&self.image, &Normalization::SCRFD)
    }
}

/// Fits a photo into a square of `side` pixels, larger or smaller, keeping its aspect, as insightface does.
///
/// # Errors
/// [`Error::Invalid`] when `side` is no positive multiple of 32, or the photo is so narrow that nothing would be left
/// of it.
pub fn letterbox(photo: &RgbImage, side: u32) -> Result<Letterbox> {
    if side == 0 || !side.is_multiple_of(32) {
        return Err(Error::invalid("detector size", format!("{side} is no positive multiple of 32")));
    }
    let (width, height) = (f64::from(photo.width()), f64::from(photo.height()));
    // The same roundings, down from f64, as in insightface, so that boxes scale back to the same pixels.
    let (fitted_width, fitted_height) = if height > width {
        ((f64::from(side) / (height / width)) as u32, side)
    } else {
        (side, (f64::from(side) * (height / width)) as u32)
    };
    let small = resize_bilinear(photo, fitted_width, fitted_height)?;
    let mut image = RgbImage::new(side, side);
    ::image::imageops::replace(&mut image, &small, 0, 0);
    Ok(Letterbox { image, scale: (f64::from(fitted_height) / height) as f32 })
}

/// Faces from the detector's nine outputs, best score first, overlaps removed.
///
/// `outputs` are scores [n, 1], box distances [n, 4] and landmark offsets [n, 10] of the strides 8, 16 and 32, where n
/// counts 2 anchors in each cell of stride x stride pixels; with or without a leading batch of 1, in any order, since
/// the shapes tell them apart. `input` is the width and height of the detector's input in pixels, `scale` is
/// [`Letterbox::scale`]. Anchors lie at (x, y) stride, without half a pixel.
///
/// # Errors
/// [`Error::Invalid`] when outputs are missing or have other shapes, or a score is not a number.
pub fn decode_detections(outputs: &[HostTensor], input: (u32, u32), scale: f32, threshold: f32) -> Result<Vec<Face>> {
    let mut faces = Vec::new();
    for stride in STRIDES {
        let (columns, rows) = (input.0 as usize / stride, input.1 as usize / stride);
        let count = columns * rows * ANCHORS;
        let scores = find(outputs, count, 1)?;
        let boxes = find(outputs, count, 4)?;
        let points = find(outputs, count, 10)?;
        let pixels = stride as f32;
        for (i, &score) in scores.iter().enumerate() {
            if score.is_nan() {
                return Err(Error::invalid("detector", "a score is NaN; the detector's weights or input are broken"));
            }
            if score < threshold {
                continue;
            }
            let cell = i / ANCHORS;
            let centre = [(cell % columns) as f32 * pixels, (cell / columns) as f32 * pixels];
            let side_at = |k: usize| {
                let distance = boxes[i * 4 + k] * pixels;
                (if k < 2 { centre[k] - distance } else { centre[k - 2] + distance }) / scale
            };
            let point = |k: usize, axis: usize| (centre[axis] + points[i * 10 + 2 * k + axis] * pixels) / scale;
            faces.push(Face {
                bbox: std::array::from_fn(side_at),
                score,
                landmarks: std::array::from_fn(|k| [point(k, 0), point(k, 1)]),
            });
        }
    }
    faces.sort_by(|a, b| b.score.total_cmp(&a.score));
    // insightface counts pixels inclusively.
    Ok(suppress(faces, NMS_THRESHOLD, 1.0))
}

fn find(outputs: &[HostTensor], count: usize, width: usize) -> Result<&[f32]> {
    let fits = |t: &&HostTensor| t.shape().count() == count * width && t.shape().last() == width;
    match outputs.iter().find(fits) {
        Some(tensor) => tensor.as_f32(),
        None => {
            let found = outputs.iter().map(|t| t.shape().to_string()).collect::<Vec<_>>().join(", ");
            Err(Error::invalid("detector", format!("no output is [{count}, {width}]; there are {found}")))
        }
    }
}

/// Greedy non-maximum suppression of faces sorted by score. `inclusive` is added to the sides of boxes: 1 where pixels are
/// counted inclusively, else 0.
pub(super) fn suppress(faces: Vec<Face>, threshold: f32, inclusive: f32) -> Vec<Face> {
    let extent = |low: f32, high: f32| (high - low + inclusive).max(0.0);
    let area = |b: &[f32; 4]| (b[2] - b[0] + inclusive) * (b[3] - b[1] + inclusive);
    let mut kept: Vec<Face> = Vec::new();
    for face in faces {
        let b = &face.bbox;
        let overlaps = |other: &Face| {
            let a = &other.bbox;
            let common = extent(a[0].max(b[0]), a[2].min(b[2])) * extent(a[1].max(b[1]), a[3].min(b[3]));
            common / (area(a) + area(b) - common) > threshold
        };
        if !kept.iter().any(overlaps) {
            kept.push(face);
        }
    }
    kept
}

/// The person's face: [`surely_largest`], as a doubtful find may be a coat or a statue.
/// PuLID takes the largest of all, which is the same one wherever the largest is a clear face.
///
/// # Errors
/// As [`large_enough`].
pub fn choose_face<'a>(name: &str, faces: &'a [Face]) -> Result<&'a Face> {
    large_enough(name, surely_largest(faces).map(|i| &faces[i]))
}

/// The position of the largest face of those that are [nearly as sure](NEARLY_AS_SURE) as the surest.
pub fn surely_largest(faces: &[Face]) -> Option<usize> {
    let surest = faces.iter().map(|face| face.score).fold(0.0, f32::max);
    let sure = (0..faces.len()).filter(|&i| faces[i].score >= NEARLY_AS_SURE * surest);
    sure.max_by(|&a, &b| faces[a].area().total_cmp(&faces[b].area()))
}

/// The chosen face, if there is one of a size that can be read.
///
/// # Errors
/// [`Error::Photo`] when there is none, or it is smaller than [`MIN_FACE_SIDE`]; `name` is the photo's.
pub fn large_enough<'a>(name: &str, face: Option<&'a Face>) -> Result<&'a Face> {
    let Some(face) = face else {
        return Err(Error::photo(
            name,
            "no face was found; use a photo that shows one face clearly, from the front, with some room around it",
        ));
    };
    let (width, height) = face.size();
    if width.min(height) < MIN_FACE_SIDE {
        let detail = format!(
            "its largest face has only {width:.0} x {height:.0} pixels; crop the photo around the face or use a larger one \
             (at least {MIN_FACE_SIDE} pixels)"
        );
        return Err(Error::photo(name, detail));
    }
    Ok(face)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::Hexed;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        side: u32,
        scale: f32,
        outputs: Vec<Output>,
        faces: Vec<Expected>,
    }

    #[derive(Deserialize)]
    struct Output {
        width: usize,
        values: Vec<f32>,
    }

    #[derive(Deserialize)]
    struct Expected {
        bbox: [f32; 4],
        score: f32,
        landmarks: Landmarks,
    }

    #[derive(Deserialize)]
    struct Fitted {
        photo: Hexed,
        side: u32,
        scale: f32,
        image: Hexed,
    }

    fn tensors(golden: &Golden, batch: bool) -> Vec<HostTensor> {
        let one = |o: &Output| {
            let n = o.values.len() / o.width;
            let shape = if batch { vec![1, n, o.width] } else { vec![n, o.width] };
            HostTensor::from_f32(shape, o.values.clone()).unwrap()
        };
        golden.outputs.iter().map(one).collect()
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../tests/data/scrfd.json")).unwrap()
    }

    #[test]
    fn detections_are_insightface_s() {
        let golden = golden();
        assert!(golden.faces.len() >= 4);
        let faces =
            decode_detections(&tensors(&golden, false), (golden.side, golden.side), golden.scale, SCORE_THRESHOLD)
                .unwrap();
        assert_eq!(faces.len(), golden.faces.len());
        for (face, expected) in faces.iter().zip(&golden.faces) {
            assert_eq!(face.score, expected.score);
            let ours = face.bbox.iter().chain(face.landmarks.as_flattened());
            for (a, b) in ours.zip(expected.bbox.iter().chain(expected.landmarks.as_flattened())) {
                assert!((a - b).abs() < 1e-3, "{a} for {b}");
            }
        }
        let mut shuffled = tensors(&golden, true);
        shuffled.reverse();
        assert_eq!(
            decode_detections(&shuffled, (golden.side, golden.side), golden.scale, SCORE_THRESHOLD).unwrap(),
            faces
        );
    }

    #[test]
    fn broken_outputs_are_refused() {
        let golden = golden();
        let mut outputs = tensors(&golden, false);
        assert!(decode_detections(&outputs, (96, 96), 1.0, 0.5).is_err());
        assert!(decode_detections(&outputs[1..], (golden.side, golden.side), 1.0, 0.5).is_err());
        outputs[0] = HostTensor::from_fn(outputs[0].shape().clone(), |_| f32::NAN);
        assert!(decode_detections(&outputs, (golden.side, golden.side), 1.0, 0.5).is_err());
    }

    #[test]
    fn letterboxes_are_insightface_s() {
        let goldens: Vec<Fitted> = serde_json::from_str(include_str!("../../tests/data/letterbox.json")).unwrap();
        assert!(goldens.len() >= 3);
        for golden in goldens {
            let fitted = letterbox(&golden.photo.image(), golden.side).unwrap();
            assert_eq!(fitted.image, golden.image.image());
            assert_eq!(fitted.scale, golden.scale);
            let side = golden.side as usize;
            assert_eq!(fitted.tensor().shape().extents(), [1, side, side, 3]);
        }
    }

    #[test]
    fn impossible_letterboxes_are_refused() {
        assert!(letterbox(&RgbImage::new(100, 100), 0).is_err());
        assert!(letterbox(&RgbImage::new(100, 100), 100).is_err());
        assert!(letterbox(&RgbImage::new(10_000, 2), 64).is_err());
        assert!(letterbox(&RgbImage::new(0, 0), 64).is_err());
    }

    fn face(side: f32, score: f32) -> Face {
        Face { bbox: [5.0, 5.0, 5.0 + side, 5.0 + side], score, landmarks: [[0.0; 2]; 5] }
    }

    #[test]
    fn the_largest_of_the_sure_faces_is_chosen() {
        assert_eq!(choose_face("a", &[face(30.0, 0.85), face(80.0, 0.6)]).unwrap().score, 0.6);
        assert_eq!(choose_face("a", &[face(30.0, 0.85), face(80.0, 0.5)]).unwrap().score, 0.85);
        let message = choose_face("me.png", &[]).unwrap_err().to_string();
        assert!(message.contains("me.png") && message.contains("no face"), "{message}");
        let message = choose_face("me.png", &[face(9.0, 0.9)]).unwrap_err().to_string();
        assert!(message.contains("9 x 9"), "{message}");
    }

    proptest! {
        #[test]
        fn suppression_keeps_the_best_and_separates_the_rest(
            boxes in proptest::collection::vec((0f32..90.0, 0f32..90.0, 1f32..60.0, 1f32..60.0), 1..30)
        ) {
            let faces: Vec<Face> = boxes.iter().enumerate().map(|(i, &(x, y, w, h))| Face {
                bbox: [x, y, x + w, y + h], score: 1.0 - i as f32 * 0.01, landmarks: [[0.0; 2]; 5],
            }).collect();
            let kept = suppress(faces.clone(), NMS_THRESHOLD, 1.0);
            prop_assert_eq!(&kept[0], &faces[0]);
            prop_assert_eq!(suppress(kept.clone(), NMS_THRESHOLD, 1.0), kept.clone());
            prop_assert!(kept.windows(2).all(|w| w[0].score > w[1].score));
        }
    }
}
