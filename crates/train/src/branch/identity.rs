//! L_id: whose face the branch's picture shows.

use super::{BranchAnswer, BranchSetup, Networks, Prompts, Sampler, WEIGHTS};
use crate::batch::Batch;
use crate::face::{FaceGraphs, FaceLoss, read};
use crate::memory::Part;
use crate::terms::Sums;
use pulid::pipeline::TextConditioning;
use pulid::runtime::{Loaded, Quiet, Reporter, Tensor};
use pulid_graph::{Checkpointing, Graph};
use pulid_models::training::with_gradients;
use pulid_tensor::{HostTensor, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// The networks of L_id.
pub(super) struct IdentityLoss {
    prompts: Prompts,
    face: FaceLoss,
    /// Calls of the UNet with their gradients, each with memory of its own: of each of the last steps, which keeps its values until
    /// the picture's gradient is known; or one for all, which runs their calls again.
    steps: Vec<Loaded>,
    keeps: bool,
    sums: Sums,
    backprop_steps: usize,
}

/// Names in a run's memory.
const STEP: &str = "branch, L_id: values and gradients of steps";
const WHOSE: &str = "branch, L_id";

/// How the networks of the picture are built.
fn face_graphs(networks: &Networks<'_>) -> Result<Arc<FaceGraphs>> {
    let BranchSetup { options, batch, .. } = *networks.setup;
    FaceGraphs::new(networks.vae, &options.recogniser, batch).map(Arc::new)
}

/// A step's call of the UNet with its gradients.
fn step_graph(networks: &Networks<'_>, checkpointing: Checkpointing) -> Result<(Graph, Sums)> {
    let mut wanted = networks.targets();
    // The first of the steps leads to noise, which nothing is learnt of.
    if networks.setup.options.backprop_steps > 1 {
        wanted.push("sample".into());
    }
    networks.summed(with_gradients(&networks.forward()?, &["sample"], &wanted, checkpointing)?)
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
        let BranchSetup { runtime, options, batch, faces, decided, .. } = *networks.setup;
        let (backprop_steps, keeps) = (options.backprop_steps, decided.keeps(STEP));
        let graphs = face_graphs(networks)?;
        let checkpointing = decided.checkpointing(&FaceGraphs::loss_name(WHOSE, ""));
        let latent = [networks.size.height, networks.size.width];
        let face = FaceLoss::load(runtime, faces, graphs, latent, checkpointing, reporter).await?;
        let (graph, sums) = step_graph(networks, decided.checkpointing(STEP))?;
        let mut steps = Vec::new();
        match keeps {
            true => {
                let own = runtime.with_own_scratch();
                for _ in 0..backprop_steps {
                    steps.push(networks.step(&own, &graph, reporter).await?);
                }
            }
            false => steps.push(networks.step(runtime, &graph, reporter).await?),
        }
        let prompts = Prompts::of(&vec![prompt; batch])?;
        Ok(IdentityLoss { prompts, face, steps, keeps, sums, backprop_steps })
    }

    /// What it takes, but for the detector, which is small.
    pub fn parts<'a>(networks: &'a Networks<'_>) -> Result<Vec<Part<'a>>> {
        let graphs = face_graphs(networks)?;
        let step = |checkpointing| step_graph(networks, checkpointing).map(|(graph, _)| graph);
        let mut parts = vec![Part::backward(STEP, WEIGHTS, step).keeping(networks.setup.options.backprop_steps)];
        parts.push(graphs.part_of_size(WHOSE, "", [networks.size.height, networks.size.width]));
        parts.push(graphs.part_of_photos(WHOSE));
        Ok(parts)
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
        let first = sampler.steps.len() - self.backprop_steps;
        sampler.condition(forward, &self.prompts)?;
        for step in &mut self.steps {
            sampler.condition(step, &self.prompts)?;
            step.write_tensors(keys_values).await?;
        }
        // Latents before each step.
        let mut states = Vec::with_capacity(sampler.steps.len());
        let mut x = sampler.start(noise)?;
        for (i, step) in sampler.steps.iter().enumerate() {
            let network = match i.checked_sub(first) {
                Some(of_last) if self.keeps => &mut self.steps[of_last],
                _ => &mut *forward,
            };
            let next = sampler.step(network, step, &x, observer).await?;
            states.push(std::mem::replace(&mut x, next));
        }

        let seen = self.face.run(&x, batch, weight, observer).await?;
        self.prompts.export("id", &mut answer.inputs);
        answer.inputs.extend(seen.inputs);
        answer.faces = seen.faces;
        let Some((loss, mut gradient)) = seen.loss else { return Ok(()) };
        answer.id = Some(loss);

        let last_steps = sampler.steps.iter().zip(&states).enumerate().skip(first).rev();
        for (i, (step, x)) in last_steps {
            let network = &mut self.steps[if self.keeps { i - first } else { 0 }];
            // Where its values are still there, only what follows them runs.
            if !self.keeps {
                sampler.write(network, step, x)?;
            }
            network.write("upstream.sample", &step.upstream(&gradient)?)?;
            let more: &[&str] = if i > first { &["d.sample"] } else { &[] };
            let before = answer.gradients.take();
            let (gradients, mut rest) = self.sums.run(network, before, more, observer).await?;
            answer.gradients = Some(gradients);
            if i > first {
                gradient = step.before(&gradient, &read(&mut rest, "d.sample").await?)?;
            }
        }
        Ok(())
    }
}
