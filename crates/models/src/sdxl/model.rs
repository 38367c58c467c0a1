//! SDXL on disk: a diffusers folder, or a single file.

use super::{ClipConfig, ClipTextModel, Unet, UnetConfig, Vae, VaeConfig, single_file};
use crate::config::read_text;
use crate::pulid::IdentityAdapter;
use crate::{ClipTokenizer, Precision};
use pulid_checkpoint::Checkpoint;
use pulid_tensor::{Error, Result};
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

    fn folder(self) -> &'static str {
        match self {
            TextEncoder::First => "text_encoder",
            TextEncoder::Second => "text_encoder_2",
        }
    }

    fn tokenizer(self) -> &'static str {
        match self {
            TextEncoder::First => "tokenizer",
            TextEncoder::Second => "tokenizer_2",
        }
    }
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
        if !path.is_dir() {
            let file = Checkpoint::open(&path)?;
            if !single_file::is_single_file(&file) {
                let detail = format!(
                    "is no SDXL in one file: none of its {} tensors begins with `model.diffusion_model.`; the file of a UNet \
                     alone goes over a whole model (--unet)",
                    file.len()
                );
                return Err(Error::file(path, detail));
            }
            let beside = path.with_extension("");
            let config = (beside != path && beside.is_dir()).then_some(beside);
            return Ok(SdxlModel { path, file: Some(file), config, unet: None });
        }
        for part in ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
            if !path.join(part).is_dir() {
                let detail = format!(
                    "has no folder `{part}`; --model takes a folder in diffusers' SDXL layout, or a single file with the \
                     whole model"
                );
                return Err(Error::file(path, detail));
            }
        }
        Ok(SdxlModel { config: Some(path.clone()), path, file: None, unet: None })
    }

    /// The model with the configurations and tokenizers of this folder.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn with_config(self, folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        if !folder.is_dir() {
            return Err(Error::file(folder, "is no folder; configurations lie in a folder in diffusers' layout"));
        }
        Ok(SdxlModel { config: Some(folder), ..self })
    }

    /// The model with the UNet of another file or folder: one in diffusers' layout, a file of a UNet alone, or another single
    /// file.
    pub fn with_unet(self, path: impl Into<PathBuf>) -> Self {
        SdxlModel { unet: Some(path.into()), ..self }
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the folder of configurations, if there is one.
    pub fn config_file(&self, name: &str) -> Option<PathBuf> {
        Some(self.config.as_ref()?.join(name)).filter(|path| path.exists())
    }

    /// The folder whose defaults for making pictures apply.
    pub fn folder(&self) -> &Path {
        match &self.config {
            Some(folder) => folder,
            None => self.path.parent().unwrap_or(Path::new("")),
        }
    }

    /// Whether a single file says of itself that it predicts velocity, not noise: by a tensor `v_pred`, as programs that train
    /// such models have agreed.
    pub fn predicts_velocity(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.contains("v_pred"))
    }

    /// The VAE.
    ///
    /// # Errors
    /// When it is missing or its configuration or weights cannot be read.
    pub fn vae(&self, precision: Precision) -> Result<Vae> {
        let weights = match &self.file {
            None => Checkpoint::open(self.path.join("vae"))?,
            Some(file) => single_file::vae(file)?,
        };
        let config = match self.config_text("vae/config.json")? {
            Some((text, name)) => VaeConfig::parse(&text, &name)?,
            None => VaeConfig::infer(&weights)?,
        };
        Ok(Vae::new(config, weights, precision))
    }

    /// The UNet, with identity attention where an adapter is given.
    ///
    /// # Errors
    /// When it is missing or its configuration or weights cannot be read.
    pub fn unet(&self, precision: Precision, identity: Option<IdentityAdapter>) -> Result<Unet> {
        let weights = match (&self.unet, &self.file) {
            (Some(path), _) if path.join("config.json").is_file() => return Unet::open(path, precision, identity),
            (Some(path), _) => {
                let file = Checkpoint::open(path)?;
                if single_file::is_single_file(&file) { single_file::unet(&file)? } else { file }
            }
            (None, None) => Checkpoint::open(self.path.join("unet"))?,
            (None, Some(file)) => single_file::unet(file)?,
        };
        let config = match self.config_text("unet/config.json")? {
            Some((text, name)) => UnetConfig::parse(&text, &name)?,
            None => UnetConfig::infer(&weights)?,
        };
        Ok(Unet::new(config, weights, precision, identity))
    }

    /// A text encoder.
    ///
    /// # Errors
    /// When it is missing or its configuration or weights cannot be read.
    pub fn text_encoder(&self, which: TextEncoder, precision: Precision) -> Result<ClipTextModel> {
        let weights = match (&self.file, which) {
            (None, _) => Checkpoint::open(self.path.join(which.folder()))?,
            (Some(file), TextEncoder::First) => single_file::text_encoder(file)?,
            (Some(file), TextEncoder::Second) => single_file::text_encoder_2(file)?,
        };
        let config = match self.config_text(&format!("{}/config.json", which.folder()))? {
            Some((text, name)) => ClipConfig::parse(&text, &name)?,
            None => ClipConfig::infer(&weights)?,
        };
        Ok(ClipTextModel::new(config, weights, precision))
    }

    /// The tokenizer of a text encoder: the model's own, or CLIP's, which every published SDXL has.
    ///
    /// # Errors
    /// When its files are malformed.
    pub fn tokenizer(&self, which: TextEncoder) -> Result<ClipTokenizer> {
        match self.config_file(which.tokenizer()) {
            Some(folder) => ClipTokenizer::open(folder),
            None => ClipTokenizer::published(match which {
                TextEncoder::First => crate::Padding::EndOfText,
                TextEncoder::Second => crate::Padding::Exclamation,
            }),
        }
    }

    fn config_text(&self, name: &str) -> Result<Option<(String, String)>> {
        self.config_file(name).map(|path| Ok((read_text(&path)?, path.display().to_string()))).transpose()
    }
}
