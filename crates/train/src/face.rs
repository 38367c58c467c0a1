//! Whose face latents show: L_id of pictures, wherever they came from.

use crate::batch::Batch;
use crate::branch::scaled;
use crate::quiet::Quiet;
use crate::terms::{Room, memory, numbers};
use pulid::face::arcface_transform;
use pulid::identity::{FaceFinder, FaceModels, open_recogniser};
use pulid::image::rgb_from_tensor;
use pulid::runtime::{Loaded, Reporter, Runtime, Tensor};
use pulid_models::Precision;
use pulid_models::sdxl::Vae;
use pulid_models::training::{IdentityLossSize, identity_graph, sample_weights, with_gradients};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What the loss is made with.
pub(crate) struct FaceSetup<'a> {
    pub runtime: &'a Runtime,
    pub faces: &'a FaceModels,
    pub vae: &'a Vae,
    /// An ONNX file.
    pub recogniser: &'a Path,
    /// Of the latents.
    pub size: IdentityLossSize,
    pub room: &'a dyn Fn() -> Room,
}

/// L_id's networks behind the latents.
pub(crate) struct FaceLoss {
    /// Of the decoder's input.
    scaling_factor: f64,
    /// Shows the picture to the detector.
    decoder: Loaded,
    finder: FaceFinder,
    /// Embeds the photos' faces.
    recogniser: Loaded,
    recogniser_input: String,
    recogniser_output: String,
    /// From the latents to the loss, and back.
    loss: Loaded,
}

/// What it answers.
#[derive(Debug, Default)]
pub(crate) struct FaceAnswer {
    /// The loss, a mean over the pictures with a face, and its gradient in the latents, times the weight; none without any.
    pub loss: Option<(f64, HostTensor)>,
    /// Pictures that were looked at for a face, and those that show one.
    pub faces: [usize; 2],
    /// What went into it: `crop_matrix`, `photo_embedding`, `face_found`.
    pub inputs: BTreeMap<String, HostTensor>,
}

impl FaceLoss {
    /// Loads it.
    ///
    /// # Errors
    /// Files that are missing or of another kind, a device out of memory, cancellation.
    pub async fn load(setup: &FaceSetup<'_>, reporter: &dyn Reporter) -> Result<FaceLoss> {
        let FaceSetup { runtime, faces, vae, size, .. } = *setup;
        let IdentityLossSize { batch, height, width } = size;
        let recogniser = open_recogniser(setup.recogniser)?;
        let side = pulid::face::ARCFACE_SIDE as usize;
        let [input] = recogniser.input_names()[..] else {
            return Err(Error::file(setup.recogniser, "takes more than one input"));
        };
        let shapes = BTreeMap::from([(input.to_owned(), vec![batch, 3, side, side])]);
        let embeds = recogniser.build(&shapes, Precision::F32)?;
        let output = embeds.outputs().first().map(|(name, _)| name.clone()).unwrap_or_default();

        let graph = identity_graph(vae, &recogniser, size, Precision::F32)?;
        let build = |checkpointing| with_gradients(&graph, &["identity"], &["latent"], checkpointing);
        let (loss, _) = (setup.room)().choose(runtime, reporter, build).await?;
        Ok(FaceLoss {
            scaling_factor: f64::from(vae.config().scaling_factor),
            decoder: runtime.load(&vae.decoder(batch, height, width)?, reporter).await?,
            finder: FaceFinder::load(runtime, faces, reporter).await?,
            recogniser: runtime.load(&embeds, reporter).await?,
            recogniser_input: input.to_owned(),
            recogniser_output: output,
            loss: runtime.load(&loss, reporter).await?,
        })
    }

    /// Bytes of its networks' values.
    pub fn memory(&self) -> usize {
        let networks = [&self.loss, &self.decoder, &self.recogniser];
        networks.into_iter().filter_map(memory).map(|[_, working]| working).sum()
    }

    /// The loss of latents, channels last and as the UNet has them. Samples without an identity and pictures without a face have no part
    /// in it.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn run(
        &mut self,
        latent: &HostTensor,
        batch: &Batch,
        weight: f64,
        observer: &Quiet<'_>,
    ) -> Result<FaceAnswer> {
        let (crop, found) = self.crops(latent, observer).await?;
        let present: Vec<bool> = found.iter().zip(&batch.identified).map(|(face, whose)| *face && *whose).collect();
        let target = self.embeddings(&batch.faces, observer).await?;
        let count = |flags: &[bool]| flags.iter().filter(|flag| **flag).count();
        let mut answer = FaceAnswer {
            loss: None,
            faces: [count(&batch.identified), count(&present)],
            inputs: BTreeMap::from([
                ("crop_matrix".to_owned(), crop.clone()),
                ("photo_embedding".to_owned(), target.clone()),
                ("face_found".to_owned(), HostTensor::from_fn([present.len()], |i| f32::from(u8::from(present[i])))),
            ]),
        };
        if present.contains(&true) {
            let crop = beside(&crop, &found)?;
            for (name, value) in [("latent", latent), ("crop", &crop), ("target", &target)] {
                self.loss.write(name, value)?;
            }
            self.loss.write("upstream.identity", &sample_weights(&present, 1.0, weight as f32))?;
            let mut outputs = self.loss.run_to(&["identity", "d.latent"], observer).await?;
            let loss = mean(&numbers(&mut outputs, "identity").await?, &present);
            answer.loss = Some((loss, read(&mut outputs, "d.latent").await?));
        }
        Ok(answer)
    }

    /// For each picture the map of ArcFace's crop to it, [B, 2, 3], and whether it shows a face.
    async fn crops(&mut self, latent: &HostTensor, observer: &Quiet<'_>) -> Result<(HostTensor, Vec<bool>)> {
        self.decoder.write("latent", &scaled(latent, 1.0 / self.scaling_factor)?)?;
        let mut decoded = self.decoder.run_to(&["sample"], observer).await?;
        let pictures = match rgb_from_tensor(&read(&mut decoded, "sample").await?) {
            // In half precision a step may overflow: nobody's face, as of a picture of anything else.
            Err(Error::NotFinite { .. }) => {
                let count = latent.shape()[0];
                return Ok((HostTensor::zeros([count, 2, 3]), vec![false; count]));
            }
            pictures => pictures?,
        };
        let mut matrices = Vec::with_capacity(6 * pictures.len());
        let mut found = Vec::with_capacity(pictures.len());
        for picture in &pictures {
            let face = self.finder.largest("a picture of L_id", picture, observer).await?;
            // Landmarks that coincide are no face's.
            let transform = face.and_then(|face| arcface_transform(&face.landmarks).ok());
            let matrix = transform.map_or([[0.0; 3]; 2], |transform| transform.inverse().matrix());
            matrices.extend(matrix.as_flattened().iter().map(|v| *v as f32));
            found.push(transform.is_some());
        }
        Ok((HostTensor::from_f32([pictures.len(), 2, 3], matrices)?, found))
    }

    /// What the recogniser makes of the photos' faces.
    async fn embeddings(&mut self, faces: &HostTensor, observer: &Quiet<'_>) -> Result<HostTensor> {
        self.recogniser.write(&self.recogniser_input, faces)?;
        let mut outputs = self.recogniser.run_to(&[&self.recogniser_output], observer).await?;
        read(&mut outputs, &self.recogniser_output).await
    }
}

/// An output of a network, on the host.
pub(crate) async fn read(outputs: &mut HashMap<String, Tensor>, name: &str) -> Result<HostTensor> {
    let none = || Error::invalid("training", format!("a network gave no {name}"));
    outputs.remove(name).ok_or_else(none)?.read().await
}

/// The mean over those that are present.
pub(crate) fn mean(values: &[f64], present: &[bool]) -> f64 {
    let kept: Vec<f64> = values.iter().zip(present).filter(|(_, present)| **present).map(|(value, _)| *value).collect();
    kept.iter().sum::<f64>() / kept.len() as f64
}

/// The maps, but for pictures without a face one to a place far beside the picture, where the gradient of the crop finds nothing to add:
/// with a map of zeros every pixel of the picture would look through all of the crop.
fn beside(crop: &HostTensor, found: &[bool]) -> Result<HostTensor> {
    const FAR: [f32; 6] = [1.0, 0.0, -1e5, 0.0, 1.0, -1e5];
    let maps = crop.as_f32()?.chunks_exact(6).zip(found).flat_map(|(map, found)| if *found { map } else { &FAR });
    HostTensor::from_f32([found.len(), 2, 3], maps.copied().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_faces_are_looked_for_beside_the_picture() {
        let maps: Vec<f32> = (0..12).map(|i| if i < 6 { i as f32 } else { 0.0 }).collect();
        let crop = HostTensor::from_f32([2, 2, 3], maps).unwrap();
        let moved = beside(&crop, &[true, false]).unwrap();
        let [kept, [a, _, x, _, d, y]] = moved.as_f32().unwrap().as_chunks::<6>().0 else { panic!("two maps") };
        assert_eq!(kept, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(*a != 0.0 && *d != 0.0 && *x < -1e4 && *y < -1e4, "{moved:?}");
    }
}
