//! Faces in a photo.

use super::FaceModels;
use super::aligner::Aligner;
use super::network::OnnxRunner;
use crate::face::{Face, RETINAFACE_SCORE_THRESHOLD, SCORE_THRESHOLD, decode_detections, letterbox};
use crate::image::{RgbImage, shrink_to_long_side};
use crate::runtime::{Reporter, Runtime};
use pulid_models::OnnxFamily;
use pulid_models::onnx::OnnxNetwork;
use pulid_tensor::{Error, Result};

/// Photos are shrunk to this many pixels on their longer side before anything is computed, as in the official pipeline.
pub const LONG_SIDE: u32 = 1024;

/// Side of the detector's input where its file leaves it open: insightface's setting.
const DETECTOR_SIDE: usize = 640;

/// The least size of a usable face, in pixels from eye to eye or from eyes to mouth, whichever is longer (turned heads
/// have close eyes). ArcFace's crop has 35 from eye to eye; less than half of that leaves no identity to read.
pub const MIN_EYE_DISTANCE: f32 = 16.0;

/// Borders that are put around a photo without a face, in shares of its longer side: a face that fills the photo is larger than any
/// that a detector was trained on. Each is tried in turn.
const ROOM: [f32; 3] = [0.25, 0.5, 1.0];

/// The colour of such a border, which is no edge to dark or bright photos.
const BORDER: image::Rgb<u8> = image::Rgb([127; 3]);

/// A photo with a border, and the border's width in pixels.
fn with_room(photo: &RgbImage, share: f32) -> (RgbImage, u32) {
    let border = (photo.width().max(photo.height()) as f32 * share).round() as u32;
    let mut larger = RgbImage::from_pixel(photo.width() + 2 * border, photo.height() + 2 * border, BORDER);
    image::imageops::replace(&mut larger, photo, border.into(), border.into());
    (larger, border)
}

/// Faces of a photo with a border, in the pixels of the photo without.
fn without_room(mut faces: Vec<Face>, border: u32) -> Vec<Face> {
    let border = border as f32;
    for face in &mut faces {
        face.bbox = face.bbox.map(|v| v - border);
        face.landmarks = face.landmarks.map(|point| point.map(|v| v - border));
    }
    faces
}

/// Faces that a detector finds in a photo, and where there is none those that it finds with borders around the photo.
pub(super) async fn find_any(
    photo: &RgbImage,
    mut find: impl AsyncFnMut(&RgbImage) -> Result<Vec<Face>>,
) -> Result<Vec<Face>> {
    let faces = find(photo).await?;
    if !faces.is_empty() {
        return Ok(faces);
    }
    let mut tries = Vec::new();
    for share in ROOM {
        let (larger, border) = with_room(photo, share);
        tries.push(without_room(find(&larger).await?, border));
    }
    Ok(surest(tries, photo.dimensions()))
}

/// The faces of the try whose best face is the surest. Detectors see faces in edges of borders, too: what lies in the border is none,
/// and several borders rarely agree on a mistake.
fn surest(tries: Vec<Vec<Face>>, (width, height): (u32, u32)) -> Vec<Face> {
    let inside = |face: &Face| {
        let points = face.landmarks.iter();
        points.filter(|[x, y]| (0.0..width as f32).contains(x) && (0.0..height as f32).contains(y)).count() >= 4
    };
    let within = tries.into_iter().map(|mut faces| {
        faces.retain(inside);
        faces
    });
    let score = |faces: &[Face]| faces.first().map_or(0.0, |face| face.score);
    within.max_by(|a, b| score(a).total_cmp(&score(b))).unwrap_or_default()
}

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
/// `name` is the photo's name for messages. Where there is none, it is looked for again with borders around the photo, since a face
/// that fills it is too large for the detectors. The photo is shrunk to [`LONG_SIDE`] first, so faces that are found here are
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
    let usual = match options.detector {
        DetectorKind::Scrfd => SCORE_THRESHOLD,
        DetectorKind::RetinaFace => RETINAFACE_SCORE_THRESHOLD,
    };
    let least = options.threshold.unwrap_or(usual);
    // A face that a higher threshold leaves out is there all the same: no border is put around the photo then.
    let threshold = least.min(usual);
    let mut faces = match options.detector {
        DetectorKind::Scrfd => {
            let mut detector = Detector::load(runtime, models, reporter).await?;
            find_any(&small, async |photo| detector.find(name, photo, threshold, reporter).await).await?
        }
        DetectorKind::RetinaFace => {
            reporter.stage("finding faces");
            let mut aligner = Aligner::open(models)?.ok_or_else(|| models.no_retinaface())?;
            find_any(&small, async |photo| aligner.find(runtime, name, photo, threshold, reporter).await).await?
        }
    };
    faces.retain(|face| face.score >= least);
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
        network.require(OnnxFamily::Scrfd)?;
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

/// Refuses the person's face in a photo that was shrunk to [`LONG_SIDE`] where it is too small to be read.
pub(super) fn require_usable(name: &str, face: &Face) -> Result<()> {
    let [left, right, _, left_mouth, right_mouth] = face.landmarks;
    let middle = |a: [f32; 2], b: [f32; 2]| [(a[0] + b[0]) / 2.0, (a[1] + b[1]) / 2.0];
    let distance = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
    let eyes = distance(left, right);
    let size = eyes.max(distance(middle(left, right), middle(left_mouth, right_mouth)));
    if size < MIN_EYE_DISTANCE {
        let (width, height) = face.size();
        let detail = format!(
            "its face is tiny: {width:.0} x {height:.0} pixels with the eyes {eyes:.0} pixels apart, at least \
             {MIN_EYE_DISTANCE} are needed (photos are shrunk to {LONG_SIDE} pixels first); crop the photo around the \
             face or use a closer one"
        );
        return Err(Error::photo(name, detail));
    }
    Ok(())
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
    fn borders_do_not_move_faces() {
        let photo = RgbImage::from_pixel(40, 30, image::Rgb([9, 8, 7]));
        let (larger, border) = with_room(&photo, 0.5);
        assert_eq!((larger.dimensions(), border), ((80, 70), 20));
        assert_eq!((larger.get_pixel(20, 20).0, larger.get_pixel(59, 49).0), ([9, 8, 7], [9, 8, 7]));
        assert_eq!((larger.get_pixel(19, 20).0, larger.get_pixel(60, 49).0), ([127; 3], [127; 3]));
        let own = face(30.0, 1.0);
        let mut seen = own.clone();
        seen.bbox = seen.bbox.map(|v| v + 20.0);
        seen.landmarks = seen.landmarks.map(|point| point.map(|v| v + 20.0));
        let back = without_room(vec![seen], border).remove(0);
        assert!(back.bbox.iter().zip(own.bbox).all(|(a, b)| (a - b).abs() < 1e-4));
        assert!(
            back.landmarks.as_flattened().iter().zip(own.landmarks.as_flattened()).all(|(a, b)| (a - b).abs() < 1e-4)
        );
    }

    #[test]
    fn tiny_faces_are_refused_by_their_size() {
        assert!(require_usable("a", &face(17.0, 1.0)).is_ok());
        // In profile the eyes lie close together, yet the face is as large.
        assert!(require_usable("a", &face(20.0, 0.3)).is_ok());
        let error = require_usable("me.jpg", &face(10.0, 1.0)).unwrap_err();
        assert!(matches!(&error, Error::Photo { name, .. } if name == "me.jpg"), "{error}");
        let message = error.to_string();
        assert!(message.contains("32 x 32") && message.contains("10 pixels apart"), "{message}");
    }
}
