//! Single kernels for `web/bench.html`: the sizes of `pulid bench --case`, on operands that JavaScript gives to another runtime too.

use crate::error::{Outcome, thrown};
use crate::options;
use pulid::runtime::Runtime;
use pulid_conformance::{sizes, variants};
use pulid_engine::{DeviceOptions, run_single, time_single};
use pulid_ops::Storage;
use pulid_tensor::{Error, HostTensor, Result};
use serde::Serialize;
use wasm_bindgen::prelude::*;

/// Kernels on the browser's device.
#[wasm_bindgen]
pub struct Bench {
    runtime: Runtime,
}

/// A kernel's figures.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    /// The variant that networks run.
    variant: &'static str,
    /// Of one execution.
    flops: f64,
    /// Milliseconds of one execution, for each sample.
    milliseconds: Vec<f64>,
    /// Executions in a sample.
    executions: usize,
}

#[wasm_bindgen]
impl Bench {
    /// Opens the browser's WebGPU device. Its own clock is left alone, since browsers make it coarse.
    ///
    /// # Errors
    /// `DeviceError` when there is none.
    pub async fn open() -> Outcome<Bench> {
        Ok(Bench { runtime: Runtime::open("auto", DeviceOptions::default()).await.map_err(thrown)? })
    }

    /// Shapes of a case's operands, in order: `matmul` (M, K), (K, N); `conv2d` (N, H, W, I), (KH, KW, I, O); `attention` three
    /// of (B, T, H D).
    ///
    /// # Errors
    /// `SettingsError` for a case that does not exist.
    pub fn shapes(&self, name: &str) -> Outcome<JsValue> {
        let case = sizes::case(name).map_err(thrown)?;
        let shapes: Vec<Vec<usize>> = case.types(Storage::F32).iter().map(|ty| ty.shape.to_vec()).collect();
        options::write(&shapes)
    }

    /// Times a case in f32 on these operands, in so many samples.
    ///
    /// # Errors
    /// `SettingsError` for a case that does not exist or operands of another size, `DeviceError` when the device is lost.
    pub async fn time(&self, name: String, operands: Vec<js_sys::Float32Array>, samples: usize) -> Outcome<JsValue> {
        let figures = self.figures(&name, &operands, samples).await.map_err(thrown)?;
        options::write(&figures)
    }

    /// The result of a case in f32 on these operands.
    ///
    /// # Errors
    /// As [`Bench::time`].
    pub async fn result(&self, name: String, operands: Vec<js_sys::Float32Array>) -> Outcome<Vec<f32>> {
        let result = async {
            let (chosen, operands, output, _) = self.prepared(&name, &operands).await?;
            let run = run_single(self.device()?, &chosen, &operands, &output, 0).await?;
            Ok(run.output.to_f32_vec())
        };
        result.await.map_err(thrown)
    }
}

impl Bench {
    fn device(&self) -> Result<&pulid_engine::Device> {
        match &self.runtime {
            Runtime::Gpu { device, .. } => Ok(device),
            _ => Err(Error::Device("this build has none".into())),
        }
    }

    /// The variant that networks run, its operands, the result's type and the operations of one execution.
    async fn prepared(
        &self,
        name: &str,
        operands: &[js_sys::Float32Array],
    ) -> Result<(pulid_ops::Variant, Vec<HostTensor>, pulid_tensor::TensorType, u64)> {
        let case = sizes::case(name)?;
        let types = case.types(Storage::F32);
        if types.len() != operands.len() {
            let detail = format!("`{name}` takes {}, {} are given", types.len(), operands.len());
            return Err(Error::invalid("operands", detail));
        }
        let tensors =
            types.iter().zip(operands).map(|(ty, values)| HostTensor::from_f32(ty.shape.clone(), values.to_vec()));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let output = case.operator.infer(&types)?;
        let mut variants = variants(&case, Storage::F32, self.device()?.capabilities())?;
        let chosen = self.runtime.choose(case.operator.as_ref(), &types, &output, &variants).await?;
        let flops = case.operator.cost(&types, &output).flops;
        Ok((variants.swap_remove(chosen), tensors, output, flops))
    }

    async fn figures(&self, name: &str, operands: &[js_sys::Float32Array], samples: usize) -> Result<Figures> {
        let (chosen, operands, output, flops) = self.prepared(name, operands).await?;
        let timing = time_single(self.device()?, &chosen, &operands, &output, samples.max(1)).await?;
        Ok(Figures {
            variant: chosen.name,
            flops: flops as f64,
            milliseconds: timing.seconds.iter().map(|s| s * 1e3).collect(),
            executions: timing.executions,
        })
    }
}
