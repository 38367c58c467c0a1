//! L_id: whose face the branch's picture shows.

use super::{BranchAnswer, BranchSetup, Networks, Prompts, Sampler};
use crate::batch::Batch;
use crate::face::{FaceLoss, FaceSetup, read};
use crate::quiet::Quiet;
use crate::terms::Sums;
use pulid::pipeline::TextConditioning;
use pulid::runtime::{Loaded, Reporter, Tensor};
use pulid_models::training::{IdentityLossSize, with_gradients};
use pulid_tensor::{HostTensor, Result};
use std::collections::HashMap;

/// The networks of L_id.
pub(super) struct IdentityLoss {
    prompts: Prompts,
    face: FaceLoss,
    /// A step's call of the UNet with its gradients.
    step: Loaded,
    sums: Sums,
    backprop_steps: usize,
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
        let Networks { setup, unet, vae, size } = networks;
        let BranchSetup { runtime, options, batch, faces, room, .. } = **setup;
        let loss_size = IdentityLossSize { batch, height: size.height, width: size.width };
        let face = FaceSetup { runtime, faces, vae, recogniser: &options.recogniser, size: loss_size, room };
        let face = FaceLoss::load(&face, reporter).await?;
        let mut wanted = networks.targets();
        // The first of the steps leads to noise, which nothing is learnt of.
        if options.backprop_steps > 1 {
            wanted.push("sample".into());
        }
        let graph = unet.graph(*size)?;
        let build = |checkpointing| with_gradients(&graph, &["sample"], &wanted, checkpointing);
        let (step, sums) = networks.step(build, reporter).await?;
        let prompts = Prompts::of(&vec![prompt; batch])?;
        Ok(IdentityLoss { prompts, face, step, sums, backprop_steps: options.backprop_steps })
    }

    /// The UNet's.
    pub fn network(&self) -> &Loaded {
        &self.step
    }

    /// Those of the picture.
    pub fn face(&self) -> &FaceLoss {
        &self.face
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

        let seen = self.face.run(&x, batch, weight, observer).await?;
        self.prompts.export("id", &mut answer.inputs);
        answer.inputs.extend(seen.inputs);
        answer.faces = seen.faces;
        let Some((loss, mut gradient)) = seen.loss else { return Ok(()) };
        answer.id = Some(loss);

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
}
