//! Holds every kernel variant of every operator to its reference, on any device.
//!
//! A case's id is `operator/variant:storage;case`, for example `matmul/register_tile:f32;m=5;k=12;n=36`.

mod compare;

pub use compare::{Comparison, compare};

use pulid_engine::{Device, run_single};
use pulid_ops::{Capabilities, Case, DeviceKind, LowerContext, OPERATORS, Storage, Variant};
use pulid_tensor::{DType, HostTensor, Result, TensorType};

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
}

/// Every check that a device with these capabilities can run, benchmark cases left out.
///
/// # Errors
/// When a case cannot be lowered, which is a fault of the operator.
pub fn checks(capabilities: &Capabilities) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for info in OPERATORS {
        for case in (info.cases)().into_iter().filter(|c| !c.benchmark) {
            let can_run = |s: &Storage| capabilities.shader_f16 || !s.half_activations();
            for storage in case.storages().into_iter().filter(can_run) {
                for variant in variants_of_all_kinds(&case, storage, capabilities)? {
                    let id = format!("{}/{}:{};{}", info.name, variant.name, storage.name(), case.name);
                    checks.push(Check { id, case: case.clone(), storage, variant });
                }
            }
        }
    }
    Ok(checks)
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
    for kind in [capabilities.kind, DeviceKind::Cpu, DeviceKind::Discrete, DeviceKind::Integrated, DeviceKind::Other] {
        for variant in variants(case, storage, &Capabilities { kind, ..capabilities.clone() })? {
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
    /// Runs the check: kernel, reference, comparison, guard regions.
    ///
    /// # Errors
    /// A kernel that does not compile or a lost device; a wrong result is not an error but a failed comparison.
    pub async fn run(&self, device: &Device) -> Result<Comparison> {
        let inputs = self.case.inputs(self.storage)?;
        let types: Vec<TensorType> = inputs.iter().map(HostTensor::tensor_type).collect();
        let output = self.case.operator.infer(&types)?;
        let run = run_single(device, &self.variant, &inputs, &output, 0).await?;
        let want = reference(&self.case, &inputs)?;
        Ok(compare(&run.output, &want, self.case.tolerance, run.stray_bytes))
    }
}
