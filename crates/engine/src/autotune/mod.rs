//! Measured choice among kernel variants: per device, verified, cached by the caller.

mod smaller;
#[cfg(test)]
mod tests;
mod trial;

use crate::time::Instant;
use crate::{Device, Observer};
use pulid_graph::{Chooser, Graph, NodeKind};
use pulid_ops::{DeviceKind, LONG, Operator, Variant, shaders};
use pulid_tensor::{Result, TensorType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use trial::Trial;

/// Choices measured so far: operator signature to variant name. Serialise it to keep it; it belongs to one device and driver and
/// to the kernels of one build of the program (see [`Autotune::fits`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Autotune {
    /// Name and driver of the device the choices were measured on.
    pub device: String,
    /// Version of the program that measured them, and a hash of its shaders.
    pub kernels: String,
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

impl Autotune {
    /// An empty set of choices for a device.
    pub fn for_device(device: &Device) -> Self {
        Autotune { device: device_key(device), kernels: KERNELS.clone(), choices: BTreeMap::new() }
    }

    /// Whether choices were measured on this device and driver, with the kernels of this build. Others say nothing here.
    pub fn fits(&self, device: &Device) -> bool {
        self.device == device_key(device) && self.kernels == *KERNELS
    }

    /// A file name for choices of a device, of letters, digits and `-`: another one for each device and driver.
    pub fn file_name(device: &Device) -> String {
        file_name(&device.summary().name, &device_key(device))
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
        let kernel_of = |key| device.kernel(key);
        self.measure_by(&Trial::new(device, &kernel_of), operator, inputs, output).await
    }

    async fn measure_by(
        &mut self,
        trial: &Trial<'_>,
        operator: &dyn Operator,
        inputs: &[TensorType],
        output: &TensorType,
    ) -> Result<f64> {
        let key = signature(operator, inputs);
        if self.choices.contains_key(&key) {
            return Ok(0.0);
        }
        let start = Instant::now();
        if let Some(name) = trial.best(operator, inputs, output).await? {
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

fn device_key(device: &Device) -> String {
    let s = device.summary();
    // The same names, of other kernels.
    let packed = if device.capabilities().packed_matrices { " | packed" } else { "" };
    format!("{} | {} | {}{packed}", s.name, s.driver, s.backend)
}

fn file_name(device: &str, key: &str) -> String {
    let letters = device.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), " ");
    // What a person reads, and what tells apart.
    let words: Vec<_> = letters.split_whitespace().take(4).collect();
    let readable: String = words.join("-").chars().take(40).collect();
    let unique = format!("{:016x}.json", hash([key]));
    if readable.is_empty() { unique } else { format!("{readable}-{unique}") }
}

/// The version stays the same while kernels are written, so that their texts count.
static KERNELS: LazyLock<String> = LazyLock::new(|| kernels_key(shaders().iter().map(|s| s.wgsl)));

fn kernels_key<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    format!("{} {:016x}", env!("CARGO_PKG_VERSION"), hash(texts))
}

/// FNV-1a of 64 bits, which is the same in every build: texts and where each ends.
fn hash<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
    let bytes = texts.into_iter().flat_map(|text| text.bytes().chain([0xFF]));
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Measures the operators of `graph` that have more than one variant and no choice yet, those with the most work first.
/// The observer sees operators. A variant that disagrees with the reference, or writes where it must not, is never chosen.
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
    let kernel_of = |key| device.kernel(key);
    tune_by(&Trial::new(device, &kernel_of), graph, choices, budget, observer).await
}

async fn tune_by(
    trial: &Trial<'_>,
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
    let mut work: Vec<_> = work.into_values().collect();
    // A CPU device's driver compiles for about half a second a variant: small networks never win that back.
    let least = if trial.capabilities.kind == DeviceKind::Cpu { LONG } else { 0 };
    work.retain(|(total, ..)| *total >= least);
    work.sort_by_key(|(total, ..)| std::cmp::Reverse(*total));
    let total = work.len() as u64;
    for (done, (_, operator, types, output)) in work.into_iter().enumerate() {
        crate::observer::check(observer)?;
        observer.progress(done as u64, total);
        if budget.seconds <= 0.0 {
            break;
        }
        budget.seconds -= choices.measure_by(trial, operator.as_ref(), &types, output).await?;
    }
    Ok(())
}
