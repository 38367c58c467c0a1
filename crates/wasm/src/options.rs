//! Options as JavaScript gives them: the command line's flags in camel case.

use crate::error::{Outcome, thrown};
use pulid::defaults::{Defaults, Settings};
use pulid::pipeline::{GenerateOptions, Storage};
use pulid::sampler::{SamplerKind, Spacing, StepWindow};
use pulid_tensor::{DType, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use wasm_bindgen::JsValue;

/// Reads a value of JavaScript's; nothing stands for no options at all.
pub fn read<T: DeserializeOwned>(value: JsValue) -> Outcome<T> {
    let value = if value.is_undefined() || value.is_null() { js_sys::Object::new().into() } else { value };
    serde_wasm_bindgen::from_value(value).map_err(|e| thrown(Error::invalid("options", e.to_string())))
}

/// A value for JavaScript.
pub fn write<T: Serialize>(value: &T) -> Outcome<JsValue> {
    serde_wasm_bindgen::to_value(value).map_err(|e| thrown(Error::invalid("result", e.to_string())))
}

/// How to open a device.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Opening {
    #[serde(default = "yes")]
    pub shader_f16: bool,
}

fn yes() -> bool {
    true
}

/// Paths of mounted models.
#[derive(Deserialize)]
pub struct Models {
    /// A folder in diffusers' layout or a single file.
    #[serde(default)]
    pub sdxl: String,
    /// A PuLID file.
    #[serde(default)]
    pub adapter: String,
    /// The folder of the face networks.
    #[serde(default)]
    pub faces: String,
}

/// A file from a person's hand.
#[derive(Deserialize)]
pub struct Named {
    pub name: String,
    pub bytes: ByteBuf,
}

/// What to make. Whatever is missing is the model's own default.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chosen {
    #[serde(default)]
    prompt: String,
    negative_prompt: Option<String>,
    width: Option<usize>,
    height: Option<usize>,
    steps: Option<usize>,
    guidance: Option<f32>,
    sampler: Option<SamplerKind>,
    spacing: Option<Spacing>,
    #[serde(default)]
    seed: u64,
    batch: Option<usize>,
    dtype: Option<String>,
    quantize: Option<String>,
    id_scale: Option<f32>,
    num_zero: Option<usize>,
    ortho: Option<String>,
    id_start: Option<f64>,
    id_end: Option<f64>,
    #[serde(default)]
    pub photos: Vec<Named>,
    pub identity: Option<ByteBuf>,
}

impl Chosen {
    /// The settings that have defaults.
    pub fn settings(&self) -> Defaults {
        Defaults {
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance_scale: self.guidance,
            sampler: self.sampler,
            spacing: self.spacing,
            id_scale: self.id_scale,
            num_zero: self.num_zero,
            ortho: self.ortho.clone(),
            negative_prompt: self.negative_prompt.clone(),
            latent_rgb: None,
        }
    }

    /// The part of the schedule in which identity enters.
    ///
    /// # Errors
    /// For an empty or impossible part.
    pub fn window(&self) -> Result<StepWindow> {
        StepWindow::new(self.id_start.unwrap_or(0.0), self.id_end.unwrap_or(1.0))
    }

    /// How the networks are stored.
    ///
    /// # Errors
    /// For an unknown storage type.
    pub fn storage(&self) -> Result<Storage> {
        let dtype = match self.dtype.as_deref() {
            None | Some("f32") => DType::F32,
            Some("f16") => DType::F16,
            Some(other) => return Err(Error::invalid("dtype", format!("`{other}` is neither f32 nor f16"))),
        };
        let quantize = match self.quantize.as_deref() {
            None | Some("none") => None,
            Some("q8") => Some(DType::Q8),
            Some("q4") => Some(DType::Q4),
            Some(other) => return Err(Error::invalid("quantize", format!("`{other}` is none of none, q8, q4"))),
        };
        Ok(Storage { dtype, quantize })
    }

    /// All options but the person.
    pub fn options(&self, settings: Settings) -> GenerateOptions {
        GenerateOptions { batch: self.batch.unwrap_or(1), ..settings.options(&self.prompt, self.seed) }
    }
}

/// Settings by the names of [`Chosen`].
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Described {
    width: usize,
    height: usize,
    steps: usize,
    guidance: f32,
    sampler: SamplerKind,
    spacing: Spacing,
    id_scale: f32,
    num_zero: usize,
    ortho: String,
    negative_prompt: String,
}

/// Settings for JavaScript.
pub fn described(settings: Settings) -> Described {
    Described {
        width: settings.width,
        height: settings.height,
        steps: settings.steps,
        guidance: settings.guidance,
        sampler: settings.sampler,
        spacing: settings.spacing,
        id_scale: settings.identity.id_scale,
        num_zero: settings.identity.num_zero,
        ortho: settings.identity.ortho.to_string(),
        negative_prompt: settings.negative_prompt,
    }
}
