//! Who sets what: a person before a preset, a preset before the model, the model before the list.

use super::{Choices, LIST, Settings};
use crate::pipeline::{GenerateOptions, Storage};
use crate::preset::Preset;
use crate::sampler::{SamplerOptions, StepWindow};
use pulid_models::pulid::IdentitySettings;
use pulid_tensor::{Error, Result};

impl Default for Settings {
    /// The list's own: SDXL's size, and the official application's settings for undistilled models.
    fn default() -> Self {
        Choices::default().filled()
    }
}

impl Settings {
    /// A person's choices, then the preset's, then the model's, then the list's defaults.
    ///
    /// A sampler brings its own spacing. A model's spacing and end go with the model's sampler, so that another sampler brings its own;
    /// a preset's holds until it is changed itself.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the setting's name for a value outside of its range.
    pub fn merge(own: Choices, preset: Option<Preset>, mut model: Choices) -> Result<Settings> {
        let above = own.or(preset.map(Preset::settings).unwrap_or_default());
        if above.sampler.is_some() {
            (model.spacing, model.final_sigma) = (None, None);
        }
        let mut all = above.or(model);
        all.spacing = all.spacing.or(all.sampler.map(|sampler| sampler.default_spacing()));
        let settings = all.filled();
        settings.check()?;
        Ok(settings)
    }

    /// Refuses values outside of their ranges.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the setting's name.
    pub fn check(&self) -> Result<()> {
        LIST.iter().try_for_each(|setting| {
            let value = self.get(setting.name);
            setting.check(&value.ok_or_else(|| Error::invalid(setting.name, "is no setting"))?)
        })
    }

    /// Scale, zero tokens and projection of the identity.
    pub fn identity(&self) -> IdentitySettings {
        IdentitySettings { id_scale: self.id_scale, num_zero: self.num_zero, ortho: self.ortho }
    }

    /// The part of the schedule in which identity enters.
    ///
    /// # Errors
    /// When it ends before it begins.
    pub fn window(&self) -> Result<StepWindow> {
        StepWindow::new(self.id_start, self.id_end)
    }

    /// How the networks are stored.
    pub fn storage(&self) -> Storage {
        Storage { dtype: self.dtype, quantize: self.quantize }
    }

    /// What a pipeline is told, without an identity.
    pub fn options(&self, prompt: impl Into<String>) -> GenerateOptions {
        let &Settings {
            width,
            height,
            batch,
            batch_index,
            guidance,
            seed,
            steps,
            sampler,
            spacing,
            final_sigma,
            long_prompt,
            ..
        } = self;
        GenerateOptions {
            prompt: prompt.into(),
            negative_prompt: self.negative_prompt.clone(),
            long_prompt,
            width,
            height,
            batch,
            batch_index,
            guidance,
            seed,
            sampler: SamplerOptions { kind: sampler, spacing, final_sigma, steps, seed },
            identity: None,
        }
    }
}
