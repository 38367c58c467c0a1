//! Starting the program as a person would.

// Every test file uses its own part.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// A path of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The program in `folder`, on the mini models. It sees nothing that somebody has fetched, and no server.
pub fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulid"));
    command.args(arguments).current_dir(folder).env("PULID_MODELS", repository("models/mini"));
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    // Nobody listens there.
    command.env("HF_HOME", folder.join("hf")).env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.env("PULID_GITHUB_ENDPOINT", "http://127.0.0.1:9");
    command
}
