//! Photos of a person to identity tokens, as the official pipelines of PuLID v1 and v1.1 read them.

use super::aligner::Aligner;
use super::belongs::strangers;
use super::choice::FaceChoice;
use super::condition::{HIDDEN_STATES, PhotoFeatures, conditions};
use super::debug::{PhotoImages, draw_debug_images};
use super::detect::{Detector, LONG_SIDE, find_any, require_usable};
use super::encoder::Encoder;
use super::network::OnnxRunner;
use super::{FaceModels, Identity};
use crate::face::{
    ARCFACE_SIDE, Face, LabelMap, RETINAFACE_SCORE_THRESHOLD, SCORE_THRESHOLD, arcface_crop, facexlib_crop,
    gray_on_white,
};
use crate::image::{
    Normalization, RgbImage, decode_photo, resize_bicubic, resize_bilinear, shrink_to_long_side, tensor_from_rgb,
};
use crate::pipeline::{IdentityTokens, take};
use crate::runtime::{Reporter, Runtime};
use pulid_checkpoint::{Checkpoint, sha256_file};
use pulid_models::onnx::OnnxNetwork;
use pulid_models::pulid::content_sha256;
use pulid_models::{EvaClip, OnnxFamily, Precision};
use pulid_tensor::{Error, HostTensor, Result};
use std::path::Path;

/// Photos of a person that are read together at most, as in the official demonstration.
pub const MAX_PHOTOS: usize = 4;

/// Dimension of the recogniser's embedding.
const FACE_EMBEDDING: usize = 512;

/// A crop of which the parser calls less than this share a face shows none.
const MIN_FACE_SHARE: f64 = 0.01;

/// What [`extract`] may be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtractOptions {
    /// PuLID v1: further photos show further people, who are mixed. Without it they show the same person again.
    pub id_mix: bool,
    /// Which face of each photo is the person.
    pub face: FaceChoice,
    /// Whether to draw what the networks saw, for [`Identity::debug_images`].
    pub debug: bool,
}

/// A photo on its way through the networks.
struct Reading {
    name: String,
    /// Shrunk to [`LONG_SIDE`].
    photo: RgbImage,
    /// Pixels of the photo as it came, along each side of one of `photo`.
    scale: f32,
    /// insightface's faces, the person's first. There may be none where facexlib finds the person.
    faces: Vec<Face>,
    /// facexlib's faces, the person's first, where its detector is at hand.
    aligned: Vec<Face>,
    crop: RgbImage,
}

impl Reading {
    /// What the recogniser sees of it.
    fn recognised(&self) -> Result<RgbImage> {
        match self.faces.first() {
            Some(face) => arcface_crop(&self.name, &self.photo, &face.landmarks),
            // Not ArcFace's template, yet this is what the official pipelines do where insightface finds no face.
            None => resize_bilinear(&self.crop, ARCFACE_SIDE, ARCFACE_SIDE),
        }
    }
}

/// Side in pixels of the crop that is parsed and shown to the vision tower.
///
/// The published parser was trained on crops of 512, which go with the published tower of 336. The mini family's tower is
/// smaller, and its parser was trained on crops of 128. The tower's size tells the families apart, since a parser's
/// weights fit any size of image.
pub fn crop_side(tower_image_size: usize) -> u32 {
    if tower_image_size == 336 { 512 } else { 128 }
}

/// Reads a person from 1 to [`MAX_PHOTOS`] photos, each a name for messages and the bytes of a JPEG, PNG or WebP file.
///
/// `adapter` is a PuLID v1 or v1.1 file with its identity encoder, which tells the version. Where `options` ask for it, faces,
/// crop, parsing, gray face and features of each photo are drawn, too. Nothing is written. All runs in f32: it is done once
/// for a person, and every image inherits its errors.
///
/// As in the official pipelines, the recogniser sees insightface's largest face, parser and tower see facexlib's face
/// nearest to the photo's middle, and where insightface finds none the recogniser sees facexlib's. In families without
/// facexlib's detector insightface's largest face serves both.
///
/// # Errors
/// [`Error::Photo`] for a photo that is broken, huge, or shows no face or a tiny one; [`Error::Invalid`] for another
/// number of photos, a mix of identities with v1.1, or an adapter that does not belong to these face networks; files that
/// are missing, unreadable or of another kind, a lost device, cancellation.
pub async fn extract(
    runtime: &Runtime,
    models: &FaceModels,
    adapter: &Path,
    photos: &[(String, Vec<u8>)],
    options: &ExtractOptions,
    reporter: &dyn Reporter,
) -> Result<Identity> {
    if !(1..=MAX_PHOTOS).contains(&photos.len()) {
        let detail = format!("{} are given; 1 to {MAX_PHOTOS} photos of one person are needed", photos.len());
        return Err(Error::invalid("photos", detail));
    }
    models.require_all()?;
    let precision = Precision::F32;
    let encoder = Encoder::open(adapter, precision)?;
    encoder.check_mix(options.id_mix)?;
    let tower = models.tower(precision)?;
    let condition = FACE_EMBEDDING + tower.output_dim();
    if encoder.condition_dim() != condition {
        let detail = format!(
            "takes {} dimensions of each photo, the face networks in {} give {condition}; use those it was trained with",
            encoder.condition_dim(),
            models.path().display()
        );
        return Err(Error::file(adapter, detail));
    }

    let side = crop_side(tower.image_size());
    models.examine()?.iter().for_each(|unread| reporter.note(&unread.to_string()));
    let readings = find_faces(runtime, models, photos, side, options.face, reporter).await?;
    let embeddings = recognise(runtime, models, &readings, reporter).await?;
    if !options.id_mix {
        let names: Vec<_> = readings.iter().map(|reading| reading.name.as_str()).collect();
        if let Some(note) = strangers(&names, &embeddings)? {
            reporter.note(&note);
        }
    }
    let masks = parse(runtime, models, &readings, precision, reporter).await?;
    let mut grays = Vec::with_capacity(readings.len());
    for (reading, mask) in readings.iter().zip(&masks) {
        grays.push(gray_on_white(&reading.crop, mask)?);
    }
    let features = vision_features(runtime, &tower, &grays, embeddings, reporter).await?;
    reporter.stage("encoding the identity");
    let tokens = encoder.tokens(runtime, &features, options.id_mix, reporter).await?;

    let mut debug_images = Vec::new();
    if options.debug {
        let mut seen = Vec::new();
        for (((reading, mask), gray), features) in readings.iter().zip(&masks).zip(&grays).zip(&features) {
            let Reading { photo, faces, aligned, crop, .. } = reading;
            seen.push(PhotoImages { photo, faces, aligned, crop, mask, gray, hidden: &features.hidden });
        }
        debug_images = draw_debug_images(&seen)?;
    }
    let faces = features.iter().map(|f| f.face.as_f32()).collect::<Result<Vec<_>>>()?.concat();
    Ok(Identity {
        tokens,
        face_embedding: HostTensor::from_f32([photos.len(), FACE_EMBEDDING], faces)?,
        id_cond: conditions(&features)?.reshape([photos.len(), condition])?,
        adapter_sha256: sha256_file(adapter)?,
        adapter_content_sha256: content_sha256(&Checkpoint::open(adapter)?)?,
        adapter: adapter.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        photos: photos.iter().map(|(name, _)| name.clone()).collect(),
        debug_images,
    })
}

/// What the identity encoders are given of one photo.
#[derive(Clone, Debug)]
pub struct PhotoInputs {
    /// `id_cond` [1, C]: the recogniser's raw embedding, then the vision tower's class embedding of length 1.
    pub id_cond: HostTensor,
    /// `hidden_0` .. `hidden_4` [1, tokens, W].
    pub hidden: Vec<HostTensor>,
    /// The person's face in pixels of the photo as [`decode_photo`] gives it: left, top, right, bottom.
    pub face: [f32; 4],
    /// The face as the recogniser saw it, 112 x 112.
    pub recognised: RgbImage,
}

/// Reads one photo as [`extract`] does, up to the identity encoder's inputs: for whoever trains the encoder.
///
/// # Errors
/// As [`extract`].
pub async fn photo_inputs(
    runtime: &Runtime,
    models: &FaceModels,
    name: &str,
    photo: &[u8],
    reporter: &dyn Reporter,
) -> Result<PhotoInputs> {
    let precision = Precision::F32;
    let tower = models.tower(precision)?;
    let photos = [(name.to_owned(), photo.to_vec())];
    let side = crop_side(tower.image_size());
    let readings = find_faces(runtime, models, &photos, side, FaceChoice::Official, reporter).await?;
    let embeddings = recognise(runtime, models, &readings, reporter).await?;
    let masks = parse(runtime, models, &readings, precision, reporter).await?;
    let [reading @ Reading { crop, faces, aligned, scale, .. }] = &readings[..] else {
        return Err(Error::photo(name, "was not read"));
    };
    let recognised = reading.recognised()?;
    let mut grays = Vec::new();
    for mask in &masks {
        grays.push(gray_on_white(crop, mask)?);
    }
    let mut features = vision_features(runtime, &tower, &grays, embeddings, reporter).await?;
    let id_cond = conditions(&features)?.reshape([1, FACE_EMBEDDING + tower.output_dim()])?;
    let hidden = features.pop().map(|f| f.hidden).unwrap_or_default();
    let face = faces.first().or(aligned.first()).map_or([0.0; 4], |face| face.bbox.map(|v| v * scale));
    Ok(PhotoInputs { id_cond, hidden, face, recognised })
}

/// Tokens of the shape that [`extract`] gives for one photo, all zeros: for planning an image before its photo is read.
///
/// # Errors
/// As [`extract`] for the adapter.
pub fn blank_tokens(adapter: &Path) -> Result<IdentityTokens> {
    let [tokens, width] = Encoder::open(adapter, Precision::F32)?.output_shape();
    let blank = HostTensor::zeros([1, tokens, width]);
    Ok(IdentityTokens { id_embedding: blank.clone(), uncond_id_embedding: blank })
}

/// The part of a photo that parser and vision tower would be shown by [`extract`], and the photo's faces, the person's first.
///
/// # Errors
/// As [`extract`], as far as it goes.
pub async fn crop(
    runtime: &Runtime,
    models: &FaceModels,
    name: &str,
    photo: &[u8],
    reporter: &dyn Reporter,
) -> Result<(Vec<Face>, RgbImage)> {
    let side = crop_side(models.tower(Precision::F32)?.image_size());
    let photos = [(name.to_owned(), photo.to_vec())];
    let readings = find_faces(runtime, models, &photos, side, FaceChoice::Official, reporter).await?;
    let reading = readings.into_iter().next().ok_or_else(|| Error::photo(name, "was not read"))?;
    Ok((if reading.faces.is_empty() { reading.aligned } else { reading.faces }, reading.crop))
}

/// Decodes every photo, then finds and aligns the person's face in each.
async fn find_faces(
    runtime: &Runtime,
    models: &FaceModels,
    photos: &[(String, Vec<u8>)],
    side: u32,
    choice: FaceChoice,
    reporter: &dyn Reporter,
) -> Result<Vec<Reading>> {
    let mut readings = Vec::with_capacity(photos.len());
    for (name, bytes) in photos {
        let photo = decode_photo(name, bytes)?;
        let width = photo.width() as f32;
        let photo = shrink_to_long_side(photo, LONG_SIDE)?;
        let scale = width / photo.width() as f32;
        let (faces, aligned, crop) = (Vec::new(), Vec::new(), RgbImage::default());
        readings.push(Reading { name: name.clone(), photo, scale, faces, aligned, crop });
    }
    let mut aligner = Aligner::open(models)?;
    let mut detector = Detector::load(runtime, models, reporter).await?;
    for reading in &mut readings {
        let Reading { name, photo, scale, faces, .. } = reading;
        *faces = match aligner {
            // Where insightface finds none, facexlib's detector may.
            Some(_) => detector.find(name, photo, SCORE_THRESHOLD, reporter).await?,
            None => find_any(photo, async |photo| detector.find(name, photo, SCORE_THRESHOLD, reporter).await).await?,
        };
        if aligner.is_none() || !faces.is_empty() {
            take_first(name, faces, photo.dimensions(), *scale, choice, reporter)?;
        }
    }
    drop(detector);
    for Reading { name, photo, scale, faces, aligned, crop } in &mut readings {
        if let Some(aligner) = &mut aligner {
            let find =
                async |photo: &RgbImage| aligner.find(runtime, name, photo, RETINAFACE_SCORE_THRESHOLD, reporter).await;
            *aligned = find_any(photo, find).await?;
            if aligned.is_empty() {
                return Err(no_aligned_face(name, faces));
            }
            match (faces.first(), choice) {
                (_, FaceChoice::Official) => {
                    let chosen = FaceChoice::Centre.of(name, aligned, photo.dimensions())?;
                    aligned[..=chosen].rotate_right(1);
                    if faces.first().is_some_and(|face| !face.overlaps(&aligned[0])) {
                        reporter.note(&format!(
                            "{name}: as in the official pipelines the largest face is recognised and the one nearest to the middle is                              shown to the other networks, and these are two people; `face` takes one of them"
                        ));
                    }
                }
                (None, _) => take_first(name, aligned, photo.dimensions(), *scale, choice, reporter)?,
                (Some(face), _) => {
                    let same = aligned.iter().position(|other| face.overlaps(other));
                    let same = same.ok_or_else(|| no_aligned_face(name, faces))?;
                    aligned[..=same].rotate_right(1);
                }
            }
        }
        let face = aligned.first().or(faces.first()).ok_or_else(|| no_aligned_face(name, faces))?;
        *crop = facexlib_crop(name, photo, &face.landmarks, side)?;
    }
    Ok(readings)
}

/// Puts the person's face before the others, which is also the order in which the faces are drawn, and says so where there are several,
/// in pixels of the photo as it came: `scale` of them make one of the faces' pixels.
fn take_first(
    name: &str,
    faces: &mut [Face],
    size: (u32, u32),
    scale: f32,
    choice: FaceChoice,
    reporter: &dyn Reporter,
) -> Result<()> {
    let chosen = choice.of(name, faces, size)?;
    require_usable(name, &faces[chosen])?;
    faces[..=chosen].rotate_right(1);
    if let Some(note) = choice.note(name, faces, scale) {
        reporter.note(&note);
    }
    Ok(())
}

/// The official pipelines give up here, too, even where insightface found a face.
fn no_aligned_face(name: &str, faces: &[Face]) -> Error {
    let found = if faces.is_empty() { "no face was found" } else { "only one of two detectors found a face" };
    Error::photo(
        name,
        format!("{found}; use a photo that shows one face clearly, from the front, with some room around it"),
    )
}

/// The recogniser's embedding [1, 512] of each photo.
async fn recognise(
    runtime: &Runtime,
    models: &FaceModels,
    readings: &[Reading],
    reporter: &dyn Reporter,
) -> Result<Vec<HostTensor>> {
    reporter.stage("recognising the face");
    let path = models.recogniser()?;
    let side = ARCFACE_SIDE as usize;
    let network = OnnxNetwork::open(&path)?;
    network.require(OnnxFamily::ArcFace)?;
    let mut network = OnnxRunner::load(runtime, &path, &network, [side, side], reporter).await?;
    let mut embeddings = Vec::with_capacity(readings.len());
    for reading in readings {
        let crop = reading.recognised()?;
        let embedding = network.run_single(&tensor_from_rgb(&crop, &Normalization::SYMMETRIC), reporter).await?;
        if embedding.shape().count() != FACE_EMBEDDING {
            let detail = format!("gives {}, expected an embedding of {FACE_EMBEDDING} dimensions", embedding.shape());
            return Err(Error::file(path, detail));
        }
        embeddings.push(embedding.reshape([1, FACE_EMBEDDING])?);
    }
    Ok(embeddings)
}

/// The parser's labels of each crop.
async fn parse(
    runtime: &Runtime,
    models: &FaceModels,
    readings: &[Reading],
    precision: Precision,
    reporter: &dyn Reporter,
) -> Result<Vec<LabelMap>> {
    reporter.stage("parsing the face");
    let side = readings.first().map_or(0, |r| r.crop.width() as usize);
    let graph = models.parser(precision)?.graph(1, side, side)?;
    let mut network = runtime.load(&graph, reporter).await?;
    let mut masks = Vec::with_capacity(readings.len());
    for Reading { name, crop, .. } in readings {
        network.write("image", &tensor_from_rgb(crop, &Normalization::IMAGENET))?;
        let mask = LabelMap::from_logits(&take(&mut network.run(reporter).await?, "logits")?)?;
        if mask.face_share() < MIN_FACE_SHARE {
            let detail = "what was taken for a face shows none on a closer look; use a photo that shows one face \
                          clearly, from the front";
            return Err(Error::photo(name, detail));
        }
        masks.push(mask);
    }
    Ok(masks)
}

/// The vision tower's features of each gray face, beside the face embeddings.
async fn vision_features(
    runtime: &Runtime,
    tower: &EvaClip,
    grays: &[HostTensor],
    embeddings: Vec<HostTensor>,
    reporter: &dyn Reporter,
) -> Result<Vec<PhotoFeatures>> {
    reporter.stage("reading the face's features");
    let side = tower.image_size();
    let mut network = runtime.load(&tower.graph(1)?, reporter).await?;
    let mut features = Vec::with_capacity(grays.len());
    for (gray, face) in grays.iter().zip(embeddings) {
        let image = Normalization::OPENAI_CLIP.apply(&resize_bicubic(gray, side, side)?)?;
        network.write("image", &image)?;
        let mut outputs = network.run(reporter).await?;
        let hidden = (0..HIDDEN_STATES).map(|k| take(&mut outputs, &format!("hidden_{k}")));
        let hidden = hidden.collect::<Result<_>>()?;
        features.push(PhotoFeatures { face, class: take(&mut outputs, "cls")?, hidden });
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_and_mini_sizes_have_their_own_crops() {
        assert_eq!(crop_side(336), 512);
        assert_eq!(crop_side(112), 128);
    }
}
