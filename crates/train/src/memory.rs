//! What networks take of a device by their plans: for deciding what the backward pass computes again, and for people.

use crate::options::Recompute;
use pulid::pipeline::Storage;
use pulid::runtime::Runtime;
use pulid_engine::Observer;
use pulid_graph::{
    Arenas, Checkpointing, FirstVariant, Graph, PlannedGraph, ScratchValues, WeightKey, fit_bindings, largest_arena,
    optimize, plan_sharing,
};
use pulid_models::Precision;
use pulid_models::run::block;
use pulid_ops::Capabilities;
use pulid_tensor::{Result, TensorType};
use std::collections::HashSet;
use std::sync::Arc;

/// Bytes of each part of a run, by its name for people.
pub type Memory = Vec<(String, usize)>;

/// The device that networks are planned for.
pub(crate) enum Planner<'a> {
    /// One that is there, with its measured choices of kernels.
    Device(&'a Runtime),
    /// One that need not be: its capabilities, and bytes of its memory, if they are limited.
    Assumed(&'a Capabilities, Option<u64>),
}

impl Planner<'_> {
    /// Plans a graph; the reference has no plan.
    ///
    /// # Errors
    /// When the device cannot run it.
    pub async fn plan(&self, graph: &Graph, observer: &dyn Observer) -> Result<Option<PlannedGraph>> {
        match self {
            Planner::Device(runtime) => runtime.plan(graph, observer).await,
            Planner::Assumed(capabilities, _) => {
                let limit = usize::try_from(capabilities.max_binding_bytes).unwrap_or(usize::MAX);
                plan_sharing(&optimize(&fit_bindings(graph, limit)?), capabilities, &FirstVariant).map(Some)
            }
        }
    }

    /// The memory in which networks find places for the values between their operators, by turns.
    pub fn arenas<'v>(&self, values: impl IntoIterator<Item = &'v ScratchValues>) -> Arenas {
        let largest = match self {
            Planner::Device(Runtime::Gpu { device, .. }) => device.capabilities().max_buffer_bytes,
            Planner::Device(Runtime::Reference) => 0,
            Planner::Assumed(capabilities, _) => capabilities.max_buffer_bytes,
        };
        Arenas::for_all(values, largest_arena(largest))
    }

    /// In what the frozen networks are stored and computed.
    pub fn precision(&self, storage: Storage) -> Precision {
        let Storage { dtype, quantize } = storage;
        match self {
            Planner::Device(runtime) => runtime.precision(dtype, quantize),
            Planner::Assumed(capabilities, _) => Runtime::precision_with(capabilities.shader_f16, dtype, quantize),
        }
    }

    /// Bytes of the device that are left beside `reserved` ones, where its memory or a budget is known.
    pub fn room(&self, reserved: usize) -> Option<u64> {
        let all = match self {
            Planner::Device(Runtime::Gpu { device, memory, .. }) => {
                let all = memory.or(device.memory_bytes());
                all.map(|all| all.saturating_sub(device.memory().held()))
            }
            Planner::Device(Runtime::Reference) => None,
            Planner::Assumed(_, all) => *all,
        };
        all.map(|all| all.saturating_sub(reserved as u64))
    }
}

/// A network of a run that is on the device with the others.
pub(crate) struct Part<'a> {
    /// What its values are called.
    pub name: String,
    /// What its weights are called, if no part before it has them.
    pub weights: &'static str,
    /// Whether it has a backward pass, for which blocks may be computed again.
    pub backward: bool,
    /// Its calls whose values can stay until their backward passes, each in memory of its own. Where they cannot, each call runs
    /// again before its backward pass.
    pub calls: usize,
    /// Its graph.
    pub build: Box<dyn Fn(Checkpointing) -> Result<Graph> + 'a>,
}

impl<'a> Part<'a> {
    /// A network without a backward pass.
    pub fn forward(name: impl Into<String>, weights: &'static str, build: impl Fn() -> Result<Graph> + 'a) -> Part<'a> {
        Part { name: name.into(), weights, backward: false, calls: 0, build: Box::new(move |_| build()) }
    }

    /// A network with a backward pass.
    pub fn backward(
        name: impl Into<String>,
        weights: &'static str,
        build: impl Fn(Checkpointing) -> Result<Graph> + 'a,
    ) -> Part<'a> {
        Part { name: name.into(), weights, backward: true, calls: 0, build: Box::new(build) }
    }

    /// The same, of which the values of so many calls can stay.
    pub fn keeping(self, calls: usize) -> Part<'a> {
        Part { calls, ..self }
    }
}

/// What was decided of a run's networks, and what they take.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decided {
    recomputed: HashSet<String>,
    /// Parts whose calls' values stay.
    keeping: HashSet<String>,
    /// Without what lies in `scratch`. Weights that several networks share are there once; none where there is no device.
    pub memory: Memory,
    /// The values between operators, by turns.
    pub scratch: Vec<ScratchValues>,
}

impl Decided {
    /// How a part's backward pass is built.
    pub fn checkpointing(&self, part: &str) -> Checkpointing {
        if self.recomputed.contains(part) { Checkpointing::Blocks(block) } else { Checkpointing::Off }
    }

    /// Whether the values of a part's calls stay until their backward passes.
    pub fn keeps(&self, part: &str) -> bool {
        self.keeping.contains(part)
    }

    /// Whether blocks of any part are computed again.
    pub fn recomputes(&self) -> bool {
        !self.recomputed.is_empty()
    }
}

/// A part's plan.
struct PlannedPart {
    planned: Option<PlannedGraph>,
    /// What lies between operators.
    scratch: ScratchValues,
    recomputed: bool,
    /// Its calls whose values stay.
    calls: usize,
}

impl PlannedPart {
    fn new(planned: Option<PlannedGraph>, recomputed: bool) -> PlannedPart {
        let scratch = planned.as_ref().map(|planned| planned.plan.scratch()).unwrap_or_default();
        PlannedPart { planned, scratch, recomputed, calls: 0 }
    }

    /// The same, with so many calls whose values stay, and none of them in memory that is shared.
    fn keeping(self, calls: usize) -> PlannedPart {
        PlannedPart { calls, ..self }
    }

    /// Bytes of values, alone.
    fn working(&self) -> usize {
        self.planned.as_ref().map_or(0, |planned| planned.plan.summary().working_bytes)
    }

    /// Bytes of those that stay.
    fn kept(&self) -> usize {
        match self.calls {
            0 => self.working() - self.planned.as_ref().map_or(0, |planned| planned.plan.scratch_bytes()),
            calls => calls * self.working(),
        }
    }

    /// What it shares.
    fn shared(&self) -> Option<&ScratchValues> {
        (self.calls == 0).then_some(&self.scratch)
    }
}

/// Plans the parts of a run, all of which are on the device at once; they run one at a time, and their values between operators lie where
/// those of others lie, of which `scratch` are known. With [`Recompute::Auto`], where they are more than `room` bytes,
/// the blocks of one after another are computed again, of the part with the largest values first.
///
/// # Errors
/// As the parts' graphs, and when the device cannot run one.
pub(crate) async fn decide(
    planner: &Planner<'_>,
    parts: &[Part<'_>],
    recompute: Recompute,
    room: Option<u64>,
    scratch: &[ScratchValues],
    observer: &dyn Observer,
) -> Result<Decided> {
    let planned = async |part: &Part<'_>, recomputed: bool| {
        let graph = (part.build)(if recomputed { Checkpointing::Blocks(block) } else { Checkpointing::Off })?;
        Ok(PlannedPart::new(planner.plan(&graph, observer).await?, recomputed))
    };
    let mut all = Vec::with_capacity(parts.len());
    for part in parts {
        let recomputed = part.backward && recompute == Recompute::Block;
        let calls = if recomputed { 0 } else { part.calls };
        all.push(planned(part, recomputed).await?.keeping(calls));
    }
    let weights = weights(parts, &all);
    let of_weights: usize = weights.iter().map(|(_, bytes)| bytes).sum();
    let shared =
        |all: &[PlannedPart]| planner.arenas(scratch.iter().chain(all.iter().filter_map(PlannedPart::shared))).bytes();
    while let (Recompute::Auto, Some(room)) = (recompute, room) {
        let taken = (of_weights + shared(&all) + all.iter().map(PlannedPart::kept).sum::<usize>()) as u64;
        let keeping = all.iter_mut().find(|part| part.calls > 0);
        // What is a matter of speed alone leaves room for what is not planned: the detector, sample images, the driver.
        let limit = if keeping.is_some() { room / 5 * 4 } else { room };
        if taken <= limit {
            break;
        }
        if let Some(part) = keeping {
            part.calls = 0;
            continue;
        }
        let may = (0..parts.len()).filter(|&i| parts[i].backward && !all[i].recomputed);
        let Some(largest) = may.max_by_key(|&i| all[i].working()) else { break };
        all[largest] = planned(&parts[largest], true).await?;
    }
    let mut memory: Memory = weights;
    memory.extend(parts.iter().zip(&all).map(|(part, planned)| (part.name.clone(), planned.kept())));
    memory.retain(|(_, bytes)| *bytes > 0);
    let names = |which: fn(&PlannedPart) -> bool| {
        parts.iter().zip(&all).filter(|(_, planned)| which(planned)).map(|(part, _)| part.name.clone()).collect()
    };
    let (recomputed, keeping) = (names(|part| part.recomputed), names(|part| part.calls > 0));
    let scratch = scratch.iter().chain(all.iter().filter_map(PlannedPart::shared)).cloned().collect();
    Ok(Decided { recomputed, keeping, memory, scratch })
}

/// Bytes of the parts' weights by name, of which equal ones are there once. What streams counts by the slots that it passes through.
fn weights(parts: &[Part<'_>], all: &[PlannedPart]) -> Memory {
    let mut seen: HashSet<(Arc<WeightKey>, TensorType)> = HashSet::new();
    let mut bytes: Memory = Vec::new();
    for (part, PlannedPart { planned, .. }) in parts.iter().zip(all) {
        let Some(PlannedGraph { plan, weights }) = planned else { continue };
        let streamed: HashSet<usize> = plan.streamed().collect();
        let resident = plan.weights.iter().zip(weights).enumerate().filter(|(i, _)| !streamed.contains(i));
        let again: usize = resident
            .filter(|(_, (port, weight))| !seen.insert((weight.key().clone(), port.ty.clone())))
            .map(|(_, (port, _))| plan.buffers[port.buffer].bytes)
            .sum();
        let own = plan.summary().weight_bytes - again;
        match bytes.iter_mut().find(|(name, _)| name == part.weights) {
            Some((_, all)) => *all += own,
            None => bytes.push((part.weights.to_owned(), own)),
        }
    }
    bytes
}

/// Bytes that networks for parameters of different extents take, of which each is there once; the values between their operators are added
/// to `scratch`.
///
/// # Errors
/// As their graphs.
pub(crate) async fn kept<K>(
    planner: &Planner<'_>,
    extents: impl IntoIterator<Item = K>,
    build: impl Fn(&K) -> Result<Graph>,
    scratch: &mut Vec<ScratchValues>,
    observer: &dyn Observer,
) -> Result<usize> {
    let mut bytes = 0;
    for extent in extents {
        let planned = planner.plan(&build(&extent)?, observer).await?;
        let part = PlannedPart::new(planned, false);
        bytes += part.kept();
        scratch.push(part.scratch);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_engine::Silent;
    use pulid_graph::Rate;
    use pulid_ops::{Binary, DeviceKind, MatMul};
    use pulid_tensor::HostTensor;

    /// Products with a weight of `content`, one after another, over so many rows.
    fn network(content: f32, rows: usize) -> Result<Graph> {
        let mut g = Graph::new("network");
        let x = g.input("x", TensorType::f32([rows, 64]), Rate::Step)?;
        let weight = g.constant("weight", HostTensor::from_fn([64, 64], |i| content + i as f32));
        let between = g.apply(MatMul::default(), &[x, weight])?;
        let y = g.apply(MatMul::default(), &[between, weight])?;
        let y = g.apply(Binary::add(), &[y, x])?;
        g.output("y", y)?;
        Ok(g)
    }

    /// With the bytes of the arenas.
    fn decided(room: Option<u64>, recompute: Recompute) -> (Decided, usize) {
        // What is computed again takes a fourth.
        let rows = |checkpointing, rows| if matches!(checkpointing, Checkpointing::Off) { rows } else { rows / 4 };
        let parts = [
            Part::backward("small", "weights", |checkpointing| network(0.0, rows(checkpointing, 256))),
            Part::backward("large", "weights", |checkpointing| network(0.0, rows(checkpointing, 1024))),
            Part::forward("other", "other weights", || network(1.0, 256)),
        ];
        let capabilities = Capabilities::baseline(DeviceKind::Discrete);
        let planner = Planner::Assumed(&capabilities, room);
        let decided = decide(&planner, &parts, recompute, planner.room(0), &[], &Silent);
        let decided = pollster::block_on(decided).unwrap();
        let shared = planner.arenas(&decided.scratch).bytes();
        (decided, shared)
    }

    #[test]
    fn shared_weights_count_once_and_the_largest_part_is_the_first_to_be_computed_again() {
        let names = |decided: &Decided| {
            let mut names: Vec<_> = decided.recomputed.iter().cloned().collect();
            names.sort();
            names
        };
        let bytes = |decided: &Decided, name: &str| decided.memory.iter().find(|(part, _)| part == name).unwrap().1;
        let (all, shared) = decided(None, Recompute::Auto);
        assert_eq!((bytes(&all, "weights"), bytes(&all, "other weights")), (64 * 64 * 4, 64 * 64 * 4));
        assert!(bytes(&all, "large") == 2 * 1024 * 64 * 4 && !all.recomputes());
        // The first product is what all of them share memory for.
        let product = 1024 * 64 * 4;
        assert_eq!(shared, product);
        let total = (product + all.memory.iter().map(|(_, bytes)| bytes).sum::<usize>()) as u64;
        // With the shared weights counted twice it would not fit.
        assert!(!decided(Some(total), Recompute::Auto).0.recomputes());
        let (less, shared) = decided(Some(total - 1), Recompute::Auto);
        assert_eq!(names(&less), ["large"]);
        assert_eq!(4 * bytes(&less, "large"), bytes(&all, "large"));
        assert_eq!(4 * shared, product);
        let left = total - (bytes(&all, "large") + product) as u64 * 3 / 4;
        assert_eq!(names(&decided(Some(left - 1), Recompute::Auto).0), ["large", "small"]);
        assert!(!decided(Some(1), Recompute::Off).0.recomputes());
        assert_eq!(names(&decided(None, Recompute::Block).0), ["large", "small"]);
    }

    #[test]
    fn values_stay_where_there_is_room_and_go_before_anything_is_computed_again() {
        let capabilities = Capabilities::baseline(DeviceKind::Discrete);
        let decided = |room: Option<u64>, recompute: Recompute| {
            let rows = |checkpointing| if matches!(checkpointing, Checkpointing::Off) { 256 } else { 64 };
            let part = || Part::backward("step", "weights", |checkpointing| network(0.0, rows(checkpointing)));
            let parts = [part().keeping(3)];
            let planner = Planner::Assumed(&capabilities, room);
            let decided = decide(&planner, &parts, recompute, planner.room(0), &[], &Silent);
            let decided = pollster::block_on(decided).unwrap();
            let bytes = decided.memory.iter().map(|(_, bytes)| bytes).sum::<usize>();
            (decided.keeps("step"), decided.recomputes(), bytes + planner.arenas(&decided.scratch).bytes())
        };
        // Input, product and output of each call, and the weight.
        let (value, weight) = (256 * 64 * 4, 64 * 64 * 4);
        assert_eq!(decided(None, Recompute::Auto), (true, false, 9 * value + weight));
        assert_eq!(decided(None, Recompute::Off), (true, false, 9 * value + weight));
        let room = (9 * value + weight) as u64 / 4 * 5;
        assert_eq!(decided(Some(room), Recompute::Auto), (true, false, 9 * value + weight));
        assert_eq!(decided(Some(room - 5), Recompute::Auto), (false, false, 3 * value + weight));
        let again = (false, true, 3 * value / 4 + weight);
        assert_eq!(decided(Some((3 * value + weight - 1) as u64), Recompute::Auto), again);
        assert_eq!(decided(None, Recompute::Block), again);
    }
}
