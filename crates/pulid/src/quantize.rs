//! Models with quantised weights, made ahead of time: what `--quantize` does at every load, once.

use crate::runtime::Reporter;
use pulid_checkpoint::{Checkpoint, write_safetensors_one_by_one};
use pulid_graph::{Graph, NodeKind, Weight};
use pulid_models::Precision;
use pulid_models::sdxl::{ClipTextModel, SdxlModel, Unet, UnetSize};
use pulid_tensor::{DType, Error, Result, TensorType};
use std::collections::BTreeMap;
use std::path::Path;

/// What quantising changed in one tensor.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TensorError {
    /// Folder of the network, for example `unet`.
    pub network: String,
    /// Checkpoint key.
    pub key: String,
    /// Elements.
    pub count: usize,
    /// Root of the mean squared difference over the root of the mean square.
    pub relative: f64,
}

/// What was made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Quantized {
    /// Each quantised tensor.
    pub tensors: Vec<TensorError>,
    /// Bytes of the weights that were read.
    pub bytes_before: u64,
    /// Bytes of the weights that were written.
    pub bytes_after: u64,
}

/// Quantises the UNet and the text encoders of a diffusers SDXL folder into a new folder of the same layout. What kernels
/// cannot read in blocks, and the VAE, stays as it is.
///
/// # Errors
/// When the model is no folder, the output exists, a network cannot be read or the disk is full; then no output folder is
/// left.
pub fn quantize_model(model: &SdxlModel, output: &Path, dtype: DType, reporter: &dyn Reporter) -> Result<Quantized> {
    if !model.path().is_dir() {
        let detail =
            "is a single file; quantise a folder in diffusers' layout, or use --quantize while making pictures";
        return Err(Error::file(model.path(), detail));
    }
    if output.exists() {
        return Err(Error::file(output, "exists already; name a new folder"));
    }
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(".quantizing-").tempdir_in(parent);
    let temporary = temporary.map_err(|e| Error::io(parent, e))?;
    let root = temporary.path();
    let mut made = Quantized { tensors: Vec::new(), bytes_before: 0, bytes_after: 0 };
    for entry in read_folder(model.path())? {
        let name = entry.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        match (name.as_str(), entry.is_dir()) {
            ("unet" | "text_encoder" | "text_encoder_2", true) => {
                reporter.stage(&format!("quantising {name}"));
                let precision = Precision { weights: Some(dtype), ..Precision::F32 };
                let graph = |precision| match name.as_str() {
                    "unet" => {
                        let unet = Unet::open(&entry, precision, None)?;
                        // Weights do not depend on the size; this is small enough for any network.
                        unet.graph(UnetSize { batch: 1, height: 64, width: 64, text_tokens: 77, id_tokens: 0 })
                    }
                    _ => ClipTextModel::open(&entry, precision)?.graph(1, 77),
                };
                let network = Network { name: &name, plain: graph(Precision::F32)?, quantized: graph(precision)? };
                network.write(&entry, &root.join(&name), reporter, &mut made)?;
            }
            (_, true) => copy_folder(&entry, &root.join(&name))?,
            (_, false) => copy_file(&entry, &root.join(&name))?,
        }
    }
    let kept = temporary.keep();
    std::fs::rename(&kept, output).map_err(|e| {
        // The finished folder could not get its name: nothing may be left under the temporary one.
        let _ = std::fs::remove_dir_all(&kept);
        Error::io(output, e)
    })?;
    Ok(made)
}

/// One network's graphs with weights as they are and as they shall be; both list the same weights in the same order.
struct Network<'a> {
    name: &'a str,
    plain: Graph,
    quantized: Graph,
}

fn weights(graph: &Graph) -> impl Iterator<Item = (&Weight, &TensorType)> {
    graph.nodes().iter().filter_map(|node| match &node.kind {
        NodeKind::Weight(weight) => Some((weight, &node.ty)),
        _ => None,
    })
}

impl Network<'_> {
    fn write(&self, from: &Path, to: &Path, reporter: &dyn Reporter, made: &mut Quantized) -> Result<()> {
        let checkpoint = Checkpoint::open(from)?;
        let blocks: BTreeMap<&str, (&Weight, &TensorType)> = weights(&self.plain)
            .zip(weights(&self.quantized))
            .filter(|((plain, _), (_, ty))| ty.dtype.is_quantized() && checkpoint.contains(&plain.name))
            .map(|((plain, _), (_, ty))| (plain.name.as_str(), (plain, ty)))
            .collect();
        let mut list = Vec::new();
        for key in checkpoint.keys() {
            let info = checkpoint.info(key)?;
            made.bytes_before += info.element.bytes(&info.shape).unwrap_or(0);
            let ty = match blocks.get(key) {
                Some((_, ty)) => (*ty).clone(),
                None => TensorType::new(info.dtype, info.shape),
            };
            made.bytes_after += ty.bytes() as u64;
            list.push((key.to_owned(), ty));
        }
        std::fs::create_dir(to).map_err(|e| Error::io(to, e))?;
        let file = if self.name == "unet" { "diffusion_pytorch_model.safetensors" } else { "model.safetensors" };
        let mut done = 0;
        write_safetensors_one_by_one(to.join(file), &list, checkpoint.metadata(), |i, write| {
            if reporter.cancelled() {
                return Err(Error::Cancelled);
            }
            let (key, ty) = &list[i];
            let tensor = match blocks.get(key.as_str()) {
                None => checkpoint.tensor(key)?,
                Some((weight, _)) => {
                    let plain = weight.load()?.into_dtype(DType::F32);
                    let quantized = plain.cast(ty.dtype);
                    made.tensors.push(TensorError {
                        network: self.name.to_owned(),
                        key: key.clone(),
                        count: ty.shape.count(),
                        relative: relative_error(plain.as_f32()?, &quantized.to_f32_vec()),
                    });
                    quantized
                }
            };
            done += 1;
            reporter.progress(done, list.len() as u64);
            write(tensor.bytes())
        })?;
        for entry in read_folder(from)? {
            if entry.extension().is_some_and(|e| e == "json") && !entry.to_string_lossy().ends_with(".index.json") {
                copy_file(&entry, &to.join(entry.file_name().unwrap_or_default()))?;
            }
        }
        Ok(())
    }
}

fn relative_error(plain: &[f32], quantized: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let difference = squares(&mut plain.iter().zip(quantized).map(|(a, b)| a - b));
    let size = squares(&mut plain.iter().copied());
    if size == 0.0 { 0.0 } else { (difference / size).sqrt() }
}

fn read_folder(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io(folder, e))).collect()
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).map_err(|e| Error::io(to, e))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to).map_err(|e| Error::io(to, e))?;
    for entry in read_folder(from)? {
        let target = to.join(entry.file_name().unwrap_or_default());
        if entry.is_dir() { copy_folder(&entry, &target)? } else { copy_file(&entry, &target)? }
    }
    Ok(())
}
