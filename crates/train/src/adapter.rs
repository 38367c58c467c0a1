//! The trained network: from a photo's features to keys and values, and back to its parameters' gradients.

use crate::batch::People;
use crate::terms::Gradients;
use pulid::runtime::{Copies, Loaded, Numbers, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::autodiff::differentiate;
use pulid_graph::{Checkpointing, Graph, Rate, replace_wide_attention};
use pulid_models::pulid::{IdentityLayer, TrainedAdapter, TrainedParameter};
use pulid_ops::{Binary, SumOfSquares};
use pulid_tensor::{Error, HostTensor, Result, Shape};
use std::collections::HashMap;

/// The adapter on the device. Its inputs are the only copy of the parameters there. Gradients lie where other networks have their values: they
/// are there until the next one runs.
#[derive(Debug)]
pub struct Adapter {
    network: Loaded,
    /// What is trained, with shapes in the graph.
    pub parameters: Vec<(TrainedParameter, Shape)>,
    shapes: Vec<(String, Shape)>,
    condition: Vec<usize>,
    keys_values: Vec<String>,
    accumulates: bool,
}

impl Adapter {
    /// Forward and backward pass in one network, which runs as far as keys and values, and later once more for gradients: so there is one copy
    /// of the parameters, and the forward pass, which is computed twice, is small beside the UNet.
    ///
    /// Inputs beside those of [`TrainedAdapter::graph`]: `upstream.k.N` and `upstream.v.N`, of their type; where gradients are summed over
    /// micro-batches, `sum.PARAMETER`. Outputs: keys and values, `d.PARAMETER` (with the sum), and `squares` [2], the sum of squares of
    /// all gradients and whether one is not finite ([`SumOfSquares`]).
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
        let mut all = Vec::with_capacity(nodes.len());
        for (parameter, gradient) in parameters.iter().zip(gradients) {
            let name = &parameter.name;
            let detail = "reaches no layer of the UNet; does the file belong to this model?";
            let mut gradient = gradient.ok_or_else(|| Error::invalid(name, detail))?;
            if accumulates {
                gradient = g.scoped(format!("sum of {name}"), |g| {
                    let sum = g.input(format!("sum.{name}"), g.ty(gradient).clone(), Rate::Step)?;
                    g.apply(Binary::add(), &[sum, gradient])
                })?;
            }
            g.transient_output(format!("d.{name}"), gradient)?;
            all.push(gradient);
        }
        let squares = g.scoped("norm", |g| g.apply(SumOfSquares, &all))?;
        g.output("squares", squares)?;
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
        let parameters: Vec<_> = parameters.into_iter().map(shaped).collect();
        Ok(Adapter {
            network,
            shapes: parameters.iter().map(|(p, shape)| (p.name.clone(), shape.clone())).collect(),
            parameters,
            condition: adapter.condition_shape(batch),
            keys_values,
            accumulates,
        })
    }

    /// A network that holds these parameters, and their gradients.
    #[cfg(test)]
    pub(crate) fn of(network: Loaded, shapes: Vec<(String, Shape)>) -> Adapter {
        let (condition, keys_values) = (Vec::new(), Vec::new());
        Adapter { network, parameters: Vec::new(), shapes, condition, keys_values, accumulates: false }
    }

    /// The parameters' names and shapes.
    pub fn shapes(&self) -> &[(String, Shape)] {
        &self.shapes
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

    /// Changes a parameter from place `first` on, with other copies.
    ///
    /// # Errors
    /// When there is none of that name with so many numbers.
    pub async fn set(&mut self, name: &str, first: usize, value: &Numbers, copies: &mut Copies) -> Result<()> {
        copies.into_input(&mut self.network, name, first, value).await
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
    /// accumulated, they are added to those `before`, if there are any. Gives the square of their norm, NaN where one is not finite.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn gradients(
        &mut self,
        people: &People,
        upstream: Gradients,
        before: bool,
        observer: &dyn Observer,
    ) -> Result<f64> {
        self.give(people)?;
        let renamed = |(name, tensor): (String, Tensor)| (name.replacen("d.", "upstream.", 1), tensor);
        self.network.write_tensors(&upstream.into_iter().map(renamed).collect()).await?;
        if self.accumulates && !before {
            for (parameter, shape) in &self.parameters {
                self.network.write(&format!("sum.{}", parameter.name), &HostTensor::zeros(shape.clone()))?;
            }
        }
        let mut found = self.network.run_to(&["squares"], observer).await?;
        if self.accumulates {
            // The next call for keys and values needs their room.
            let mut copies = Copies::default();
            for (parameter, _) in &self.parameters {
                let sum = self.network.output(&format!("d.{}", parameter.name))?;
                copies.into_input(&mut self.network, &format!("sum.{}", parameter.name), 0, &sum).await?;
            }
            copies.finish().await?;
        }
        let squares = found.remove("squares").ok_or_else(|| Error::invalid("adapter", "gave no norm"))?;
        match squares.read().await?.as_f32()? {
            [sum, 0.0] => Ok(f64::from(*sum)),
            _ => Ok(f64::NAN),
        }
    }
}
