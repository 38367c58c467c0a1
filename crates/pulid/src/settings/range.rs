//! The values that a setting takes, and its type with them.

use serde_json::{Number, Value};
use std::fmt;

/// The values that a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Whole numbers, both ends included.
    Whole {
        /// The least.
        least: i128,
        /// The greatest, or [`Range::UNLIMITED`].
        most: i128,
    },
    /// Finite numbers, both ends included.
    Number {
        /// The least.
        least: f64,
        /// The greatest.
        most: f64,
    },
    /// One of these words.
    Choices(&'static [&'static str]),
    /// Any text.
    Text,
}

impl Range {
    /// No upper end.
    pub const UNLIMITED: i128 = i128::MAX;

    /// A value from text; what is wrong where it is none of these.
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        let value = match self {
            Range::Whole { .. } => whole(text),
            Range::Number { .. } => text.parse().ok().and_then(Number::from_f64).map(Value::Number),
            Range::Choices(_) | Range::Text => Some(Value::from(text)),
        };
        let value = value.filter(|v| self.contains(v));
        value.ok_or_else(|| format!("`{text}` is not {self}"))
    }

    /// What is wrong with a value that is none of these.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        if self.contains(value) { Ok(()) } else { Err(self.refusal(value)) }
    }

    pub(super) fn refusal(&self, value: &Value) -> String {
        let shown = match value {
            Value::String(text) => format!("`{text}`"),
            // What JSON has no number for.
            Value::Null => "infinity or NaN".into(),
            other => other.to_string(),
        };
        format!("{shown} is not {self}")
    }

    fn contains(&self, value: &Value) -> bool {
        match *self {
            Range::Whole { least, most } => {
                let number = value.as_u64().map(i128::from).or(value.as_i64().map(i128::from));
                number.is_some_and(|n| (least..=most).contains(&n))
            }
            Range::Number { least, most } => value.as_f64().is_some_and(|x| (least..=most).contains(&x)),
            Range::Choices(all) => value.as_str().is_some_and(|text| all.contains(&text)),
            Range::Text => value.is_string(),
        }
    }
}

fn whole(text: &str) -> Option<Value> {
    text.parse::<u64>().map(Value::from).or(text.parse::<i64>().map(Value::from)).ok()
}

/// As what a value should be: `a whole number from 1 to 64`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Range::Whole { least, most: Range::UNLIMITED } => write!(f, "a whole number from {}", Bound(least)),
            Range::Whole { least, most } => write!(f, "a whole number from {} to {}", Bound(least), Bound(most)),
            Range::Number { least, most } => write!(f, "a number from {least} to {most}"),
            Range::Choices(all) => write!(f, "one of {}", all.join(", ")),
            Range::Text => f.write_str("text"),
        }
    }
}

/// An end of a range, in the form in which people know it.
struct Bound(i128);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n == i128::from(i64::MIN) => f.write_str("-2^63"),
            n if n == i128::from(u64::MAX) => f.write_str("2^64-1"),
            n => write!(f, "{n}"),
        }
    }
}
