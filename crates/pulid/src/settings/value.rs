//! Settings' types, to and from JSON, which every surface speaks.

use crate::pipeline::LongPrompt;
use crate::sampler::{FinalSigma, SamplerKind, Spacing};
use pulid_models::pulid::Ortho;
use pulid_tensor::DType;
use serde_json::{Number, Value};

/// A type that settings have.
pub trait SettingValue: Sized {
    /// As JSON: a number or a text; null for a number that JSON does not have.
    fn to_json(&self) -> Value;

    /// From JSON; `None` for another type.
    fn from_json(value: &Value) -> Option<Self>;
}

impl SettingValue for usize {
    fn to_json(&self) -> Value {
        Value::from(*self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }
}

/// Null is none.
macro_rules! optional {
    ($($type:ty)+) => {$(
        impl SettingValue for Option<$type> {
            fn to_json(&self) -> Value {
                self.as_ref().map_or(Value::Null, SettingValue::to_json)
            }
            fn from_json(value: &Value) -> Option<Self> {
                if value.is_null() { Some(None) } else { <$type>::from_json(value).map(Some) }
            }
        }
    )+};
}

optional! { usize String }

/// Modulo 2^64, as `torch.manual_seed` takes a negative one.
impl SettingValue for u64 {
    fn to_json(&self) -> Value {
        Value::from(*self)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_u64().or(value.as_i64().map(i64::cast_unsigned))
    }
}

impl SettingValue for f64 {
    fn to_json(&self) -> Value {
        Number::from_f64(*self).map_or(Value::Null, Value::Number)
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl SettingValue for f32 {
    /// The shortest decimal number that is this one: 2.4 and not 2.4000000953674316.
    fn to_json(&self) -> Value {
        self.to_string().parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
    }
    fn from_json(value: &Value) -> Option<Self> {
        Some(value.as_f64()? as f32)
    }
}

impl SettingValue for String {
    fn to_json(&self) -> Value {
        Value::from(self.as_str())
    }
    fn from_json(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

/// `none` is nothing.
impl SettingValue for Option<DType> {
    fn to_json(&self) -> Value {
        Value::from(self.map_or("none", DType::name))
    }
    fn from_json(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "none" => Some(None),
            _ => DType::from_json(value).map(Some),
        }
    }
}

/// Types that are one of some words.
macro_rules! words {
    ($($type:ty: $all:expr;)+) => {$(
        impl SettingValue for $type {
            fn to_json(&self) -> Value {
                Value::from(self.name())
            }
            fn from_json(value: &Value) -> Option<Self> {
                let text = value.as_str()?;
                $all.into_iter().find(|v| v.name() == text)
            }
        }
    )+};
}

words! {
    SamplerKind: SamplerKind::ALL;
    Spacing: Spacing::ALL;
    FinalSigma: FinalSigma::ALL;
    Ortho: Ortho::ALL;
    LongPrompt: LongPrompt::ALL;
    DType: [DType::F32, DType::F16, DType::Q8, DType::Q4];
}
