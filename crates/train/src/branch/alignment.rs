//! L_align: what the identity changes in the branch beside the face.

use super::{BranchAnswer, BranchSetup, Micro, Networks, Prompts, Sampler, WEIGHTS};
use crate::face::{mean, read};
use crate::memory::Part;
use crate::random::Keyed;
use crate::terms::{Sums, numbers};
use pulid::pipeline::TextConditioning;
use pulid::runtime::{Loaded, Quiet, Reporter, Tensor};
use pulid_graph::{Checkpointing, Graph};
use pulid_models::sdxl::UnetSize;
use pulid_models::training::{alignment_graph, sample_weights, with_gradients};
use pulid_tensor::{HostTensor, Result};
use std::collections::HashMap;

/// The two parts of the loss, as the graph names them.
const PARTS: [&str; 2] = ["semantic", "layout"];

/// The loss's name in a run's memory.
const PART: &str = "branch, L_align: a step's values and gradients";

/// The networks of L_align.
pub(super) struct AlignmentLoss {
    prompts: Vec<TextConditioning>,
    /// A step's call without identity, and its queries.
    reference: Loaded,
    queries: Vec<String>,
    /// A step's call with identity, the loss and its gradients.
    loss: Loaded,
    sums: Sums,
    align_steps: usize,
}

/// What a run is given.
pub(super) struct Run<'a> {
    pub sampler: &'a Sampler,
    /// Holds the keys and values already.
    pub forward: &'a mut Loaded,
    pub noise: &'a HostTensor,
    pub identified: &'a [bool],
    /// Of the means over samples and steps, by [`PARTS`].
    pub weights: [f64; 2],
    pub keyed: Keyed,
    pub at: Micro,
}

impl AlignmentLoss {
    pub async fn load(
        networks: &Networks<'_>,
        prompts: &[TextConditioning],
        reporter: &dyn Reporter,
    ) -> Result<AlignmentLoss> {
        let BranchSetup { runtime, options, decided, .. } = *networks.setup;
        let queries = networks.setup.layers.iter().map(|layer| format!("q.{}", layer.number)).collect();
        let (graph, sums) = AlignmentLoss::loss_graph(networks, decided.checkpointing(PART))?;
        let loss = networks.step(runtime, &graph, reporter).await?;
        Ok(AlignmentLoss {
            prompts: prompts.to_vec(),
            reference: runtime.load(&AlignmentLoss::reference_graph(networks)?, reporter).await?,
            queries,
            loss,
            sums,
            align_steps: options.align_steps,
        })
    }

    fn reference_graph(networks: &Networks<'_>) -> Result<Graph> {
        networks.unet.graph_with_queries(UnetSize { identity: None, ..networks.size })
    }

    fn loss_graph(networks: &Networks<'_>, checkpointing: Checkpointing) -> Result<(Graph, Sums)> {
        let graph = alignment_graph(networks.unet, networks.size, networks.setup.options.norm()?)?;
        networks.summed(with_gradients(&graph, &PARTS, &networks.targets(), checkpointing)?)
    }

    /// What it takes.
    pub fn parts<'a>(networks: &'a Networks<'_>) -> [Part<'a>; 2] {
        let loss = |checkpointing| AlignmentLoss::loss_graph(networks, checkpointing).map(|(graph, _)| graph);
        [
            Part::forward("branch, L_align: values of a step without identity", WEIGHTS, || {
                AlignmentLoss::reference_graph(networks)
            }),
            Part::backward(PART, WEIGHTS, loss),
        ]
    }

    /// Adds the loss and its gradients to `answer`. Both runs begin at the same noise and go their own ways; a step's loss has no gradient
    /// in the steps before it.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn run(
        &mut self,
        run: Run<'_>,
        keys_values: &HashMap<String, Tensor>,
        answer: &mut BranchAnswer,
        observer: &Quiet<'_>,
    ) -> Result<()> {
        let Run { sampler, forward, noise, identified, weights, keyed, at } = run;
        let batch = identified.len();
        let drawn = |place: usize| {
            let number = at.micro * batch + place;
            &self.prompts[keyed.below(at.step, number, "alignment prompt", self.prompts.len())]
        };
        let prompts = Prompts::of(&(0..batch).map(drawn).collect::<Vec<_>>())?;
        let aligned = self.steps(sampler.steps.len(), keyed, at);
        prompts.export("align", &mut answer.inputs);
        let flags = |i: usize| f32::from(u8::from(aligned[i]));
        answer.inputs.insert("align.steps".into(), HostTensor::from_fn([aligned.len()], flags));

        for network in [&mut *forward, &mut self.reference, &mut self.loss] {
            sampler.condition(network, &prompts)?;
        }
        self.loss.write_tensors(keys_values).await?;
        for (part, weight) in PARTS.iter().zip(weights) {
            let each = (weight / self.align_steps as f64) as f32;
            self.loss.write(&format!("upstream.{part}"), &sample_weights(identified, 1.0, each))?;
        }
        let mut losses = [0.0; 2];
        let mut x = sampler.start(noise)?;
        let mut without = x.clone();
        let last = aligned.iter().rposition(|aligned| *aligned).unwrap_or(0);
        for (i, step) in sampler.steps.iter().enumerate().take(last + 1) {
            if !aligned[i] {
                without = sampler.step(&mut self.reference, step, &without, observer).await?;
                x = sampler.step(forward, step, &x, observer).await?;
                continue;
            }
            sampler.write(&mut self.reference, step, &without)?;
            let names: Vec<&str> = self.queries.iter().map(String::as_str).chain(["sample"]).collect();
            let mut outputs = self.reference.run_to(&names, observer).await?;
            without = step.advance(&without, &read(&mut outputs, "sample").await?)?;
            let renamed = |(name, tensor): (String, Tensor)| (format!("reference.{name}"), tensor);
            self.loss.write_tensors(&outputs.into_iter().map(renamed).collect()).await?;

            sampler.write(&mut self.loss, step, &x)?;
            let (before, more) = (answer.gradients.take(), [PARTS[0], PARTS[1], "sample"]);
            let (gradients, mut rest) = self.sums.run(&mut self.loss, before, &more, observer).await?;
            answer.gradients = Some(gradients);
            for (part, loss) in PARTS.iter().zip(&mut losses) {
                *loss += mean(&numbers(&mut rest, part).await?, identified) / self.align_steps as f64;
            }
            x = step.advance(&x, &read(&mut rest, "sample").await?)?;
        }
        answer.align = Some(losses);
        Ok(())
    }

    /// Which steps are compared: all, or so many that are drawn.
    fn steps(&self, count: usize, keyed: Keyed, at: Micro) -> Vec<bool> {
        let mut places: Vec<usize> = (0..count).collect();
        let mut aligned = vec![false; count];
        for drawn in 0..self.align_steps.min(count) {
            let place = keyed.below(at.step, at.micro * count + drawn, "alignment step", places.len());
            aligned[places.swap_remove(place)] = true;
        }
        aligned
    }
}
