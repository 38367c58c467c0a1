//! What a model says of how its images are made.

use super::distilled::distilled;
use super::suited::Suggestion;
use super::{Choices, LIST};
use crate::pipeline::scheduler_config;
use crate::preset::Preset;
use crate::sampler::Spacing;
use pulid_checkpoint::{files, json};
use pulid_models::sdxl::SdxlModel;
use pulid_tensor::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What choices leave open of others: a sampler's spacing and end belong to that sampler.
fn open_to(above: &Choices, below: Choices) -> Choices {
    if above.sampler.is_none() {
        return below;
    }
    Choices { sampler: None, spacing: None, final_sigma: None, ..below }
}

/// A value as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        // 1 and not 1.0.
        Value::Number(n) if n.is_f64() => n.as_f64().unwrap_or(f64::NAN).to_string(),
        other => other.to_string(),
    }
}

/// How a model's images are made where nobody says otherwise: its `generation_defaults.json`, in its folder or the one above; then what its
/// scheduler and its UNet's kind suggest.
#[derive(Clone, Debug, Default)]
pub struct ModelDefaults {
    /// The settings of `generation_defaults.json`.
    pub choices: Choices,
    /// What suits the model beside: each for what the settings and those before it leave open.
    suggestions: Vec<Suggestion>,
    /// For each latent channel what it adds to red, green and blue in -1..1; then what is added to all: images while they form.
    pub latent_rgb: Option<[[f32; 3]; 5]>,
}

impl ModelDefaults {
    /// The name of such a file.
    pub const FILE: &str = "generation_defaults.json";

    /// The defaults of the model in this folder; none where there is no such file.
    ///
    /// # Errors
    /// When the file is unreadable or malformed, or has a key that is no setting of a model's.
    pub fn read(model: &Path) -> Result<ModelDefaults> {
        let Some(path) = ModelDefaults::file(model) else { return Ok(ModelDefaults::default()) };
        let text = files::read_to_string(&path)?;
        ModelDefaults::parse(&text).map_err(|detail| Error::file(path, detail))
    }

    /// The file that [`ModelDefaults::read`] reads, if there is one.
    pub fn file(model: &Path) -> Option<PathBuf> {
        let folders = [Some(model), model.parent()].into_iter().flatten();
        folders.map(|folder| folder.join(ModelDefaults::FILE)).find(|path| files::is_file(path))
    }

    /// The defaults of a model with what its scheduler says, and what its UNet needs if it was distilled.
    ///
    /// # Errors
    /// As [`ModelDefaults::read`], and for a broken scheduler.
    pub fn of(model: &SdxlModel) -> Result<ModelDefaults> {
        let mut found = ModelDefaults::read(model.folder())?;
        let config = scheduler_config(model)?;
        let (scheduled, distilled) = (config.suggestion(), distilled(model, &config));
        if distilled.is_some() && model.other_unet().is_some() {
            // They were said of the UNet that is replaced.
            let base = std::mem::take(&mut found.choices);
            found.choices = Choices { steps: None, guidance: None, sampler: None, spacing: None, ..base };
        }
        // What was saved beside a distilled UNet fits it. A base model's scheduler does not, nor do its timesteps, which programs write
        // beside every model that they convert: few steps from anywhere but the last timestep leave noise.
        let stock = matches!(scheduled.choices.spacing, Some(Spacing::Leading | Spacing::Linspace));
        let own = model.scheduler_is_own() && scheduled.choices.sampler.is_some() && !stock;
        let suggestions = match distilled {
            Some(distilled) if own => vec![scheduled, distilled],
            // Of a scheduler that is not built nobody needs to hear then.
            Some(distilled) => vec![distilled],
            None => vec![scheduled],
        };
        Ok(ModelDefaults { suggestions, ..found })
    }

    /// All of it as one, for [`Settings::merge`](super::Settings::merge).
    pub fn all(&self) -> Choices {
        self.suggestions
            .iter()
            .fold(self.choices.clone(), |all, next| all.clone().or(open_to(&all, next.choices.clone())))
    }

    /// What people should hear of the suggestions, as far as they hold below these choices and this preset.
    pub fn notes(&self, own: &Choices, preset: Option<Preset>) -> Vec<String> {
        let mut above = own.clone().or(preset.map(Preset::settings).unwrap_or_default()).or(self.choices.clone());
        let mut notes = Vec::new();
        for Suggestion { choices, why } in &self.suggestions {
            let holds = open_to(&above, choices.clone());
            let taken: Vec<_> = holds
                .iter()
                .filter(|(setting, _)| above.get(setting.name).is_none())
                .map(|(setting, value)| format!("`{}` {}", setting.name, plain(&value)))
                .collect();
            if !taken.is_empty() && !why.is_empty() {
                notes.push(format!("{why}; unless you say otherwise: {}", taken.join(", ")));
            } else if choices.sampler.is_none() && !why.is_empty() && above.sampler.is_none() {
                notes.push(format!("{why}; name a `sampler` and a `spacing` to choose others than the usual ones"));
            }
            above = above.clone().or(holds);
        }
        notes
    }

    /// From the file's text; what is wrong with it otherwise.
    pub(super) fn parse(text: &str) -> std::result::Result<ModelDefaults, String> {
        let mut found = ModelDefaults::default();
        for (key, value) in json::from_str::<Map<String, Value>>(text).map_err(|e| e.to_string())? {
            if key == "latent_rgb" {
                found.latent_rgb = serde_json::from_value(value).map_err(|e| format!("latent_rgb: {e}"))?;
                continue;
            }
            match LIST.iter().find(|setting| setting.file_key == Some(&key)) {
                Some(setting) => found.choices.set(setting.name, &value).map_err(|e| e.to_string())?,
                None => {
                    let known: Vec<_> = LIST.iter().filter_map(|s| s.file_key).chain(["latent_rgb"]).collect();
                    return Err(format!("the key {key} is not known; accepted are {}", known.join(", ")));
                }
            }
        }
        Ok(found)
    }
}
