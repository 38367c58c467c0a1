//! Faces in a photo.

use super::FaceModels;
use super::aligner::Aligner;
use super::network::OnnxRunner;
use crate::face::{Face, RETINAFACE_SCORE_THRESHOLD, SCORE_THRESHOLD, choose_face, decode_detections, letterbox};
use crate::image::{RgbImage, shrink_to_long_side};
use crate::runtime::{Reporter, Runtime};
use pulid_models::onnx::OnnxNetwork;
use pulid_tensor::{Error, Result};

/// Photos are shrunk to this many pixels on their longer side before anything is computed, as in the official pipeline.
pub const LONG_SIDE: u32 = 1024;

/// Side of the detector's input where its file leaves it open: insightface's setting.
const DETECTOR_SIDE: usize = 640;

/// The least size of a usable face, in pixels from eye to eye or from eyes to mouth, whichever is longer (turned heads
/// have close eyes). ArcFace's crop has 35 from eye to eye; less than half of that leaves no identity to read.
pub const MIN_EYE_DISTANCE: f32 = 16.0;

/// The detectors of the official pipelines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectorKind {
    /// insightface's: its largest face is recognised.
    #[default]
    Scrfd,
    /// facexlib's: its face nearest to the photo's middle is parsed and shown to the vision tower. Not every family has it.
    RetinaFace,
}

/// How faces are looked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct DetectOptions {
    /// By which detector.
    pub detector: DetectorKind,
    /// The least score of a face, 0 to 1; the official pipelines' own if there is none.
    pub threshold: Option<f32>,
}

/// All faces in a photo, best score first, in the photo's own pixels. There may be none.
///
/// `name` is the photo's name for messages. The photo is shrunk to [`LONG_SIDE`] first, so faces that are found here are
/// the ones that [`extract`](super::extract) finds.
///
/// # Errors
/// A missing or broken detector, a threshold outside 0 to 1, a photo of extreme proportions, a lost device, or
/// cancellation.
pub async fn detect(
    runtime: &Runtime,
    models: &FaceModels,
    name: &str,
    photo: &RgbImage,
    options: DetectOptions,
    reporter: &dyn Reporter,
) -> Result<Vec<Face>> {
    if let Some(threshold) = options.threshold.filter(|t| !(0.0..=1.0).contains(t)) {
        return Err(Error::invalid("threshold", format!("{threshold} is not in 0 to 1")));
    }
    let small = shrink_to_long_side(photo.clone(), LONG_SIDE)?;
    let mut faces = match options.detector {
        DetectorKind::Scrfd => {
            let threshold = options.threshold.unwrap_or(SCORE_THRESHOLD);
            Detector::load(runtime, models, reporter).await?.find(name, &small, threshold, reporter).await?
        }
        DetectorKind::RetinaFace => {
            reporter.stage("finding faces");
            let threshold = options.threshold.unwrap_or(RETINAFACE_SCORE_THRESHOLD);
            let mut aligner = Aligner::open(models)?.ok_or_else(|| models.no_retinaface())?;
            aligner.find(runtime, name, &small, threshold, reporter).await?
        }
    };
    let scale = [photo.width() as f32 / small.width() as f32, photo.height() as f32 / small.height() as f32];
    for face in &mut faces {
        face.bbox = std::array::from_fn(|i| face.bbox[i] * scale[i % 2]);
        face.landmarks = face.landmarks.map(|[x, y]| [x * scale[0], y * scale[1]]);
    }
    Ok(faces)
}

/// The detector, ready for one photo after another.
pub(super) struct Detector {
    network: OnnxRunner,
    side: u32,
}

impl Detector {
    pub async fn load(runtime: &Runtime, models: &FaceModels, reporter: &dyn Reporter) -> Result<Detector> {
        reporter.stage("finding faces");
        let path = models.detector()?;
        let network = OnnxNetwork::open(&path)?;
        let side = match network.input_names().first().and_then(|name| network.input_extents(name)).as_deref() {
            Some(&[_, _, Some(height), Some(width)]) if height == width => height,
            Some(&[_, _, Some(height), Some(width)]) => {
                return Err(Error::file(path, format!("takes images of {height} x {width}; a square is needed")));
            }
            _ => DETECTOR_SIDE,
        };
        let network = OnnxRunner::load(runtime, &path, &network, [side, side], reporter).await?;
        Ok(Detector { network, side: side as u32 })
    }

    /// Faces in the pixels of `photo`.
    pub async fn find(
        &mut self,
        name: &str,
        photo: &RgbImage,
        threshold: f32,
        reporter: &dyn Reporter,
    ) -> Result<Vec<Face>> {
        let fitted = letterbox(photo, self.side).map_err(|e| {
            Error::photo(name, format!("it cannot be fitted into the detector ({e}); crop it around the face"))
        })?;
        let outputs: Vec<_> = self.network.run(&fitted.tensor(), reporter).await?.into_values().collect();
        decode_detections(&outputs, (self.side, self.side), fitted.scale, threshold)
    }
}

/// The largest face of a photo that was shrunk to [`LONG_SIDE`], if it is large enough.
pub(super) fn usable_face<'a>(name: &str, faces: &'a [Face]) -> Result<&'a Face> {
    let face = choose_face(name, faces)?;
    let [left, right, _, left_mouth, right_mouth] = face.landmarks;
    let middle = |a: [f32; 2], b: [f32; 2]| [(a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0];
    let distance = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
    let eyes = distance(left, right);
    let size = eyes.max(distance(middle(left, right), middle(left_mouth, right_mouth)));
    if size < MIN_EYE_DISTANCE {
        let (width, height) = face.size();
        let detail = format!(
            "its largest face is tiny: {width:.0} x {height:.0} pixels with the eyes {eyes:.0} pixels apart, at least \
             {MIN_EYE_DISTANCE} are needed (photos are shrunk to {LONG_SIDE} pixels first); crop the photo around the \
             face or use a closer one"
        );
        return Err(Error::photo(name, detail));
    }
    Ok(face)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A face with ArcFace's proportions, `eyes` pixels from eye to eye; `turn` brings the eyes closer.
    fn face(eyes: f32, turn: f32) -> Face {
        let scale = eyes / 35.2;
        let landmarks = crate::face::ARCFACE_TEMPLATE.map(|[x, y]| [(56.0 + (x - 56.0) * turn) * scale, y * scale]);
        Face { bbox: [0.0, 0.0, 112.0 * scale, 112.0 * scale], score: 0.9, landmarks }
    }

    #[test]
    fn tiny_faces_are_refused_by_their_size() {
        assert!(usable_face("a", &[face(17.0, 1.0)]).is_ok());
        // In profile the eyes lie close together, yet the face is as large.
        assert!(usable_face("a", &[face(20.0, 0.3)]).is_ok());
        let error = usable_face("me.jpg", &[face(10.0, 1.0)]).unwrap_err();
        assert!(matches!(&error, Error::Photo { name, .. } if name == "me.jpg"), "{error}");
        let message = error.to_string();
        assert!(message.contains("32 x 32") && message.contains("10 pixels apart"), "{message}");
        assert!(usable_face("a", &[]).is_err());
    }
}
