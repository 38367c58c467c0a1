//! How a picture is made where nobody says otherwise: what a model's folder says, and what SDXL's applications do.

use crate::pipeline::GenerateOptions;
use crate::preset::PresetSettings;
use crate::sampler::{SamplerKind, SamplerOptions, Spacing};
use pulid_checkpoint::files;
use pulid_models::pulid::IdentitySettings;
use pulid_tensor::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Settings of which some are given: a model's own, from `generation_defaults.json` in its folder or the one above, or a
/// person's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// Pixels.
    pub width: Option<usize>,
    /// Pixels.
    pub height: Option<usize>,
    /// Number of steps.
    pub steps: Option<usize>,
    /// Classifier-free guidance.
    pub guidance_scale: Option<f32>,
    /// The solver.
    pub sampler: Option<SamplerKind>,
    /// Where the steps lie.
    pub spacing: Option<Spacing>,
    /// Strength of the identity.
    pub id_scale: Option<f32>,
    /// Zero tokens beside the identity's.
    pub num_zero: Option<usize>,
    /// `off`, `v1` or `v2`.
    pub ortho: Option<String>,
    /// What the picture does not show.
    pub negative_prompt: Option<String>,
    /// For each latent channel what it adds to red, green and blue in -1..1; then what is added to all: pictures while they form.
    pub latent_rgb: Option<[[f32; 3]; 5]>,
}

/// Every setting that has a default.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Number of steps.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: f32,
    /// The solver.
    pub sampler: SamplerKind,
    /// Where the steps lie.
    pub spacing: Spacing,
    /// Scale, zero tokens and projection of the identity.
    pub identity: IdentitySettings,
    /// What the picture does not show.
    pub negative_prompt: String,
}

impl Defaults {
    /// The defaults of the model in this folder; none where there is no such file.
    ///
    /// # Errors
    /// When the file is unreadable or malformed.
    pub fn read(model: &Path) -> Result<Defaults> {
        for folder in [Some(model), model.parent()].into_iter().flatten() {
            let path = folder.join("generation_defaults.json");
            if files::is_file(&path) {
                let text = files::read_to_string(&path)?;
                return serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()));
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
            latent_rgb: self.latent_rgb,
        }
    }

    /// A person's choices over these, and SDXL's own size and the official application's settings for undistilled models where
    /// neither says anything.
    ///
    /// A model's spacing goes with its sampler, so that another sampler brings its own, unless `keeps_spacing`: a preset's holds
    /// until it is changed itself.
    ///
    /// # Errors
    /// For an unknown projection.
    pub fn settings(&self, own: &Defaults, keeps_spacing: bool) -> Result<Settings> {
        let sampler = own.sampler.or(self.sampler).unwrap_or(SamplerKind::DpmPp2M);
        let kept_spacing = self.spacing.filter(|_| own.sampler.is_none() || keeps_spacing);
        let identity = IdentitySettings::default();
        let ortho = own.ortho.as_ref().or(self.ortho.as_ref());
        Ok(Settings {
            width: own.width.or(self.width).unwrap_or(1024),
            height: own.height.or(self.height).unwrap_or(1024),
            steps: own.steps.or(self.steps).unwrap_or(25),
            guidance: own.guidance_scale.or(self.guidance_scale).unwrap_or(7.0),
            sampler,
            spacing: own.spacing.or(kept_spacing).unwrap_or(sampler.default_spacing()),
            identity: IdentitySettings {
                id_scale: own.id_scale.or(self.id_scale).unwrap_or(identity.id_scale),
                num_zero: own.num_zero.or(self.num_zero).unwrap_or(identity.num_zero),
                ortho: ortho.map_or(Ok(identity.ortho), |text| text.parse())?,
            },
            negative_prompt: own.negative_prompt.clone().or(self.negative_prompt.clone()).unwrap_or_default(),
        })
    }
}

impl Settings {
    /// One image with these settings, without an identity.
    pub fn options(self, prompt: impl Into<String>, seed: u64) -> GenerateOptions {
        let Settings { width, height, steps, guidance, sampler, spacing, negative_prompt, identity: _ } = self;
        GenerateOptions {
            prompt: prompt.into(),
            negative_prompt,
            width,
            height,
            batch: 1,
            guidance,
            seed,
            sampler: SamplerOptions { spacing, seed, ..SamplerOptions::new(sampler, steps) },
            identity: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_sampler_brings_its_own_spacing() {
        let euler = || Some(SamplerKind::Euler);
        let model =
            Defaults { sampler: Some(SamplerKind::DpmPp2M), spacing: Some(Spacing::Trailing), ..Defaults::default() };
        let spacing = |own: &Defaults, keeps| model.settings(own, keeps).unwrap().spacing;
        assert_eq!(spacing(&Defaults::default(), false), Spacing::Trailing);
        let own = Defaults { sampler: euler(), ..Defaults::default() };
        assert_eq!(spacing(&own, false), SamplerKind::Euler.default_spacing());
        assert_eq!(spacing(&own, true), Spacing::Trailing);
        let own = Defaults { sampler: euler(), spacing: Some(Spacing::Karras), ..Defaults::default() };
        assert_eq!(spacing(&own, true), Spacing::Karras);
    }

    #[test]
    fn a_person_comes_before_the_model_and_the_model_before_sdxl() {
        let model = Defaults { width: Some(128), steps: Some(12), ortho: Some("v1".into()), ..Defaults::default() };
        let own = Defaults { steps: Some(3), ..Defaults::default() };
        let s = model.settings(&own, false).unwrap();
        assert_eq!((s.width, s.height, s.steps, s.guidance), (128, 1024, 3, 7.0));
        assert_eq!(s.identity.ortho.to_string(), "v1");
        let own = Defaults { ortho: Some("v9".into()), ..Defaults::default() };
        assert!(model.settings(&own, false).is_err());
    }
}
