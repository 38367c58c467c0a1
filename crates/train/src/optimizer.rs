//! What the optimiser remembers of the parameters, on the device, and how it changes them.

use crate::adapter::Adapter;
use crate::packs::{self, Piece, Unstoppable, packs};
use pulid::runtime::{Copies, Loaded, Reporter, Runtime, Tensor};
use pulid_engine::Observer;
use pulid_graph::{Graph, Rate};
use pulid_models::training::{MuonStep, muon_graph};
use pulid_ops::{AdamW, AdamWStep};
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

/// What the optimiser remembers of each parameter. The parameters themselves are the adapter's.
#[derive(Debug)]
pub struct Optimizer {
    runtime: Runtime,
    rule: Rule,
    /// A step of AdamW for a pack of so many numbers.
    adamw: Option<(Loaded, usize)>,
    /// A step of Muon for matrices of each shape.
    muon: HashMap<Shape, Loaded>,
    /// Of each parameter by [`Moments::names`].
    moments: HashMap<String, Vec<Tensor>>,
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
    /// Loads the steps of parameters of these shapes, of which nothing is remembered yet.
    ///
    /// # Errors
    /// A device out of memory.
    pub async fn load(runtime: &Runtime, rule: Rule, shapes: &[Shape], observer: &dyn Observer) -> Result<Optimizer> {
        let mut loaded =
            Optimizer { runtime: runtime.clone(), rule, adamw: None, muon: HashMap::new(), moments: HashMap::new() };
        for extent in extents(rule, shapes) {
            let network = runtime.load(&graph(&extent)?, observer).await?;
            match extent {
                Extent::AdamW(chunk) => loaded.adamw = Some((network, chunk)),
                Extent::Muon(shape) => drop(loaded.muon.insert(shape, network)),
            }
        }
        Ok(loaded)
    }

    /// Sets what it remembers of a parameter.
    ///
    /// # Errors
    /// When moments differ in shape from the parameter or are another rule's, a device out of memory.
    pub async fn set(&mut self, name: &str, shape: &Shape, moments: &Moments) -> Result<()> {
        if let Some((moment, tensor)) = moments.each().iter().find(|(_, moment)| moment.shape() != shape) {
            return Err(Error::invalid(name, format!("is {shape}, its {moment} {}", tensor.shape())));
        }
        match (moments, self.rule.of(shape)) {
            (Moments::AdamW(_), Rule::AdamW) | (Moments::Muon(_), Rule::Muon) => {}
            _ => return Err(Error::invalid(name, "has moments of another optimiser")),
        }
        let mut held = Vec::new();
        for (moment, tensor) in moments.each() {
            held.push(self.runtime.tensor(moment, tensor.clone()).await?);
        }
        self.moments.insert(name.to_owned(), held);
        Ok(())
    }

    /// One step of all parameters, which change where they lie, as does what is remembered of them.
    ///
    /// # Errors
    /// A parameter of which nothing is remembered or whose gradient has another size: nothing is changed then. A lost device.
    pub async fn step(&mut self, adapter: &mut Adapter, settings: Settings, reporter: &dyn Reporter) -> Result<()> {
        let parameters = adapter.shapes().to_vec();
        for (name, shape) in &parameters {
            let counts = [adapter.value(name)?.count(), adapter.gradient(name)?.count()];
            if counts != [shape.count(); 2] {
                return Err(Error::invalid(name, format!("is {shape}, its gradient has {} numbers", counts[1])));
            }
            if self.moments.get(name).map(Vec::len) != Some(Moments::names(self.rule.of(shape)).len()) {
                return Err(no_state(name));
            }
        }
        let observer = Unstoppable(reporter);
        let (muon, adamw): (Vec<_>, Vec<_>) =
            parameters.into_iter().partition(|(_, shape)| self.rule.of(shape) == Rule::Muon);
        let all: usize = muon.iter().chain(&adamw).map(|(_, shape)| shape.count()).sum();
        let mut done = 0;
        if let Some((network, size)) = &mut self.adamw {
            network.write("settings", &settings.adamw.settings())?;
            for pack in packs(adamw.iter().map(|(_, shape)| shape.count()), *size) {
                done +=
                    AdamWPack { network, size: *size, parameters: &adamw, pieces: &pack, moments: &mut self.moments }
                        .step(adapter, &observer)
                        .await?;
                observer.done(done, all);
            }
        }
        for (name, shape) in &muon {
            self.muon_step(name, shape, adapter, settings.muon, &observer).await?;
            done += shape.count();
            observer.done(done, all);
        }
        Ok(())
    }

    async fn muon_step(
        &mut self,
        name: &str,
        shape: &Shape,
        adapter: &mut Adapter,
        settings: MuonStep,
        observer: &dyn Observer,
    ) -> Result<()> {
        let network = self.muon.get_mut(shape).ok_or_else(|| no_state(name))?;
        let Some([momentum]) = self.moments.get_mut(name).map(|moments| &mut moments[..]) else {
            return Err(no_state(name));
        };
        for (input, value) in settings.inputs([shape[0], shape[1]]) {
            network.write(input, &value)?;
        }
        let (value, gradient) = (adapter.value(name)?, adapter.gradient(name)?);
        let mut copies = Copies::default();
        for (input, numbers) in [("parameter", value), ("momentum", momentum.numbers()?), ("gradient", gradient)] {
            copies.into_input(network, input, 0, &numbers).await?;
        }
        copies.finish().await?;
        network.run_in_place(observer).await?;
        let mut copies = Copies::default();
        adapter.set(name, 0, &network.output("parameter")?, &mut copies).await?;
        copies.into_tensor(momentum, 0, &network.output("momentum")?).await?;
        copies.finish().await
    }

    /// What it remembers of a parameter.
    ///
    /// # Errors
    /// A lost device.
    pub async fn read(&self, name: &str, shape: &Shape) -> Result<Moments> {
        let none = || no_state(name);
        let rule = self.rule.of(shape);
        let mut read = HashMap::new();
        for (moment, tensor) in Moments::names(rule).iter().zip(self.moments.get(name).ok_or_else(none)?) {
            read.insert(*moment, tensor.read().await?);
        }
        Moments::read(rule, |moment| read.get(moment).cloned().ok_or_else(none))
    }
}

fn no_state(name: &str) -> Error {
    Error::invalid(name, "has no state of the optimiser")
}

/// Parameters that go through AdamW together.
struct AdamWPack<'a> {
    network: &'a mut Loaded,
    /// Numbers in a row of its state.
    size: usize,
    parameters: &'a [(String, Shape)],
    pieces: &'a [Piece],
    moments: &'a mut HashMap<String, Vec<Tensor>>,
}

impl AdamWPack<'_> {
    /// Their step; gives how many numbers they are.
    async fn step(self, adapter: &mut Adapter, observer: &dyn Observer) -> Result<usize> {
        let AdamWPack { network, size, parameters, pieces, moments } = self;
        let mut copies = Copies::default();
        for Piece { parameter, range, at } in pieces {
            let (name, _) = &parameters[*parameter];
            let Some([first, second]) = moments.get(name).map(|moments| &moments[..]) else {
                return Err(no_state(name));
            };
            let rows = [adapter.value(name)?, first.numbers()?, second.numbers()?];
            for (row, numbers) in rows.iter().enumerate() {
                copies.into_input(network, "state", row * size + at, &numbers.part(range.clone())?).await?;
            }
            copies.into_input(network, "gradient", *at, &adapter.gradient(name)?.part(range.clone())?).await?;
        }
        copies.finish().await?;
        network.run_in_place(observer).await?;
        let next = network.output("state")?;
        let mut copies = Copies::default();
        for Piece { parameter, range, at } in pieces {
            let (name, _) = &parameters[*parameter];
            let row = |row: usize| next.part(row * size + at..row * size + at + range.len());
            adapter.set(name, range.start, &row(0)?, &mut copies).await?;
            for (moment, i) in moments.get_mut(name).into_iter().flatten().zip(1..) {
                copies.into_tensor(moment, range.start, &row(i)?).await?;
            }
        }
        copies.finish().await?;
        Ok(pieces.iter().map(|piece| piece.range.len()).sum())
    }
}

/// What a network of the optimiser takes at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Extent {
    /// AdamW: a pack of so many numbers.
    AdamW(usize),
    /// Muon: a matrix.
    Muon(Shape),
}

/// The networks for parameters of these shapes.
pub(crate) fn extents(rule: Rule, shapes: &[Shape]) -> Vec<Extent> {
    let (muon, adamw): (Vec<_>, Vec<_>) = shapes.iter().partition(|shape| rule.of(shape) == Rule::Muon);
    let pack = || Extent::AdamW(packs::size(adamw.iter().map(|shape| shape.count())));
    let mut extents: Vec<_> = adamw.first().map(|_| pack()).into_iter().collect();
    for shape in muon {
        let extent = Extent::Muon(shape.clone());
        if !extents.contains(&extent) {
            extents.push(extent);
        }
    }
    extents
}

/// Numbers that the optimiser remembers of a parameter of a shape.
pub(crate) fn moment_numbers(rule: Rule, shape: &Shape) -> usize {
    Moments::names(rule.of(shape)).len() * shape.count()
}

/// A step's network.
///
/// # Errors
/// When an extent is 0.
pub(crate) fn graph(extent: &Extent) -> Result<Graph> {
    match extent {
        Extent::AdamW(count) => adamw_graph(*count),
        Extent::Muon(shape) => muon_graph([shape[0], shape[1]]),
    }
}

/// A step of AdamW for so many numbers. Inputs: `state` [3, N], `gradient` [N], `settings` [8]. Output: the next `state`.
fn adamw_graph(count: usize) -> Result<Graph> {
    let mut graph = Graph::new("adamw");
    let g = &mut graph;
    let state = g.input("state", TensorType::f32([3, count]), Rate::Step)?;
    let gradient = g.input("gradient", TensorType::f32([count]), Rate::Step)?;
    let settings = g.input("settings", TensorType::f32([8]), Rate::Step)?;
    let next = g.apply(AdamW, &[state, gradient, settings])?;
    g.output("state", next)?;
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
pub(crate) mod tests {
    use super::*;
    use pulid_engine::{DeviceOptions, Silent};
    use pulid_ops::{Binary, Operator};

    /// An adapter of a parameter `p` whose gradient has so many numbers, all 1.
    pub(crate) async fn adapter(runtime: &Runtime, value: &HostTensor, gradients: usize) -> Adapter {
        let mut graph = Graph::new("adapter");
        let g = &mut graph;
        let p = g.input("p", TensorType::f32(value.shape().clone()), Rate::Step).unwrap();
        let given = g.input("given", TensorType::f32([gradients]), Rate::Step).unwrap();
        let gradient = g.apply(Binary::mul(), &[given, given]).unwrap();
        let used = g.apply(Binary::mul(), &[p, p]).unwrap();
        g.output("d.p", gradient).unwrap();
        g.output("used", used).unwrap();
        let mut network = runtime.load(&graph, &Silent).await.unwrap();
        network.write("p", value).unwrap();
        network.write("given", &HostTensor::from_fn([gradients], |_| 1.0)).unwrap();
        network.run_in_place(&Silent).await.unwrap();
        Adapter::of(network, vec![("p".to_owned(), value.shape().clone())])
    }

    fn settings() -> Settings {
        let factor = 1.0;
        let adamw = AdamWStep { rate: 0.1, decay: 0.0, betas: [0.9, 0.999], epsilon: 1e-8, step: 1, factor };
        let adjust = pulid_models::training::MuonRate::MatchRmsAdamW;
        Settings { adamw, muon: MuonStep { rate: 0.1, adjust, decay: 0.0, momentum: 0.95, factor } }
    }

    async fn runtime() -> Runtime {
        let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
        Runtime::open(&selector, DeviceOptions::default()).await.unwrap()
    }

    #[test]
    fn a_step_that_fails_keeps_what_was_there() {
        pollster::block_on(async {
            let runtime = runtime().await;
            let shape = Shape::new([2, 3]);
            let value = HostTensor::from_fn(shape.clone(), |i| i as f32);
            let zeros = HostTensor::zeros(shape.clone());
            for rule in [Rule::AdamW, Rule::Muon] {
                let shapes = std::slice::from_ref(&shape);
                let mut optimizer = Optimizer::load(&runtime, rule, shapes, &Silent).await.unwrap();
                let moments = Moments::read(rule, |_| Ok(zeros.clone())).unwrap();
                optimizer.set("p", &shape, &moments).await.unwrap();
                let mut wrong = adapter(&runtime, &value, 5).await;
                optimizer.step(&mut wrong, settings(), &Silent).await.unwrap_err();
                let held = async |optimizer: &Optimizer, adapter: &Adapter| {
                    let value = adapter.value("p").unwrap().read().await.unwrap().to_f32_vec();
                    let moments = optimizer.read("p", &shape).await.unwrap();
                    (value, moments.each().iter().map(|(_, tensor)| tensor.to_f32_vec()).collect::<Vec<_>>())
                };
                let (kept, moments) = held(&optimizer, &wrong).await;
                assert_eq!(kept, value.to_f32_vec(), "{rule:?}");
                assert!(moments.iter().flatten().all(|v| *v == 0.0), "{rule:?}");
                let mut right = adapter(&runtime, &value, 6).await;
                optimizer.step(&mut right, settings(), &Silent).await.unwrap();
                let (changed, moments) = held(&optimizer, &right).await;
                assert!(changed.iter().zip(&kept).all(|(after, before)| after < before), "{rule:?}: {changed:?}");
                assert!(moments.iter().flatten().all(|v| *v > 0.0), "{rule:?}");
            }
        });
    }

    /// Pieces of a parameter, the last of which is not full, come out as the operator makes of the whole.
    #[test]
    fn a_parameter_that_goes_through_in_pieces_is_changed_as_in_one() {
        pollster::block_on(async {
            let count = (1 << 20) + 5;
            let small = Shape::new([3]);
            let number = |i: usize, by: usize| (i % by) as f32 / by as f32 + 0.1;
            let value = HostTensor::from_fn([count], |i| number(i, 97));
            let both =
                [HostTensor::from_fn([count], |i| number(i, 89)), HostTensor::from_fn([count], |i| number(i, 83))];
            let shapes = [small, value.shape().clone()];
            let mut found = Vec::new();
            for runtime in [runtime().await, Runtime::Reference] {
                let mut optimizer = Optimizer::load(&runtime, Rule::AdamW, &shapes, &Silent).await.unwrap();
                optimizer.set("p", &shapes[1], &Moments::AdamW(both.clone())).await.unwrap();
                let mut adapter = adapter(&runtime, &value, count).await;
                optimizer.step(&mut adapter, settings(), &Silent).await.unwrap();
                let Moments::AdamW([first, second]) = optimizer.read("p", &shapes[1]).await.unwrap() else { panic!() };
                let value = adapter.value("p").unwrap().read().await.unwrap();
                found.push([value, first, second].map(|tensor| tensor.to_f32_vec()));
            }
            let state = [value.to_f32_vec(), both[0].to_f32_vec(), both[1].to_f32_vec()].concat();
            let state = HostTensor::from_f32([3, count], state).unwrap();
            let ones = HostTensor::from_fn([count], |_| 1.0);
            let whole = AdamW.reference(&[&state, &ones, &settings().adamw.settings()]).unwrap().to_f32_vec();
            assert_eq!(found[1].concat(), whole);
            for (i, (found, expected)) in found[0].concat().iter().zip(&whole).enumerate() {
                assert!((found - expected).abs() < 1e-5, "{i}: {found} {expected}");
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
