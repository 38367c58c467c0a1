//! Options as JavaScript gives them: the list of settings in camel case, and what an image shows.

use crate::error::{Outcome, thrown};
use pulid::settings::{Choices, LIST, Settings, Spelling};
use pulid_tensor::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use serde_json::{Map, Value};
use wasm_bindgen::{JsCast, JsValue};

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

/// What an image shows.
#[derive(Deserialize)]
pub struct Shown {
    #[serde(default)]
    pub prompt: String,
    #[serde(default)]
    pub photos: Vec<Named>,
    /// The person's face in photos that show several.
    pub face: Option<String>,
    pub identity: Option<ByteBuf>,
}

/// The options of [`Shown`], which are no settings.
const SHOWN: [&str; 4] = ["prompt", "photos", "face", "identity"];

/// What to make: what the image shows, and the settings that are given. The others are the model's.
///
/// # Errors
/// `SettingsError` for an option that does not exist or has another type.
pub fn read_picture(value: JsValue) -> Outcome<(Shown, Choices)> {
    let settings = js_sys::Object::new();
    if let Some(given) = value.dyn_ref::<js_sys::Object>() {
        for name in js_sys::Object::keys(given) {
            if !name.as_string().is_some_and(|name| SHOWN.contains(&name.as_str())) {
                js_sys::Reflect::set(&settings, &name, &js_sys::Reflect::get(given, &name)?)?;
            }
        }
    }
    let settings: Map<String, Value> = read(settings.into())?;
    Ok((read(value)?, choices(&settings).map_err(thrown)?))
}

fn choices(given: &Map<String, Value>) -> pulid_tensor::Result<Choices> {
    let mut choices = Choices::default();
    for (name, value) in given {
        match LIST.iter().find(|s| s.spelled(Spelling::Camel) == *name) {
            Some(setting) => choices.set(setting.name, value)?,
            None => {
                let known = SHOWN.map(str::to_owned).into_iter().chain(LIST.iter().map(|s| s.spelled(Spelling::Camel)));
                let known = known.collect::<Vec<_>>().join(", ");
                return Err(Error::invalid("options", format!("there is no `{name}`; accepted are {known}")));
            }
        }
    }
    Ok(choices)
}

/// The settings that models have defaults for, for JavaScript.
///
/// # Errors
/// Never by what settings hold; JavaScript may refuse.
pub fn described(settings: &Settings) -> Outcome<JsValue> {
    let own = LIST.iter().filter(|s| s.file_key.is_some());
    let values: Map<_, _> = own.filter_map(|s| Some((s.spelled(Spelling::Camel), settings.get(s.name)?))).collect();
    let written = values.serialize(&serde_wasm_bindgen::Serializer::json_compatible());
    written.map_err(|e| thrown(Error::invalid("result", e.to_string())))
}
