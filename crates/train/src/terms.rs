//! What is minimised: terms of the loss, each over the identity's keys and values.

use crate::batch::Batch;
use crate::face::read;
use crate::options::Recompute;
use pulid::runtime::{Loaded, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::autodiff::differentiate;
use pulid_graph::{Checkpointing, Graph, Rate, replace_wide_attention};
use pulid_models::pulid::IdentityInputs;
use pulid_models::run::block;
use pulid_models::sdxl::{Unet, UnetSize};
use pulid_ops::{Binary, Reduce};
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};
use std::collections::HashMap;

/// What a term answers.
#[derive(Debug)]
pub struct Answer {
    /// The term's value, a mean over the batch.
    pub loss: f64,
    /// Its gradients, times the factor that was asked for.
    pub gradients: Gradients,
}

/// Gradients in the identity's keys and values, `d.k.N` and `d.v.N`.
pub type Gradients = HashMap<String, Tensor>;

/// A network whose gradients are added to those of terms before it: beside each of its outputs `d.TARGET` an input `sum.TARGET`, and an
/// output `total.TARGET` of both.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    targets: Vec<(String, Shape)>,
    /// Inputs that the outputs do not depend on: what is given for them is what comes out.
    passed: Vec<(String, Shape)>,
}

impl Sums {
    /// Adds the sums to a graph with the gradients of `targets`, inputs of it, among its outputs.
    ///
    /// # Errors
    /// When there is no such input.
    pub fn add(g: &mut Graph, targets: &[String]) -> Result<Sums> {
        let mut sums = Sums { targets: Vec::new(), passed: Vec::new() };
        for target in targets {
            let ty = g.ty(input(g, target)?).clone();
            let shape = ty.shape.clone();
            let name = format!("d.{target}");
            let Some((_, id)) = g.outputs().iter().find(|(output, _)| *output == name).cloned() else {
                sums.passed.push((target.clone(), shape));
                continue;
            };
            let sum = g.input(format!("sum.{target}"), ty, Rate::Step)?;
            let total = g.scoped(format!("sum of {target}"), |g| g.apply(Binary::add(), &[sum, id]))?;
            g.output(format!("total.{target}"), total)?;
            sums.targets.push((target.clone(), shape));
        }
        Ok(sums)
    }

    /// Runs the network for the sums with what was there `before`, which is zero where nothing was, and for `more` of its outputs.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn run(
        &self,
        network: &mut Loaded,
        before: Option<Gradients>,
        more: &[&str],
        observer: &dyn Observer,
    ) -> Result<(Gradients, HashMap<String, Tensor>)> {
        let mut before = before.unwrap_or_default();
        let mut take = |(target, shape): &(String, Shape)| {
            let zeros = || Tensor::Host(HostTensor::zeros(shape.clone()));
            before.remove(&format!("d.{target}")).unwrap_or_else(zeros)
        };
        let mut gradients: Gradients = self.passed.iter().map(|of| (format!("d.{}", of.0), take(of))).collect();
        let sums = self.targets.iter().map(|of| (format!("sum.{}", of.0), take(of))).collect();
        network.write_tensors(&sums).await?;
        let totals: Vec<String> = self.targets.iter().map(|(target, _)| format!("total.{target}")).collect();
        let names: Vec<&str> = totals.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut outputs = network.run_to(&names, observer).await?;
        for (target, _) in &self.targets {
            let total = outputs.remove(&format!("total.{target}"));
            let total =
                total.ok_or_else(|| Error::invalid("training", format!("a network gave no gradient of {target}")))?;
            gradients.insert(format!("d.{target}"), total);
        }
        Ok((gradients, outputs))
    }
}

/// What decides whether blocks of a network are computed again in the backward pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// What is asked for.
    pub recompute: Recompute,
    /// Bytes of the device that are left, where they are known.
    pub bytes: Option<u64>,
}

impl Room {
    /// A graph that stores all it needs or, with [`Recompute::Auto`] where that would not fit, computes blocks again.
    ///
    /// # Errors
    /// As `build`, and when the device cannot run it.
    pub async fn choose(
        self,
        runtime: &Runtime,
        observer: &dyn Observer,
        build: impl Fn(Checkpointing) -> Result<Graph>,
    ) -> Result<(Graph, Checkpointing)> {
        let blocks = Checkpointing::Blocks(block);
        if self.recompute == Recompute::Block {
            return Ok((build(blocks)?, blocks));
        }
        let graph = build(Checkpointing::Off)?;
        if let (Recompute::Auto, Some(bytes)) = (self.recompute, self.bytes)
            && let Some(planned) = runtime.plan(&graph, observer).await?
        {
            let summary = planned.plan.summary();
            if (summary.weight_bytes + summary.working_bytes) as u64 > bytes {
                return Ok((build(blocks)?, blocks));
            }
        }
        Ok((graph, Checkpointing::Off))
    }
}

/// The number that a network gives for each sample.
///
/// # Errors
/// When it gives none, or the device is lost.
pub(crate) async fn numbers(outputs: &mut HashMap<String, Tensor>, name: &str) -> Result<Vec<f64>> {
    let tensor = outputs.remove(name).ok_or_else(|| Error::invalid("training", format!("a network gave no {name}")))?;
    Ok(tensor.read().await?.to_f32_vec().into_iter().map(f64::from).collect())
}

/// L_diff: the mean square of what the network's prediction lacks of its target, for images with noise on them.
///
/// The terms of [`branch`](crate::branch) take keys and values likewise, and add their gradients to these.
#[derive(Debug)]
pub struct Diffusion {
    unet: Loaded,
    outputs: Vec<String>,
    /// Elements of a batch's targets.
    count: usize,
    /// Whether other gradients in the prediction are added.
    more: bool,
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
    /// Inputs beside those of [`Unet::graph`]: `target` [B, H, W, C] and `factor` [1, 1, 1, 1], of the gradient in the prediction; with `more` also
    /// `more` [B, H, W, C], which is added to that gradient. Outputs: `loss` [1], `d.k.N` and `d.v.N`.
    ///
    /// # Errors
    /// Weights that are missing or mismatched, an operator without a gradient.
    pub fn graph(unet: &Unet, call: &Call, more: bool, checkpointing: Checkpointing) -> Result<Graph> {
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
        let more = if more { Some(g.input("more", ty.clone(), Rate::Step)?) } else { None };
        let target = g.input("target", ty, Rate::Step)?;
        let factor = g.input("factor", TensorType::f32([1, 1, 1, 1]), Rate::Step)?;
        let (loss, upstream) = g.scoped("loss", |g| {
            let lack = g.apply(Binary::sub(), &[prediction, target])?;
            let square = g.apply(Binary::mul(), &[lack, lack])?;
            let loss = g.apply(Reduce { keep_dims: false, ..Reduce::mean([0, 1, 2, 3]) }, &[square])?;
            let loss = g.reshape(loss, [1])?;
            let upstream = g.apply(Binary::mul(), &[lack, factor])?;
            let upstream = match more {
                Some(more) => g.apply(Binary::add(), &[upstream, more])?,
                None => upstream,
            };
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

    /// Loads it.
    ///
    /// # Errors
    /// As [`Diffusion::graph`], and a device out of memory.
    pub(crate) async fn load(
        runtime: &Runtime,
        unet: &Unet,
        call: &Call,
        more: bool,
        room: Room,
        observer: &dyn Observer,
    ) -> Result<(Diffusion, Checkpointing)> {
        let build = |checkpointing| Diffusion::graph(unet, call, more, checkpointing);
        let (graph, checkpointing) = room.choose(runtime, observer, build).await?;
        let mut outputs = vec!["loss".to_owned()];
        outputs.extend(unet.identity_layers()?.iter().flat_map(|layer| layer.names()).map(|name| format!("d.{name}")));
        let sample = graph.inputs().find(|(name, _)| *name == "sample").map(|(_, ty)| ty.clone());
        let sample = sample.ok_or_else(|| Error::invalid("unet", "takes no input `sample`"))?;
        let mut unet = runtime.load(&graph, observer).await?;
        unet.write("id_scale", &HostTensor::from_fn([call.batch], |_| 1.0))?;
        let count = sample.shape.count();
        Ok((Diffusion { unet, outputs, count, more }, checkpointing))
    }

    /// What it takes of the device's memory, weights and values, where it runs on one.
    pub fn memory(&self) -> Option<[usize; 2]> {
        memory(&self.unet)
    }

    /// Gives the network a batch.
    async fn write(&mut self, batch: &Batch, keys_values: &HashMap<String, Tensor>) -> Result<()> {
        for (name, tensor) in batch.for_unet() {
            self.unet.write(name, tensor)?;
        }
        self.unet.write_tensors(keys_values).await
    }

    /// The prediction alone, [B, H, W, C].
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub(crate) async fn predict(
        &mut self,
        batch: &Batch,
        keys_values: &HashMap<String, Tensor>,
        observer: &dyn Observer,
    ) -> Result<HostTensor> {
        self.write(batch, keys_values).await?;
        read(&mut self.unet.run_to(&["sample"], observer).await?, "sample").await
    }

    /// The loss of a batch, and its gradients times `factor`, with those of `more`, a gradient in the prediction.
    ///
    /// # Errors
    /// A lost device or cancellation; `more` where the network was loaded without.
    pub async fn run(
        &mut self,
        batch: &Batch,
        keys_values: &HashMap<String, Tensor>,
        factor: f64,
        more: Option<HostTensor>,
        observer: &dyn Observer,
    ) -> Result<Answer> {
        self.write(batch, keys_values).await?;
        let factor = (2.0 * factor / self.count as f64) as f32;
        self.unet.write("factor", &HostTensor::from_fn([1, 1, 1, 1], |_| factor))?;
        if self.more || more.is_some() {
            let more = more.unwrap_or_else(|| HostTensor::zeros(batch.sample.shape().clone()));
            self.unet.write("more", &more)?;
        }
        let names: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        let mut gradients = self.unet.run_to(&names, observer).await?;
        let loss = numbers(&mut gradients, "loss").await?.first().copied().unwrap_or(f64::NAN);
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
    graph.input_named(wanted).ok_or_else(|| Error::invalid("unet", format!("takes no input `{wanted}`")))
}
