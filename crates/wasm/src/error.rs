//! Errors as JavaScript throws them.

use pulid::settings::{LIST, Spelling, respell};
use pulid_tensor::Error;
use wasm_bindgen::JsValue;

/// What JavaScript sees of a call.
pub type Outcome<T> = Result<T, JsValue>;

/// A JavaScript `Error` whose `name` tells what kind it is and whose `message` is for people: it names settings in camel case.
pub fn thrown(error: Error) -> JsValue {
    let name = match &error {
        Error::Cancelled => "AbortError",
        Error::Photo { .. } => "PhotoError",
        Error::Device(_) | Error::OutOfMemory(_) => "DeviceError",
        Error::NotFinite { .. } => "NotFiniteError",
        Error::Invalid { .. } => "SettingsError",
        Error::File { .. } | Error::Weight { .. } | Error::Io { .. } | Error::Operator { .. } => "ModelError",
        _ => "Error",
    };
    let thrown = js_sys::Error::new(&respell(&error, LIST.iter().map(|s| s.name), Spelling::Camel));
    thrown.set_name(name);
    thrown.into()
}
