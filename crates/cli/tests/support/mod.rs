//! Starting the program as a person would.

// Every test file uses its own part.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A path of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The program in `folder`, on the mini models. It sees nothing that somebody has fetched or measured, and no server.
pub fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulid"));
    command.args(arguments).current_dir(folder).env("PULID_MODELS", repository("models/mini"));
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    // As over ssh, under sudo and in containers: see `silence_desktop_layer`.
    command.env_remove("XDG_RUNTIME_DIR");
    // Nobody listens there.
    command.env("HF_HOME", folder.join("hf")).env("HF_ENDPOINT", "http://127.0.0.1:9");
    command.env("PULID_GITHUB_ENDPOINT", "http://127.0.0.1:9").env("PULID_CACHE", folder.join("cache"));
    command
}

/// A portrait of `examples/faces`.
pub fn portrait(name: &str) -> String {
    repository("examples/faces").join(name).to_string_lossy().into_owned()
}

/// Runs the program on the device under test, with the same plan every time.
pub fn pulid(folder: &Path, arguments: &[&str]) -> Output {
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    program(folder, arguments).args(["--device", &device, "--autotune", "off"]).output().expect("the program starts")
}

/// Runs what must succeed; gives its standard output.
pub fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = pulid(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must succeed without a word though nobody reads its standard output, as with `| head`.
pub fn succeed_unread(folder: &Path, arguments: &[&str]) {
    let mut command = program(folder, arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
}

/// Runs what must fail: exit code 2, a message on stderr and nothing in the folder but what was there before.
pub fn refuse(folder: &Path, arguments: &[&str]) -> String {
    let before = tree(folder);
    let output = pulid(folder, arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(tree(folder), before, "{arguments:?} left something behind");
    message
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_folder(&path, &target) } else { std::fs::copy(&path, &target).map(drop).unwrap() }
    }
}

/// Every file and folder below a folder, in order, but for the program's own cache.
pub fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in entries.filter(|path| !path.ends_with("cache")) {
        if path.is_dir() {
            found.extend(tree(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}
