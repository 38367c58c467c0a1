//! Measured choice among kernel variants: per device, verified, cached by the caller.

use crate::time::Instant;
use crate::{Device, Observer, run_single};
use pulid_graph::{Chooser, Graph, NodeKind};
use pulid_ops::{DeviceKind, LONG, LowerContext, Operator, Variant};
use pulid_tensor::{DType, Data, HostTensor, Result, TensorType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Choices measured so far: operator signature to variant name. Serialise it to keep it; it belongs to one device
/// and driver (see [`Autotune::device`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Autotune {
    /// Name and driver of the device the choices were measured on.
    pub device: String,
    /// Signature to the fastest variant that was right.
    pub choices: BTreeMap<String, String>,
}

/// How long tuning may take in all, over every graph it is passed to: after that no other operator is begun. What was
/// not reached keeps the operator's own first choice and is tuned next time.
#[derive(Clone, Copy, Debug)]
pub struct TuneBudget {
    /// Seconds left.
    pub seconds: f64,
}

/// Operations up to which the plainest variant of an operator, which may be a hundred times slower than the others,
/// is run as their yardstick. Variants of larger work are held against each other.
const PLAIN_LIMIT: u64 = 100_000_000;

impl Autotune {
    /// An empty set of choices for a device.
    pub fn for_device(device: &Device) -> Self {
        Autotune { device: Self::device_key(device), choices: BTreeMap::new() }
    }

    /// Identifies a device and driver in cached choices.
    pub fn device_key(device: &Device) -> String {
        let s = device.summary();
        format!("{} | {} | {} | {}", s.name, s.driver, s.backend, env!("CARGO_PKG_VERSION"))
    }

    /// Measures the variants of one operator unless a choice is known; gives the seconds it took.
    ///
    /// # Errors
    /// A lost device.
    pub async fn measure(
        &mut self,
        device: &Device,
        operator: &dyn Operator,
        inputs: &[TensorType],
        output: &TensorType,
    ) -> Result<f64> {
        let key = signature(operator, inputs);
        if self.choices.contains_key(&key) {
            return Ok(0.0);
        }
        let start = Instant::now();
        let cx = LowerContext { capabilities: device.capabilities(), inputs, output };
        let mut variants = operator.lower(&cx)?;
        if device.capabilities().kind == DeviceKind::Cpu {
            // The others are made for GPUs or plain: with work enough to be measured here, one run of them takes seconds.
            variants.truncate(2);
        } else if variants.len() > 2 && operator.cost(inputs, output).flops > PLAIN_LIMIT {
            variants.pop();
        }
        if variants.len() > 1
            && let Some(name) = fastest(device, &variants, inputs, output).await?
        {
            self.choices.insert(key, name.to_owned());
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Chooser for Autotune {
    fn choose(&self, operator: &dyn Operator, inputs: &[TensorType], _: &TensorType, variants: &[Variant]) -> usize {
        let chosen = self.choices.get(&signature(operator, inputs));
        chosen.and_then(|name| variants.iter().position(|v| v.name == name)).unwrap_or(0)
    }
}

/// Operator, attributes and operand types: what a choice depends on.
pub fn signature(operator: &dyn Operator, inputs: &[TensorType]) -> String {
    format!("{}({}) {}", operator.name(), operator.attributes(), pulid_ops::types(inputs))
}

/// Measures the operators of `graph` that have more than one variant and no choice yet, those with the most work first.
/// The observer sees operators. A variant that disagrees with the plainest one, or writes where it must not, is never
/// chosen.
///
/// # Errors
/// A lost device or cancellation; choices made before stay.
pub async fn tune(
    device: &Device,
    graph: &Graph,
    choices: &mut Autotune,
    budget: &mut TuneBudget,
    observer: &dyn Observer,
) -> Result<()> {
    let mut work = BTreeMap::new();
    for node in graph.nodes() {
        let NodeKind::Apply { operator, inputs } = &node.kind else { continue };
        let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i).clone()).collect();
        let key = signature(operator.as_ref(), &types);
        if !choices.choices.contains_key(&key) {
            let flops = operator.cost(&types, &node.ty).flops;
            let entry = work.entry(key).or_insert((0, operator, types, &node.ty));
            entry.0 += flops;
        }
    }
    let mut work: Vec<_> = work.into_iter().collect();
    // A CPU device's driver compiles for about half a second a variant: small networks never win that back.
    let least = if device.capabilities().kind == DeviceKind::Cpu { LONG } else { 0 };
    work.retain(|(_, (total, ..))| *total >= least);
    work.sort_by_key(|(_, (total, ..))| std::cmp::Reverse(*total));
    let total = work.len() as u64;
    for (done, (_, (_, operator, types, output))) in work.into_iter().enumerate() {
        crate::observer::check(observer)?;
        observer.progress(done as u64, total);
        if budget.seconds <= 0.0 {
            break;
        }
        budget.seconds -= choices.measure(device, operator.as_ref(), &types, output).await?;
    }
    Ok(())
}

async fn fastest(
    device: &Device,
    variants: &[Variant],
    types: &[TensorType],
    output: &TensorType,
) -> Result<Option<&'static str>> {
    let inputs = types.iter().enumerate().map(|(i, ty)| sample(ty, i)).collect::<Result<Vec<_>>>()?;
    // The plainest, listed last, comes first: its result is what the others must equal.
    let plain = run_single(device, &variants[variants.len() - 1], &inputs, output, 1).await?;
    let want = plain.output.to_f32_vec();
    let mut best = (plain.seconds[0], variants[variants.len() - 1].name);
    for variant in &variants[..variants.len() - 1] {
        // Enough to end an operator once begun: a choice among half of the variants would be kept for ever.
        let run = run_single(device, variant, &inputs, output, 2).await?;
        let seconds = run.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let right = run.stray_bytes == 0 && agrees(&run.output.to_f32_vec(), &want, output.dtype);
        if right && seconds < best.0 {
            best = (seconds, variant.name);
        }
    }
    Ok((plain.stray_bytes == 0).then_some(best.1))
}

/// Small deterministic values: sums stay in range in half precision too.
fn sample(ty: &TensorType, salt: usize) -> Result<HostTensor> {
    let count = ty.shape.checked_count()?;
    if ty.dtype == DType::U32 {
        return HostTensor::new(ty.shape.clone(), Data::U32(vec![0; count]));
    }
    let value = |i: usize| {
        let hash = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(salt as u32 * 7 + 31);
        ((hash >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.25
    };
    Ok(HostTensor::from_fn(ty.shape.clone(), value).cast(ty.dtype))
}

fn agrees(got: &[f32], want: &[f32], dtype: DType) -> bool {
    let rms = (want.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / want.len().max(1) as f64).sqrt();
    let limit = rms * if dtype == DType::F16 { 1e-2 } else { 1e-3 };
    got.iter().zip(want).all(|(&g, &w)| f64::from((g - w).abs()) <= limit + 1e-6)
}
