//! Settings' names as the command line, JavaScript and JSON have them.

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

/// A message of the library's with these names as a surface spells them. In such a message a setting's name is in backticks, or
/// all that comes before the first colon.
pub fn respell<'a>(message: &str, names: impl IntoIterator<Item = &'a str>, spelling: Spelling) -> String {
    let mut message = message.to_owned();
    for name in names {
        let spelled = spelling.of(name);
        message = message.replace(&format!("`{name}`"), &format!("`{spelled}`"));
        if let Some(rest) = message.strip_prefix(name).filter(|rest| rest.starts_with(": ")) {
            message = spelled + rest;
        }
    }
    message
}
