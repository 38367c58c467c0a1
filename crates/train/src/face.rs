//! Whose face latents show: L_id of pictures, wherever they came from.

use crate::batch::Batch;
use crate::memory::Part;
use crate::terms::numbers;
use pulid::face::arcface_transform;
use pulid::identity::{FaceFinder, FaceModels, open_recogniser};
use pulid::image::rgb_from_tensor;
use pulid::runtime::{Loaded, Quiet, Reporter, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::{Checkpointing, Graph};
use pulid_models::Precision;
use pulid_models::onnx::OnnxNetwork;
use pulid_models::sdxl::Vae;
use pulid_models::training::{IdentityLossSize, identity_graph, sample_weights, with_gradients};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Its networks' weights in a run's memory.
const WEIGHTS: &str = "L_id: VAE and recogniser, weights";

/// How its networks are built.
pub(crate) struct FaceGraphs {
    vae: Vae,
    recogniser: OnnxNetwork,
    /// Of the recogniser.
    input: String,
    batch: usize,
}

impl FaceGraphs {
    /// For `batch` latents of a VAE at once, and a recogniser's ONNX file.
    ///
    /// # Errors
    /// A recogniser that is missing or of another kind.
    pub fn new(vae: &Vae, recogniser: &Path, batch: usize) -> Result<FaceGraphs> {
        let network = open_recogniser(recogniser)?;
        let [input] = network.input_names()[..] else {
            return Err(Error::file(recogniser, "takes more than one input"));
        };
        let input = input.to_owned();
        Ok(FaceGraphs { vae: vae.clone(), recogniser: network, input, batch })
    }

    /// The recogniser alone.
    fn embeddings(&self) -> Result<Graph> {
        let side = pulid::face::ARCFACE_SIDE as usize;
        let shapes = BTreeMap::from([(self.input.clone(), vec![self.batch, 3, side, side])]);
        self.recogniser.build(&shapes, Precision::F32)
    }

    /// From latents to pictures, on to the loss, and back.
    fn loss(&self, [height, width]: [usize; 2], checkpointing: Checkpointing) -> Result<Graph> {
        let size = IdentityLossSize { batch: self.batch, height, width };
        let graph = identity_graph(&self.vae, &self.recogniser, size, Precision::F32)?;
        with_gradients(&graph, &["identity"], &["latent"], checkpointing)
    }

    /// What the network of the loss is called in a run's memory: `whose` it is, and `at` which size, where there are several.
    pub fn loss_name(whose: &str, at: &str) -> String {
        format!("{whose}: VAE's and recogniser's values and gradients{at}")
    }

    /// What it takes for latents of these rows and columns, but for the detector, which is small.
    pub fn part_of_size(self: &Arc<Self>, whose: &str, at: &str, latent: [usize; 2]) -> Part<'static> {
        let graphs = self.clone();
        let build = move |checkpointing| graphs.loss(latent, checkpointing);
        Part::backward(FaceGraphs::loss_name(whose, at), WEIGHTS, build)
    }

    /// What it takes for photos.
    pub fn part_of_photos(self: &Arc<Self>, whose: &str) -> Part<'static> {
        let graphs = self.clone();
        Part::forward(format!("{whose}: values of the recogniser for photos"), WEIGHTS, move || graphs.embeddings())
    }
}

/// L_id's networks behind the latents.
pub(crate) struct FaceLoss {
    runtime: Runtime,
    graphs: Arc<FaceGraphs>,
    checkpointing: Checkpointing,
    finder: FaceFinder,
    /// Embeds the photos' faces.
    recogniser: Loaded,
    recogniser_output: String,
    /// The network for latents of these rows and columns: to the pictures, which the detector looks at, and on to the loss. Those of other
    /// sizes are the runtime's meanwhile, which lets them go where there is no room.
    sized: Option<([usize; 2], Loaded)>,
    /// Their graphs of each size so far.
    built: BTreeMap<[usize; 2], Graph>,
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
    /// Loads it for latents of these rows and columns.
    ///
    /// # Errors
    /// Weights that are missing or mismatched, a device out of memory, cancellation.
    pub async fn load(
        runtime: &Runtime,
        faces: &FaceModels,
        graphs: Arc<FaceGraphs>,
        latent: [usize; 2],
        checkpointing: Checkpointing,
        reporter: &dyn Reporter,
    ) -> Result<FaceLoss> {
        let embeddings = graphs.embeddings()?;
        let mut face = FaceLoss {
            runtime: runtime.clone(),
            graphs,
            checkpointing,
            finder: FaceFinder::load(&runtime.with_own_scratch(), faces, reporter).await?,
            recogniser: runtime.load(&embeddings, reporter).await?,
            recogniser_output: embeddings.outputs().first().map(|(name, _)| name.clone()).unwrap_or_default(),
            sized: None,
            built: BTreeMap::new(),
        };
        face.take(latent, reporter).await?;
        Ok(face)
    }

    /// Takes the network for latents of these rows and columns, of which blocks are computed again as of the first one's.
    ///
    /// # Errors
    /// A device out of memory, cancellation.
    pub async fn take(&mut self, latent: [usize; 2], observer: &dyn Observer) -> Result<()> {
        if matches!(&self.sized, Some((loaded, _)) if *loaded == latent) {
            return Ok(());
        }
        // It goes back to the runtime before the next one looks for room.
        self.sized = None;
        if !self.built.contains_key(&latent) {
            self.built.insert(latent, self.graphs.loss(latent, self.checkpointing)?);
        }
        let Some(graph) = self.built.get(&latent) else { return Ok(()) };
        self.sized = Some((latent, self.runtime.load(graph, observer).await?));
        Ok(())
    }

    /// The network for such latents.
    async fn of_size(&mut self, latent: &HostTensor, observer: &dyn Observer) -> Result<&mut Loaded> {
        let &[_, height, width, _] = latent.shape().extents() else {
            return Err(Error::invalid("latents", format!("are {}", latent.shape())));
        };
        self.take([height, width], observer).await?;
        match &mut self.sized {
            Some((_, sized)) => Ok(sized),
            None => Err(Error::invalid("L_id", "is not loaded")),
        }
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
        let target = self.embeddings(&batch.faces, observer).await?;
        let network = self.of_size(latent, observer).await?;
        network.write("latent", latent)?;
        network.write("target", &target)?;
        let picture = read(&mut network.run_to(&["picture"], observer).await?, "picture").await?;
        let (crop, found) = self.crops(&picture, observer).await?;
        let present: Vec<bool> = found.iter().zip(&batch.identified).map(|(face, whose)| *face && *whose).collect();
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
            let network = self.of_size(latent, observer).await?;
            network.write("crop", &crop)?;
            network.write("upstream.identity", &sample_weights(&present, 1.0, weight as f32))?;
            let mut outputs = network.continue_to(&["identity", "d.latent"], observer).await?;
            let loss = mean(&numbers(&mut outputs, "identity").await?, &present);
            answer.loss = Some((loss, read(&mut outputs, "d.latent").await?));
        }
        Ok(answer)
    }

    /// For each picture [B, H, W, 3] the map of ArcFace's crop to it, [B, 2, 3], and whether it shows a face.
    async fn crops(&mut self, pictures: &HostTensor, observer: &Quiet<'_>) -> Result<(HostTensor, Vec<bool>)> {
        let pictures = match rgb_from_tensor(pictures) {
            // In half precision a step may overflow: nobody's face, as of a picture of anything else.
            Err(Error::NotFinite { .. }) => {
                let count = pictures.shape()[0];
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
        self.recogniser.write(&self.graphs.input, faces)?;
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
