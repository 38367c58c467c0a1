//! The `pulid` command: a thin shell around the library.

#[macro_use]
mod output;
mod commands;
mod hints;
mod progress;

use clap::{Command as Clap, CommandFactory, FromArgMatches, Parser, Subcommand};
use pulid_tensor::Error;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::ExitCode;

/// Images of a person from a photo and a prompt, on any GPU.
#[derive(Parser)]
#[command(
    name = "pulid",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes:\n  \
    0    all was done\n  \
    2    something that was named cannot be used: a flag, its value, a file, a photo, a device, a model\n  \
    1    the work failed: the device, its memory or the budget, the network, the disk, or an output that takes no more\n  \
    130  it was cancelled by Ctrl-C; 143 and 129 by SIGTERM and SIGHUP. Nothing is written then, but for the finished pictures of `evaluate`\n  \
         and the last step of `train`"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an image from a prompt, of a person if an identity is given
    Generate(Box<commands::generate::Args>),
    /// Read a person from photos into a file that `generate --identity` takes
    Embed(commands::embed::Args),
    /// Measure how well adapters keep a person and leave the base model alone
    Evaluate(Box<commands::evaluate::Args>),
    /// List the faces of a photo
    Faces(commands::faces::Args),
    /// Run one network alone on tensors from a file
    Run(commands::run::Args),
    /// Say what a weights file is and holds, without reading the weights
    Inspect(commands::inspect::Args),
    /// Train PuLID's identity encoder and attention on images of people
    Train(Box<commands::train::Args>),
    /// Make a copy of a model with 8-bit or 4-bit weights
    Quantize(commands::quantize::Args),
    /// Fetch the published models into the hub's cache
    Pull(commands::pull::Args),
    /// Say what this machine can do, which models are there and what is missing
    Doctor(commands::doctor::Args),
    /// List the devices that can run shaders
    Devices(commands::devices::Args),
    /// Time every kernel at real network sizes
    Bench(commands::bench::Args),
    /// Hold every kernel to its reference on a device
    Conformance(commands::conformance::Args),
}

/// Something that was named cannot be used.
const UNUSABLE: u8 = 2;
/// The work itself failed.
const FAILED: u8 = 1;

/// Keeps Mesa's layer for desktops out where there is no desktop: it looks for a Wayland display to order the devices by, and
/// libwayland then says `error: XDG_RUNTIME_DIR is invalid or not set` on the standard error of every command (over ssh, under
/// sudo, in containers). The engine ranks devices by itself; who chooses by the layer's own variables keeps it.
fn silence_desktop_layer() {
    let unset = |name: &&str| std::env::var_os(name).is_none();
    if ["XDG_RUNTIME_DIR", "MESA_VK_DEVICE_SELECT", "DRI_PRIME", "NODEVICE_SELECT"].iter().all(unset) {
        // SAFETY: the program has one thread, nothing else reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

fn main() -> ExitCode {
    silence_desktop_layer();
    let mut command = Cli::command();
    // Flags that are global or made later are known only then.
    command.build();
    let arguments = join_dashes(std::env::args_os().collect(), &command);
    let named = arguments.get(1).cloned();
    let parsed =
        command.try_get_matches_from_mut(arguments).and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(mut error) => {
            let running = named.as_ref().and_then(|name| command.find_subcommand(name));
            hints::of_usage(&mut error, running);
            return said(error.format(&mut command));
        }
    };
    let result = match cli.command {
        Command::Generate(args) => commands::generate::run(&args),
        Command::Embed(args) => commands::embed::run(&args),
        Command::Evaluate(args) => commands::evaluate::run(&args),
        Command::Faces(args) => commands::faces::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Pull(args) => commands::pull::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Conformance(args) => commands::conformance::run(&args),
    };
    let code = match result {
        Ok(()) => 0,
        Err(Error::Cancelled) => {
            note!("cancelled; {}", progress::kept_word().unwrap_or("nothing was written"));
            progress::cancelled_code()
        }
        Err(error) => {
            let running = matches.subcommand_name().and_then(|name| command.find_subcommand(name)).unwrap_or(&command);
            let given = matches.subcommand().map(|(_, given)| given);
            let text = commands::with_flags(&error, running);
            note!("error: {}", hints::of_error(&error, text, running, given));
            code(&error)
        }
    };
    match output::refusal() {
        Some(refusal) => {
            note!("error: standard output took not all that was to be said: {refusal}");
            ExitCode::from(if code == 0 { FAILED } else { code })
        }
        None => ExitCode::from(code),
    }
}

/// The exit code of an error; `pulid --help` explains them.
fn code(error: &Error) -> u8 {
    use ErrorKind::{BrokenPipe, FileTooLarge, QuotaExceeded, StorageFull, TimedOut, WriteZero};
    match error {
        Error::Device(_) | Error::OutOfMemory(_) | Error::NotFinite { .. } | Error::Network { .. } => FAILED,
        Error::Io { source, .. }
            if matches!(
                source.kind(),
                BrokenPipe | FileTooLarge | QuotaExceeded | StorageFull | TimedOut | WriteZero
            ) =>
        {
            FAILED
        }
        _ => UNUSABLE,
    }
}

/// Prints what clap has to say: what is wrong with the arguments, the help, or the version.
fn said(error: clap::Error) -> ExitCode {
    let printed = error.print();
    match printed {
        // What is wrong with the arguments stays wrong where nobody can be told.
        _ if error.use_stderr() => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(UNUSABLE)),
        Err(refusal) if refusal.kind() != ErrorKind::BrokenPipe => {
            note!("error: standard output took not all that was to be said: {refusal}");
            ExitCode::from(FAILED)
        }
        _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(UNUSABLE)),
    }
}

/// Joins a value to its flag by `=` where it begins with a dash and is none of the command's flags: `--prompt -x` and `--memory -1` can
/// then mean nothing else. Two dashes begin a text, and elsewhere a flag that is spelt wrongly.
fn join_dashes(arguments: Vec<OsString>, command: &Clap) -> Vec<OsString> {
    const TEXTS: [&str; 2] = ["--prompt", "--negative-prompt"];
    let running = arguments.get(1).and_then(|name| command.find_subcommand(name));
    let Some(running) = running else { return arguments };
    let is_flag = |text: &str| {
        let long = text.strip_prefix("--").map(|name| name.split_once('=').map_or(name, |(name, _)| name));
        let known = |flag: &clap::Arg| match long {
            // `--` alone ends the flags.
            Some("") => true,
            Some(name) => flag.get_long_and_visible_aliases().is_some_and(|names| names.contains(&name)),
            None => flag.get_short().is_some_and(|short| text.chars().nth(1) == Some(short)),
        };
        running.get_arguments().any(known)
    };
    let takes_one = |flag: &str| {
        let named = |arg: &&clap::Arg| flag.strip_prefix("--").is_some_and(|name| arg.get_long() == Some(name));
        let values = running.get_arguments().find(named).and_then(clap::Arg::get_num_args);
        values.is_some_and(|values| values.takes_values() && values.max_values() == 1)
    };
    let mut joined: Vec<OsString> = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let text = argument.to_string_lossy();
        let after = joined.last().filter(|last| {
            TEXTS.iter().any(|flag| *last == flag) || (!text.starts_with("--") && takes_one(&last.to_string_lossy()))
        });
        match after {
            Some(flag) if text.len() > 1 && text.starts_with('-') && !is_flag(&text) => {
                let mut pair = flag.clone();
                pair.push("=");
                pair.push(&argument);
                joined.pop();
                joined.push(pair);
            }
            _ => joined.push(argument),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_may_begin_with_a_dash_and_flags_stay_flags() {
        let mut command = Cli::command();
        command.build();
        let join = |text: &str| {
            let arguments = text.split(' ').map(OsString::from).collect();
            let joined = join_dashes(arguments, &command).into_iter().map(|a| a.into_string().unwrap());
            joined.collect::<Vec<_>>().join(" ")
        };
        for (given, joined) in [
            ("pulid generate --prompt -x --steps 1", "pulid generate --prompt=-x --steps 1"),
            ("pulid generate --prompt -1girl", "pulid generate --prompt=-1girl"),
            ("pulid generate --prompt --a--", "pulid generate --prompt=--a--"),
            ("pulid generate --negative-prompt -hat", "pulid generate --negative-prompt -hat"),
            ("pulid generate --negative-prompt -no", "pulid generate --negative-prompt=-no"),
            ("pulid generate --prompt --steps 1", "pulid generate --prompt --steps 1"),
            ("pulid generate --prompt --steps=1", "pulid generate --prompt --steps=1"),
            ("pulid generate --prompt --id a.jpg", "pulid generate --prompt --id a.jpg"),
            ("pulid generate --prompt x -y", "pulid generate --prompt x -y"),
            ("pulid generate --output -", "pulid generate --output -"),
            ("pulid generate --output -x.png --face -1", "pulid generate --output=-x.png --face=-1"),
            ("pulid faces --memory -1 -h", "pulid faces --memory=-1 -h"),
            ("pulid generate --output --jsn", "pulid generate --output --jsn"),
            ("pulid generate --json -1", "pulid generate --json -1"),
        ] {
            assert_eq!(join(given), joined);
        }
    }

    #[test]
    fn exit_codes_tell_what_was_named_from_what_failed() {
        let io = |kind: ErrorKind| code(&Error::io("x", kind.into()));
        assert_eq!((io(ErrorKind::NotFound), io(ErrorKind::PermissionDenied)), (UNUSABLE, UNUSABLE));
        assert_eq!((io(ErrorKind::StorageFull), io(ErrorKind::BrokenPipe)), (FAILED, FAILED));
        assert_eq!((code(&Error::invalid("device", "x")), code(&Error::Device("lost".into()))), (UNUSABLE, FAILED));
    }
}
