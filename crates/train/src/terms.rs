//! What is minimised: terms of the loss, each over the identity's keys and values.

use crate::batch::Batch;
use crate::face::read;
use crate::memory::Part;
use pulid::runtime::{Loaded, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::autodiff::differentiate;
use pulid_graph::{Checkpointing, Graph, Rate, replace_wide_attention};
use pulid_models::pulid::IdentityInputs;
use pulid_models::sdxl::{Unet, UnetSize};
use pulid_ops::{Binary, Reduce};
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};
use std::collections::{BTreeMap, HashMap};

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

    /// Runs the network, or what is left of its run ([`Loaded::continue_to`]), for the sums with what was there `before`, which is zero
    /// where nothing was, and for `more` of its outputs.
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
        let mut outputs = network.continue_to(&names, observer).await?;
        for (target, _) in &self.targets {
            let total = outputs.remove(&format!("total.{target}"));
            let total =
                total.ok_or_else(|| Error::invalid("training", format!("a network gave no gradient of {target}")))?;
            gradients.insert(format!("d.{target}"), total);
        }
        Ok((gradients, outputs))
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

/// L_diff: the mean square of what the network's prediction lacks of its target, for images with noise on them, each sample's by its weight.
///
/// The terms of [`branch`](crate::branch) take keys and values likewise, and add their gradients to these.
pub struct Diffusion {
    runtime: Runtime,
    unet: Unet,
    call: Call,
    checkpointing: Checkpointing,
    outputs: Vec<String>,
    /// Whether other gradients in the prediction are added.
    more: bool,
    /// The network for latents of the rows and columns of `call`. Those of other sizes are the runtime's meanwhile, which lets them go
    /// where there is no room.
    loaded: Option<Loaded>,
    /// The graph of each size so far.
    graphs: BTreeMap<[usize; 2], Graph>,
}

/// Sizes of a call of the UNet in training.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Samples.
    pub batch: usize,
    /// Rows and columns of the latents.
    pub latent: [usize; 2],
    /// Pixels to a latent, each way.
    pub factor: usize,
    /// Text tokens.
    pub text_tokens: usize,
    /// The identity's part.
    pub identity: IdentityInputs,
}

impl Call {
    /// What the names of networks for images of its size end with in a run's memory.
    pub(crate) fn at(&self) -> String {
        let [height, width] = self.latent.map(|side| side * self.factor);
        format!(" at {width} x {height}")
    }
}

impl Diffusion {
    /// What it is called in a run's memory.
    pub(crate) fn name(call: &Call) -> String {
        format!("UNet, values and their gradients{}", call.at())
    }

    /// What it takes.
    pub(crate) fn part<'a>(unet: &'a Unet, call: Call, more: bool) -> Part<'a> {
        let build = move |checkpointing| Diffusion::graph(unet, &call, more, checkpointing);
        Part::backward(Diffusion::name(&call), "UNet, weights", build)
    }

    /// The UNet with its loss and the gradients in keys and values.
    ///
    /// Inputs beside those of [`Unet::graph`]: `target` [B, H, W, C]; `weights` [B, 1, 1, 1], of the samples in the loss; `factor`
    /// [1, 1, 1, 1], of the gradient in the prediction; with `more` also `more` [B, H, W, C], which is added to that gradient. Outputs: `loss` [1], `d.k.N` and `d.v.N`.
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
        let weights = g.input("weights", TensorType::f32([call.batch, 1, 1, 1]), Rate::Step)?;
        let factor = g.input("factor", TensorType::f32([1, 1, 1, 1]), Rate::Step)?;
        let (loss, upstream) = g.scoped("loss", |g| {
            let lack = g.apply(Binary::sub(), &[prediction, target])?;
            let weighted = g.apply(Binary::mul(), &[lack, weights])?;
            let square = g.apply(Binary::mul(), &[lack, weighted])?;
            let loss = g.apply(Reduce { keep_dims: false, ..Reduce::mean([0, 1, 2, 3]) }, &[square])?;
            let loss = g.reshape(loss, [1])?;
            let upstream = g.apply(Binary::mul(), &[weighted, factor])?;
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
        checkpointing: Checkpointing,
        observer: &dyn Observer,
    ) -> Result<Diffusion> {
        let mut outputs = vec!["loss".to_owned()];
        outputs.extend(unet.identity_layers()?.iter().flat_map(|layer| layer.names()).map(|name| format!("d.{name}")));
        let mut diffusion = Diffusion {
            runtime: runtime.clone(),
            unet: unet.clone(),
            call: *call,
            checkpointing,
            outputs,
            more,
            loaded: None,
            graphs: BTreeMap::new(),
        };
        diffusion.take(call.latent, observer).await?;
        Ok(diffusion)
    }

    /// Takes the network for latents of these rows and columns, of which blocks are computed again as of the first one's.
    ///
    /// # Errors
    /// A device out of memory, cancellation.
    pub(crate) async fn take(&mut self, latent: [usize; 2], observer: &dyn Observer) -> Result<()> {
        if self.loaded.is_some() && latent == self.call.latent {
            return Ok(());
        }
        // It goes back to the runtime before the next one looks for room.
        self.loaded = None;
        self.call.latent = latent;
        if !self.graphs.contains_key(&latent) {
            self.graphs.insert(latent, Diffusion::graph(&self.unet, &self.call, self.more, self.checkpointing)?);
        }
        let Some(graph) = self.graphs.get(&latent) else { return Ok(()) };
        let mut loaded = self.runtime.load(graph, observer).await?;
        loaded.write("id_scale", &HostTensor::from_fn([self.call.batch], |_| 1.0))?;
        self.loaded = Some(loaded);
        Ok(())
    }

    /// The network of a batch's size, which is given the batch.
    async fn given<'a>(
        &'a mut self,
        batch: &Batch,
        keys_values: &HashMap<String, Tensor>,
        observer: &dyn Observer,
    ) -> Result<(&'a mut Loaded, &'a [String])> {
        let &[_, height, width, _] = batch.sample.shape().extents() else {
            return Err(Error::invalid("cache", format!("holds latents {}", batch.sample.shape())));
        };
        self.take([height, width], observer).await?;
        let Some(unet) = &mut self.loaded else { return Err(Error::invalid("unet", "is not loaded")) };
        for (name, tensor) in batch.for_unet() {
            unet.write(name, tensor)?;
        }
        unet.write("weights", &batch.weights)?;
        unet.write_tensors(keys_values).await?;
        Ok((unet, &self.outputs))
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
        let (unet, _) = self.given(batch, keys_values, observer).await?;
        read(&mut unet.run_to(&["sample"], observer).await?, "sample").await
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
        let with_more = self.more;
        let (unet, outputs) = self.given(batch, keys_values, observer).await?;
        let factor = (2.0 * factor / batch.target.shape().count() as f64) as f32;
        unet.write("factor", &HostTensor::from_fn([1, 1, 1, 1], |_| factor))?;
        if with_more || more.is_some() {
            let more = more.unwrap_or_else(|| HostTensor::zeros(batch.sample.shape().clone()));
            unet.write("more", &more)?;
        }
        let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let mut gradients = unet.run_to(&names, observer).await?;
        let loss = numbers(&mut gradients, "loss").await?.first().copied().unwrap_or(f64::NAN);
        Ok(Answer { loss, gradients })
    }
}

/// The node of an input.
fn input(graph: &Graph, wanted: &str) -> Result<pulid_graph::NodeId> {
    graph.input_named(wanted).ok_or_else(|| Error::invalid("unet", format!("takes no input `{wanted}`")))
}
