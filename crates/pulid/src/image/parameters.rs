//! The text that an image's file carries of how it was made, as AUTOMATIC1111's web UI made it customary.

use crate::sampler::{SamplerKind, Spacing};
use std::fmt::Write;

/// How the line with the negative prompt begins.
const NEGATIVE: &str = "Negative prompt:";

/// The text that AUTOMATIC1111's web UI made customary: the prompt, a line with the negative prompt, a line of settings.
///
/// Its readers (`parse_generation_parameters` in `modules/infotext_utils.py`) take the last line for the settings and everything from
/// the first line that begins with `Negative prompt:` for the negative prompt. They know no escapes. So a line of either text that
/// begins like that is joined to the one before it, or where it is the first gets a second space between the two words: neither changes a
/// token. Values with a comma, colon, quote or line break, or spaces around them, are quoted as JSON strings; empty ones are left out.
pub fn parameters_text(prompt: &str, negative_prompt: &str, settings: &[(&str, String)]) -> String {
    let mut text = unmistakable(prompt, true);
    let negative = unmistakable(negative_prompt, false);
    if !negative.is_empty() {
        let _ = write!(text, "\n{NEGATIVE} {negative}");
    }
    let mut separator = "\n";
    for (name, value) in settings.iter().filter(|(_, value)| !value.is_empty()) {
        let odd = value.contains([',', ':', '"', '\n', '\r']) || value.trim() != value;
        let quoted = odd.then(|| serde_json::Value::from(value.as_str()).to_string());
        let _ = write!(text, "{separator}{name}: {}", quoted.as_deref().unwrap_or(value));
        separator = ", ";
    }
    text
}

/// A text whose lines no reader takes for the beginning of the negative prompt; `leads` where nothing stands before its first line.
fn unmistakable(text: &str, leads: bool) -> String {
    let mut lines = String::new();
    for line in trim(text).split('\n').map(trim) {
        let mistakable = line.starts_with(NEGATIVE);
        match (lines.is_empty(), mistakable) {
            (true, true) if leads => lines += &line.replacen(' ', "  ", 1),
            (true, _) => lines += line,
            (false, true) => {
                // Past empty lines, which it would begin too.
                lines.truncate(trim(&lines).len());
                lines += &format!(" {line}");
            }
            (false, false) => lines += &format!("\n{line}"),
        }
    }
    lines
}

/// Without what Python's `strip` takes for spaces.
fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// The web UI's name of a solver.
pub(crate) fn sampler_name(kind: SamplerKind) -> &'static str {
    match kind {
        SamplerKind::DpmPp2M => "DPM++ 2M",
        SamplerKind::DpmPpSde => "DPM++ SDE",
        SamplerKind::Euler => "Euler",
        SamplerKind::Ddim => "DDIM",
    }
}

/// The web UI's name of a spacing, where it has none of its own the nearest. Its SGM Uniform divides the same span evenly: what is
/// trailing here, to less than a training timestep. Its DDIM counts from timestep 1 up, as leading with an offset of 1 does, and its Normal
/// spans all timesteps.
pub(crate) fn schedule_name(spacing: Spacing) -> &'static str {
    match spacing {
        Spacing::Karras | Spacing::KarrasDiffusers => "Karras",
        Spacing::Trailing => "SGM Uniform",
        Spacing::Leading => "DDIM",
        Spacing::Linspace => "Normal",
        Spacing::Exponential | Spacing::ExponentialDiffusers => "Exponential",
        Spacing::Beta | Spacing::BetaDiffusers => "Beta",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What the web UI's `parse_generation_parameters` reads: prompt, negative prompt, settings. Its pattern for a setting is
    /// `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`, searched for again and again.
    pub(crate) fn read(text: &str) -> (String, String, BTreeMap<String, String>) {
        let mut lines: Vec<&str> = trim(text).split('\n').collect();
        let mut found = settings(lines.last().unwrap());
        if found.len() < 3 {
            found.clear();
        } else {
            lines.pop();
        }
        let (mut prompt, mut negative, mut done) = (String::new(), String::new(), false);
        for line in lines {
            let mut line = trim(line);
            if let Some(rest) = line.strip_prefix("Negative prompt:") {
                (done, line) = (true, trim(rest));
            }
            let to = if done { &mut negative } else { &mut prompt };
            *to += if to.is_empty() { "" } else { "\n" };
            *to += line;
        }
        (prompt, negative, found.into_iter().collect())
    }

    fn settings(line: &str) -> Vec<(String, String)> {
        let chars: Vec<char> = line.chars().collect();
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let (mut found, mut start) = (Vec::new(), 0);
        while start < chars.len() {
            let Some((name, value, end)) = setting(&chars, start, &word) else {
                start += 1;
                continue;
            };
            found.push((name, value));
            start = end.max(start + 1);
        }
        found
    }

    fn setting(chars: &[char], start: usize, word: &impl Fn(char) -> bool) -> Option<(String, String, usize)> {
        let at = |i: usize| chars.get(i).copied();
        let spaces = |mut i: usize| {
            while at(i).is_some_and(char::is_whitespace) {
                i += 1;
            }
            i
        };
        let name = spaces(start);
        let mut end = name;
        while at(end).is_some_and(|c| word(c) || end > name && [' ', '-', '/'].contains(&c)) {
            end += 1;
        }
        if end < name + 2 || at(end) != Some(':') {
            return None;
        }
        let value = spaces(end + 1);
        let ends = |i: usize| at(i).is_none() || at(i) == Some(',');
        let text = |from: usize, to: usize| chars[from..to].iter().collect::<String>();
        if at(value) == Some('"') {
            let mut i = value + 1;
            while let Some(c) = at(i).filter(|&c| c != '"') {
                i += if c == '\\' { 2 } else { 1 };
            }
            if i > value + 1 && at(i) == Some('"') && ends(i + 1) {
                let quoted = text(value, i + 1);
                let plain = serde_json::from_str::<String>(&quoted).unwrap_or(quoted);
                return Some((text(name, end), plain, (i + 2).min(chars.len())));
            }
        }
        let mut i = value;
        while !ends(i) {
            i += 1;
        }
        Some((text(name, end), text(value, i), (i + 1).min(chars.len())))
    }

    fn ours(model: &str) -> Vec<(&'static str, String)> {
        vec![
            ("Steps", "4".into()),
            ("Sampler", "DPM++ 2M".into()),
            ("CFG scale", "2.5".into()),
            ("Model", model.into()),
        ]
    }

    fn words(text: &str) -> Vec<&str> {
        text.split(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
            .filter(|w| !w.is_empty())
            .collect()
    }

    #[test]
    fn parameters_read_like_the_web_ui_s() {
        let settings =
            [("Steps", "4".to_string()), ("Sampler", "DPM++ 2M".into()), ("Id", "a,b".into()), ("No", "".into())];
        let text = parameters_text("portrait, oil painting\n", "blurry", &settings);
        assert_eq!(text, "portrait, oil painting\nNegative prompt: blurry\nSteps: 4, Sampler: DPM++ 2M, Id: \"a,b\"");
        assert_eq!(parameters_text("x", " ", &[]), "x");
    }

    #[test]
    fn the_web_ui_reads_back_what_was_written() {
        for (prompt, negative) in [
            ("a person, in a garden", ""),
            ("портрет 🎨, \"quoted\": yes\\no", "плохо, 東京: \"x\""),
            ("two\nlines\n\nand more", "also\ntwo"),
            ("a hat\nNegative prompt: not this one\nmore", "blurry"),
            ("Negative prompt: at once", "Negative prompt: twice\nNegative prompt: thrice"),
            ("x\r\n  Negative prompt: indented", ""),
            ("x\n\n \nNegative prompt: after empty lines", "y\n\nNegative prompt: z"),
            ("Steps: 1, Sampler: Euler, CFG scale: 3, Seed: 9", "Steps: 2, Size: 1x1, Model: y"),
            ("x\nSteps: 1, Sampler: Euler, CFG scale: 3", ""),
            ("", "only negative"),
            ("Negative prompt:", "Negative prompt:"),
        ] {
            for model in ["sdxl", "a, b: \"c\"", "line\nbreak\\", " space "] {
                let text = parameters_text(prompt, negative, &ours(model));
                let (read_prompt, read_negative, settings) = read(&text);
                assert_eq!(words(&read_prompt), words(prompt), "{text}");
                assert_eq!(words(&read_negative), words(negative), "{text}");
                assert_eq!(settings, ours(model).into_iter().map(|(k, v)| (k.to_owned(), v)).collect(), "{text}");
            }
        }
        let plain = "line one\nline two";
        assert_eq!(read(&parameters_text(plain, plain, &ours("m"))).0, plain);
    }

    proptest! {
        #[test]
        fn no_prompt_is_taken_for_another(
            prompt in r#"(Negative prompt:|Steps: 1, Seed: 2, Size: 3x4|[a-z,:"\\ \n\r]|\PC){0,12}"#,
            negative in r#"(Negative prompt:|Steps: 1, Seed: 2, Size: 3x4|[a-z,:"\\ \n\r]|\PC){0,12}"#,
            model in r#"[a-z,:"\\ \n]{1,8}"#,
        ) {
            let (read_prompt, read_negative, settings) = read(&parameters_text(&prompt, &negative, &ours(&model)));
            prop_assert_eq!(words(&read_prompt), words(&prompt));
            prop_assert_eq!(words(&read_negative), words(&negative));
            prop_assert_eq!(&settings["Model"], &model);
        }
    }
}
