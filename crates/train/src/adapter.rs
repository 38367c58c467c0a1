//! The trained network: from a photo's features to keys and values, and back to its parameters' gradients.

use crate::batch::People;
use crate::terms::Gradients;
use pulid::runtime::{Loaded, Numbers, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::autodiff::differentiate;
use pulid_graph::{Checkpointing, Graph, NodeId, Rate, replace_wide_attention};
use pulid_models::pulid::{IdentityLayer, TrainedAdapter, TrainedParameter};
use pulid_ops::{Binary, Concat, Reduce, Reduction};
use pulid_tensor::{Error, HostTensor, Result, Shape};
use std::collections::HashMap;

/// The adapter on the device. Its inputs are the only copy of the parameters there. Gradients lie where other networks have their values: they
/// are there until the next one runs.
#[derive(Debug)]
pub struct Adapter {
    network: Loaded,
    /// What is trained, with shapes in the graph.
    pub parameters: Vec<(TrainedParameter, Shape)>,
    condition: Vec<usize>,
    keys_values: Vec<String>,
    accumulates: bool,
}

impl Adapter {
    /// Forward and backward pass in one network, which runs once for keys and values and once for gradients: so there is one copy of
    /// the parameters, and what is computed twice is small beside the UNet.
    ///
    /// Inputs beside those of [`TrainedAdapter::graph`]: `upstream.k.N` and `upstream.v.N`, of their type; where gradients are summed over
    /// micro-batches, `sum.PARAMETER`. Outputs: keys and values, `d.PARAMETER` (with the sum), and `norms` [P], the sum of squares of
    /// each parameter's.
    ///
    /// # Errors
    /// Weights that are missing or mismatched.
    pub fn graph(
        adapter: &TrainedAdapter,
        layers: &[IdentityLayer],
        batch: usize,
        tokens: usize,
        accumulates: bool,
    ) -> Result<(Graph, Vec<TrainedParameter>)> {
        let (graph, parameters) = adapter.graph(layers, batch, tokens)?;
        // Nodes keep their places: heads are narrow in both encoders, so that nothing is replaced.
        let replaced = replace_wide_attention(&graph)?;
        if replaced.nodes().len() != graph.nodes().len() {
            return Err(Error::invalid("identity encoder", "has heads too wide to be trained here"));
        }
        let mut graph = graph;
        let g = &mut graph;
        let mut upstream = Vec::new();
        for (name, id) in g.outputs().to_vec() {
            let ty = g.ty(id).clone();
            upstream.push((id, g.input(format!("upstream.{name}"), ty, Rate::Step)?));
        }
        let nodes: Vec<_> = parameters.iter().map(|p| p.node).collect();
        let gradients = differentiate(g, &upstream, &nodes, Checkpointing::Off)?;
        let mut norms: Option<NodeId> = None;
        for (parameter, gradient) in parameters.iter().zip(gradients) {
            let name = &parameter.name;
            let detail = "reaches no layer of the UNet; does the file belong to this model?";
            let mut gradient = gradient.ok_or_else(|| Error::invalid(name, detail))?;
            let norm = g.scoped(format!("norm of {name}"), |g| {
                if accumulates {
                    let sum = g.input(format!("sum.{name}"), g.ty(gradient).clone(), Rate::Step)?;
                    gradient = g.apply(Binary::add(), &[sum, gradient])?;
                }
                squared_norm(g, gradient)
            })?;
            g.transient_output(format!("d.{name}"), gradient)?;
            // One after the other: a number that waits for all others would keep a buffer as large as its parameter.
            norms = Some(match norms {
                None => norm,
                Some(before) => g.scoped("norms", |g| g.apply(Concat::new(0), &[before, norm]))?,
            });
        }
        let norms = norms.ok_or_else(|| Error::invalid("adapter", "holds no parameter"))?;
        g.output("norms", norms)?;
        Ok((graph, parameters))
    }

    /// Loads it.
    ///
    /// # Errors
    /// As [`Adapter::graph`], and a device out of memory.
    pub async fn load(
        runtime: &Runtime,
        adapter: &TrainedAdapter,
        layers: &[IdentityLayer],
        [batch, tokens]: [usize; 2],
        accumulates: bool,
        observer: &dyn Observer,
    ) -> Result<Adapter> {
        let (graph, parameters) = Adapter::graph(adapter, layers, batch, tokens, accumulates)?;
        let keys_values = graph.outputs().iter().filter(|(name, _)| name.starts_with("k.") || name.starts_with("v."));
        let keys_values = keys_values.map(|(name, _)| name.clone()).collect();
        let mut network = runtime.load(&graph, observer).await?;
        // Nothing is known of gradients while keys and values are computed for the first time.
        for (name, ty) in graph.inputs().filter(|(name, _)| name.starts_with("upstream.") || name.starts_with("sum.")) {
            network.write(name, &HostTensor::zeros(ty.shape.clone()))?;
        }
        let shaped = |p: TrainedParameter| {
            let shape = graph.shape(p.node).clone();
            (p, shape)
        };
        Ok(Adapter {
            network,
            parameters: parameters.into_iter().map(shaped).collect(),
            condition: adapter.condition_shape(batch),
            keys_values,
            accumulates,
        })
    }

    /// A network that holds parameters and gradients by their names.
    #[cfg(test)]
    pub(crate) fn of(network: Loaded) -> Adapter {
        Adapter { network, parameters: Vec::new(), condition: Vec::new(), keys_values: Vec::new(), accumulates: false }
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// When there is none of that name and shape.
    pub fn write(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        self.network.write(name, value)
    }

    /// A parameter's value, [N].
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn value(&self, name: &str) -> Result<Numbers> {
        self.network.input(name)
    }

    /// Changes a parameter from place `first` on.
    ///
    /// # Errors
    /// When there is none of that name with so many numbers, or the device is lost.
    pub async fn set(&mut self, name: &str, first: usize, value: &Numbers) -> Result<()> {
        self.network.set(name, first, value).await
    }

    /// A parameter's gradient, [N], as [`Adapter::gradients`] left it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn gradient(&self, name: &str) -> Result<Numbers> {
        match self.accumulates {
            true => self.network.input(&format!("sum.{name}")),
            false => self.network.output(&format!("d.{name}")),
        }
    }

    fn give(&mut self, people: &People) -> Result<()> {
        self.network.write("id_cond", &people.id_cond.clone().reshape(self.condition.clone())?)?;
        for (i, hidden) in people.hidden.iter().enumerate() {
            self.network.write(&format!("hidden_{i}"), hidden)?;
        }
        Ok(())
    }

    /// Keys and values of a micro-batch's people.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn keys_values(&mut self, people: &People, observer: &dyn Observer) -> Result<HashMap<String, Tensor>> {
        self.give(people)?;
        let names: Vec<&str> = self.keys_values.iter().map(String::as_str).collect();
        self.network.run_to(&names, observer).await
    }

    /// Gradients of people whose keys and values have the gradients `upstream`, which stay here for [`Adapter::gradient`]. Where they are
    /// accumulated, they are added to those `before`, if there are any. Gives the squared norm of each.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn gradients(
        &mut self,
        people: &People,
        upstream: Gradients,
        before: bool,
        observer: &dyn Observer,
    ) -> Result<Vec<f64>> {
        self.give(people)?;
        let renamed = |(name, tensor): (String, Tensor)| (name.replacen("d.", "upstream.", 1), tensor);
        self.network.write_tensors(&upstream.into_iter().map(renamed).collect()).await?;
        if self.accumulates && !before {
            for (parameter, shape) in &self.parameters {
                self.network.write(&format!("sum.{}", parameter.name), &HostTensor::zeros(shape.clone()))?;
            }
        }
        let mut found = self.network.run_to(&["norms"], observer).await?;
        if self.accumulates {
            // The next call for keys and values makes gradients of no use.
            for (parameter, _) in &self.parameters {
                let sum = self.network.output(&format!("d.{}", parameter.name))?;
                self.network.set(&format!("sum.{}", parameter.name), 0, &sum).await?;
            }
        }
        let norms = found.remove("norms").ok_or_else(|| Error::invalid("adapter", "gave no norms"))?;
        Ok(norms.read().await?.to_f32_vec().into_iter().map(f64::from).collect())
    }
}

/// The sum of squares [1] of a tensor, by its last axis first.
fn squared_norm(g: &mut Graph, x: NodeId) -> Result<NodeId> {
    let sum = |axes: Vec<usize>| Reduce { reduction: Reduction::Sum, axes, keep_dims: false };
    let shape = g.shape(x).clone();
    let (rows, width) = (shape.count() / shape.last().max(1), shape.last());
    let x = g.reshape(x, [rows, width])?;
    let square = g.apply(Binary::mul(), &[x, x])?;
    let of_rows = g.apply(sum(vec![1]), &[square])?;
    let all = g.apply(sum(vec![0]), &[of_rows])?;
    g.reshape(all, [1])
}
