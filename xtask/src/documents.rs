//! What documents and workflows refer to is there: files that links name, and commands of `cargo xtask`.

use crate::{HELP, Outcome, root};
use std::path::{Path, PathBuf};

/// Folders whose documents and workflows are looked at, without the folders in them.
const FOLDERS: [&str; 10] = [
    ".",
    ".ci",
    ".github",
    ".github/workflows",
    "docs",
    "examples",
    "models/mini",
    "tests/goldens",
    "tools/gpu/lab",
    "web/pulid",
];

pub fn check() -> Outcome {
    println!("checking that links and commands in documents and workflows lead somewhere");
    let mut lost = Vec::new();
    for path in FOLDERS.iter().flat_map(|folder| texts(&root().join(folder))) {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let place = path.strip_prefix(root()).unwrap_or(&path).display();
        lost.extend(unknown_commands(&text).map(|command| format!("{place}: there is no `cargo xtask {command}`")));
        if path.extension().is_some_and(|e| e == "md") {
            let folder = path.parent().unwrap_or(Path::new("."));
            lost.extend(
                links(&text)
                    .filter(|link| !folder.join(link).exists())
                    .map(|link| format!("{place}: there is no {link}")),
            );
        }
    }
    if lost.is_empty() { Ok(()) } else { Err(lost.join("; ")) }
}

/// Documents, workflows and CI's script in a folder.
fn texts(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let is_text = |p: &PathBuf| match p.extension() {
        Some(extension) => ["md", "yml"].iter().any(|known| extension == *known),
        None => p.file_name().is_some_and(|name| name == "run"),
    };
    entries.filter(|p| p.is_file()).filter(is_text).collect()
}

/// What follows `cargo xtask` where it is no command that the help lists.
fn unknown_commands(text: &str) -> impl Iterator<Item = &str> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
    let named =
        text.split("cargo xtask ").skip(1).map(move |rest| &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())]);
    let known = |name: &str| {
        HELP.lines().any(|line| line.strip_prefix("  ").is_some_and(|l| l.split(' ').next() == Some(name)))
    };
    named.filter(move |name| !name.is_empty() && !known(name))
}

/// The files that a document links to, without the places in them.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let targets = targets.filter(|t| !t.contains(':')).filter_map(|t| t.split('#').next());
    targets.filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_command_is_found() {
        let text = "`cargo xtask check`, cargo xtask COMMAND\n      - run: cargo xtask export-conformance DIR\ncargo xtask chek";
        assert_eq!(unknown_commands(text).collect::<Vec<_>>(), ["chek"]);
    }

    #[test]
    fn links_are_files_here() {
        let text = "[a](docs/a.md#part) ![b](b.png \"title\") [c](https://example.org/c.md) [d](#here) [e](mailto:e@f)";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "b.png"]);
    }

    #[test]
    fn documents_and_workflows_lead_somewhere() {
        check().unwrap();
    }
}
