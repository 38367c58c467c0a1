//! Faces for comparison: whose face is in a picture, by whatever recogniser.

use super::FaceModels;
use super::detect::{Detector, LONG_SIDE, find_any};
use super::network::OnnxRunner;
use crate::face::{ARCFACE_SIDE, Face, SCORE_THRESHOLD, arcface_crop};
use crate::image::{Normalization, RgbImage, shrink_to_long_side, tensor_from_rgb};
use crate::runtime::{Reporter, Runtime};
use pulid_models::onnx::OnnxNetwork;
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// A face that was found, and what a recogniser makes of it.
#[derive(Clone, Debug)]
pub struct SeenFace {
    /// The largest face, in pixels of the picture after it was shrunk to [`LONG_SIDE`].
    pub face: Face,
    /// The recogniser's embedding, as it gives it.
    pub embedding: Vec<f32>,
}

/// A face recogniser's file, where its input is one aligned face and its output one embedding, as far as the file tells.
///
/// # Errors
/// A file that cannot be read, or that takes or gives something else.
pub fn open_recogniser(path: &Path) -> Result<OnnxNetwork> {
    let network = OnnxNetwork::open(path)?;
    let side = ARCFACE_SIDE as usize;
    let names = network.input_names();
    let extents = names.first().and_then(|name| network.input_extents(name)).unwrap_or_default();
    let fits = extents.iter().zip([1, 3, side, side]).all(|(extent, fits)| extent.is_none_or(|e| e == fits));
    let outputs = network.output_names().len();
    if names.len() != 1 || outputs != 1 || !matches!(extents.len(), 0 | 4) || !fits {
        let shown: Vec<_> = extents.iter().map(|e| e.map_or("?".into(), |e| e.to_string())).collect();
        let detail = format!(
            "has {} inputs, the first of [{}], and {outputs} outputs; a face recogniser takes one aligned face [1, 3, {side}, {side}] \
             and gives one embedding",
            names.len(),
            shown.join(", ")
        );
        return Err(Error::file(path, detail));
    }
    Ok(network)
}

/// insightface's detector, ready for one picture after another.
pub struct FaceFinder {
    detector: Detector,
}

impl FaceFinder {
    /// Loads the detector of `models`.
    ///
    /// # Errors
    /// Files that are missing, unreadable or of another kind, a lost device, cancellation.
    pub async fn load(runtime: &Runtime, models: &FaceModels, reporter: &dyn Reporter) -> Result<FaceFinder> {
        Ok(FaceFinder { detector: Detector::load(runtime, models, reporter).await? })
    }

    /// The largest face of a picture, in its pixels; `None` where there is none. Looked for as [`extract`](super::extract) looks for it in a
    /// photo that was shrunk to [`LONG_SIDE`].
    ///
    /// # Errors
    /// A picture of extreme proportions, a lost device, cancellation.
    pub async fn largest(&mut self, name: &str, picture: &RgbImage, reporter: &dyn Reporter) -> Result<Option<Face>> {
        let detector = &mut self.detector;
        let faces =
            find_any(picture, async |photo| detector.find(name, photo, SCORE_THRESHOLD, reporter).await).await?;
        Ok(faces.into_iter().max_by(|a, b| a.area().total_cmp(&b.area())))
    }
}

/// insightface's detector and a recogniser, ready for one picture after another.
pub struct FaceReader {
    finder: FaceFinder,
    recogniser: OnnxRunner,
    path: PathBuf,
    /// Dimension of the first embedding, which all others must have.
    width: Option<usize>,
}

impl FaceReader {
    /// Loads the detector of `models` and a recogniser: an ONNX file that takes one aligned RGB face [1, 3, 112, 112], scaled to -1..1 as
    /// insightface's are, and gives one embedding.
    ///
    /// # Errors
    /// Files that are missing, unreadable or of another kind, a lost device, cancellation.
    pub async fn load(
        runtime: &Runtime,
        models: &FaceModels,
        recogniser: &Path,
        reporter: &dyn Reporter,
    ) -> Result<FaceReader> {
        let network = open_recogniser(recogniser)?;
        let side = ARCFACE_SIDE as usize;
        let finder = FaceFinder::load(runtime, models, reporter).await?;
        let recogniser_network = OnnxRunner::load(runtime, recogniser, &network, [side, side], reporter).await?;
        Ok(FaceReader { finder, recogniser: recogniser_network, path: recogniser.to_owned(), width: None })
    }

    /// The largest face of a picture; `None` where there is none. Looked for as [`extract`](super::extract) looks for it.
    ///
    /// # Errors
    /// A picture of extreme proportions, a recogniser that gives no embedding, a lost device, cancellation.
    pub async fn read(&mut self, name: &str, picture: &RgbImage, reporter: &dyn Reporter) -> Result<Option<SeenFace>> {
        let picture = shrink_to_long_side(picture.clone(), LONG_SIDE)?;
        let Some(face) = self.finder.largest(name, &picture, reporter).await? else { return Ok(None) };
        let crop = arcface_crop(name, &picture, &face.landmarks)?;
        let output = self.recogniser.run_single(&tensor_from_rgb(&crop, &Normalization::SYMMETRIC), reporter).await?;
        let embedding = output.to_f32_vec();
        let expected = *self.width.get_or_insert(embedding.len());
        if embedding.len() != expected || expected < 2 {
            let detail = format!("gives {}; a face recogniser gives one embedding", output.shape());
            return Err(Error::file(&self.path, detail));
        }
        Ok(Some(SeenFace { face, embedding }))
    }
}
