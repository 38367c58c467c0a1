//! Parameters and what the optimiser remembers of them, on the device.

use pulid::runtime::{Loaded, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::{Graph, Rate};
use pulid_models::pulid::TrainedParameter;
use pulid_models::training::{MuonStep, muon_graph};
use pulid_ops::{AdamW, AdamWStep, Slice};
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// How parameters are changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// AdamW.
    #[default]
    AdamW,
    /// Muon for matrices, AdamW for what is none.
    Muon,
}

impl Rule {
    /// The rule of a parameter of a shape.
    pub fn of(self, shape: &Shape) -> Rule {
        match self {
            Rule::Muon if shape.rank() == 2 && shape.iter().all(|extent| *extent > 1) => Rule::Muon,
            _ => Rule::AdamW,
        }
    }
}

/// Parameters and what the optimiser remembers of each.
#[derive(Debug)]
pub struct Optimizer {
    runtime: Runtime,
    rule: Rule,
    /// A step's network for parameters of each shape.
    networks: HashMap<Shape, Loaded>,
    states: HashMap<String, HashMap<String, Tensor>>,
}

/// A parameter on the host: value and moments in the graph's layout.
#[derive(Clone, Debug)]
pub struct ParameterState {
    /// The value.
    pub value: HostTensor,
    /// What the optimiser remembers.
    pub moments: Moments,
}

/// What an optimiser remembers of a parameter, by PyTorch's names.
#[derive(Clone, Debug)]
pub enum Moments {
    /// AdamW's `exp_avg` and `exp_avg_sq`.
    AdamW([HostTensor; 2]),
    /// Muon's `momentum_buffer`.
    Muon(HostTensor),
}

impl Moments {
    /// Names of what a rule remembers.
    pub fn names(rule: Rule) -> &'static [&'static str] {
        match rule {
            Rule::AdamW => &["exp_avg", "exp_avg_sq"],
            Rule::Muon => &["momentum_buffer"],
        }
    }

    /// Of a rule, each by its name.
    ///
    /// # Errors
    /// As `get`.
    pub fn read(rule: Rule, get: impl Fn(&str) -> Result<HostTensor>) -> Result<Moments> {
        Ok(match rule {
            Rule::AdamW => Moments::AdamW([get("exp_avg")?, get("exp_avg_sq")?]),
            Rule::Muon => Moments::Muon(get("momentum_buffer")?),
        })
    }

    /// Each by its name.
    pub fn each(&self) -> Vec<(&'static str, &HostTensor)> {
        match self {
            Moments::AdamW(both) => Moments::names(Rule::AdamW).iter().copied().zip(both).collect(),
            Moments::Muon(one) => vec![("momentum_buffer", one)],
        }
    }
}

/// What both rules are told of a step.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// AdamW's.
    pub adamw: AdamWStep,
    /// Muon's.
    pub muon: MuonStep,
}

impl Optimizer {
    /// No parameters yet.
    pub fn new(runtime: &Runtime, rule: Rule) -> Optimizer {
        Optimizer { runtime: runtime.clone(), rule, networks: HashMap::new(), states: HashMap::new() }
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// When value and moments differ in shape, or the moments are another rule's.
    pub fn set(&mut self, name: &str, state: &ParameterState) -> Result<()> {
        let ParameterState { value, moments } = state;
        if let Some((moment, tensor)) = moments.each().iter().find(|(_, moment)| moment.shape() != value.shape()) {
            let detail = format!("is {}, its {moment} {}", value.shape(), tensor.shape());
            return Err(Error::invalid(name, detail));
        }
        let held = match (moments, self.rule.of(value.shape())) {
            (Moments::AdamW([first, second]), Rule::AdamW) => {
                let rows = [value, first, second].map(HostTensor::as_f32);
                let [a, b, c] = rows;
                let tensor = HostTensor::from_f32([3, value.shape().count()], [a?, b?, c?].concat())?;
                vec![("state", tensor)]
            }
            (Moments::Muon(momentum), Rule::Muon) => vec![("parameter", value.clone()), ("momentum", momentum.clone())],
            _ => return Err(Error::invalid(name, "has moments of another optimiser")),
        };
        // They come to the device with the first step.
        let held = held.into_iter().map(|(name, tensor)| (name.to_owned(), Tensor::Host(tensor))).collect();
        self.states.insert(name.to_owned(), held);
        Ok(())
    }

    /// Loads the networks of all shapes.
    ///
    /// # Errors
    /// A device out of memory.
    pub async fn load(&mut self, parameters: &[(Shape, String)], observer: &dyn Observer) -> Result<()> {
        for (shape, _) in parameters {
            if !self.networks.contains_key(shape) {
                let loaded = self.runtime.load(&graph(self.rule.of(shape), shape)?, observer).await?;
                self.networks.insert(shape.clone(), loaded);
            }
        }
        Ok(())
    }

    /// Bytes of the states.
    pub fn bytes(&self) -> usize {
        self.states.values().flat_map(HashMap::values).map(Tensor::bytes).sum()
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
        settings: Settings,
        observer: &dyn Observer,
    ) -> Result<Tensor> {
        let none = || Error::invalid(name, "has no state of the optimiser");
        let network = self.networks.get_mut(shape).ok_or_else(none)?;
        // What was before stays until what comes next is there, for a checkpoint.
        let held = self.states.get(name).ok_or_else(none)?;
        let wanted: &[&str] = match self.rule.of(shape) {
            Rule::AdamW => {
                network.write("settings", &settings.adamw.settings())?;
                &["state", "value"]
            }
            Rule::Muon => {
                for (input, value) in settings.muon.inputs([shape[0], shape[1]]) {
                    network.write(input, &value)?;
                }
                &["parameter", "momentum", "value"]
            }
        };
        network.write_tensors(held).await?;
        network.write_tensors(&HashMap::from([("gradient".to_owned(), gradient)])).await?;
        let mut outputs = network.run_to(wanted, observer).await?;
        let value = outputs.remove("value").ok_or_else(none)?;
        self.states.insert(name.to_owned(), outputs);
        Ok(value)
    }

    /// A parameter's value and moments.
    ///
    /// # Errors
    /// A lost device.
    pub async fn read(&self, parameter: &TrainedParameter, shape: &Shape) -> Result<ParameterState> {
        let none = || Error::invalid(&parameter.name, "has no state of the optimiser");
        let held = self.states.get(&parameter.name).ok_or_else(none)?;
        let mut tensors = HashMap::new();
        for (name, tensor) in held {
            tensors.insert(name.as_str(), tensor.read().await?);
        }
        let mut take = |name: &str| tensors.remove(name).ok_or_else(none);
        if self.rule.of(shape) == Rule::Muon {
            let (value, momentum) = (take("parameter")?, take("momentum")?);
            return Ok(ParameterState { value, moments: Moments::Muon(momentum) });
        }
        let state = take("state")?;
        let count = shape.count();
        let values = state.as_f32()?;
        if values.len() != 3 * count {
            return Err(none());
        }
        let row = |i: usize| HostTensor::from_f32(shape.clone(), values[i * count..(i + 1) * count].to_vec());
        Ok(ParameterState { value: row(0)?, moments: Moments::AdamW([row(1)?, row(2)?]) })
    }
}

/// Numbers that are kept of a parameter of a shape: itself and what the optimiser remembers of it.
pub(crate) fn state_numbers(rule: Rule, shape: &Shape) -> usize {
    (1 + Moments::names(rule.of(shape)).len()) * shape.count()
}

/// A step of a parameter of a shape.
pub(crate) fn graph(rule: Rule, shape: &Shape) -> Result<Graph> {
    match rule {
        Rule::AdamW => network(shape),
        Rule::Muon => muon_network(shape),
    }
}

/// A step of Muon for a matrix: [`muon_graph`], whose parameter also comes as `value`, for the adapter.
fn muon_network(shape: &Shape) -> Result<Graph> {
    let mut graph = muon_graph([shape[0], shape[1]])?;
    let found = graph.outputs().iter().find(|(name, _)| name == "parameter").map(|(_, id)| *id);
    let id = found.ok_or_else(|| Error::invalid("muon", "gives no parameter"))?;
    graph.output("value", id)?;
    Ok(graph)
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
    use pulid_engine::{DeviceOptions, Silent};

    #[test]
    fn a_step_that_fails_keeps_what_was_there() {
        pollster::block_on(async {
            let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
            let runtime = Runtime::open(&selector, DeviceOptions::default()).await.unwrap();
            let shape = Shape::new([2, 3]);
            let value = HostTensor::from_fn(shape.clone(), |i| i as f32);
            for rule in [Rule::AdamW, Rule::Muon] {
                let mut optimizer = Optimizer::new(&runtime, rule);
                let moments = Moments::read(rule, |_| Ok(HostTensor::zeros(shape.clone()))).unwrap();
                optimizer.set("p", &ParameterState { value: value.clone(), moments }).unwrap();
                optimizer.load(&[(shape.clone(), "p".into())], &Silent).await.unwrap();
                let factor = 1.0;
                let adamw = AdamWStep { rate: 0.1, decay: 0.0, betas: [0.9, 0.999], epsilon: 1e-8, step: 1, factor };
                let adjust = pulid_models::training::MuonRate::MatchRmsAdamW;
                let muon = MuonStep { rate: 0.1, adjust, decay: 0.0, momentum: 0.95, factor };
                let settings = Settings { adamw, muon };
                let wrong = Tensor::Host(HostTensor::zeros([6]));
                optimizer.step("p", &shape, wrong, settings, &Silent).await.unwrap_err();
                let held = &optimizer.states["p"];
                assert!(!held.is_empty());
                let right = Tensor::Host(HostTensor::from_fn(shape.clone(), |_| 1.0));
                let changed = optimizer.step("p", &shape, right, settings, &Silent).await.unwrap();
                assert_ne!(changed.read().await.unwrap(), value, "{rule:?}");
            }
        });
    }

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
