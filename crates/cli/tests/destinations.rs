//! Where outputs go: never over what is read, through links, into pipes and standard output, in the format that a name asks for.

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::process::Stdio;
use support::{portrait, program, pulid, refuse, repository, succeed, succeed_unread, tree};

const GENERATE: [&str; 9] =
    ["generate", "--prompt", "a person, in a garden", "--steps", "1", "--width", "64", "--height", "64"];

/// Every file of a folder with its bytes.
fn contents(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    tree(folder).into_iter().filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn no_output_takes_the_place_of_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("seen")).unwrap();
    for name in ["me.jpg", "x-1.png", "seen/1_crop.png", "Photo.PNG"] {
        fs::copy(portrait("ada.jpg"), at(name)).unwrap();
    }
    fs::hard_link(at("me.jpg"), at("hard.jpg")).unwrap();
    fs::copy(repository("tests/goldens/pipeline/model/identity.safetensors"), at("me.safetensors")).unwrap();
    fs::copy(repository("models/mini/pulid_v1.1.safetensors"), at("adapter.safetensors")).unwrap();
    for part in ["model", "model/unet"] {
        fs::create_dir(at(part)).unwrap();
    }
    let unet = "unet/diffusion_pytorch_model.safetensors";
    fs::copy(repository("models/mini/sdxl").join(unet), at("model").join(unet)).unwrap();
    let weights = format!("model/{unet}");
    let here = folder.path().to_string_lossy().into_owned();
    let absolute = format!("{here}/seen/../me.jpg");
    let generate = |flags: &[&str]| [&GENERATE[..], flags].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let mut cases = vec![
        (generate(&["--id", "me.jpg", "--output", "me.jpg"]), "me.jpg"),
        (generate(&["--id", "me.jpg", "--output", "./me.jpg"]), "./me.jpg"),
        (generate(&["--id", "me.jpg", "--output", &absolute]), "seen/../me.jpg"),
        (generate(&["--id", &absolute, "--output", "me.jpg"]), "me.jpg"),
        (generate(&["--id", "me.jpg", "--output", "hard.jpg"]), "hard.jpg"),
        (generate(&["--id", "x-1.png", "--output", "x.png", "--batch", "2"]), "x-1.png"),
        (generate(&["--id", "seen/1_crop.png", "--debug-dir", "seen"]), "seen/1_crop.png"),
        (generate(&["--identity", "me.safetensors", "--save-latents", "me.safetensors"]), "me.safetensors"),
        (
            generate(&["--adapter", "adapter.safetensors", "--save-latents", "adapter.safetensors"]),
            "adapter.safetensors",
        ),
        (generate(&["--unet", "model/unet", "--save-latents", &weights]), "diffusion_pytorch_model"),
        (words(&["embed", "me.jpg", "Photo.PNG", "--output", "Photo.PNG"]), "Photo.PNG"),
        (words(&["embed", "me.jpg", "--adapter", "adapter.safetensors", "--output", "adapter.safetensors"]), "adapter"),
        (words(&["run", "unet", "--weights", "model/unet", "--outputs", &weights]), "diffusion_pytorch_model"),
        (
            words(&["run", "unet", "--weights", "x", "--inputs", "me.safetensors", "--outputs", "me.safetensors"]),
            "me.safetensors",
        ),
        (words(&["run", "unet", "--weights", &weights, "--outputs", "y", "--dump-plan", &weights]), "model/unet"),
        (words(&["conformance", "--summarise", "me.safetensors", "--output", "me.safetensors"]), "me.safetensors"),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("me.jpg", at("soft.jpg")).unwrap();
        std::os::unix::fs::symlink(".", at("here")).unwrap();
        cases.push((generate(&["--id", "me.jpg", "--output", "soft.jpg"]), "soft.jpg"));
        cases.push((generate(&["--id", "soft.jpg", "--output", "here/here/hard.jpg"]), "hard.jpg"));
    }
    if at("photo.png").exists() {
        cases.push((generate(&["--id", "Photo.PNG", "--output", "photo.png"]), "photo.png"));
    }
    let before = contents(folder.path());
    for (arguments, output) in cases {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let message = match arguments[0] {
            // It has no device to name.
            "conformance" => {
                let refused = program(folder.path(), &arguments).output().unwrap();
                assert_eq!(refused.status.code(), Some(2));
                String::from_utf8(refused.stderr).unwrap()
            }
            _ => refuse(folder.path(), &arguments),
        };
        assert!(message.contains("is also read, as ") && message.contains(output), "{arguments:?}: {message}");
        assert!(!message.contains(" ...\n"), "{arguments:?}: a stage began: {message}");
        assert!(contents(folder.path()) == before, "{arguments:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_output_goes_through_a_descriptor_over_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(portrait("ada.jpg"), at("me.jpg")).unwrap();
    let before = contents(folder.path());
    let generate = |output: &'static str| [&GENERATE[..], &["--id", "me.jpg", "--output", output]].concat();
    for arguments in [
        generate("-"),
        generate("/dev/stdout"),
        generate("/proc/self/fd/0"),
        generate("/dev/fd/0"),
        [&GENERATE[..], &["--id", "me.jpg", "--save-latents", "-"]].concat(),
        vec!["embed", "me.jpg", "--output", "-"],
    ] {
        let open = || fs::OpenOptions::new().read(true).append(true).open(at("me.jpg")).unwrap();
        let output = program(folder.path(), &arguments).stdin(open()).stdout(open()).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains("is also read, as me.jpg"), "{arguments:?}: {message}");
        assert!(contents(folder.path()) == before, "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/old.png"), "old").unwrap();
    std::os::unix::fs::symlink("sub/old.png", at("a.png")).unwrap();
    std::os::unix::fs::symlink("sub/new.safetensors", at("b.safetensors")).unwrap();
    succeed(folder.path(), &[&GENERATE[..], &["--output", "a.png", "--save-latents", "b.safetensors"]].concat());
    assert!(at("a.png").is_symlink() && at("b.safetensors").is_symlink());
    assert!(image::open(at("sub/old.png")).is_ok(), "the link's target was written");
    assert!(!at("sub/old.png").is_symlink() && at("sub/new.safetensors").is_file());
    let names: Vec<_> = tree(&at("sub")).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["new.safetensors", "old.png"]);
}

#[cfg(unix)]
#[test]
fn a_link_holds_what_its_target_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (link, target, format) in [
        ("a.png", "a.jpg", image::ImageFormat::Jpeg),
        ("b.jpg", "b.webp", image::ImageFormat::WebP),
        // What is called nothing is what the link says.
        ("c.webp", "c", image::ImageFormat::WebP),
    ] {
        std::os::unix::fs::symlink(target, at(link)).unwrap();
        succeed(folder.path(), &[&GENERATE[..], &["--output", link]].concat());
        assert!(at(link).is_symlink());
        assert_eq!(image::guess_format(&fs::read(at(target)).unwrap()).unwrap(), format, "{link}");
    }
}

#[test]
fn a_file_s_other_names_keep_what_they_had() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a.png"), "old").unwrap();
    fs::hard_link(at("a.png"), at("b.png")).unwrap();
    succeed(folder.path(), &[&GENERATE[..], &["--output", "a.png"]].concat());
    assert!(image::open(at("a.png")).is_ok());
    assert_eq!(fs::read(at("b.png")).unwrap(), b"old");
}

#[cfg(unix)]
#[test]
fn a_closed_standard_output_takes_no_image() {
    let folder = tempfile::tempdir().unwrap();
    let shell = |name: &str, redirection: &str| {
        let program = program(folder.path(), &[&GENERATE[..], &["--output", name]].concat());
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!(r#""$@" {redirection}"#), "sh"]).arg(program.get_program());
        command.args(program.get_args()).current_dir(folder.path());
        program.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(command.env(name, value)),
            None => drop(command.env_remove(name)),
        });
        command.output().unwrap()
    };
    for name in ["-", "/dev/stdout"] {
        let output = shell(name, ">&-");
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("is closed: what is written there is lost"), "{message}");
        assert!(!message.contains(" ...\n"), "a stage began: {message}");
    }
    // Who sends it away means it, for writing alone or, as Python, Node and daemons do, for reading too.
    for redirection in [">/dev/null", "1<>/dev/null"] {
        let output = shell("-", redirection);
        assert!(output.status.success(), "{redirection}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn nothing_is_printed_into_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let photo = folder.path().join("me.jpg");
    let weights = folder.path().join("vae.safetensors");
    fs::copy(repository("tests/goldens/photos/astronaut.png"), &photo).unwrap();
    fs::write(&weights, "no weights").unwrap();
    for (arguments, input) in [
        (&["faces", "me.jpg", "--json"][..], &photo),
        (&["inspect", "vae.safetensors"], &weights),
        (&["embed", "me.jpg", "--output", "me.safetensors"], &photo),
        (&[&GENERATE[..], &["--id", "me.jpg", "--output", "a.png", "--json"]].concat(), &photo),
    ] {
        let before = fs::read(input).unwrap();
        // As `1<>me.jpg`, and `>>me.jpg`.
        let mut options = fs::OpenOptions::new();
        for options in [options.read(true).write(true).clone(), options.append(true).clone()] {
            let output = program(folder.path(), arguments).stdout(options.open(input).unwrap()).output().unwrap();
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
            assert!(message.contains("standard output: is also read, as "), "{arguments:?}: {message}");
            assert!(fs::read(input).unwrap() == before, "{arguments:?} wrote");
        }
    }
}

#[test]
fn nothing_new_becomes_a_part_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for path in tree(&repository("tests/goldens/pipeline/model")).into_iter().filter(|path| path.is_file()) {
        let to = at("model").join(path.strip_prefix(repository("tests/goldens/pipeline/model")).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(&path, to).unwrap();
    }
    fs::copy(repository("tests/goldens/single-file/sdxl.safetensors"), at("whole.safetensors")).unwrap();
    let model = ["--model", "model", "--output", "a.png"];
    for name in ["model/new.json", "model/unet/latents.safetensors"] {
        let message = refuse(folder.path(), &[&GENERATE[..], &model, &["--save-latents", name]].concat());
        assert!(message.contains(&format!("{name}: would lie in the folder model")), "{message}");
    }
    let single = ["--model", "whole.safetensors", "--config", "model", "--output", "a.png"];
    let message = refuse(
        folder.path(),
        &[&GENERATE[..], &single, &["--save-latents", "model/generation_defaults.json"]].concat(),
    );
    assert!(message.contains("generation_defaults.json"), "{message}");
    succeed(folder.path(), &[&GENERATE[..], &["--model", "model", "--output", "model/new.png"]].concat());
}

#[test]
fn standard_output_takes_one_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let output = pulid(folder.path(), &[&GENERATE[..], &["--output", "-"]].concat());
    assert!(output.status.success());
    let image = image::load_from_memory_with_format(&output.stdout, image::ImageFormat::Png).unwrap();
    assert_eq!(image.to_rgb8().dimensions(), (64, 64));
    assert!(output.stdout.ends_with(b"IEND\xaeB\x60\x82"), "nothing follows the image");
    let latents = ["--output", "a.png", "--save-latents", "-"];
    let latents = pulid(folder.path(), &[&GENERATE[..], &latents].concat()).stdout;
    fs::write(folder.path().join("latents"), &latents).unwrap();
    let read = pulid_checkpoint::Checkpoint::open(folder.path().join("latents")).unwrap();
    assert_eq!(read.keys().collect::<Vec<_>>(), ["latents"]);
    for (flags, part) in [
        (&["--output", "-", "--json"][..], "--json: the report would go into the file on standard output"),
        (&["--output", "a.png", "--save-latents", "-", "--json"], "--json"),
        (&["--output", "-", "--batch", "2"], "takes one image, not the 2 of a batch"),
        (&["--output", "-", "--save-latents", "-"], "standard output: is named for two outputs"),
    ] {
        let message = refuse(folder.path(), &[&GENERATE[..], flags].concat());
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = refuse(folder.path(), &["embed", &portrait("ada.jpg"), "--output", "-", "--json"]);
    assert!(message.contains("--json"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn devices_pipes_and_descriptors_are_written_and_stay() {
    use std::os::unix::fs::FileTypeExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // As a person's own, so that nothing of the machine's is lost if this went wrong.
    std::os::unix::fs::symlink("/dev/stdout", at("out.png")).unwrap();
    fs::write(at("log"), "before\n").unwrap();
    let log = fs::OpenOptions::new().append(true).open(at("log")).unwrap();
    let image = [&GENERATE[..], &["--output", "out.png", "--autotune", "off"]].concat();
    assert!(program(folder.path(), &image).stdout(log).stderr(Stdio::null()).status().unwrap().success());
    let written = fs::read(at("log")).unwrap();
    let png = written.strip_prefix(b"before\n").expect("what the file held stays");
    assert!(image::load_from_memory_with_format(png, image::ImageFormat::Png).is_ok());
    assert!(at("out.png").is_symlink());

    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = at("pipe");
        move || fs::read(pipe).unwrap()
    });
    assert_eq!(succeed(folder.path(), &[&GENERATE[..], &["--output", "pipe"]].concat()), "pipe\n");
    assert!(image::load_from_memory_with_format(&reader.join().unwrap(), image::ImageFormat::Png).is_ok());
    assert!(at("pipe").symlink_metadata().unwrap().file_type().is_fifo());

    succeed(folder.path(), &[&GENERATE[..], &["--output", "/dev/null", "--save-latents", "/dev/null"]].concat());
    let message = refuse(folder.path(), &[&GENERATE[..], &["--output", "/dev/null", "--batch", "2"]].concat());
    assert!(message.contains("/dev/null: takes one image"), "{message}");
    // What is full fails, and takes the other outputs with it.
    let full = pulid(
        folder.path(),
        &[&GENERATE[..], &["--output", "/dev/full", "--save-latents", "kept.safetensors"]].concat(),
    );
    let message = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{message}");
    assert!(message.contains("error: /dev/full: "), "{message}");
    assert!(!at("kept.safetensors").exists());
    for (device, number) in [("/dev/null", 3), ("/dev/full", 7)] {
        let found = fs::symlink_metadata(device).unwrap();
        let device_number = std::os::unix::fs::MetadataExt::rdev(&found);
        assert!(found.file_type().is_char_device() && device_number & 0xff == number, "{device}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_an_error_and_a_closed_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let ada = portrait("ada.jpg");
    let weights = repository("models/mini/eva_clip.safetensors").to_string_lossy().into_owned();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let generate = [&GENERATE[..], &["--output", "a.png", "--json", "--autotune", "off"]].concat();
    for arguments in [
        &["faces", &ada, "--json"][..],
        &generate,
        &["doctor"],
        &["doctor", "--json"],
        &["devices"],
        &["inspect", &weights],
        &["inspect", &weights, "--keys", "--json"],
        &["conformance", "--list"],
        &["--help"],
        &["--version"],
        &["generate", "--help"],
    ] {
        let output = program(folder.path(), arguments).stdout(full()).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.contains("standard output") && message.contains("No space left"), "{arguments:?}: {message}");
    }
    // Nobody reads on, as with `| head`.
    for arguments in [&["inspect", &weights, "--keys"][..], &["devices"], &["--help"]] {
        succeed_unread(folder.path(), arguments);
    }
}

#[test]
fn a_name_tells_the_format() {
    use image::ImageFormat::{Jpeg, Png, WebP};
    let folder = tempfile::tempdir().unwrap();
    let make = |output: &str, more: &[&str]| {
        succeed(folder.path(), &[&GENERATE[..], &["--seed", "5", "--output", output], more].concat())
    };
    let mut parameters = Vec::new();
    let mut pixels = Vec::new();
    for (name, format) in [("a.png", Png), ("a.JPG", Jpeg), ("b.jpeg", Jpeg), ("a.webp", WebP)] {
        assert_eq!(make(name, &[]), format!("{name}\n"));
        let bytes = fs::read(folder.path().join(name)).unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap(), format, "{name}");
        pixels.push((name, image::load_from_memory(&bytes).unwrap().to_rgb8()));
        let found = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(found("digitalsourcetype/trainedAlgorithmicMedia"), "{name}");
        parameters.push((name, found("a person, in a garden"), utf16(&bytes)));
    }
    // As text in PNG, and where A1111's web UI has it in the others.
    let expected = "UNICODE\0a person, in a garden\nSteps: 1, Sampler: ";
    for (name, plain, comment) in parameters {
        assert_eq!(plain, name == "a.png", "{name}");
        assert_eq!(comment.starts_with(expected), name != "a.png", "{name}: {comment}");
        assert_eq!(comment.contains("Seed: 5, Size: 64x64"), name != "a.png", "{name}: {comment}");
    }
    let first = pixels[0].1.clone();
    for (name, other) in pixels {
        let most = first.as_raw().iter().zip(other.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let limit = if name.to_lowercase().contains(".jp") { 40 } else { 0 };
        assert!(most <= limit, "{name}: {most}");
    }
    make("c.jpg", &["--no-metadata"]);
    assert_eq!(utf16(&fs::read(folder.path().join("c.jpg")).unwrap()), "");
    assert_eq!(make("d.jpg", &["--batch", "2"]), "d-0.jpg\nd-1.jpg\n");
    for name in ["d-0.jpg", "d-1.jpg"] {
        assert_eq!(image::guess_format(&fs::read(folder.path().join(name)).unwrap()).unwrap(), Jpeg);
    }
    for name in ["x.gif", "x.tiff", "x.avif", "x", "x.png.old"] {
        let message = refuse(folder.path(), &[&GENERATE[..], &["--output", name]].concat());
        assert!(
            message.contains(&format!("{name}: ")) && message.contains("name it .png, .jpg or .webp")
                || message.contains("Name it .png"),
            "{message}"
        );
        assert!(!message.contains(" ...\n"), "{name}: a stage began");
    }
    // Few tokens and many bytes. Windows' command lines end before that.
    if cfg!(windows) {
        return;
    }
    let long = format!("a long{}prompt", " ".repeat(70_000));
    let message = refuse(folder.path(), &["generate", "--prompt", &long, "--output", "x.jpg"]);
    assert!(message.contains("64 KiB") && message.contains(".png"), "{message}");
}

/// What follows `UNICODE` and a zero as UTF-16BE, with that word before it.
fn utf16(bytes: &[u8]) -> String {
    let Some(at) = bytes.windows(8).position(|part| part == b"UNICODE\0") else { return String::new() };
    let units = bytes[at + 8..].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let text: Vec<u16> = units.take_while(|unit| (9..0x7f).contains(unit)).collect();
    format!("UNICODE\0{}", String::from_utf16(&text).unwrap())
}

#[test]
fn a_quantised_copy_is_made_with_the_same_settings() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // A model of a person's own: defaults above it, other weights and small files in it.
    let mini = repository("models/mini");
    let own = at("own/sdxl");
    for path in tree(&mini.join("sdxl")) {
        let to = own.join(path.strip_prefix(mini.join("sdxl")).unwrap());
        if path.is_dir() {
            fs::create_dir_all(&to).unwrap();
        } else {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&path, &to).unwrap();
        }
    }
    fs::write(at("own/generation_defaults.json"), r#"{"width": 64, "height": 64, "steps": 2, "guidance_scale": 1.5}"#)
        .unwrap();
    fs::create_dir_all(own.join("feature_extractor")).unwrap();
    for (name, text) in [
        ("README.md", "about"),
        ("feature_extractor/preprocessor_config.json", "{}"),
        ("unet/notes.txt", "notes"),
        ("unet/diffusion_pytorch_model.bin", "other weights"),
        ("whole.ckpt", "other weights"),
        (".cache", "somebody's"),
    ] {
        fs::write(own.join(name), text).unwrap();
    }
    let report = |model: &str| -> Value {
        let printed =
            succeed(folder.path(), &["generate", "--model", model, "--prompt", "x", "--output", "x.png", "--json"]);
        serde_json::from_str(&printed).unwrap()
    };
    let quantize = ["quantize", "--model", "own/sdxl", "--to", "q8", "--output"];
    let made = |output: &str| program(folder.path(), &[&quantize[..], &[output]].concat()).output().unwrap();
    assert!(made("q8").status.success());
    let settings = |report: &Value| {
        let text = report["parameters"].as_str().unwrap().to_owned();
        text.split(", ").filter(|part| !part.starts_with("Model")).map(str::to_owned).collect::<Vec<_>>()
    };
    let (own_report, copy) = (report("own/sdxl"), report("q8"));
    assert!(settings(&own_report).iter().any(|part| part == "Size: 64x64"), "{own_report}");
    assert_eq!(settings(&copy), settings(&own_report));
    for name in [
        "model_index.json",
        "README.md",
        "feature_extractor/preprocessor_config.json",
        "unet/notes.txt",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer_2/tokenizer_config.json",
        "generation_defaults.json",
    ] {
        assert!(at("q8").join(name).is_file(), "{name}");
    }
    for name in ["unet/diffusion_pytorch_model.bin", "whole.ckpt", ".cache"] {
        assert!(!at("q8").join(name).exists(), "{name}");
    }
    // A model without defaults has none beside another's either.
    fs::remove_file(at("own/generation_defaults.json")).unwrap();
    fs::create_dir(at("others")).unwrap();
    fs::write(at("others/generation_defaults.json"), r#"{"steps": 3}"#).unwrap();
    assert!(made("others/q8").status.success());
    assert_eq!(fs::read_to_string(at("others/q8/generation_defaults.json")).unwrap().trim(), "{}");
    // Within the model itself, it would be a part of what it is made of.
    for output in ["own/sdxl/q8", "own/sdxl/unet/../q8", "own/sdxl/vae/q8"] {
        let refused = made(output);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{message}");
        assert!(message.contains("would lie in") && message.contains("which is read"), "{message}");
        assert!(!at(output).exists());
    }
}

#[cfg(unix)]
#[test]
fn who_may_read_a_file_stays_as_it_was() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.png");
    fs::write(&path, b"old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    succeed(folder.path(), &[&GENERATE[..], &["--output", "mine.png"]].concat());
    assert_ne!(fs::read(&path).unwrap(), b"old");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
