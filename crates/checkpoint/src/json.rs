//! JSON as Python writes it.
//!
//! Python's `json` module, and so every library that saves a model's configuration with it, writes the floats that JSON has no
//! numbers for as bare `NaN`, `Infinity` and `-Infinity` (<https://docs.python.org/3/library/json.html#infinite-and-nan-number-values>);
//! diffusers' DPM-Solvers save `"lambda_min_clipped": -Infinity`.

use serde::de::DeserializeOwned;
use std::borrow::Cow;

/// What Python writes beyond JSON, the longer before what it ends with.
const BEYOND: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Reads JSON in which `NaN`, `Infinity` and `-Infinity` may stand for numbers. They become the texts of these names: whoever asks for a
/// number there is told what was found instead.
///
/// # Errors
/// As [`serde_json::from_str`].
pub fn from_str<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&standard(text))
}

/// The text with quotes around the numbers that JSON does not have.
fn standard(text: &str) -> Cow<'_, str> {
    // Python's writers put no mark at the beginning, Windows' editors do.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !["NaN", "Infinity"].iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let (mut changed, mut rest) = (String::with_capacity(text.len() + 64), text);
    let mut previous = None;
    while let Some(next) = rest.chars().next() {
        let length = if next == '"' {
            string_length(rest)
        } else if previous.is_none_or(ends_before_value)
            && let Some(word) = BEYOND.iter().find(|word| rest.starts_with(**word))
        {
            changed += &format!("\"{word}\"");
            (previous, rest) = (Some('"'), &rest[word.len()..]);
            continue;
        } else {
            next.len_utf8()
        };
        changed += &rest[..length];
        previous = rest[..length].chars().next_back();
        rest = &rest[length..];
    }
    Cow::Owned(changed)
}

/// Whether a value may follow this character: part of no other word.
fn ends_before_value(c: char) -> bool {
    c.is_whitespace() || [':', ',', '['].contains(&c)
}

/// Bytes of the string at the beginning, with its quotes; all of the text where it does not end.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_python_writes_is_read() {
        // `json.dumps` of these values, dense and indented.
        let text = "{\"a\": -Infinity, \"b\": [NaN,Infinity, -1.5],\n  \"c\":NaN}";
        let found: Value = from_str(text).unwrap();
        assert_eq!(found, json!({"a": "-Infinity", "b": ["NaN", "Infinity", -1.5], "c": "NaN"}));
        assert_eq!(from_str::<Value>("NaN").unwrap(), json!("NaN"));
        let error = from_str::<std::collections::BTreeMap<String, f32>>(r#"{"a": NaN}"#).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
    }

    #[test]
    fn strings_stay_as_they_are() {
        for text in [
            r#"{"NaN": "x, NaN, -Infinity", "a": ": NaN"}"#,
            r#"{"quoted": "\" : NaN", "slash": "\\", "b": "Infinity"}"#,
            r#"["ä NaN", "NaN</w>", "[Infinity"]"#,
        ] {
            assert_eq!(from_str::<Value>(text).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn nothing_else_is_forgiven() {
        for text in [
            "{\"a\": Nan}",
            "{\"a\": 1NaN}",
            "{\"a\": NaN1}",
            "{\"a\": +Infinity}",
            "{NaN: 1",
            "\"NaN",
            "[NaN",
            "{'a': NaN}",
        ] {
            assert!(from_str::<Value>(text).is_err(), "{text}");
        }
    }
}
