//! The list of prompts.

use pulid_tensor::{Error, Result, io_message};
use std::path::Path;

/// More than any evaluation has, and a limit to what a file can ask for.
const MOST: usize = 10_000;

/// A file of prompts is not larger than this.
const MOST_BYTES: u64 = 16 << 20;

/// What a picture is to show.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Prompt {
    /// The prompt.
    pub text: String,
    /// What it tries, for example `style`; means are given for each.
    pub category: Option<String>,
}

/// The list that is taken where none is named. The first prompt is the one by which the paper measures Face Sim, the others are ours.
pub fn default_prompts() -> Vec<Prompt> {
    parse(include_str!("prompts.txt"))
}

/// Prompts of a text file in UTF-8: one a line, or a category, a tab and the prompt. Empty lines and those that begin with `#` are passed
/// over.
///
/// # Errors
/// A file that cannot be read, is no text, holds no prompt or one of them twice.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    let unread = |e: std::io::Error| Error::file(path, format!("cannot be read: {}", io_message(&e)));
    if std::fs::metadata(path).map_err(unread)?.len() > MOST_BYTES {
        return Err(Error::file(path, "is too large for a list of prompts"));
    }
    let bytes = std::fs::read(path).map_err(unread)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Error::file(path, "is no text in UTF-8; one prompt a line is meant"))?;
    let prompts = parse(&text);
    if prompts.is_empty() {
        return Err(Error::file(
            path,
            "holds no prompt; write one a line, for example: portrait of a person, oil painting",
        ));
    }
    if prompts.len() > MOST {
        return Err(Error::file(path, format!("holds {} prompts; at most {MOST} are read", prompts.len())));
    }
    let twice = prompts.iter().enumerate().find(|(i, p)| prompts[..*i].iter().any(|before| before.text == p.text));
    match twice {
        Some((_, prompt)) => Err(Error::file(path, format!("holds a prompt twice: {}", prompt.text))),
        None => Ok(prompts),
    }
}

fn parse(text: &str) -> Vec<Prompt> {
    let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines().map(str::trim);
    let prompts = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let one = |line: &str| match line.split_once('\t') {
        Some((category, text)) if !category.trim().is_empty() && !text.trim().is_empty() => {
            Prompt { text: text.trim().to_owned(), category: Some(category.trim().to_owned()) }
        }
        _ => Prompt { text: line.to_owned(), category: None },
    };
    prompts.map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_prompts_with_or_without_a_category() {
        let prompts = parse("\u{feff}# mine\n\n a lake \nstyle\ta fox, ink\r\n");
        let one = |text: &str, category: Option<&str>| Prompt { text: text.into(), category: category.map(Into::into) };
        assert_eq!(prompts, [one("a lake", None), one("a fox, ink", Some("style"))]);
    }

    #[test]
    fn the_default_list_is_the_paper_s_prompt_and_ours() {
        let prompts = default_prompts();
        assert_eq!(prompts[0].text, "portrait, color, cinematic, in garden, soft light, detailed face");
        assert!(prompts.len() > 8 && prompts.iter().all(|p| p.category.is_some()));
    }

    #[test]
    fn files_without_a_prompt_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |bytes: &[u8]| {
            let path = folder.path().join("prompts.txt");
            std::fs::write(&path, bytes).unwrap();
            read_prompts(&path).unwrap_err().to_string()
        };
        assert!(refusal(b"# nothing\n\n").contains("holds no prompt"));
        assert!(refusal(b"a\nb\na\n").contains("twice: a"));
        assert!(refusal(&[0xff, 0xfe, 0x00]).contains("no text"));
        assert!(read_prompts(&folder.path().join("none")).is_err());
    }
}
