//! Goldens of single networks (`tests/goldens` of the repository): what a network was given, and what another implementation answered.

use crate::Precision;
use crate::run::{Checkpointing, RunOptions, Tensors};
use pulid_checkpoint::Checkpoint;
use pulid_tensor::{DType, Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One case: a folder with a `golden.json` and tensors.
#[derive(Clone, Debug)]
pub struct Golden {
    /// The case's folder.
    pub folder: PathBuf,
    /// A network of [`crate::run::NETWORKS`].
    pub network: String,
    /// Its files and settings, in f32; with gradients among the answers where the case has them.
    pub options: RunOptions,
    /// The file of the inputs, where it has some.
    pub inputs: Option<PathBuf>,
    /// The file of the answers.
    pub outputs: PathBuf,
}

impl Golden {
    /// Reads the case of a folder.
    ///
    /// # Errors
    /// When there is no `golden.json`, or one that names no network, weights or answers.
    pub fn read(folder: impl Into<PathBuf>) -> Result<Golden> {
        #[derive(Deserialize)]
        struct Json {
            network: String,
            weights: PathBuf,
            adapter: Option<PathBuf>,
            inputs: Option<PathBuf>,
            outputs: PathBuf,
            #[serde(default)]
            set: serde_json::Map<String, serde_json::Value>,
            #[serde(default)]
            gradient: bool,
        }
        let folder = folder.into();
        let path = folder.join("golden.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let json: Json = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        let mut options = RunOptions::new(folder.join(json.weights));
        options.adapter = json.adapter.map(|path| folder.join(path));
        let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        options.settings = json.set.into_iter().map(|(key, value)| (key, text(value))).collect();
        options.gradient = json.gradient.then_some(Checkpointing::Off);
        let inputs = json.inputs.map(|path| folder.join(path));
        Ok(Golden { network: json.network, options, inputs, outputs: folder.join(json.outputs), folder })
    }

    /// Every case of the families below `root`, in order of their folders.
    ///
    /// # Errors
    /// When a folder or a case cannot be read.
    pub fn all(root: &Path) -> Result<Vec<Golden>> {
        let mut cases = Vec::new();
        for family in folders(root)? {
            for case in folders(&family)?.into_iter().filter(|case| case.join("golden.json").exists()) {
                cases.push(Golden::read(case)?);
            }
        }
        Ok(cases)
    }

    /// Family and case, for example `unet/id-v2`.
    pub fn name(&self) -> String {
        let parts: Vec<_> = self.folder.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy()).collect();
        parts.into_iter().rev().collect::<Vec<_>>().join("/")
    }

    /// The options in another precision.
    pub fn options(&self, precision: Precision) -> RunOptions {
        RunOptions { precision, ..self.options.clone() }
    }

    /// What the network is given.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn inputs(&self) -> Result<Tensors> {
        self.inputs.as_deref().map_or_else(|| Ok(Tensors::new()), tensors)
    }

    /// What the other implementation answered.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn outputs(&self) -> Result<Tensors> {
        tensors(&self.outputs)
    }
}

/// Standard deviations of the answer by which a device may be off, for a network whose values are of this type.
///
/// Measured on lavapipe are 7e-6 in f32 (onnx's functions, an exponential; networks 4e-6) and 1.7e-2 in f16 (the same, of numbers that
/// half precision rounds to begin with; networks 9e-3). Other devices sum in other orders, and WGSL lets their exponentials be
/// several units in the last place off: hence the room in f32.
pub fn limit(values: DType) -> f64 {
    if values == DType::F16 { 3e-2 } else { 5e-5 }
}

fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(root).map_err(|e| Error::io(root, e))?;
    let mut folders: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn tensors(path: &Path) -> Result<Tensors> {
    let file = Checkpoint::open(path)?;
    file.keys().map(|key| Ok((key.to_owned(), file.tensor(key)?))).collect()
}
