//! Models with quantised weights, made ahead of time: what the setting `quantize` does at every load, once.

use crate::pipeline::scheduler_config;
use crate::runtime::Reporter;
use crate::settings::ModelDefaults;
use pulid_checkpoint::{files, json, write_folder_atomically, write_safetensors_one_by_one};
use pulid_graph::{Graph, NodeKind, Weight};
use pulid_models::sdxl::{Part, PartFiles, SdxlModel, TextEncoder, UnetSize};
use pulid_models::{ClipTokenizer, Precision};
use pulid_tensor::{DType, Error, Result, TensorType};
use std::collections::BTreeMap;
use std::path::Path;

/// Vocabularies, the largest files beside weights, have some megabytes.
const LARGEST_TEXT: u64 = 32 << 20;

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

/// Quantises the UNet and the text encoders of an SDXL into a new folder in diffusers' layout. What kernels cannot read in
/// blocks, and the VAE, stays as it is. A single file's configurations and tokenizers are written out too, so that the folder
/// stands for itself.
///
/// # Errors
/// When the output exists, has a file's name or would lie in the model's folder, a network cannot be read or the disk is full; then no
/// output folder is left.
pub fn quantize_model(model: &SdxlModel, output: &Path, dtype: DType, reporter: &dyn Reporter) -> Result<Quantized> {
    for folder in [Some(model.path()), model.other_unet(), model.config_folder()].into_iter().flatten() {
        if files::is_dir(folder) && lies_in(output, folder) {
            let detail = format!("would lie in {}, which is read; name a folder elsewhere", folder.display());
            return Err(Error::file(output, detail));
        }
    }
    if ["safetensors", "gguf", "ckpt"]
        .iter()
        .any(|file| output.extension().is_some_and(|e| e.eq_ignore_ascii_case(file)))
    {
        return Err(Error::file(output, "names a file, and a folder is made; leave the extension out"));
    }
    write_folder_atomically(output, |root| {
        let mut made = Quantized { tensors: Vec::new(), bytes_before: 0, bytes_after: 0 };
        for part in Part::ALL {
            reporter.stage(&format!("quantising {}", part.folder()));
            let network = Network::open(model, part, dtype)?;
            network.write(&root.join(part.folder()), reporter, &mut made)?;
        }
        copy_the_rest(model, root)?;
        Ok(made)
    })
}

/// Whether something new would lie in a folder that is there, whatever the two are called.
fn lies_in(new: &Path, folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    let parent = new.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    parent.canonicalize().is_ok_and(|parent| parent.starts_with(folder))
}

/// Everything but networks: tokenizers, the schedule, defaults, `model_index.json` and what explains the model.
fn copy_the_rest(model: &SdxlModel, root: &Path) -> Result<()> {
    if let Some(from) = model.config_folder() {
        copy_small_files(from, root)?;
    }
    // The defaults may lie one folder above the model's; above the copy there may be another model's.
    let defaults = root.join(ModelDefaults::FILE);
    if !defaults.exists() {
        match ModelDefaults::file(model.folder()) {
            Some(file) => copy_file(&file, &defaults)?,
            None if ModelDefaults::file(root).is_some() => write_text(&defaults, "{}\n")?,
            None => {}
        }
    }
    for which in TextEncoder::BOTH {
        let folder = root.join(which.tokenizer());
        if !folder.exists() {
            std::fs::create_dir(&folder).map_err(|e| Error::io(&folder, e))?;
            for (name, text) in ClipTokenizer::published_files(which.padding())? {
                write_text(&folder.join(name), &text)?;
            }
        }
    }
    copy_the_schedule(model, root)
}

/// The schedule of the model's UNet, where it is not copied with the rest: of a file that brings none, of another UNet, or one that the
/// UNet's own file contradicts, since quantised files say nothing of their predictions.
fn copy_the_schedule(model: &SdxlModel, root: &Path) -> Result<()> {
    let invalid = |e: serde_json::Error| Error::invalid("scheduler", e.to_string());
    let to = root.join("scheduler").join("scheduler_config.json");
    let config = serde_json::to_value(scheduler_config(model)?).map_err(invalid)?;
    let mut value = config.clone();
    if let Some(from) = model.scheduler_file() {
        let text = files::read_to_string(&from)?;
        value = json::from_str::<serde_json::Value>(&text).map_err(|e| Error::file(&from, e.to_string()))?;
        let keys = ["prediction_type", "rescale_betas_zero_snr"];
        // What is missing there is false.
        let differ = |key: &&str| value[*key] != config[*key] && !(value[*key].is_null() && config[*key] == false);
        let changed: Vec<_> = keys.into_iter().filter(differ).collect();
        let copied = model.config_folder().is_some_and(|folder| from.starts_with(folder));
        if changed.is_empty() && copied {
            return Ok(());
        }
        if changed.contains(&"rescale_betas_zero_snr") && config["rescale_betas_zero_snr"] == true {
            // As the marked model's own steps lie, since its scheduler knew nothing of it.
            value["timestep_spacing"] = "trailing".into();
            value["use_karras_sigmas"] = false.into();
        }
        changed.into_iter().for_each(|key| value[key] = config[key].clone());
    }
    if let Some(folder) = to.parent().filter(|folder| !folder.exists()) {
        std::fs::create_dir(folder).map_err(|e| Error::io(folder, e))?;
    }
    let text = serde_json::to_string_pretty(&value).map_err(invalid)?;
    // As Python wrote it and reads it.
    write_text(&to, &text.replace(": \"-Infinity\"", ": -Infinity"))
}

/// One network's graphs with weights as they are and as they shall be; both list the same weights in the same order.
struct Network {
    part: Part,
    files: PartFiles,
    /// None for the VAE, which stays as it is.
    graphs: Option<[Graph; 2]>,
}

fn weights(graph: &Graph) -> impl Iterator<Item = (&Weight, &TensorType)> {
    graph.nodes().iter().filter_map(|node| match &node.kind {
        NodeKind::Weight(weight) => Some((weight, &node.ty)),
        _ => None,
    })
}

impl Network {
    fn open(model: &SdxlModel, part: Part, dtype: DType) -> Result<Network> {
        let graph = |precision| match part {
            // Weights do not depend on the size; this is small enough for any network.
            Part::Unet => model
                .unet(precision)?
                .graph(UnetSize { batch: 1, height: 64, width: 64, text_tokens: 77, identity: None })
                .map(Some),
            Part::TextEncoder(which) => model.text_encoder(which, precision)?.graph(1, 77).map(Some),
            Part::Vae => Ok(None),
        };
        let quantized = Precision { weights: Some(dtype), ..Precision::F32 };
        let graphs = graph(Precision::F32)?.zip(graph(quantized)?).map(|(plain, quantized)| [plain, quantized]);
        Ok(Network { part, files: model.part(part)?, graphs })
    }

    fn write(&self, to: &Path, reporter: &dyn Reporter, made: &mut Quantized) -> Result<()> {
        let checkpoint = &self.files.weights;
        let pairs = self.graphs.iter().flat_map(|[plain, quantized]| weights(plain).zip(weights(quantized)));
        let blocks: BTreeMap<&str, (&Weight, &TensorType)> = pairs
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
        let file = match self.part {
            Part::Unet | Part::Vae => "diffusion_pytorch_model.safetensors",
            Part::TextEncoder(_) => "model.safetensors",
        };
        let mut done = 0;
        write_safetensors_one_by_one(to.join(file), &list, checkpoint.metadata(), |i, write| {
            if reporter.cancelled() {
                return Err(Error::Cancelled);
            }
            let (key, ty) = &list[i];
            let tensor = match blocks.get(key.as_str()) {
                None => checkpoint.tensor(key)?,
                Some((weight, _)) => {
                    let stored = weight.load()?;
                    let plain = stored.cast(DType::F32);
                    // Blocks of the file that are of this type stay as they are.
                    let quantized = if stored.dtype() == ty.dtype { stored } else { plain.cast(ty.dtype) };
                    made.tensors.push(TensorError {
                        network: self.part.folder().to_owned(),
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
        write_text(&to.join("config.json"), &self.files.config)
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

fn write_text(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::io(path, e))
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).map_err(|e| Error::io(to, e))
}

/// Copies what is small, is no weights and is not there yet, folders included; hidden files belong to the tools that made them.
fn copy_small_files(from: &Path, to: &Path) -> Result<()> {
    for entry in read_folder(from)? {
        let name = entry.file_name().unwrap_or_default();
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let target = to.join(name);
        if entry.is_dir() {
            copy_small_files(&entry, &target)?;
        } else if !target.exists() && is_small_text(&entry) {
            std::fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
            copy_file(&entry, &target)?;
        }
    }
    Ok(())
}

fn is_small_text(path: &Path) -> bool {
    const WEIGHTS: [&str; 12] =
        ["safetensors", "bin", "pt", "pth", "ckpt", "onnx", "onnx_data", "msgpack", "h5", "gguf", "pb", "xml"];
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    // An index of shards would name files that are not in the copy.
    let shards = path.file_name().is_some_and(|name| name.to_string_lossy().contains(".index."));
    let small = path.metadata().is_ok_and(|found| found.is_file() && found.len() <= LARGEST_TEXT);
    small && !shards && !WEIGHTS.contains(&extension.as_str())
}
