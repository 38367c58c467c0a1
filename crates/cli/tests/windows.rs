//! What only Windows has: names that it keeps for itself, other spellings of a path, paths longer than 260 characters.
#![cfg(windows)]

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::{portrait, program, pulid, refuse, repository, succeed, succeed_unread};

const GENERATE: [&str; 9] =
    ["generate", "--prompt", "a person, in a garden", "--steps", "1", "--width", "64", "--height", "64"];

fn generate<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [&GENERATE[..], flags].concat()
}

#[test]
fn names_that_windows_would_not_have_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    let ada = portrait("ada.jpg");
    let (device, ends) = ("is a device on Windows", "takes dots and spaces off the end");
    for (name, part) in [
        ("NUL", "`NUL` is a device on Windows"),
        ("nul.png", device),
        ("con.png", device),
        ("aux.jpg", device),
        ("COM1.png", device),
        ("sub/lpt9.webp", device),
        (r"sub\prn.png", device),
        (r"\\.\NUL", "is a device of Windows"),
        ("x.png.", ends),
        ("x.png ", ends),
        ("x.png...", ends),
        ("x.png:stream.png", "may not hold ':'"),
        ("x?.png", "may not hold '?'"),
    ] {
        for arguments in [generate(&["--output", name]), vec!["embed", &ada, "--output", name]] {
            let message = refuse(folder.path(), &arguments);
            assert!(message.contains(&format!("{name}: cannot be written: ")) && message.contains(part), "{message}");
            assert_eq!(message.lines().count(), 1, "{arguments:?}: a stage began: {message}");
        }
    }
    for name in ["aux", r"sub\con.debug", "seen."] {
        let message = refuse(folder.path(), &generate(&["--id", &ada, "--debug-dir", name]));
        assert!(message.contains(&format!("{name}: cannot be made: ")), "{message}");
        assert_eq!(message.lines().count(), 1, "{name}: a stage began: {message}");
    }
}

#[test]
fn an_input_is_known_under_each_spelling() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let at = |name: &str| root.join(name);
    fs::create_dir(at("a folder")).unwrap();
    fs::copy(portrait("ada.jpg"), at("a long name.jpg")).unwrap();
    let verbatim = at("a long name.jpg").to_string_lossy().into_owned();
    assert!(verbatim.starts_with(r"\\?\"), "{verbatim}");
    let absolute = verbatim.trim_start_matches(r"\\?\").to_owned();
    let slashes = absolute.replace('\\', "/");
    let mut names = vec![
        "A Long NAME.jpg",
        r".\a long name.jpg",
        "a folder/../a long name.jpg",
        r"A FOLDER\..\a long name.JPG",
        &verbatim,
        &absolute,
        &slashes,
    ];
    let short = short_name(&root, "a long name.jpg");
    names.extend(short.as_deref());
    for name in names {
        for arguments in [
            generate(&["--id", "a long name.jpg", "--output", name]),
            generate(&["--id", name, "--output", "a long name.jpg"]),
            vec!["embed", "a long name.jpg", "--output", name],
        ] {
            let message = refuse(folder.path(), &arguments);
            assert!(message.contains("is also read, as "), "{arguments:?}: {message}");
        }
    }
    let twice = generate(&["--output", "x.png", "--save-latents", "X.PNG"]);
    assert!(refuse(folder.path(), &twice).contains("is named for two outputs"));
    fs::write(at("an old picture.png"), "old").unwrap();
    if let Some(short) = short_name(&root, "an old picture.png") {
        let twice = generate(&["--output", "an old picture.png", "--save-latents", &short]);
        assert!(refuse(folder.path(), &twice).contains("is named for two outputs"));
        succeed(folder.path(), &generate(&["--output", &short]));
        assert!(image::open(at("an old picture.png")).is_ok(), "it keeps its name");
    }
}

/// A file's name of eight letters and three, where the disk has these.
fn short_name(folder: &Path, name: &str) -> Option<String> {
    let mut shell = Command::new("cmd");
    // Its own kind of folder: the shell knows no verbatim path.
    shell.current_dir(folder.to_string_lossy().trim_start_matches(r"\\?\"));
    shell.args(["/d", "/c", "dir", "/x"]);
    let printed = String::from_utf8_lossy(&shell.output().unwrap().stdout).into_owned();
    let before = printed.lines().find_map(|line| line.trim_end().strip_suffix(name))?;
    before.split_whitespace().last().filter(|short| short.contains('~')).map(str::to_owned)
}

#[test]
fn paths_longer_than_260_characters_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut deep = folder.path().to_owned();
    while deep.as_os_str().len() < 280 {
        deep.push("a folder with a name of some length");
    }
    fs::create_dir_all(&deep).unwrap();
    let at = |name: &str| deep.join(name).to_string_lossy().into_owned();
    let (image, latents, person, seen) = (at("a.png"), at("a.safetensors"), at("ada.safetensors"), at("seen"));
    let printed = succeed(folder.path(), &generate(&["--output", &image, "--save-latents", &latents]));
    assert_eq!(printed.trim_end(), image, "as it was named");
    // Again, over what is there.
    succeed(folder.path(), &generate(&["--output", &image, "--save-latents", &latents]));
    let ada = portrait("ada.jpg");
    succeed(folder.path(), &["embed", &ada, "--output", &person, "--debug-dir", &seen]);
    succeed(folder.path(), &generate(&["--identity", &person, "--output", &image]));
    assert!(image::open(&image).is_ok());
    assert!(Path::new(&latents).is_file() && Path::new(&seen).join("1_crop.png").is_file());
    let mut names: Vec<_> =
        fs::read_dir(&deep).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["a.png", "a.safetensors", "ada.safetensors", "seen"]);
}

#[test]
fn doctor_speaks_of_windows_alone() {
    let folder = tempfile::tempdir().unwrap();
    // What is found beside the program is shown as the others are.
    for models in ["a/b", r"a\b"] {
        let text = pulid_doctor(folder.path(), &["doctor", "--models-dir", models]);
        assert!(!text.contains("apt ") && !text.contains("dnf ") && !text.contains(r"\\?\"), "{text}");
        let mixed = |line: &&str| line.contains('\\') && line.contains('/');
        assert_eq!(text.lines().find(mixed), None);
        assert!(text.contains(r"a\b"), "{text}");
        let json: Value = serde_json::from_str(&pulid_doctor(folder.path(), &["doctor", "--json"])).unwrap();
        for key in ["mini_models", "hub_cache"] {
            let path = json[key].as_str().unwrap();
            assert!(!path.contains('/') && !path.starts_with(r"\\?\"), "{key}: {path}");
        }
    }
}

fn pulid_doctor(folder: &Path, arguments: &[&str]) -> String {
    let output = program(folder, arguments).env("HF_HOME", "C:/a/mixed\\home").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn standard_output_takes_an_image_and_may_be_closed() {
    let folder = tempfile::tempdir().unwrap();
    let output = pulid(folder.path(), &generate(&["--output", "-"]));
    assert!(output.status.success());
    // Line ends in it stay as they are.
    assert!(image::load_from_memory_with_format(&output.stdout, image::ImageFormat::Png).is_ok());
    let weights = repository("models/mini/eva_clip.safetensors").to_string_lossy().into_owned();
    for arguments in [&["inspect", &weights, "--keys"][..], &["devices"], &["--help"]] {
        succeed_unread(folder.path(), arguments);
    }
}
