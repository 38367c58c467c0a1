//! A full disk: an error that says so, its exit code, and nothing half written.

#![cfg(target_os = "linux")]

mod support;

use pulid_models::golden::Golden;
use std::path::Path;
use std::process::{Command, Output};
use support::{program, repository};

/// Runs the program where files may have no more than a KiB.
fn limited(folder: &Path, arguments: &[&str]) -> Output {
    let own = program(folder, arguments);
    let mut command = Command::new("sh");
    // A write over the limit shall fail, as on a full disk, and not end the process.
    command.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""]).arg(own.get_program());
    command.args(own.get_args()).current_dir(folder);
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // Caches of drivers are written too, and may fail: that is theirs to bear.
    command.env("XDG_CACHE_HOME", folder.join("cache")).output().expect("a shell")
}

/// Everything below a folder but caches.
fn left(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "cache" && name != "hf").collect()
}

#[test]
fn on_a_full_disk_nothing_is_half_written() {
    let unet = repository("tests/goldens/unet/even");
    let inputs = unet.join("inputs.safetensors").to_string_lossy().into_owned();
    let weights = Golden::read(&unet).unwrap().options.weights.to_string_lossy().into_owned();
    // A software driver keeps its memory in files, so that what needs a device runs on the reference.
    let small = ["--width", "64", "--height", "64", "--steps", "1", "--device", "reference"];
    let generate = ["generate", "--prompt", "a person", "--output", "picture.png"];
    let run = ["run", "unet", "--weights", &weights, "--inputs", &inputs, "--outputs", "out.safetensors"];
    let commands: [(&str, Vec<&str>); 4] = [
        ("picture.png", [&generate[..], &small].concat()),
        ("picture.png", [&generate[..], &small, &["--save-latents", "latents.safetensors"]].concat()),
        ("diffusion_pytorch_model", vec!["quantize", "--to", "q8", "--output", "q8"]),
        ("out.safetensors", [&run[..], &["--device", "reference"]].concat()),
    ];
    for (name, arguments) in commands {
        let folder = tempfile::tempdir().unwrap();
        // Less than any of these files.
        let output = limited(folder.path(), &arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {:?} {message}", output.status);
        assert!(message.contains("error:") && message.contains(name), "{arguments:?}: {message}");
        assert!(!message.contains("panicked"), "{arguments:?}: {message}");
        assert_eq!(left(folder.path()), [""; 0], "{arguments:?}");
    }
}
