//! What is added to a message so that it helps: which flag named a file, what `-` stands for, how a prompt is given.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command};
use pulid_tensor::Error;
use std::io;
use std::path::Path;

/// The name of the standard streams.
const STREAM: &str = "-";

/// An error's `text` with the flag that named the file it is about, and with the standard streams called by their names.
pub fn of_error(error: &Error, text: String, running: &Command, given: Option<&ArgMatches>) -> String {
    let missing = |source: &io::Error| source.kind() == io::ErrorKind::NotFound;
    match error {
        Error::Io { path, source } if path == Path::new(STREAM) && missing(source) => not_read(),
        Error::Photo { name, .. } if name == STREAM => not_read(),
        Error::Io { path, .. } | Error::File { path, .. } if path == Path::new(STREAM) => {
            text.replacen(STREAM, "standard output", 1)
        }
        Error::Io { path, .. } => match naming(path, running, given) {
            Some(flag) => format!("{text}; `--{flag}` names it"),
            None => text,
        },
        _ => text,
    }
}

fn not_read() -> String {
    "standard input (`-`) is not read; name a file, or give one of that very name as ./-".into()
}

/// The flag of the running command whose value is this path.
fn naming<'c>(path: &Path, running: &'c Command, given: Option<&ArgMatches>) -> Option<&'c str> {
    let given = given?;
    let names = |id: &str| {
        let values = given.try_get_raw(id).ok().flatten();
        values.is_some_and(|mut values| values.any(|value| Path::new(value) == path))
    };
    running.get_arguments().filter(|arg| names(arg.get_id().as_str())).find_map(clap::Arg::get_long)
}

/// Adds to clap's error how a prompt is given, where that is what went wrong.
pub fn of_usage(error: &mut clap::Error, running: Option<&Command>) {
    let takes_prompt = running.is_some_and(|command| command.get_arguments().any(|arg| arg.get_id() == "prompt"));
    let about = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.clone(),
        _ => return,
    };
    let empty = matches!(error.get(ContextKind::InvalidValue), None | Some(ContextValue::None))
        || matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(value)) if value.is_empty());
    let tip = match error.kind() {
        ErrorKind::UnknownArgument if takes_prompt && !about.starts_with('-') => {
            "a prompt of several words stands between quotes: --prompt 'a man with a hat'"
        }
        ErrorKind::InvalidValue if takes_prompt && empty && about.contains("prompt") => {
            "a prompt that begins like a flag is joined by `=`: --prompt='--steps of a stair'"
        }
        _ => return,
    };
    let mut tips = match error.remove(ContextKind::Suggested) {
        Some(ContextValue::StyledStrs(tips)) => tips,
        _ => Vec::new(),
    };
    tips.push(StyledStr::from(tip));
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
}
