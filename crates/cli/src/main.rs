//! The `pulid` command: a thin shell around the library.

#[macro_use]
mod output;
mod commands;
mod progress;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use pulid_tensor::Error;
use std::process::ExitCode;

/// Images of a person from a photo and a prompt, on any GPU.
#[derive(Parser)]
#[command(name = "pulid", version, arg_required_else_help = true)]
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
    /// List the faces of a photo
    Faces(commands::faces::Args),
    /// Run one network alone on tensors from a file
    Run(commands::run::Args),
    /// Say what a weights file is and holds, without reading the weights
    Inspect(commands::inspect::Args),
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

fn main() -> ExitCode {
    let mut command = Cli::command();
    let matches = command.get_matches_mut();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit());
    let result = match cli.command {
        Command::Generate(args) => commands::generate::run(&args),
        Command::Embed(args) => commands::embed::run(&args),
        Command::Faces(args) => commands::faces::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Pull(args) => commands::pull::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Conformance(args) => commands::conformance::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Cancelled) => {
            note!("cancelled; nothing was written");
            ExitCode::from(130)
        }
        Err(error) => {
            let running = matches.subcommand_name().and_then(|name| command.find_subcommand(name)).unwrap_or(&command);
            note!("error: {}", commands::with_flags(&error, running));
            // 2: something the user gave (a flag, a photo, a file) cannot be used; 1: the machine failed.
            let own = matches!(
                error,
                Error::Device(_) | Error::OutOfMemory(_) | Error::NotFinite { .. } | Error::Network { .. }
            );
            ExitCode::from(if own { 1 } else { 2 })
        }
    }
}
