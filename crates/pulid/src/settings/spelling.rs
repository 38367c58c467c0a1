//! Settings' names as the command line, JavaScript and JSON have them.

use pulid_tensor::Error;

/// How a surface spells a setting's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// `id_scale`: Rust, files and the library's messages.
    Snake,
    /// `id-scale`: the page's links and fields.
    Kebab,
    /// `--id-scale`: the command line.
    Flag,
    /// `idScale`: JavaScript.
    Camel,
}

impl Spelling {
    /// A name that is in snake case.
    pub fn of(self, name: &str) -> String {
        match self {
            Spelling::Snake => name.to_owned(),
            Spelling::Kebab => name.replace('_', "-"),
            Spelling::Flag => format!("--{}", name.replace('_', "-")),
            Spelling::Camel => {
                let mut words = name.split('_');
                let first = words.next().unwrap_or_default().to_owned();
                words.fold(first, |name, word| {
                    let (initial, rest) = word.split_at(word.len().min(1));
                    name + &initial.to_ascii_uppercase() + rest
                })
            }
        }
    }
}

/// An error's message with these names of settings as a surface spells them: what an [`Error::Invalid`] is about, and whatever stands
/// in backticks. Other errors begin with a file, a network or a device, which may be called like a setting.
pub fn respell<'a>(error: &Error, names: impl IntoIterator<Item = &'a str>, spelling: Spelling) -> String {
    let names: Vec<_> = names.into_iter().collect();
    let message = match error {
        Error::Invalid { what, detail } if names.contains(&what.as_str()) => format!("{}: {detail}", spelling.of(what)),
        other => other.to_string(),
    };
    respell_text(message, names, spelling)
}

/// A note with whatever of these names stands in backticks as a surface spells it.
pub fn respell_text<'a>(text: String, names: impl IntoIterator<Item = &'a str>, spelling: Spelling) -> String {
    names.into_iter().fold(text, |text, name| text.replace(&format!("`{name}`"), &format!("`{}`", spelling.of(name))))
}
