//! What a model's folder says about how to use it.

use pulid::preset::PresetSettings;
use pulid::sampler::{SamplerKind, Spacing};
use pulid_tensor::{Error, Result};
use serde::Deserialize;
use std::io::ErrorKind;
use std::path::Path;

/// A model's own defaults, from `generation_defaults.json` in its folder or the one above.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub steps: Option<usize>,
    pub guidance_scale: Option<f32>,
    pub sampler: Option<SamplerKind>,
    pub spacing: Option<Spacing>,
    pub id_scale: Option<f32>,
    pub num_zero: Option<usize>,
    pub ortho: Option<String>,
    pub negative_prompt: Option<String>,
}

impl Defaults {
    /// The defaults of the model in this folder; none where there is no such file.
    ///
    /// # Errors
    /// When the file is unreadable or malformed.
    pub fn read(model: &Path) -> Result<Defaults> {
        for folder in [Some(model), model.parent()].into_iter().flatten() {
            let path = folder.join("generation_defaults.json");
            match std::fs::read_to_string(&path) {
                Ok(text) => return serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string())),
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(e) => return Err(Error::io(path, e)),
            }
        }
        Ok(Defaults::default())
    }

    /// A preset's settings, and the model's own where it has none.
    pub fn under(self, preset: Option<PresetSettings>) -> Defaults {
        let Some(PresetSettings { sampler, spacing, steps, guidance, identity, width, height, .. }) = preset else {
            return self;
        };
        Defaults {
            width: Some(width),
            height: Some(height),
            steps: Some(steps),
            guidance_scale: Some(guidance),
            sampler: Some(sampler),
            spacing: Some(spacing),
            id_scale: Some(identity.id_scale),
            num_zero: Some(identity.num_zero),
            ortho: Some(identity.ortho.to_string()),
            negative_prompt: self.negative_prompt,
        }
    }
}
