//! Parameters and what the optimiser remembers of them, on the device.

use pulid::runtime::{Loaded, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::{Graph, Rate};
use pulid_models::pulid::TrainedParameter;
use pulid_ops::{AdamW, AdamWStep, Slice};
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};
use std::collections::HashMap;

/// AdamW's state of each parameter: [3, N], rows value, first and second moment.
#[derive(Debug)]
pub struct Optimizer {
    runtime: Runtime,
    /// A step's network for parameters of each shape.
    networks: HashMap<Shape, Loaded>,
    states: HashMap<String, Tensor>,
}

/// A parameter on the host: value and moments in the graph's layout.
#[derive(Clone, Debug)]
pub struct ParameterState {
    /// The value.
    pub value: HostTensor,
    /// `exp_avg` and `exp_avg_sq`.
    pub moments: [HostTensor; 2],
}

impl Optimizer {
    /// No parameters yet.
    pub fn new(runtime: &Runtime) -> Optimizer {
        Optimizer { runtime: runtime.clone(), networks: HashMap::new(), states: HashMap::new() }
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// When value and moments differ in shape.
    pub fn set(&mut self, name: &str, state: &ParameterState) -> Result<()> {
        let ParameterState { value, moments: [first, second] } = state;
        if first.shape() != value.shape() || second.shape() != value.shape() {
            let detail = format!("is {}, its moments {} and {}", value.shape(), first.shape(), second.shape());
            return Err(Error::invalid(name, detail));
        }
        let rows = [value, first, second].map(HostTensor::as_f32);
        let [a, b, c] = rows;
        let tensor = HostTensor::from_f32([3, value.shape().count()], [a?, b?, c?].concat())?;
        // It comes to the device with the first step.
        self.states.insert(name.to_owned(), Tensor::Host(tensor));
        Ok(())
    }

    /// Loads the networks of all shapes.
    ///
    /// # Errors
    /// A device out of memory.
    pub async fn load(&mut self, parameters: &[(Shape, String)], observer: &dyn Observer) -> Result<()> {
        for (shape, _) in parameters {
            if !self.networks.contains_key(shape) {
                let loaded = self.runtime.load(&network(shape)?, observer).await?;
                self.networks.insert(shape.clone(), loaded);
            }
        }
        Ok(())
    }

    /// Bytes of the states, and of the networks that change them.
    pub fn memory(&self) -> [usize; 2] {
        let bytes = |tensor: &Tensor| match tensor {
            Tensor::Host(t) => t.tensor_type().bytes(),
            Tensor::Device(t) => t.tensor_type().bytes(),
        };
        let networks = self.networks.values().filter_map(crate::terms::memory).map(|[_, working]| working).sum();
        [self.states.values().map(bytes).sum(), networks]
    }

    /// One step of a parameter; gives its new value in the graph's shape. `adapter` gets it as an input.
    ///
    /// # Errors
    /// A parameter without a state, a lost device.
    pub async fn step(
        &mut self,
        name: &str,
        shape: &Shape,
        gradient: Tensor,
        settings: AdamWStep,
        observer: &dyn Observer,
    ) -> Result<Tensor> {
        let none = || Error::invalid(name, "has no state of the optimiser");
        let network = self.networks.get_mut(shape).ok_or_else(none)?;
        let state = self.states.remove(name).ok_or_else(none)?;
        network.write("settings", &settings.settings())?;
        let inputs = HashMap::from([("state".to_owned(), state), ("gradient".to_owned(), gradient)]);
        network.write_tensors(&inputs).await?;
        let stepped = network.run_to(&["state", "value"], observer).await;
        let mut outputs = match stepped {
            Ok(outputs) => outputs,
            Err(error) => {
                // What was before it is still there, for a checkpoint.
                self.states.extend(inputs.into_iter().filter(|(n, _)| n == "state").map(|(_, t)| (name.to_owned(), t)));
                return Err(error);
            }
        };
        let mut take = |output: &str| outputs.remove(output).ok_or_else(none);
        let (state, value) = (take("state")?, take("value")?);
        self.states.insert(name.to_owned(), state);
        Ok(value)
    }

    /// A parameter's value and moments.
    ///
    /// # Errors
    /// A lost device.
    pub async fn read(&self, parameter: &TrainedParameter, shape: &Shape) -> Result<ParameterState> {
        let none = || Error::invalid(&parameter.name, "has no state of the optimiser");
        let state = self.states.get(&parameter.name).ok_or_else(none)?.read().await?;
        let count = shape.count();
        let values = state.as_f32()?;
        if values.len() != 3 * count {
            return Err(none());
        }
        let row = |i: usize| HostTensor::from_f32(shape.clone(), values[i * count..(i + 1) * count].to_vec());
        Ok(ParameterState { value: row(0)?, moments: [row(1)?, row(2)?] })
    }
}

/// A step of AdamW for a parameter of a shape. Inputs: `state` [3, N], `gradient` of the shape, `settings` [8]. Outputs: `state` and
/// `value`, of the shape.
fn network(shape: &Shape) -> Result<Graph> {
    let count = shape.count();
    let mut graph = Graph::new("adamw");
    let g = &mut graph;
    let state = g.input("state", TensorType::f32([3, count]), Rate::Step)?;
    let gradient = g.input("gradient", TensorType::f32(shape.clone()), Rate::Step)?;
    let settings = g.input("settings", TensorType::f32([8]), Rate::Step)?;
    let gradient = g.reshape(gradient, [count])?;
    let next = g.apply(AdamW, &[state, gradient, settings])?;
    let value = g.apply(Slice::along(&[3, count], 0, 0, 1), &[next])?;
    let value = g.reshape(value, shape.clone())?;
    g.output("state", next)?;
    g.output("value", value)?;
    Ok(graph)
}

/// The factor of the loss that keeps gradients in half precision's range: doubled after 2,000 good steps, halved after one whose
/// gradients were not finite, which is left out (as PyTorch's `GradScaler`, with its default growth interval).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LossScale {
    /// The factor; 1 where values are in f32.
    pub factor: f64,
    /// Good steps since it changed.
    pub good: u32,
    /// Whether it may change.
    pub dynamic: bool,
}

impl LossScale {
    const GROWTH: u32 = 2000;
    const MOST: f64 = 16_777_216.0;
    const LEAST: f64 = 1.0 / 65_536.0;

    /// The factor at the start.
    pub fn new(half: bool) -> LossScale {
        LossScale { factor: if half { 65_536.0 } else { 1.0 }, good: 0, dynamic: half }
    }

    /// After a step.
    pub fn update(&mut self, finite: bool) {
        if !self.dynamic {
            return;
        }
        self.good = if finite { self.good + 1 } else { 0 };
        if !finite {
            self.factor = (self.factor / 2.0).max(Self::LEAST);
        } else if self.good == Self::GROWTH {
            *self = LossScale { factor: (self.factor * 2.0).min(Self::MOST), good: 0, ..*self };
        }
    }

    /// Whether a smaller factor may help where gradients are not finite.
    pub fn can_fall(&self) -> bool {
        self.dynamic && self.factor > Self::LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_scale_falls_at_once_and_grows_slowly() {
        let mut scale = LossScale::new(true);
        scale.update(false);
        assert_eq!((scale.factor, scale.good), (32_768.0, 0));
        (0..1999).for_each(|_| scale.update(true));
        assert_eq!((scale.factor, scale.good), (32_768.0, 1999));
        scale.update(true);
        assert_eq!((scale.factor, scale.good), (65_536.0, 0));
        (0..100).for_each(|_| scale.update(false));
        assert!(!scale.can_fall() && scale.factor > 0.0);
        let mut single = LossScale::new(false);
        single.update(false);
        assert_eq!((single.factor, single.can_fall()), (1.0, false));
    }
}
