//! What is minimised: terms of the loss, each over the identity's keys and values.

use crate::batch::Batch;
use crate::options::Recompute;
use pulid::runtime::{Loaded, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::autodiff::differentiate;
use pulid_graph::{Checkpointing, Graph, Rate, replace_wide_attention};
use pulid_models::pulid::IdentityInputs;
use pulid_models::run::block;
use pulid_models::sdxl::{Unet, UnetSize};
use pulid_ops::{Binary, Reduce};
use pulid_tensor::{Error, HostTensor, Result, TensorType};
use std::collections::HashMap;

/// What a term answers.
#[derive(Debug)]
pub struct Answer {
    /// The term's value, a mean over the batch.
    pub loss: f64,
    /// Its gradients `d.k.N` and `d.v.N`, times the factor that was asked for, under these names.
    pub gradients: HashMap<String, Tensor>,
}

/// L_diff: the mean square of what the network's prediction lacks of its target, for images with noise on them.
///
/// Further terms (L_id and L_align of the few-step branch) take keys and values and answer likewise; the trainer adds the gradients.
#[derive(Debug)]
pub struct Diffusion {
    unet: Loaded,
    outputs: Vec<String>,
    /// Elements of a batch's targets.
    count: usize,
    /// Whether values are in half precision, whose range the loss is to be scaled into.
    half: bool,
}

/// Sizes of a call of the UNet in training.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Samples.
    pub batch: usize,
    /// Rows and columns of the latents.
    pub latent: [usize; 2],
    /// Text tokens.
    pub text_tokens: usize,
    /// The identity's part.
    pub identity: IdentityInputs,
}

impl Diffusion {
    /// The UNet with its loss and the gradients in keys and values.
    ///
    /// Inputs beside those of [`Unet::graph`]: `target` [B, H, W, C] and `factor` [1, 1, 1, 1], of the gradient in the prediction. Outputs:
    /// `loss` [1], `d.k.N` and `d.v.N`.
    ///
    /// # Errors
    /// Weights that are missing or mismatched, an operator without a gradient.
    pub fn graph(unet: &Unet, call: &Call, checkpointing: Checkpointing) -> Result<Graph> {
        let size = UnetSize {
            batch: call.batch,
            height: call.latent[0],
            width: call.latent[1],
            text_tokens: call.text_tokens,
            identity: Some(call.identity),
        };
        let mut graph = replace_wide_attention(&unet.graph(size)?)?;
        let Some(&(_, prediction)) = graph.outputs().iter().find(|(name, _)| name == "sample") else {
            return Err(Error::invalid("unet", "gives no output `sample`"));
        };
        let layers = unet.identity_layers()?;
        let targets = layers.iter().flat_map(|layer| layer.names()).collect::<Vec<_>>();
        let nodes = targets.iter().map(|name| input(&graph, name)).collect::<Result<Vec<_>>>()?;
        // f32 whatever the UNet computes in, as all that goes in and out of it.
        let ty = graph.ty(prediction).clone();
        let g = &mut graph;
        let target = g.input("target", ty, Rate::Step)?;
        let factor = g.input("factor", TensorType::f32([1, 1, 1, 1]), Rate::Step)?;
        let (loss, upstream) = g.scoped("loss", |g| {
            let lack = g.apply(Binary::sub(), &[prediction, target])?;
            let square = g.apply(Binary::mul(), &[lack, lack])?;
            let loss = g.apply(Reduce { keep_dims: false, ..Reduce::mean([0, 1, 2, 3]) }, &[square])?;
            let loss = g.reshape(loss, [1])?;
            let upstream = g.apply(Binary::mul(), &[lack, factor])?;
            Ok::<_, Error>((loss, upstream))
        })?;
        let gradients = differentiate(g, &[(prediction, upstream)], &nodes, checkpointing)?;
        g.output("loss", loss)?;
        for (name, gradient) in targets.iter().zip(gradients) {
            let gradient = gradient.ok_or_else(|| Error::invalid("unet", format!("does not depend on {name}")))?;
            g.output(format!("d.{name}"), gradient)?;
        }
        Ok(graph)
    }

    /// Loads it; `half` says whether the UNet's values are in half precision. With [`Recompute::Auto`] blocks are computed again where all that is stored would not fit `room` bytes.
    ///
    /// # Errors
    /// As [`Diffusion::graph`], and a device out of memory.
    pub async fn load(
        runtime: &Runtime,
        unet: &Unet,
        call: &Call,
        half: bool,
        recompute: Recompute,
        room: Option<u64>,
        observer: &dyn Observer,
    ) -> Result<(Diffusion, Checkpointing)> {
        let mut checkpointing = match recompute {
            Recompute::Block => Checkpointing::Blocks(block),
            _ => Checkpointing::Off,
        };
        let mut graph = Diffusion::graph(unet, call, checkpointing)?;
        if let (Recompute::Auto, Some(room)) = (recompute, room)
            && let Some(planned) = runtime.plan(&graph, observer).await?
        {
            let summary = planned.plan.summary();
            if (summary.weight_bytes + summary.working_bytes) as u64 > room {
                checkpointing = Checkpointing::Blocks(block);
                graph = Diffusion::graph(unet, call, checkpointing)?;
            }
        }
        let mut outputs = vec!["loss".to_owned()];
        outputs.extend(unet.identity_layers()?.iter().flat_map(|layer| layer.names()).map(|name| format!("d.{name}")));
        let sample = graph.inputs().find(|(name, _)| *name == "sample").map(|(_, ty)| ty.clone());
        let sample = sample.ok_or_else(|| Error::invalid("unet", "takes no input `sample`"))?;
        let mut unet = runtime.load(&graph, observer).await?;
        unet.write("id_scale", &HostTensor::from_fn([call.batch], |_| 1.0))?;
        let count = sample.shape.count();
        Ok((Diffusion { unet, outputs, count, half }, checkpointing))
    }

    /// Whether values are in half precision.
    pub fn is_half(&self) -> bool {
        self.half
    }

    /// What it takes of the device's memory, weights and values, where it runs on one.
    pub fn memory(&self) -> Option<[usize; 2]> {
        memory(&self.unet)
    }

    /// The loss of a batch, and its gradients times `factor`.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn run(
        &mut self,
        batch: &Batch,
        keys_values: &HashMap<String, Tensor>,
        factor: f64,
        observer: &dyn Observer,
    ) -> Result<Answer> {
        for (name, tensor) in batch.for_unet() {
            self.unet.write(name, tensor)?;
        }
        let factor = (2.0 * factor / self.count as f64) as f32;
        self.unet.write("factor", &HostTensor::from_fn([1, 1, 1, 1], |_| factor))?;
        self.unet.write_tensors(keys_values).await?;
        let names: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        let mut gradients = self.unet.run_to(&names, observer).await?;
        let loss = gradients.remove("loss").ok_or_else(|| Error::invalid("unet", "gave no loss"))?;
        let loss = loss.read().await?.to_f32_vec().first().map_or(f64::NAN, |&v| f64::from(v));
        Ok(Answer { loss, gradients })
    }
}

/// Bytes of weights and of values.
pub(crate) fn memory(loaded: &Loaded) -> Option<[usize; 2]> {
    let Loaded::Session(session) = loaded else { return None };
    let summary = session.plan().summary();
    Some([summary.weight_bytes, summary.working_bytes])
}

/// The node of an input.
fn input(graph: &Graph, wanted: &str) -> Result<pulid_graph::NodeId> {
    let is =
        |node: &pulid_graph::Node| matches!(&node.kind, pulid_graph::NodeKind::Input { name, .. } if name == wanted);
    let found = graph.nodes().iter().position(is);
    found.map(|index| graph.id(index)).ok_or_else(|| Error::invalid("unet", format!("takes no input `{wanted}`")))
}
