//! What a model says of how its images are made.

use super::{Choices, LIST};
use pulid_checkpoint::{files, json};
use pulid_tensor::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// A model's `generation_defaults.json`, in its folder or the one above.
#[derive(Clone, Debug, Default)]
pub struct ModelDefaults {
    /// Its settings.
    pub choices: Choices,
    /// For each latent channel what it adds to red, green and blue in -1..1; then what is added to all: images while they form.
    pub latent_rgb: Option<[[f32; 3]; 5]>,
}

impl ModelDefaults {
    /// The defaults of the model in this folder; none where there is no such file.
    ///
    /// # Errors
    /// When the file is unreadable or malformed, or has a key that is no setting of a model's.
    pub fn read(model: &Path) -> Result<ModelDefaults> {
        for folder in [Some(model), model.parent()].into_iter().flatten() {
            let path = folder.join("generation_defaults.json");
            if files::is_file(&path) {
                let text = files::read_to_string(&path)?;
                return ModelDefaults::parse(&text).map_err(|detail| Error::file(path, detail));
            }
        }
        Ok(ModelDefaults::default())
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
                    return Err(format!("`{key}` is not known; accepted are {}", known.join(", ")));
                }
            }
        }
        Ok(found)
    }
}
