//! Holds every kernel variant of every operator to its reference, on any device.
//!
//! A check's id is `family/operator:dtype=STORAGE;kernel=VARIANT;CASE`, for example
//! `matmul/matmul:dtype=f32;kernel=register_tile;m=5;k=12;n=36`. It says nothing of the device, so that reports compare.

mod compare;
mod expectation;
#[cfg(not(target_arch = "wasm32"))]
mod export;
#[cfg(not(target_arch = "wasm32"))]
mod failures;
mod html;
mod matrix;
mod report;
pub mod sizes;

pub use compare::{Comparison, compare};
pub use expectation::{Expectation, Expectations, Pattern};
#[cfg(not(target_arch = "wasm32"))]
pub use export::export;
#[cfg(not(target_arch = "wasm32"))]
pub use failures::{FAILURES, keep_failure};
pub use matrix::{Adapter, Column, Count, matrix};
pub use report::{Entry, Outcome, Report, Summary};

use pulid_engine::{AdapterSummary, Device, GUARD, Instant, run_single};
use pulid_ops::{Capabilities, Case, DeviceClass, DeviceKind, LowerContext, Storage, Tolerance, Variant, operators};
use pulid_tensor::{DType, HostTensor, Result, TensorType};

/// Operator and storage of an id, `family/operator` and `f16`.
fn place(id: &str) -> (&str, &str) {
    let (operator, rest) = id.split_once(':').unwrap_or((id, ""));
    let storage = rest.strip_prefix("dtype=").and_then(|r| r.split(';').next()).unwrap_or_default();
    (operator, storage)
}

/// One kernel variant on one case under one storage mode.
#[derive(Clone, Debug)]
pub struct Check {
    /// Stable id.
    pub id: String,
    /// The case.
    pub case: Case,
    /// The storage mode.
    pub storage: Storage,
    /// The variant.
    pub variant: Variant,
    /// Why the device cannot run it, if it cannot.
    pub skipped: Option<String>,
}

/// Every check, benchmark cases left out. Those that a device with these capabilities cannot run say why.
///
/// # Errors
/// When a case cannot be lowered, which is a fault of the operator.
pub fn checks(capabilities: &Capabilities) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    // What needs half precision is listed everywhere.
    let able = Capabilities { shader_f16: true, ..capabilities.clone() };
    for (family, info) in operators() {
        for case in (info.cases)().into_iter().filter(|c| !c.benchmark) {
            for storage in case.storages() {
                for variant in variants_of_all_kinds(&case, storage, &able)? {
                    let id = format!(
                        "{}/{}:dtype={};kernel={};{}",
                        family.name,
                        info.name,
                        storage.name(),
                        variant.name,
                        case.name
                    );
                    let skipped = obstacle(&case, storage, &variant, capabilities)?;
                    checks.push(Check { id, case: case.clone(), storage, variant, skipped });
                }
            }
        }
    }
    Ok(checks)
}

/// Why a device with these capabilities cannot run a variant of a case.
fn obstacle(case: &Case, storage: Storage, variant: &Variant, capabilities: &Capabilities) -> Result<Option<String>> {
    // A result alone may be in half precision, too.
    let half = storage.half_activations() || variant.dispatches.iter().any(|d| d.features.contains(&"f16"));
    if half && !capabilities.shader_f16 {
        return Ok(Some("the device has no shader-f16".into()));
    }
    let types = case.types(storage);
    let output = case.operator.infer(&types)?;
    let largest = types.iter().map(TensorType::bytes).chain([output.bytes() + GUARD]).max().unwrap_or(0) as u64;
    let most = capabilities.max_binding_bytes;
    Ok((largest > most).then(|| format!("a tensor of {largest} bytes is over the device's largest binding, {most}")))
}

/// The variants of a case on a device.
///
/// # Errors
/// When the case cannot be lowered.
pub fn variants(case: &Case, storage: Storage, capabilities: &Capabilities) -> Result<Vec<Variant>> {
    let inputs = case.types(storage);
    let output = case.operator.infer(&inputs)?;
    case.operator.lower(&LowerContext { capabilities, inputs: &inputs, output: &output })
}

/// The variants that any kind of device within these limits may choose: kernels written for GPUs are checked on a CPU
/// device too and the other way round.
fn variants_of_all_kinds(case: &Case, storage: Storage, capabilities: &Capabilities) -> Result<Vec<Variant>> {
    let mut all: Vec<Variant> = Vec::new();
    let kinds = [
        (capabilities.kind, capabilities.class),
        (DeviceKind::Cpu, DeviceClass::Cpu),
        (DeviceKind::Discrete, DeviceClass::Nvidia),
        (DeviceKind::Integrated, DeviceClass::Intel),
        (DeviceKind::Other, DeviceClass::Browser),
    ];
    for (kind, class) in kinds {
        for variant in variants(case, storage, &Capabilities { kind, class, ..capabilities.clone() })? {
            if all.iter().all(|known| known.name != variant.name) {
                all.push(variant);
            }
        }
    }
    Ok(all)
}

/// The reference's result for inputs already rounded to their storage types.
///
/// # Errors
/// The operator's own.
pub fn reference(case: &Case, inputs: &[HostTensor]) -> Result<HostTensor> {
    let widened: Vec<_> =
        inputs.iter().map(|t| if t.dtype() == DType::U32 { t.clone() } else { t.cast(DType::F32) }).collect();
    case.operator.reference(&widened.iter().collect::<Vec<_>>())
}

impl Check {
    /// What may come out otherwise. Cooperative matrices are of halves, so that their kernels round what they decode.
    pub fn tolerance(&self) -> Tolerance {
        let features = self.variant.dispatches.iter().flat_map(|d| &d.features);
        let cooperative = features.clone().any(|f| f.starts_with("coop"));
        match (self.case.tolerance, self.storage.quantized()) {
            (Tolerance::Sum(n), Some(_)) if cooperative => Tolerance::RoundedSum(n),
            (tolerance, _) => tolerance,
        }
    }

    /// Runs the check: kernel, reference, comparison, guard regions. Natively, operands and results of a failed comparison are
    /// kept where [`keep_failure`] says.
    ///
    /// # Errors
    /// A kernel that does not compile or a lost device; a wrong result is not an error but a failed comparison.
    pub async fn run(&self, device: &Device) -> Result<Comparison> {
        let inputs = self.case.inputs(self.storage)?;
        let types: Vec<TensorType> = inputs.iter().map(HostTensor::tensor_type).collect();
        let output = self.case.operator.infer(&types)?;
        let run = run_single(device, &self.variant, &inputs, &output, 0).await?;
        let want = reference(&self.case, &inputs)?;
        let comparison = compare(&run.output, &want, self.tolerance(), run.stray_bytes);
        #[cfg(not(target_arch = "wasm32"))]
        if !comparison.passed() {
            let names: Vec<String> = (0..inputs.len()).map(|i| format!("operand.{i}")).collect();
            let operands = names.iter().map(String::as_str).zip(&inputs);
            let results = [("actual", &run.output), ("expected", &want)];
            keep_failure(&self.id, &operands.chain(results).collect::<Vec<_>>())?;
        }
        Ok(comparison)
    }

    /// Runs the check, or skips it, and judges what it found by what is expected of the adapter.
    pub async fn entry(&self, device: &Device, adapter: &AdapterSummary, expected: &Expectations) -> Entry {
        if let Some(reason) = &self.skipped {
            return Entry::skipped(&self.id, reason);
        }
        let start = Instant::now();
        let found = self.run(device).await;
        Entry::judged(&self.id, found, start.elapsed().as_secs_f64(), adapter, expected)
    }
}
