//! L_id: whose face the branch's picture shows.

use super::{BranchAnswer, BranchSetup, Networks, Prompts, Sampler, WEIGHTS, euler, mean, read};
use crate::batch::Batch;
use crate::memory::Part;
use crate::terms::{Sums, numbers};
use pulid::face::arcface_transform;
use pulid::identity::{FaceFinder, open_recogniser};
use pulid::image::rgb_from_tensor;
use pulid::pipeline::TextConditioning;
use pulid::runtime::{Loaded, Quiet, Reporter, Tensor};
use pulid_graph::{Checkpointing, Graph};
use pulid_models::Precision;
use pulid_models::onnx::OnnxNetwork;
use pulid_models::training::{IdentityLossSize, identity_graph, sample_weights, with_gradients};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The networks of L_id.
pub(super) struct IdentityLoss {
    prompts: Prompts,
    /// Of the decoder's input.
    scaling_factor: f64,
    /// Shows the picture to the detector.
    decoder: Loaded,
    finder: FaceFinder,
    /// Embeds the photos' faces.
    recogniser: Loaded,
    recogniser_input: String,
    recogniser_output: String,
    /// From the clean latents to the loss, and back.
    loss: Loaded,
    /// A step's call of the UNet with its gradients.
    step: Loaded,
    sums: Sums,
    backprop_steps: usize,
}

/// Names in a run's memory.
const STEP: &str = "branch, L_id: a step's values and gradients";
const FACE: &str = "branch, L_id: VAE's and recogniser's values and gradients";

/// How its networks are built.
struct Graphs<'a> {
    networks: &'a Networks<'a>,
    recogniser: OnnxNetwork,
    /// Of the recogniser.
    input: String,
}

impl<'a> Graphs<'a> {
    fn new(networks: &'a Networks<'a>) -> Result<Graphs<'a>> {
        let path = &networks.setup.options.recogniser;
        let recogniser = open_recogniser(path)?;
        let [input] = recogniser.input_names()[..] else {
            return Err(Error::file(path, "takes more than one input"));
        };
        let input = input.to_owned();
        Ok(Graphs { networks, recogniser, input })
    }

    /// The recogniser alone.
    fn embeddings(&self) -> Result<Graph> {
        let side = pulid::face::ARCFACE_SIDE as usize;
        let shapes = BTreeMap::from([(self.input.clone(), vec![self.networks.setup.batch, 3, side, side])]);
        self.recogniser.build(&shapes, Precision::F32)
    }

    /// From the latents to a picture.
    fn decoder(&self) -> Result<Graph> {
        let Networks { vae, size, .. } = self.networks;
        vae.decoder(size.batch, size.height, size.width)
    }

    /// From the clean latents to the loss, and back.
    fn face(&self, checkpointing: Checkpointing) -> Result<Graph> {
        let Networks { vae, size, .. } = self.networks;
        let size = IdentityLossSize { batch: size.batch, height: size.height, width: size.width };
        let graph = identity_graph(vae, &self.recogniser, size, Precision::F32)?;
        with_gradients(&graph, &["identity"], &["latent"], checkpointing)
    }

    /// A step's call of the UNet with its gradients.
    fn step(&self, checkpointing: Checkpointing) -> Result<(Graph, Sums)> {
        let mut wanted = self.networks.targets();
        // The first of the steps leads to noise, which nothing is learnt of.
        if self.networks.setup.options.backprop_steps > 1 {
            wanted.push("sample".into());
        }
        let graph = with_gradients(&self.networks.forward()?, &["sample"], &wanted, checkpointing)?;
        self.networks.summed(graph)
    }
}

/// What a run is given.
pub(super) struct Run<'a> {
    pub sampler: &'a Sampler,
    /// Holds the keys and values already.
    pub forward: &'a mut Loaded,
    pub noise: &'a HostTensor,
    pub batch: &'a Batch,
    /// Of the mean over the samples.
    pub weight: f64,
}

impl IdentityLoss {
    pub async fn load(
        networks: &Networks<'_>,
        prompt: &TextConditioning,
        reporter: &dyn Reporter,
    ) -> Result<IdentityLoss> {
        let BranchSetup { runtime, options, batch, decided, .. } = *networks.setup;
        let graphs = Graphs::new(networks)?;
        let output = graphs.embeddings()?.outputs().first().map(|(name, _)| name.clone()).unwrap_or_default();
        let face = runtime.load(&graphs.face(decided.checkpointing(FACE))?, reporter).await?;
        let (step, sums) = networks.step(graphs.step(decided.checkpointing(STEP))?, reporter).await?;
        Ok(IdentityLoss {
            prompts: Prompts::of(&vec![prompt; batch])?,
            scaling_factor: f64::from(networks.vae.config().scaling_factor),
            decoder: runtime.load(&graphs.decoder()?, reporter).await?,
            finder: FaceFinder::load(runtime, networks.setup.faces, reporter).await?,
            recogniser: runtime.load(&graphs.embeddings()?, reporter).await?,
            recogniser_input: graphs.input,
            recogniser_output: output,
            loss: face,
            step,
            sums,
            backprop_steps: options.backprop_steps,
        })
    }

    /// What it takes, but for the detector, which is small and made for each size of picture.
    pub fn parts<'a>(networks: &'a Networks<'_>) -> Result<Vec<Part<'a>>> {
        const FACES: &str = "branch, L_id: VAE and recogniser, weights";
        let graphs = Arc::new(Graphs::new(networks)?);
        let [face, step, decoder, embeddings] = [(); 4].map(|()| graphs.clone());
        Ok(vec![
            Part::backward(STEP, WEIGHTS, move |checkpointing| step.step(checkpointing).map(|(graph, _)| graph)),
            Part::backward(FACE, FACES, move |checkpointing| face.face(checkpointing)),
            Part::forward("branch, L_id: values of the decoder for the detector", FACES, move || decoder.decoder()),
            Part::forward("branch, L_id: values of the recogniser for photos", FACES, move || embeddings.embeddings()),
        ])
    }

    /// Adds the loss and its gradients to `answer`. Where no picture shows a face there are none.
    ///
    /// # Errors
    /// A lost device, cancellation, latents that are not finite.
    pub async fn run(
        &mut self,
        run: Run<'_>,
        keys_values: &HashMap<String, Tensor>,
        answer: &mut BranchAnswer,
        observer: &Quiet<'_>,
    ) -> Result<()> {
        let Run { sampler, forward, noise, batch, weight } = run;
        sampler.condition(forward, &self.prompts)?;
        // Latents before each step.
        let mut states = Vec::with_capacity(sampler.steps.len());
        let mut x = sampler.start(noise)?;
        for step in &sampler.steps {
            let next = sampler.step(forward, step, &x, observer).await?;
            states.push(std::mem::replace(&mut x, next));
        }

        let (crop, found) = self.crops(&x, observer).await?;
        let present: Vec<bool> = found.iter().zip(&batch.identified).map(|(face, whose)| *face && *whose).collect();
        let target = self.embeddings(&batch.faces, observer).await?;
        let count = |flags: &[bool]| flags.iter().filter(|flag| **flag).count();
        answer.faces = [count(&batch.identified), count(&present)];
        self.prompts.export("id", &mut answer.inputs);
        answer.inputs.extend([
            ("crop_matrix".to_owned(), crop.clone()),
            ("photo_embedding".to_owned(), target.clone()),
            ("face_found".to_owned(), HostTensor::from_fn([present.len()], |i| f32::from(u8::from(present[i])))),
        ]);
        if !present.contains(&true) {
            return Ok(());
        }

        let crop = beside(&crop, &found)?;
        for (name, value) in [("latent", &x), ("crop", &crop), ("target", &target)] {
            self.loss.write(name, value)?;
        }
        self.loss.write("upstream.identity", &sample_weights(&present, 1.0, weight as f32))?;
        let mut outputs = self.loss.run_to(&["identity", "d.latent"], observer).await?;
        answer.id = Some(mean(&numbers(&mut outputs, "identity").await?, &present));
        let mut gradient = read(&mut outputs, "d.latent").await?;

        sampler.condition(&mut self.step, &self.prompts)?;
        self.step.write_tensors(keys_values).await?;
        let first = states.len() - self.backprop_steps;
        let last_steps = sampler.steps.iter().zip(&states).enumerate().skip(first).rev();
        for (i, (step, x)) in last_steps {
            sampler.write(&mut self.step, step, x)?;
            self.step.write("upstream.sample", &step.upstream(&gradient)?)?;
            let more: &[&str] = if i > first { &["d.sample"] } else { &[] };
            let before = answer.gradients.take();
            let (gradients, mut rest) = self.sums.run(&mut self.step, before, more, observer).await?;
            answer.gradients = Some(gradients);
            if i > first {
                gradient = step.before(&gradient, &read(&mut rest, "d.sample").await?)?;
            }
        }
        Ok(())
    }

    /// For each picture the map of ArcFace's crop to it, [B, 2, 3], and whether it shows a face.
    async fn crops(&mut self, latent: &HostTensor, observer: &Quiet<'_>) -> Result<(HostTensor, Vec<bool>)> {
        self.decoder.write("latent", &euler::scaled(latent, 1.0 / self.scaling_factor)?)?;
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
            let face = self.finder.largest("the branch's picture", picture, observer).await?;
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
