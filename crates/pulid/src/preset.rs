//! The official applications' settings by name.

use crate::pipeline::LongPrompt;
use crate::sampler::{SamplerKind, Spacing};
use crate::settings::Choices;
use pulid_models::pulid::{Ortho, PulidVersion};
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

    /// The PuLID it belongs to.
    pub const fn version(self) -> PulidVersion {
        match self {
            Preset::V1_1Lightning | Preset::V1_1Base => PulidVersion::V1_1,
            Preset::V1Fidelity | Preset::V1Style => PulidVersion::V1,
        }
    }

    /// What it sets: every setting that presets set.
    pub fn settings(self) -> Choices {
        let v1_1 = || Choices {
            width: Some(896),
            height: Some(1152),
            steps: Some(25),
            guidance: Some(7.0),
            sampler: Some(SamplerKind::DpmPp2M),
            spacing: Some(Spacing::Karras),
            id_scale: Some(0.8),
            num_zero: Some(20),
            ortho: Some(Ortho::V2),
            // diffusers' pipelines read 77 tokens.
            long_prompt: Some(LongPrompt::Cut),
            ..Choices::default()
        };
        let v1 = || Choices {
            width: Some(768),
            height: Some(1024),
            steps: Some(4),
            guidance: Some(1.2),
            spacing: Some(Spacing::Trailing),
            num_zero: Some(8),
            ..v1_1()
        };
        match self {
            Preset::V1_1Lightning => {
                Choices { sampler: Some(SamplerKind::DpmPpSde), steps: Some(5), guidance: Some(2.0), ..v1_1() }
            }
            Preset::V1_1Base => v1_1(),
            Preset::V1Fidelity => v1(),
            Preset::V1Style => Choices { num_zero: Some(16), ortho: Some(Ortho::V1), ..v1() },
        }
    }

    /// Refuses a PuLID of another version.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names `adapter` and the presets that fit it.
    pub fn check(self, adapter: &str, found: PulidVersion) -> Result<()> {
        let own = self.version();
        if own == found {
            return Ok(());
        }
        let fitting = Preset::ALL.into_iter().filter(|p| p.version() == found);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::LIST;
    use serde_json::{Value, json};

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
        let v1_1 = |steps, guidance, sampler| {
            json!({"width": 896, "height": 1152, "steps": steps, "guidance": guidance, "sampler": sampler,
                "spacing": "karras", "id_scale": 0.8, "num_zero": 20, "ortho": "v2", "long_prompt": "cut"})
        };
        let v1 = |num_zero, ortho| {
            json!({"width": 768, "height": 1024, "steps": 4, "guidance": 1.2, "sampler": "dpmpp_2m",
                "spacing": "trailing", "id_scale": 0.8, "num_zero": num_zero, "ortho": ortho, "long_prompt": "cut"})
        };
        let official = [v1_1(5, 2.0, "dpmpp_sde"), v1_1(25, 7.0, "dpmpp_2m"), v1(8, "v2"), v1(16, "v1")];
        let set = |p: Preset| p.settings().iter().map(|(s, value)| (s.name.to_owned(), value)).collect::<Value>();
        assert_eq!(Preset::ALL.map(set), official);
        assert_eq!(Preset::ALL.map(|p| p.version() == PulidVersion::V1), [false, false, true, true]);
    }

    /// A preset that left one open would let the model's own through.
    #[test]
    fn every_preset_sets_what_presets_set() {
        for preset in Preset::ALL {
            for setting in LIST {
                let set = preset.settings().get(setting.name).is_some();
                assert_eq!(set, setting.preset, "{preset}: {}", setting.name);
            }
        }
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
