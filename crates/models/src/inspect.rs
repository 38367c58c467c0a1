//! What a weights file is, told by its header alone.

use crate::family::{OnnxFamily, Role, VAE_CHANNELS, channels_of_vae, kind, vae_channels};
use crate::sdxl::{PredictionMarks, refuse_clean_image};
use crate::wrapped::unwrapped;
use pulid_checkpoint::{Checkpoint, Format, MappedFile, onnx};
use pulid_tensor::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What one type of elements takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ElementCount {
    /// Tensors of this type.
    pub tensors: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// A tensor's type and extents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorLine {
    /// Type of the elements.
    pub element: String,
    /// The extents.
    pub shape: Vec<usize>,
}

/// What a file or folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The file or folder.
    pub path: PathBuf,
    /// `safetensors`, `GGUF`, `PyTorch (zip)`, `PyTorch (legacy)`, `ONNX` or `folder`.
    pub format: String,
    /// Which network it belongs to; `unknown` for all others.
    pub family: String,
    /// The setting that takes such a file (`model`, `unet`, `adapter`, `identity`, `models_dir`), if one does.
    pub role: Option<&'static str>,
    /// Whether it is known to be of a kind that is not supported.
    pub unsupported: bool,
    /// What its own marks say that a UNet, or a model in one file, predicts.
    #[serde(skip)]
    pub marks: Option<PredictionMarks>,
    /// Why its UNet cannot be sampled, where its marks or its name say that it predicts what is not built.
    #[serde(skip)]
    pub problem: Option<String>,
    /// Parameters: the elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors, shared ones as often as they are named.
    pub bytes: u64,
    /// Bytes of the file; of a folder those of its tensors.
    pub file_bytes: u64,
    /// How much of which type of elements.
    pub elements: BTreeMap<String, ElementCount>,
    /// Free text in the file.
    pub metadata: BTreeMap<String, String>,
    /// Number of tensors.
    pub count: usize,
    /// Parts of a model's folder; their tensors count for the folder's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Inspection>,
    /// Every tensor by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, TensorLine>,
}

impl Inspection {
    /// Looks at a file or folder. Nothing but headers is read.
    ///
    /// # Errors
    /// When there is no such file, or it is of no format that is read.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // A pipe would be waited for.
        if path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
            return Err(Error::file(path, "is not a regular file"));
        }
        if path.is_dir() { Self::of_folder(path) } else { Self::of_file(path) }
    }

    fn empty(path: &Path, format: impl ToString) -> Self {
        Inspection {
            path: path.to_owned(),
            format: format.to_string(),
            family: "unknown".into(),
            role: None,
            unsupported: false,
            marks: None,
            problem: None,
            parameters: 0,
            bytes: 0,
            file_bytes: path.metadata().map_or(0, |m| if m.is_file() { m.len() } else { 0 }),
            elements: BTreeMap::new(),
            metadata: BTreeMap::new(),
            count: 0,
            parts: Vec::new(),
            tensors: BTreeMap::new(),
        }
    }

    fn of_folder(path: &Path) -> Result<Self> {
        if !path.join("model_index.json").is_file() {
            let network = Self::of_network(path);
            let several = Self::of_models(path);
            // Weights of one network lie there side by side in several precisions.
            let below = several.parts.iter().any(|part| part.path.parent() != Some(path));
            return if below || (network.is_err() && !several.parts.is_empty()) { Ok(several) } else { network };
        }
        let mut whole = Self::empty(path, "folder");
        for part in ["text_encoder", "text_encoder_2", "unet", "vae"] {
            if path.join(part).is_dir() {
                whole.parts.push(Self::of_network(&path.join(part))?);
            }
        }
        if whole.parts.is_empty() {
            return Err(Error::file(path, "has a model_index.json but none of the folders unet, vae, text_encoder"));
        }
        let all = whole.parts.len() == 4;
        let foreign = whole.parts.iter().find(|part| part.unsupported);
        (whole.family, whole.role) = match foreign {
            Some(part) => (format!("a diffusers pipeline with this: {}", part.family), None),
            None if all => ("SDXL, a folder in diffusers' layout".into(), Some("model")),
            None => ("a part of a diffusers pipeline".into(), None),
        };
        whole.unsupported = foreign.is_some();
        whole.problem = foreign.and_then(|part| part.problem.clone());
        whole.sum();
        Ok(whole)
    }

    /// Makes the totals those of the parts.
    fn sum(&mut self) {
        for part in &self.parts {
            self.count += part.count;
            self.parameters += part.parameters;
            self.bytes += part.bytes;
            self.file_bytes += part.file_bytes;
            for (element, count) in &part.elements {
                let sum = self.elements.entry(element.clone()).or_default();
                sum.tensors += count.tensors;
                sum.bytes += count.bytes;
            }
        }
    }

    /// A folder of several models, as `models_dir` names one: every file of weights in it and in its folders, and every model's folder. What cannot
    /// be read is listed with the reason in place of its family.
    fn of_models(path: &Path) -> Self {
        let mut whole = Self::empty(path, "folder");
        whole.family = "a folder of models".into();
        collect(path, 0, &mut whole.parts);
        whole.sum();
        whole
    }

    /// The folder of one network.
    fn of_network(path: &Path) -> Result<Self> {
        let mut found = Self::empty(path, "folder");
        found.add(&Checkpoint::open(path)?)?;
        found.file_bytes = found.bytes;
        Ok(found)
    }

    fn of_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            let model = onnx::Model::open(path)?;
            let mut found = Self::empty(path, "ONNX");
            let family = OnnxFamily::of(&model);
            found.family = family.name().into();
            found.role = (family != OnnxFamily::Unknown).then_some("models_dir");
            found.metadata.insert("producer".into(), model.producer.clone());
            found.metadata.insert("opset".into(), model.opset.to_string());
            for (name, tensor) in &model.graph.initializers {
                found.add_tensor(name, tensor.element.name(), tensor.shape.extents(), tensor.bytes().len() as u64);
            }
            return Ok(found);
        }
        let checkpoint = Checkpoint::open(path)?;
        let format = match path.extension().is_some_and(|e| e == "json") {
            true => "shards".to_owned(),
            false => Format::of(&MappedFile::open(path)?)?.to_string(),
        };
        let mut found = Self::empty(path, format);
        found.add(&checkpoint)?;
        Ok(found)
    }

    fn add(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let kind = kind(checkpoint);
        (self.family, self.role) = (kind.name, kind.role.setting());
        self.unsupported = kind.role == Role::Unsupported;
        if let Role::Unet | Role::Model = kind.role {
            match refuse_clean_image(&self.path).and_then(|()| PredictionMarks::of(checkpoint)) {
                Ok(marks) => self.marks = Some(marks),
                Err(problem) => {
                    self.problem = Some(problem.to_string());
                    (self.unsupported, self.role) = (true, None);
                }
            }
        }
        if kind.role == Role::Model
            && let Some(channels) = vae_channels(&unwrapped(checkpoint)).filter(|&channels| channels != VAE_CHANNELS)
        {
            self.problem = Some(format!("its VAE has {}", channels_of_vae(channels)));
            (self.unsupported, self.role) = (true, None);
        }
        self.metadata = checkpoint.metadata().clone();
        for key in checkpoint.keys() {
            let info = checkpoint.info(key)?;
            let bytes = info.element.bytes(&info.shape).unwrap_or(0);
            self.add_tensor(key, info.element.name(), info.shape.extents(), bytes);
        }
        Ok(())
    }

    fn add_tensor(&mut self, key: &str, element: &str, shape: &[usize], bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
        self.parameters += shape.iter().map(|&n| n as u64).product::<u64>();
        let count = self.elements.entry(element.to_owned()).or_default();
        count.tensors += 1;
        count.bytes += bytes;
        self.tensors.insert(key.to_owned(), TensorLine { element: element.to_owned(), shape: shape.to_vec() });
    }
}
/// Adds what lies in a folder of models, by name.
fn collect(folder: &Path, depth: usize, found: &mut Vec<Inspection>) {
    /// A folder of models has folders of models; deeper there are only other things.
    const MAX_DEPTH: usize = 2;
    const WEIGHTS: [&str; 6] = ["safetensors", "bin", "pt", "pth", "ckpt", "onnx"];
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|e| e.path()));
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    for entry in entries {
        let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let weights = entry.extension().is_some_and(|e| WEIGHTS.contains(&e.to_string_lossy().to_lowercase().as_str()));
        if entry.is_dir() && !hidden && depth < MAX_DEPTH {
            let model = match entry.join("model_index.json").is_file() {
                true => Inspection::of_folder(&entry).ok(),
                false => entry.join("config.json").is_file().then(|| Inspection::of_network(&entry).ok()).flatten(),
            };
            match model {
                Some(model) => found.push(model),
                None => collect(&entry, depth + 1, found),
            }
        } else if entry.is_file() && weights && !hidden {
            found.push(Inspection::of_file(&entry).unwrap_or_else(|error| {
                let mut unread = Inspection::empty(&entry, "unreadable");
                let reason = match error {
                    Error::File { detail, .. } => detail,
                    other => other.to_string(),
                };
                unread.family = format!("unreadable: {reason}");
                unread
            }));
        }
    }
}
