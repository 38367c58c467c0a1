//! What an image is made with: every setting once, in [`LIST`].
//!
//! The command line's flags, the options of JavaScript, presets, a model's `generation_defaults.json`, the page's fields and the
//! documentation are all made from the list, or held to it by a test. To add a setting is to add it there, and to use it: a field
//! of [`Settings`] is there by then.
//!
//! Values come from a person, else a preset, else the model, else the list ([`Settings::merge`]). Each of the first three is a
//! [`Choices`].

mod distilled;
mod list;
mod merge;
mod model;
mod range;
mod spelling;
mod suited;
mod value;

pub use list::{Choices, LIST, Settings};
pub use model::ModelDefaults;
pub use range::Range;
pub use spelling::{Spelling, respell, respell_text};
pub use suited::Suggestion;
pub(crate) use value::SettingValue;

use crate::sampler::names;
use pulid_tensor::{Error, Result};
use serde_json::Value;

/// What is known of one setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// In snake case, as the field of [`Settings`]; [`Spelling`] makes the other forms of it.
    pub name: &'static str,
    /// What it means, for people: without a full stop at the end, and without another setting's name.
    pub help: &'static str,
    /// The values it takes.
    pub range: Range,
    /// Its value where nobody sets it; null is none.
    pub default: fn() -> Value,
    /// Whether it may have no value at all, which is another thing than an empty or a lowest one.
    pub optional: bool,
    /// Where another setting brings a value for this one, as [`Settings::merge`] sees to; the default is what that one's brings.
    pub follows: Option<Follows>,
    /// Its key in a model's `generation_defaults.json`, if a model may set it.
    pub file_key: Option<&'static str>,
    /// Whether every preset sets it; otherwise none does.
    pub preset: bool,
    /// Whether the page has a field for it.
    pub page: bool,
    /// The word of the range that another program's word stands for: itself where it is one of them or unknown everywhere.
    pub known_as: Option<KnownAs>,
}

/// See [`Setting::known_as`]; an error says what a word means elsewhere and that it is not here.
pub type KnownAs = fn(&str) -> std::result::Result<String, String>;

/// A setting whose value depends on another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follows {
    /// The other one's name.
    pub setting: &'static str,
    /// Which values it brings, for people.
    pub brings: &'static str,
}

impl Setting {
    /// What the list's entries have in common.
    const PLAIN: Setting = Setting {
        name: "",
        help: "",
        range: Range::Text,
        default: || Value::Null,
        optional: false,
        follows: None,
        file_key: None,
        preset: false,
        page: true,
        known_as: None,
    };

    /// The setting of this name in snake case.
    pub fn named(name: &str) -> Option<&'static Setting> {
        LIST.iter().find(|s| s.name == name)
    }

    /// Its name as `spelling` has it.
    pub fn spelled(&self, spelling: Spelling) -> String {
        spelling.of(self.name)
    }

    /// A value from a person's text.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the setting's name for what is not in its range.
    pub fn parse(&self, text: &str) -> Result<Value> {
        let value = self.word(text).and_then(|text| self.range.parse(&text));
        value.map_err(|detail| Error::invalid(self.name, detail))
    }

    fn word(&self, text: &str) -> std::result::Result<String, String> {
        self.known_as.map_or_else(|| Ok(text.to_owned()), |known_as| known_as(text))
    }

    /// Refuses a value outside of the range.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the setting's name.
    pub fn check(&self, value: &Value) -> Result<()> {
        if self.optional && value.is_null() {
            return Ok(());
        }
        self.range.check(value).map_err(|detail| Error::invalid(self.name, detail))
    }
}

impl Choices {
    /// [`Choices::set`] of a person's text.
    ///
    /// # Errors
    /// As [`Setting::parse`].
    pub fn set_text(&mut self, setting: &Setting, text: &str) -> Result<()> {
        let value = setting.parse(text)?;
        // The text itself may say more than the word that it stands for.
        self.set(setting.name, &if setting.known_as.is_some() { Value::from(text) } else { value })
    }

    /// Sets the setting of this name; null leaves it open.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is not in the list, or a value of another type. A number outside of the range is an error
    /// only when it is used, in [`Settings::merge`].
    pub fn set(&mut self, name: &str, value: &Value) -> Result<()> {
        if value.is_null() {
            return Ok(());
        }
        let setting = Setting::named(name);
        if let (Some(setting), Some(text)) = (setting, value.as_str())
            && setting.known_as.is_some()
        {
            let word = setting.word(text).map_err(|detail| Error::invalid(name, detail))?;
            // "DPM++ 2M Karras" says both; a spacing that is named itself wins, before or after.
            if name == "sampler" && self.spacing.is_none() {
                self.spacing = names::spacing_within(text);
            }
            let refused = || Error::invalid(name, setting.range.refusal(value));
            return self.put(name, &Value::from(word)).ok_or_else(refused);
        }
        match setting {
            Some(setting) => self.put(name, value).ok_or_else(|| Error::invalid(name, setting.range.refusal(value))),
            None => Err(Error::invalid(name, "is no setting")),
        }
    }

    /// Every setting that has a value here, in the list's order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Setting, Value)> {
        LIST.iter().filter_map(|setting| Some((setting, self.get(setting.name)?)))
    }
}

#[cfg(test)]
mod tests;
