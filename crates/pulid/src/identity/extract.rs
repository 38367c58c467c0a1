//! Photos of a person to identity tokens, as PuLID v1.1 reads them.

use super::condition::{HIDDEN_STATES, PhotoFeatures, encoder_inputs};
use super::debug::{PhotoPictures, write_pictures};
use super::detect::{Detector, LONG_SIDE, usable_face};
use super::network::OnnxRunner;
use super::{FaceModels, Identity};
use crate::face::{ARCFACE_SIDE, Face, LabelMap, arcface_crop, facexlib_crop, gray_on_white};
use crate::image::{Normalization, RgbImage, decode_photo, resize_bicubic, shrink_to_long_side, tensor_from_rgb};
use crate::runtime::{Reporter, Runtime};
use crate::text_to_image::{IdentityTokens, take};
use pulid_checkpoint::{Checkpoint, sha256_file};
use pulid_models::onnx::OnnxNetwork;
use pulid_models::pulid::IdFormer;
use pulid_models::{EvaClip, Precision};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::HashMap;
use std::path::Path;

/// Photos of a person that are read together at most, as in the official demonstration.
pub const MAX_PHOTOS: usize = 4;

/// Numbers in the recogniser's embedding.
const FACE_EMBEDDING: usize = 512;

/// A crop of which the parser calls less than this share a face shows none.
const MIN_FACE_SHARE: f64 = 0.01;

/// A photo on its way through the networks.
struct Reading {
    name: String,
    photo: RgbImage,
    faces: Vec<Face>,
    crop: RgbImage,
}

/// Side in pixels of the crop that is parsed and shown to the vision tower.
///
/// The published parser was trained on crops of 512, which go with the published tower of 336. The mini family's tower is
/// smaller, and its parser was trained on crops of 128. The tower's size tells the families apart, since a parser's
/// weights fit any size of picture.
pub fn crop_side(tower_image_size: usize) -> u32 {
    if tower_image_size == 336 { 512 } else { 128 }
}

/// Reads a person from 1 to [`MAX_PHOTOS`] photos, each a name for messages and the bytes of a JPEG, PNG or WebP file.
///
/// In each photo the largest face counts. `adapter` is a PuLID v1.1 file with its identity encoder. With `debug_dir`, crop,
/// parsing, gray face and features of each photo are written there as PNG once everything has succeeded. All runs in
/// f32: it is done once for a person, and every picture inherits its errors.
///
/// # Errors
/// [`Error::Photo`] for a photo that is broken, huge, or shows no face or a tiny one; [`Error::Invalid`] for another
/// number of photos or an adapter that does not belong to these face networks; missing or unreadable files, a lost
/// device, cancellation. Nothing is written then.
pub async fn extract(
    runtime: &Runtime,
    models: &FaceModels,
    adapter: &Path,
    photos: &[(String, Vec<u8>)],
    debug_dir: Option<&Path>,
    reporter: &dyn Reporter,
) -> Result<Identity> {
    if !(1..=MAX_PHOTOS).contains(&photos.len()) {
        let detail = format!("{} are given; 1 to {MAX_PHOTOS} photos of one person are needed", photos.len());
        return Err(Error::invalid("photos", detail));
    }
    models.require_all()?;
    let precision = Precision::F32;
    let former = IdFormer::new(&Checkpoint::open(adapter)?, precision)?;
    let tower = models.tower(precision)?;
    let condition = FACE_EMBEDDING + tower.output_dim();
    if former.condition_dim() != condition {
        let detail = format!(
            "takes {} numbers of each photo, the face networks in {} give {condition}; use those it was trained with",
            former.condition_dim(),
            models.path().display()
        );
        return Err(Error::file(adapter, detail));
    }

    let readings = find_faces(runtime, models, photos, crop_side(tower.image_size()), reporter).await?;
    let embeddings = recognise(runtime, models, &readings, reporter).await?;
    let masks = parse(runtime, models, &readings, precision, reporter).await?;
    let mut grays = Vec::with_capacity(readings.len());
    for (reading, mask) in readings.iter().zip(&masks) {
        grays.push(gray_on_white(&reading.crop, mask)?);
    }
    let features = see(runtime, &tower, &grays, embeddings, reporter).await?;
    let tokens = encode(runtime, &former, &features, reporter).await?;

    let faces = features.iter().map(|f| f.face.as_f32()).collect::<Result<Vec<_>>>()?.concat();
    let identity = Identity {
        tokens,
        face_embedding: HostTensor::from_f32([photos.len(), FACE_EMBEDDING], faces)?,
        adapter_sha256: sha256_file(adapter)?,
        photos: photos.iter().map(|(name, _)| name.clone()).collect(),
    };
    if let Some(folder) = debug_dir {
        let mut pictures = Vec::new();
        for (((reading, mask), gray), features) in readings.iter().zip(&masks).zip(&grays).zip(&features) {
            let Reading { photo, faces, crop, .. } = reading;
            pictures.push(PhotoPictures { photo, faces, crop, mask, gray, hidden: &features.hidden });
        }
        write_pictures(folder, &pictures)?;
    }
    Ok(identity)
}

/// Decodes every photo, then finds and aligns the largest face in each.
async fn find_faces(
    runtime: &Runtime,
    models: &FaceModels,
    photos: &[(String, Vec<u8>)],
    side: u32,
    reporter: &dyn Reporter,
) -> Result<Vec<Reading>> {
    let mut decoded = Vec::with_capacity(photos.len());
    for (name, bytes) in photos {
        decoded.push((name, shrink_to_long_side(decode_photo(name, bytes)?, LONG_SIDE)?));
    }
    let mut detector = Detector::load(runtime, models, reporter).await?;
    let mut readings = Vec::with_capacity(photos.len());
    for (name, photo) in decoded {
        let mut faces = detector.find(name, &photo, reporter).await?;
        let face = usable_face(name, &faces)?.clone();
        let crop = facexlib_crop(name, &photo, &face.landmarks, side)?;
        // The person first, which is also the order in which the faces are drawn.
        faces.retain(|f| *f != face);
        faces.insert(0, face);
        readings.push(Reading { name: name.clone(), photo, faces, crop });
    }
    Ok(readings)
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
    let mut network = OnnxRunner::load(runtime, &path, &OnnxNetwork::open(&path)?, [side, side], reporter).await?;
    let mut embeddings = Vec::with_capacity(readings.len());
    for Reading { name, photo, faces, .. } in readings {
        let crop = arcface_crop(name, photo, &faces[0].landmarks)?;
        let embedding = network.run_single(&tensor_from_rgb(&crop, &Normalization::SYMMETRIC), reporter).await?;
        if embedding.shape().count() != FACE_EMBEDDING {
            let detail = format!("gives {}, expected an embedding of {FACE_EMBEDDING} numbers", embedding.shape());
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
async fn see(
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

/// Tokens of the person, and of nobody: the encoder's answer to zeros.
async fn encode(
    runtime: &Runtime,
    former: &IdFormer,
    features: &[PhotoFeatures],
    reporter: &dyn Reporter,
) -> Result<IdentityTokens> {
    reporter.stage("encoding the identity");
    let inputs = encoder_inputs(features)?;
    let tokens = inputs.get("hidden_0").map_or(0, |h| h.shape()[1]);
    let mut network = runtime.load(&former.graph(1, features.len(), tokens)?, reporter).await?;
    let zeros: HashMap<_, _> =
        inputs.iter().map(|(name, t)| (name.clone(), HostTensor::zeros(t.shape().clone()))).collect();
    let mut answers = Vec::with_capacity(2);
    for inputs in [inputs, zeros] {
        for (name, value) in &inputs {
            network.write(name, value)?;
        }
        answers.push(take(&mut network.run(reporter).await?, "id_embedding")?);
    }
    let mut answers = answers.into_iter();
    match (answers.next(), answers.next()) {
        (Some(id_embedding), Some(uncond_id_embedding)) => Ok(IdentityTokens { id_embedding, uncond_id_embedding }),
        _ => Err(Error::invalid("identity encoder", "gave no tokens")),
    }
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
