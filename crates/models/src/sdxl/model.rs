//! SDXL on disk: a diffusers folder, or a single file.

use super::misplaced::{refuse_other_vae, refuse_swapped};
use super::prediction::refuse_clean_image;
use super::{ClipConfig, ClipTextModel, PredictionMarks, Unet, UnetConfig, Vae, VaeConfig, single_file};
use crate::family::{Role, kind, require};
use crate::key_report::looks_like;
use crate::wrapped::unwrapped;
use crate::{ClipTokenizer, Padding, Precision};
use pulid_checkpoint::{Checkpoint, files, json};
use pulid_tensor::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Which of the two text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextEncoder {
    /// OpenAI's CLIP-L.
    First,
    /// OpenCLIP-bigG, which gives the pooled embedding.
    Second,
}

impl TextEncoder {
    /// Both, in the order in which their embeddings are joined.
    pub const BOTH: [TextEncoder; 2] = [TextEncoder::First, TextEncoder::Second];

    /// The other one.
    pub const fn other(self) -> TextEncoder {
        match self {
            TextEncoder::First => TextEncoder::Second,
            TextEncoder::Second => TextEncoder::First,
        }
    }

    /// The folder of its tokenizer in diffusers' layout.
    pub fn tokenizer(self) -> &'static str {
        match self {
            TextEncoder::First => "tokenizer",
            TextEncoder::Second => "tokenizer_2",
        }
    }

    /// What fills a row after the text, in the tokenizer that every published SDXL has for it.
    pub fn padding(self) -> Padding {
        match self {
            TextEncoder::First => Padding::EndOfText,
            TextEncoder::Second => Padding::Exclamation,
        }
    }
}

/// A network of an SDXL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The UNet.
    Unet,
    /// The VAE.
    Vae,
    /// A text encoder.
    TextEncoder(TextEncoder),
}

impl Part {
    /// All four.
    pub const ALL: [Part; 4] =
        [Part::Unet, Part::Vae, Part::TextEncoder(TextEncoder::First), Part::TextEncoder(TextEncoder::Second)];

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Part::Unet => "UNet",
            Part::Vae => "VAE",
            Part::TextEncoder(TextEncoder::First) => "first text encoder",
            Part::TextEncoder(TextEncoder::Second) => "second text encoder",
        }
    }

    /// Its folder in diffusers' layout.
    pub fn folder(self) -> &'static str {
        match self {
            Part::Unet => "unet",
            Part::Vae => "vae",
            Part::TextEncoder(TextEncoder::First) => "text_encoder",
            Part::TextEncoder(TextEncoder::Second) => "text_encoder_2",
        }
    }
}

/// What a folder that lacks a part of SDXL says it is, as the end of a message.
fn says_of_itself(folder: &Path) -> String {
    let class = || {
        let text = files::read_to_string(folder.join("model_index.json")).ok()?;
        let index: serde_json::Value = pulid_checkpoint::json::from_str(&text).ok()?;
        Some(format!("its model_index.json says {}", index["_class_name"].as_str()?))
    };
    let network = || {
        let found = ["unet", "transformer"].into_iter().find_map(|part| Checkpoint::open(folder.join(part)).ok())?;
        let kind = kind(&found);
        (kind.role == Role::Unsupported).then(|| format!("its network is {}, which is not supported", kind.name))
    };
    [class(), network()].into_iter().flatten().fold(String::new(), |text, part| format!("{text}; {part}"))
}

/// What is read of a network.
#[derive(Clone, Debug)]
pub struct PartFiles {
    /// The weights, by diffusers' and transformers' names.
    pub weights: Checkpoint,
    /// The text of its `config.json`.
    pub config: String,
    /// Where that comes from, for messages.
    pub name: String,
}

/// Where an SDXL model lies.
///
/// In a single file there are weights alone. What they do not tell comes from a folder of configurations in diffusers' layout
/// (`unet/config.json`, `scheduler/scheduler_config.json`, `tokenizer/`, ...; no weights): one that is named, or one that
/// lies beside the file and has its name without the extension. Whatever is missing there is as in SDXL.
#[derive(Clone, Debug)]
pub struct SdxlModel {
    path: PathBuf,
    /// The weights, where they are in one file.
    file: Option<Checkpoint>,
    /// The folder of configurations.
    config: Option<PathBuf>,
    /// Whether somebody named it, beside a model that has one of its own or none.
    config_named: bool,
    /// Another UNet than the model's own.
    unet: Option<PathBuf>,
}

impl SdxlModel {
    /// The model at `path`: a folder in diffusers' layout or a single file.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !files::is_dir(&path) {
            let file = unwrapped(&Checkpoint::open(&path)?).into_owned();
            // A file with a UNet's prefix and nothing else says later what it lacks.
            require(&file, "an SDXL in one file", &[Role::Model, Role::Unet])?;
            if !single_file::is_single_file(&file) {
                let detail = format!(
                    "is no SDXL in one file: none of its {} tensors begins with `model.diffusion_model.`; the file of a UNet \
                     alone goes over a whole model, as `unet`{}",
                    file.len(),
                    looks_like(&file)
                );
                return Err(Error::file(path, detail));
            }
            let beside = path.with_extension("");
            let config = (beside != path && files::is_dir(&beside)).then_some(beside);
            return Ok(SdxlModel { path, file: Some(file), config, config_named: false, unet: None });
        }
        for part in ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
            if !files::is_dir(path.join(part)) {
                // The folder of one network is told what it is.
                if let Ok(file) = Checkpoint::open(&path) {
                    require(&file, "a whole model", &[])?;
                }
                let detail = format!(
                    "has no folder {part}/; a model is a folder in diffusers' SDXL layout, or a single file with the \
                     whole model{}",
                    says_of_itself(&path)
                );
                return Err(Error::file(path, detail));
            }
        }
        Ok(SdxlModel { config: Some(path.clone()), path, file: None, config_named: false, unet: None })
    }

    /// The model with the configurations and tokenizers of this folder.
    ///
    /// # Errors
    /// When there is no such folder, or nothing of a model in it.
    pub fn with_config(self, folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        if !files::is_dir(&folder) {
            return Err(Error::file(folder, "is no folder; configurations lie in a folder in diffusers' layout"));
        }
        const ANY: [&str; 9] = [
            "model_index.json",
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "text_encoder_2/config.json",
            "scheduler/scheduler_config.json",
            "tokenizer",
            "tokenizer_2",
            "generation_defaults.json",
        ];
        if !ANY.iter().any(|name| files::is_file(folder.join(name)) || files::is_dir(folder.join(name))) {
            let detail = "holds no configuration: neither unet/config.json nor scheduler/scheduler_config.json nor any other \
                          of a folder in diffusers' layout";
            return Err(Error::file(folder, detail));
        }
        Ok(SdxlModel { config: Some(folder), config_named: true, ..self })
    }

    /// The model with the UNet of another file or folder: one in diffusers' layout, the whole pipeline's around it, a file of a UNet
    /// alone, or another single file.
    pub fn with_unet(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let part = path.join(Part::Unet.folder());
        let unet = if files::is_dir(&part) && !files::is_file(path.join("config.json")) { part } else { path };
        SdxlModel { unet: Some(unet), ..self }
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder of configurations, if there is one.
    pub fn config_file(&self, name: &str) -> Option<PathBuf> {
        Some(self.config.as_ref()?.join(name)).filter(|path| files::is_file(path) || files::is_dir(path))
    }

    /// The folder of configurations, if there is one; the model's own where it is a folder.
    pub fn config_folder(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The folder whose defaults for making images apply.
    pub fn folder(&self) -> &Path {
        match &self.config {
            Some(folder) => folder,
            None => self.path.parent().unwrap_or(Path::new("")),
        }
    }

    /// The file of a model that is a single one.
    pub(super) fn whole_file(&self) -> Option<&Checkpoint> {
        self.file.as_ref()
    }

    /// The UNet that goes over the model's own, if one does.
    pub fn other_unet(&self) -> Option<&Path> {
        self.unet.as_deref()
    }

    /// The file that tells the UNet's noise schedule, if there is one: of a folder of configurations that was named, of the
    /// pipeline's folder in which another UNet lies, of the model.
    pub fn scheduler_file(&self) -> Option<PathBuf> {
        const FILE: &str = "scheduler/scheduler_config.json";
        let named = || self.config_named.then(|| self.config_file(FILE)).flatten();
        named().or_else(|| self.pipeline_of_unet().map(|folder| folder.join(FILE))).or_else(|| self.config_file(FILE))
    }

    /// The folder in diffusers' layout whose part `unet` another UNet is, if it has a noise schedule.
    fn pipeline_of_unet(&self) -> Option<PathBuf> {
        let path = self.unet.as_ref()?;
        let folder = if files::is_dir(path) { path.as_path() } else { path.parent()? };
        let pipeline =
            folder.parent().filter(|_| folder.file_name().is_some_and(|name| name == Part::Unet.folder()))?;
        files::is_file(pipeline.join("scheduler/scheduler_config.json")).then(|| pipeline.to_owned())
    }

    /// Whether [`scheduler_file`](SdxlModel::scheduler_file) is of the model whose UNet is taken, not of one that another UNet goes over.
    pub fn scheduler_is_own(&self) -> bool {
        self.unet.is_none() || self.pipeline_of_unet().is_some()
    }

    /// What the UNet's own file says of its predictions.
    ///
    /// # Errors
    /// When the file cannot be read, or for a kind of prediction that is not built.
    pub fn prediction(&self) -> Result<PredictionMarks> {
        let path = self.unet.as_ref().unwrap_or(&self.path);
        refuse_clean_image(path)?;
        match (&self.unet, &self.file) {
            (Some(path), _) => PredictionMarks::of(&Checkpoint::open(path)?),
            (None, Some(file)) => PredictionMarks::of(file),
            (None, None) => PredictionMarks::of(&Checkpoint::open(self.path.join(Part::Unet.folder()))?),
        }
    }

    /// Whether the unconditional pass of an image without a negative prompt reads zeros and not an empty prompt: what
    /// `force_zeros_for_empty_prompt` in `model_index.json` says, else yes, as diffusers takes it and SDXL's base has it.
    ///
    /// # Errors
    /// When the file cannot be read, or says neither.
    pub fn zeros_for_no_prompt(&self) -> Result<bool> {
        const KEY: &str = "force_zeros_for_empty_prompt";
        let Some(path) = self.config_file("model_index.json") else { return Ok(true) };
        let text = files::read_to_string(&path)?;
        let index: Value = json::from_str(&text).map_err(|e| Error::file(&path, format!("is not JSON: {e}")))?;
        match index.get(KEY) {
            None => Ok(true),
            Some(Value::Bool(zeros)) => Ok(*zeros),
            // Nothing is as good as no to diffusers.
            Some(Value::Null) => Ok(false),
            Some(other) => Err(Error::file(path, format!("`{KEY}` is {other}; true or false is expected"))),
        }
    }

    /// The weights of one network by diffusers' names, and its configuration: what its folder says, else what its tensors
    /// tell.
    ///
    /// # Errors
    /// When it is missing or its files cannot be read.
    pub fn part(&self, part: Part) -> Result<PartFiles> {
        let folder = part.folder();
        let mut config = self.config_text(&format!("{folder}/config.json"))?;
        let weights = match (part, &self.unet, &self.file) {
            (Part::Unet, Some(path), _) => {
                if files::is_file(path.join("config.json")) {
                    config = crate::config::beside(path)?;
                }
                let file = unwrapped(&Checkpoint::open(path)?).into_owned();
                require(&file, "an SDXL UNet", &[Role::Unet, Role::Model])?;
                single_file::any_part(part, &file)?
            }
            (_, _, None) => {
                let file = unwrapped(&Checkpoint::open(self.path.join(folder))?).into_owned();
                let (wanted, role) = match part {
                    Part::Unet => ("an SDXL UNet", Role::Unet),
                    Part::Vae => ("an SDXL VAE", Role::Vae),
                    Part::TextEncoder(_) => ("a CLIP text encoder", Role::TextEncoder),
                };
                require(&file, wanted, &[role])?;
                if let Part::TextEncoder(which) = part {
                    let place = |which| format!("{}/", Part::TextEncoder(which).folder());
                    let other = || {
                        let file = Checkpoint::open(self.path.join(Part::TextEncoder(which.other()).folder()))?;
                        Ok(unwrapped(&file).into_owned())
                    };
                    refuse_swapped(which, &file, other, place)?;
                }
                single_file::any_part(part, &file)?
            }
            (Part::Unet, _, Some(file)) => single_file::unet(file)?,
            (Part::Vae, _, Some(file)) => {
                let vae = single_file::vae(file)?;
                refuse_other_vae(&self.path, &vae)?;
                vae
            }
            (Part::TextEncoder(which), _, Some(file)) => {
                let place = |which| format!("the place of the {}", Part::TextEncoder(which).name());
                refuse_swapped(which, file, || Ok(file.clone()), place)?;
                match which {
                    TextEncoder::First => single_file::text_encoder(file)?,
                    TextEncoder::Second => single_file::text_encoder_2(file)?,
                }
            }
        };
        self.with_config_of(part, config, weights)
    }

    /// A network's weights with its configuration, else with what they tell.
    fn with_config_of(&self, part: Part, config: Option<(String, String)>, weights: Checkpoint) -> Result<PartFiles> {
        if part == Part::TextEncoder(TextEncoder::Second) {
            // An encoder without one would do, and give another image.
            weights.info("text_projection.weight")?;
        }
        let (config, name) = match config {
            Some(found) => found,
            None => {
                let text = match part {
                    Part::Unet => UnetConfig::infer_text(&weights)?,
                    Part::Vae => VaeConfig::infer_text(&weights)?,
                    Part::TextEncoder(_) => ClipConfig::infer_text(&weights)?,
                };
                (text, weights.name().to_owned())
            }
        };
        Ok(PartFiles { weights, config, name })
    }

    /// The VAE.
    ///
    /// # Errors
    /// When it is missing or its configuration or weights cannot be read.
    pub fn vae(&self, precision: Precision) -> Result<Vae> {
        let files = self.part(Part::Vae)?;
        Ok(Vae::new(VaeConfig::parse(&files.config, &files.name)?, files.weights, precision))
    }

    /// The UNet.
    ///
    /// # Errors
    /// When it is missing or its configuration or weights cannot be read.
    pub fn unet(&self, precision: Precision) -> Result<Unet> {
        let files = self.part(Part::Unet)?;
        Ok(Unet::new(UnetConfig::parse(&files.config, &files.name)?, files.weights, precision))
    }

    /// A text encoder.
    ///
    /// # Errors
    /// When it is missing or its configuration or weights cannot be read.
    pub fn text_encoder(&self, which: TextEncoder, precision: Precision) -> Result<ClipTextModel> {
        let files = self.part(Part::TextEncoder(which))?;
        Ok(ClipTextModel::new(ClipConfig::parse(&files.config, &files.name)?, files.weights, precision))
    }

    /// The tokenizer of a text encoder: the model's own, or CLIP's, which every published SDXL has. Where the model's own says nothing of
    /// what fills a row, it is what fills it in every published SDXL.
    ///
    /// # Errors
    /// When its files are malformed.
    pub fn tokenizer(&self, which: TextEncoder) -> Result<ClipTokenizer> {
        match self.config_file(which.tokenizer()) {
            Some(folder) => ClipTokenizer::open(folder, which.padding()),
            None => ClipTokenizer::published(which.padding()),
        }
    }

    fn config_text(&self, name: &str) -> Result<Option<(String, String)>> {
        self.config_file(name).map(|path| Ok((files::read_to_string(&path)?, path.display().to_string()))).transpose()
    }
}
