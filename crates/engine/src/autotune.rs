//! Measured choice among kernel variants: per device, verified, cached by the caller.

use crate::time::Instant;
use crate::{Device, Observer, run_single};
use pulid_graph::{Chooser, Graph, NodeKind};
use pulid_ops::{LowerContext, Operator, Variant};
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

/// How long tuning may take in all; what was not reached keeps the operator's own first choice and is tuned next time.
#[derive(Clone, Copy, Debug)]
pub struct TuneBudget {
    /// Seconds.
    pub seconds: f64,
}

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

/// Measures every operator of `graph` that has more than one variant and no choice yet. The observer sees operators.
/// A variant that disagrees with the plainest one, or writes where it must not, is never chosen.
///
/// # Errors
/// A lost device or cancellation; choices made before stay.
pub async fn tune(
    device: &Device,
    graph: &Graph,
    choices: &mut Autotune,
    budget: TuneBudget,
    observer: &dyn Observer,
) -> Result<()> {
    let start = Instant::now();
    let mut work = BTreeMap::new();
    for node in graph.nodes() {
        let NodeKind::Apply { operator, inputs } = &node.kind else { continue };
        let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i).clone()).collect();
        let key = signature(operator.as_ref(), &types);
        if !choices.choices.contains_key(&key) {
            work.entry(key).or_insert((operator, types, &node.ty));
        }
    }
    let total = work.len() as u64;
    for (done, (key, (operator, types, output))) in work.into_iter().enumerate() {
        crate::observer::check(observer)?;
        observer.progress(done as u64, total);
        let cx = LowerContext { capabilities: device.capabilities(), inputs: &types, output };
        let variants = operator.lower(&cx)?;
        if variants.len() < 2 {
            continue;
        }
        if start.elapsed().as_secs_f64() > budget.seconds {
            break;
        }
        if let Some(name) = fastest(device, &variants, &types, output).await? {
            choices.choices.insert(key, name.to_owned());
        }
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
    let mut runs = Vec::with_capacity(variants.len());
    for variant in variants {
        let run = run_single(device, variant, &inputs, output, 2).await?;
        let seconds = run.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        runs.push((variant.name, seconds, run));
    }
    // Variants are listed best first; the last is the plainest, and its result is what the others must equal.
    let Some((_, _, plainest)) = runs.last() else { return Ok(None) };
    let want = plainest.output.to_f32_vec();
    let right = |(_, _, run): &&(&'static str, f64, crate::SingleRun)| {
        run.stray_bytes == 0 && agrees(&run.output.to_f32_vec(), &want, output.dtype)
    };
    let best = runs.iter().filter(right).min_by(|a, b| a.1.total_cmp(&b.1));
    Ok(best.map(|(name, _, _)| *name))
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
