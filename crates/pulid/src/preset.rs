//! The official applications' settings by name.

use crate::sampler::{SamplerKind, Spacing};
use pulid_models::pulid::{IdentitySettings, Ortho, PulidVersion};
use pulid_tensor::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// An official application as it comes up (`app_v1_1.py`, `app.py`), with one kind of base model or in one mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Preset {
    /// PuLID v1.1 on a distilled model (DreamShaper-XL-Lightning).
    V1_1Lightning,
    /// PuLID v1.1 on an undistilled model (Juggernaut-XL).
    V1_1Base,
    /// PuLID v1 on SDXL-Lightning, in the mode `fidelity`.
    V1Fidelity,
    /// PuLID v1 on SDXL-Lightning, in the mode `extremely style`.
    V1Style,
}

/// What a preset sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PresetSettings {
    /// The PuLID it belongs to.
    pub version: PulidVersion,
    /// The solver.
    pub sampler: SamplerKind,
    /// Where the steps lie.
    pub spacing: Spacing,
    /// Number of steps.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance: f32,
    /// Scale, zero tokens and projection of the identity.
    pub identity: IdentitySettings,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
}

impl Preset {
    /// Every preset, in the order of the command line's help.
    pub const ALL: [Preset; 4] = [Preset::V1_1Lightning, Preset::V1_1Base, Preset::V1Fidelity, Preset::V1Style];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Preset::V1_1Lightning => "v1.1-lightning",
            Preset::V1_1Base => "v1.1-base",
            Preset::V1Fidelity => "v1-fidelity",
            Preset::V1Style => "v1-style",
        }
    }

    /// What it sets.
    pub const fn settings(self) -> PresetSettings {
        let v1_1 = PresetSettings {
            version: PulidVersion::V1_1,
            sampler: SamplerKind::DpmPp2M,
            spacing: Spacing::Karras,
            steps: 25,
            guidance: 7.0,
            identity: IdentitySettings { id_scale: 0.8, num_zero: 20, ortho: Ortho::V2 },
            width: 896,
            height: 1152,
        };
        let v1 = PresetSettings {
            version: PulidVersion::V1,
            spacing: Spacing::Trailing,
            steps: 4,
            guidance: 1.2,
            identity: IdentitySettings { id_scale: 0.8, num_zero: 8, ortho: Ortho::V2 },
            width: 768,
            height: 1024,
            ..v1_1
        };
        match self {
            Preset::V1_1Lightning => PresetSettings { sampler: SamplerKind::DpmPpSde, steps: 5, guidance: 2.0, ..v1_1 },
            Preset::V1_1Base => v1_1,
            Preset::V1Fidelity => v1,
            Preset::V1Style => {
                PresetSettings { identity: IdentitySettings { num_zero: 16, ortho: Ortho::V1, ..v1.identity }, ..v1 }
            }
        }
    }

    /// Refuses a PuLID of another version.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names `adapter` and the presets that fit it.
    pub fn check(self, adapter: &str, found: PulidVersion) -> Result<()> {
        let own = self.settings().version;
        if own == found {
            return Ok(());
        }
        let fitting = Preset::ALL.into_iter().filter(|p| p.settings().version == found);
        let fitting = fitting.map(Preset::name).collect::<Vec<_>>().join(" and ");
        let detail = format!(
            "`{self}` belongs to {own}, but {adapter} is {found}; the presets for it are {fitting}, or name a {own} file \
             as the adapter"
        );
        Err(Error::invalid("preset", detail))
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let detail = || format!("`{text}` is no preset; there are {}", Preset::ALL.map(Preset::name).join(", "));
        Preset::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| Error::invalid("preset", detail()))
    }
}

impl fmt::Display for PresetSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PresetSettings { sampler, spacing, steps, guidance, identity, width, height, .. } = self;
        let IdentitySettings { id_scale, num_zero, ortho } = identity;
        write!(
            f,
            "--sampler {sampler} --spacing {spacing} --steps {steps} --guidance {guidance} --id-scale {id_scale} \
             --num-zero {num_zero} --ortho {ortho} --width {width} --height {height}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for preset in Preset::ALL {
            assert_eq!(preset.name().parse::<Preset>().unwrap(), preset);
        }
        let message = "v2".parse::<Preset>().unwrap_err().to_string();
        assert!(message.contains("v2") && message.contains("v1.1-lightning"), "{message}");
    }

    /// What the two applications show when they come up, and their modes and base models set.
    #[test]
    fn settings_are_the_official_ones() {
        let texts = [
            "--sampler dpmpp_sde --spacing karras --steps 5 --guidance 2 --id-scale 0.8 --num-zero 20 --ortho v2 --width 896 --height 1152",
            "--sampler dpmpp_2m --spacing karras --steps 25 --guidance 7 --id-scale 0.8 --num-zero 20 --ortho v2 --width 896 --height 1152",
            "--sampler dpmpp_2m --spacing trailing --steps 4 --guidance 1.2 --id-scale 0.8 --num-zero 8 --ortho v2 --width 768 --height 1024",
            "--sampler dpmpp_2m --spacing trailing --steps 4 --guidance 1.2 --id-scale 0.8 --num-zero 16 --ortho v1 --width 768 --height 1024",
        ];
        assert_eq!(Preset::ALL.map(|p| p.settings().to_string()), texts);
        assert_eq!(Preset::ALL.map(|p| p.settings().version == PulidVersion::V1), [false, false, true, true]);
    }

    #[test]
    fn another_version_is_refused_with_what_fits() {
        assert!(Preset::V1Style.check("a.bin", PulidVersion::V1).is_ok());
        let message = Preset::V1Style.check("a.safetensors", PulidVersion::V1_1).unwrap_err().to_string();
        for part in ["v1-style", "a.safetensors is PuLID v1.1", "v1.1-lightning and v1.1-base", "PuLID v1 file"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(Preset::V1_1Base.check("a.bin", PulidVersion::V1).is_err());
    }
}
