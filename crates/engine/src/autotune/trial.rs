//! One operator's variants, tried: which are right, and which of those is the fastest.

use super::smaller::smaller;
use crate::Device;
use crate::kernel::{Kernel, KernelKey};
use crate::single::{SingleRun, run};
use pulid_ops::{Capabilities, DeviceKind, LowerContext, Operator, Variant};
use pulid_tensor::{DType, Data, HostTensor, Result, TensorType};
use std::sync::Arc;

/// Operations up to which the reference, a tenth of a second then, computes the very result. Of larger work it computes a
/// smaller piece.
pub(super) const REFERENCE_FLOPS: u64 = 100_000_000;

/// Where variants are tried.
pub(super) struct Trial<'a> {
    pub device: &'a Device,
    pub capabilities: &'a Capabilities,
    /// The device's kernels, or those of a test that plants faults in them.
    pub kernel_of: &'a dyn Fn(KernelKey) -> Result<Arc<Kernel>>,
}

impl<'a> Trial<'a> {
    pub fn new(device: &'a Device, kernel_of: &'a dyn Fn(KernelKey) -> Result<Arc<Kernel>>) -> Self {
        Trial { device, capabilities: device.capabilities(), kernel_of }
    }

    /// The variants of an operator, plainest last.
    pub fn variants(
        &self,
        operator: &dyn Operator,
        inputs: &[TensorType],
        output: &TensorType,
    ) -> Result<Vec<Variant>> {
        operator.lower(&LowerContext { capabilities: self.capabilities, inputs, output })
    }

    /// The fastest variant of those that equal the reference and stay within their results; of one that does not nothing is
    /// timed. `None` where there is nothing to choose, or no telling what is right.
    pub async fn best(
        &self,
        operator: &dyn Operator,
        inputs: &[TensorType],
        output: &TensorType,
    ) -> Result<Option<&'static str>> {
        let variants = self.variants(operator, inputs, output)?;
        let Some(plain) = variants.last().filter(|_| variants.len() > 1) else { return Ok(None) };
        let much = operator.cost(inputs, output).flops > REFERENCE_FLOPS;
        let timed = match self.capabilities.kind {
            // The others are made for GPUs or plain: with work enough to be measured here, one run of them takes seconds.
            DeviceKind::Cpu => 2,
            // The plainest may be a hundred times slower than the others.
            _ if much => variants.len() - 1,
            _ => variants.len(),
        };
        let Some(expected) = self.expected(operator, inputs, &variants, much)? else { return Ok(None) };
        let mut right = Vec::new();
        for (i, variant) in variants.iter().enumerate() {
            // The slow ones only count where none of the others is right.
            if i >= timed && !right.is_empty() {
                break;
            }
            if self.equals(&expected, variant.name).await? {
                right.push(variant);
            }
        }
        match right.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.name)),
            _ => self.fastest(&right, plain, inputs, output).await,
        }
    }

    /// What the reference makes of operands of these types, or of fewer where that would take long.
    fn expected(
        &self,
        operator: &dyn Operator,
        inputs: &[TensorType],
        variants: &[Variant],
        much: bool,
    ) -> Result<Option<Expected>> {
        let types = match much {
            false => Some(inputs.to_vec()),
            true => smaller(operator, self.capabilities, inputs, variants, REFERENCE_FLOPS),
        };
        let Some(types) = types else { return Ok(None) };
        let output = operator.infer(&types)?;
        let operands = samples(&types)?;
        let wide: Vec<_> =
            operands.iter().map(|t| if t.dtype() == DType::U32 { t.clone() } else { t.cast(DType::F32) }).collect();
        let want = operator.reference(&wide.iter().collect::<Vec<_>>())?.to_f32_vec();
        let variants = self.variants(operator, &types, &output)?;
        Ok(Some(Expected { operands, output, variants, want }))
    }

    async fn equals(&self, expected: &Expected, variant: &str) -> Result<bool> {
        let Some(variant) = expected.variants.iter().find(|v| v.name == variant) else { return Ok(false) };
        let found = run(self.device, variant, &expected.operands, &expected.output, 0, self.kernel_of).await?;
        Ok(found.stray_bytes == 0 && agrees(&found.output, &expected.want))
    }

    /// Times variants that are right by the reference. Where they disagree with each other at this size the plainest decides.
    async fn fastest(
        &self,
        right: &[&Variant],
        plain: &Variant,
        inputs: &[TensorType],
        output: &TensorType,
    ) -> Result<Option<&'static str>> {
        let operands = samples(inputs)?;
        let mut runs: Vec<(&'static str, SingleRun)> = Vec::with_capacity(right.len());
        for variant in right {
            // Enough to end an operator once begun: a choice among half of the variants would be kept for ever.
            runs.push((variant.name, run(self.device, variant, &operands, output, 2, self.kernel_of).await?));
        }
        let first = runs[0].1.output.to_f32_vec();
        if !runs.iter().all(|(_, r)| r.stray_bytes == 0 && agrees(&r.output, &first)) {
            let plainest = run(self.device, plain, &operands, output, 0, self.kernel_of).await?;
            let want = plainest.output.to_f32_vec();
            runs.retain(|(_, r)| r.stray_bytes == 0 && agrees(&r.output, &want));
            if runs.is_empty() {
                return Ok((plainest.stray_bytes == 0).then_some(plain.name));
            }
        }
        let seconds = |r: &SingleRun| r.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(runs.iter().min_by(|a, b| seconds(&a.1).total_cmp(&seconds(&b.1))).map(|(name, _)| *name))
    }
}

/// Operands and the reference's result.
struct Expected {
    operands: Vec<HostTensor>,
    output: TensorType,
    variants: Vec<Variant>,
    want: Vec<f32>,
}

/// Deterministic values between -2 and 2: far enough apart to tell a maximum or an exponential, and small enough for sums of any
/// length to stay in range in half precision.
fn samples(types: &[TensorType]) -> Result<Vec<HostTensor>> {
    let of = |(salt, ty): (usize, &TensorType)| {
        let count = ty.shape.checked_count()?;
        if ty.dtype == DType::U32 {
            return HostTensor::new(ty.shape.clone(), Data::U32(vec![0; count]));
        }
        let value = |i: usize| {
            // SplitMix64 (Steele, Lea, Flood 2014).
            let mut z = ((salt as u64) << 40 | (i as u64 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        };
        Ok(HostTensor::from_fn(ty.shape.clone(), value).cast(ty.dtype))
    };
    types.iter().enumerate().map(of).collect()
}

/// Whether no element is further off than a small part of the result's root mean square, which NaN always is.
fn agrees(got: &HostTensor, want: &[f32]) -> bool {
    let rms = (want.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / want.len().max(1) as f64).sqrt();
    let limit = rms * if got.dtype() == DType::F16 { 1e-2 } else { 1e-3 } + f64::from(f32::MIN_POSITIVE);
    let got = got.to_f32_vec();
    got.len() == want.len() && got.iter().zip(want).all(|(&g, &w)| f64::from((g - w).abs()) <= limit)
}
