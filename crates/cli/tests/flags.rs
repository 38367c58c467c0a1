//! Flags as people type them: what is named wrongly is said with exit code 2, before any work.

mod support;

use serde_json::Value;
use std::fs;
use support::{portrait, program, refuse, repository, succeed};

const GENERATE: [&str; 9] =
    ["generate", "--prompt", "a person, in a garden", "--steps", "1", "--width", "64", "--height", "64"];

/// Exit code and standard error.
fn ended(folder: &std::path::Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = program(folder, arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_is_named_wrongly_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let ada = portrait("ada.jpg");
    let vae = repository("models/mini/sdxl/vae").to_string_lossy().into_owned();
    let index = repository("models/mini/sdxl/model_index.json").to_string_lossy().into_owned();
    fs::create_dir(folder.path().join("empty")).unwrap();
    let cases: [(&[&str], &str); 50] = [
        (&["generate", "--prompt", "x", "--device", "nosuch"], "--device: no device matches `nosuch`"),
        (&["faces", &ada, "--device", "nosuch"], "--device: no device matches `nosuch`"),
        (&["bench", "--device", "nosuch"], "--device: no device matches `nosuch`"),
        (&["conformance", "--device", "nosuch"], "--device: no device matches `nosuch`"),
        (&["conformance", "--device", "reference"], "--device"),
        (&["generate", "--prompt", "x", "--device", ""], "--device"),
        (&["generate", "--prompt", "x", "--memory", "0"], "--memory"),
        (&["generate", "--prompt", "x", "--memory", "6"], "a number alone is bytes; 6GiB?"),
        (&["faces", &ada, "--memory", "800"], "800MiB?"),
        (&["generate", "--prompt", "x", "--max-binding", "134217728"], "a number alone is MiB; 128?"),
        (&["generate", "--prompt", "x", "--max-binding", "99999999"], "expected 1 to 2047 MiB"),
        (&["generate", "--prompt", "x", "--id", &ada, "--face", "-1"], "invalid value '-1' for '--face <FACE>'"),
        (&["generate", "--prompt", "x", "--memory", "-1"], "expected a size such as 6GiB"),
        (&["generate", "--prompt", "x", "--output", "-x.tiff"], "-x.tiff: no image is written as .tiff"),
        (&["generate", "--prompt", "x", "--save-latents", "l.png"], "l.png: is to hold tensors, which are not written"),
        (&["embed", &ada, "--output", "e.JPG"], "e.JPG: is to hold tensors, which are not written as .jpg"),
        (&["run", "vae-decoder", "--weights", &vae, "--outputs", "y.png"], "y.png: is to hold tensors"),
        (&["generate", "--prompt", "x", "--id", "."], "photo .: it is a folder; name a photo in it"),
        (&["embed", ".", "--output", "e.safetensors"], "photo .: it is a folder; name a photo in it"),
        (&["faces", "nosuch.jpg"], "nosuch.jpg: it cannot be read: there is no such file"),
        (&["generate", "--prompt", "x", "--adapter", "nosuch"], "nosuch: there is no such file or folder; `--adapter`"),
        (&["generate", "--prompt", "x", "--adapter", "empty"], "empty: holds no weights: it is empty"),
        (&["inspect", "empty"], "empty: holds no weights: it is empty"),
        (&["inspect", &index], "model_index.json: is a pipeline's index, not weights: name its folder"),
        (&["generate", "--prompt", "x", "--preset", "nosuch"], "nosuch"),
        (&["generate", "--prompt", "x", "--unet", "nosuch"], "`--unet` names it"),
        (&["generate", "--prompt", "x", "--config", "empty"], "empty: holds no configuration"),
        (&["generate", "--prompt", "x", "--face", "left"], "--face: chooses a face in photos, and none is given"),
        (&["generate", "--prompt", "x", "--id", "-"], "standard input (`-`) is not read"),
        (&["generate", "--prompt", "x", "--unet", "-"], "standard input (`-`) is not read"),
        (&["inspect", "-"], "standard input (`-`) is not read"),
        (&["generate", "--prompt", "a", "man", "with", "hat"], "--prompt 'a man with a hat'"),
        (&["generate", "--prompt", "--steps", "3"], "--prompt='--steps of a stair'"),
        (&["quantize", "--to", "q8", "--output", "copy.safetensors"], "leave the extension out"),
        (&["generate", "--prompt", "x", "--output", "-", "--save-latents", "-"], "standard output: is named for two"),
        (&["generate", "--prompt", "x", "--config", "nosuch"], "nosuch: "),
        (&["generate", "--prompt", "x", "--model", "nosuch"], "nosuch: "),
        (&["generate", "--prompt", "x", "--id", "nosuch.jpg"], "nosuch.jpg"),
        (&["generate", "--prompt", "x", "--identity", "nosuch"], "`--identity` names it"),
        // Nobody is shown, nothing is for the UNet, no photo is read: what is named is looked at all the same.
        (&["generate", "--prompt", "x", "--adapter", "nosuch"], "`--adapter` names it"),
        (&["generate", "--prompt", "x", "--adapter", &ada], "ada.jpg: is a JPEG image, not weights"),
        (
            &["generate", "--prompt", "x", "--model", &vae, "--models-dir", "nosuch"],
            "nosuch: there is no such folder; --models-dir",
        ),
        (&["run", "vae-decoder", "--weights", &vae, "--outputs", "y", "--adapter", "nosuch"], "nosuch: "),
        (&["run", "vae-decoder", "--weights", &vae, "--outputs", "y", "--inputs", "nosuch"], "nosuch: "),
        (&["run", "nosuch", "--weights", &vae, "--outputs", "y"], "`nosuch` is none of unet"),
        (&["run", "vae-decoder", "--weights", &vae, "--outputs", "y", "--set", "nosuch=1"], "nosuch"),
        (&["conformance", "--goldens", "nosuch", "--list"], "--goldens: there is no folder nosuch"),
        (&["conformance", "--filter", "nosuch"], "--filter"),
        (&["bench", "--case", "nosuch"], "--case: `nosuch`"),
        (&["quantize", "--to", "q8", "--output", "no/such/folder"], "no/such/folder: cannot be made"),
    ];
    for (arguments, part) in cases {
        let (code, message) = ended(folder.path(), arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {message}");
        assert!(message.contains(part), "{part}: {message}");
        assert!(!message.contains("os error") && !message.contains("use '-- -"), "{arguments:?}: {message}");
        assert!(!message.contains(" ...\n"), "{arguments:?}: a stage began: {message}");
    }
    let other = ended(folder.path(), &["faces", &ada, "another.jpg"]).1;
    assert!(other.contains("unexpected argument") && !other.contains("prompt"), "{other}");
    let help = String::from_utf8(program(folder.path(), &["--help"]).output().unwrap().stdout).unwrap();
    assert!(help.contains("Exit codes:") && help.contains("143 and 129"), "{help}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_named_wrongly_is_exit_code_2_where_nobody_can_be_told() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["generate", "--prompt"][..], &["nosuch"], &["generate", "--prompt", "x", "--memory", "6"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = program(folder.path(), arguments).stderr(full).status().unwrap();
        assert_eq!(ended.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn cpu_is_the_device_that_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let listed = program(folder.path(), &["devices", "--json"]).output().unwrap().stdout;
    let listed: Vec<Value> = serde_json::from_slice(&listed).unwrap();
    let cpu = listed.iter().find(|device| device["kind"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("cpu")));
    let generate = [&GENERATE[..], &["--output", "a.png", "--json", "--autotune", "off", "--device", "cpu"]].concat();
    let output = program(folder.path(), &generate).output().unwrap();
    match cpu {
        Some(device) => {
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(report["device"].as_str().unwrap().starts_with(device["name"].as_str().unwrap()), "{report}");
        }
        None => {
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2));
            assert!(message.contains("`reference`"), "{message}");
        }
    }
}

#[test]
fn empty_variables_are_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let generate = [&GENERATE[..], &["--output", "a.png", "--autotune", "off"]].concat();
    let with = |arguments: &[&str], value: &str| {
        let mut command = program(folder.path(), arguments);
        // The mini models are found from the repository.
        command.current_dir(repository("."));
        for name in ["PULID_MODELS", "PULID_CACHE", "HF_HUB_CACHE", "HF_ENDPOINT"] {
            command.env(name, value);
        }
        command.output().unwrap()
    };
    let output = folder.path().join("a.png").to_string_lossy().into_owned();
    let generate: Vec<_> = generate.iter().map(|a| if *a == "a.png" { output.as_str() } else { a }).collect();
    let made = with(&generate, "");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let doctor: Value = serde_json::from_slice(&with(&["doctor", "--json"], "").stdout).unwrap();
    assert_eq!(doctor["models_dir"], Value::Null);

    let missing = program(folder.path(), &generate).env("PULID_MODELS", "nosuch").output().unwrap();
    let message = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(message.contains("nosuch: there is no such folder; PULID_MODELS names it"), "{message}");
    let message = refuse(folder.path(), &["faces", &portrait("ada.jpg"), "--models-dir", "nosuch"]);
    assert!(message.contains("nosuch: there is no such folder; --models-dir names it"), "{message}");
}

#[test]
fn what_is_no_weights_is_called_by_its_name_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(portrait("ada.jpg"), at("photo.jpg")).unwrap();
    for (name, text) in [
        ("notes.txt", "notes on a model"),
        ("page.safetensors", "\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"),
        ("pointer.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        ("empty.safetensors", ""),
        ("error.onnx", "{\"error\": \"Repository not found\"}"),
    ] {
        fs::write(at(name), text).unwrap();
    }
    fs::write(at("nothing.zip"), [&b"PK\x05\x06"[..], &[0; 18]].concat()).unwrap();
    // One empty file `a`: its header, its entry in the directory, the directory's end.
    let entry = [20, 0, 0, 0, 0, 0, 0, 0, 33, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let header = [&b"PK\x03\x04"[..], &entry, b"a"].concat();
    let listed = [&b"PK\x01\x02\x14\0"[..], &entry, &[0; 14], b"a"].concat();
    let end = [&b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..], &[47, 0, 0, 0, 31, 0, 0, 0, 0, 0]].concat();
    fs::write(at("some.zip"), [header, listed, end].concat()).unwrap();
    for (name, part) in [
        ("photo.jpg", "photo.jpg: is a JPEG image, not weights"),
        ("notes.txt", "notes.txt: is text, not weights; it begins with `notes on a model`"),
        ("page.safetensors", "page.safetensors: is a web page, not weights"),
        ("pointer.safetensors", "pointer.safetensors: is a Git LFS pointer"),
        ("empty.safetensors", "empty.safetensors: is empty"),
        ("error.onnx", "error.onnx: is JSON text, not weights"),
        ("nothing.zip", "nothing.zip: is an empty zip archive, not weights"),
        ("some.zip", "some.zip: is a zip archive without `data.pkl`, not weights; unpack it and name what was in it"),
    ] {
        let (code, message) = ended(folder.path(), &["inspect", name]);
        assert_eq!((code, message.contains(part)), (Some(2), true), "{message}");
        let prompt = ["generate", "--prompt", "x"];
        for flag in ["--model", "--unet", "--adapter", "--identity"] {
            let (code, message) = ended(folder.path(), &[&prompt[..], &[flag, name]].concat());
            assert_eq!((code, message.contains(part)), (Some(2), true), "{flag}: {message}");
        }
        let network = if name.ends_with("onnx") { "onnx" } else { "unet" };
        let (code, message) = ended(folder.path(), &["run", network, "--weights", name, "--outputs", "y"]);
        assert_eq!((code, message.contains(part)), (Some(2), true), "run: {message}");
    }
}

#[test]
fn a_folder_of_models_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let mini = repository("models/mini").to_string_lossy().into_owned();
    let inspect = |arguments: &[&str]| {
        let output = program(folder.path(), &[&["inspect"], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = inspect(&[&mini]).replace('\\', "/");
    for line in [
        "family     a folder of models",
        "part       antelopev2/glintr100.onnx: ArcFace (IResNet), ",
        "part       eva_clip.safetensors: EVA02-CLIP, ",
        "part       pulid_v1.1.safetensors: PuLID v1.1, ",
        "part       sdxl: SDXL, a folder in diffusers' layout, ",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    let report: Value = serde_json::from_str(&inspect(&[&mini, "--json"])).unwrap();
    let count = |found: &Value| found["count"].as_u64().unwrap();
    assert_eq!(count(&report), report["parts"].as_array().unwrap().iter().map(count).sum::<u64>());
    // What cannot be read is listed too.
    fs::copy(repository("models/mini/eva_clip.safetensors"), folder.path().join("a.safetensors")).unwrap();
    fs::copy(repository("models/mini/parsing_bisenet.safetensors"), folder.path().join("b.safetensors")).unwrap();
    fs::write(folder.path().join("c.pth"), "text").unwrap();
    let text = inspect(&["."]);
    assert!(text.contains("a.safetensors: EVA02-CLIP") && text.contains("b.safetensors: BiSeNet"), "{text}");
    assert!(text.contains("c.pth: unreadable: is text"), "{text}");
    // A network in two precisions is one network.
    let unet = folder.path().join("unet");
    fs::create_dir(&unet).unwrap();
    for name in ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"] {
        fs::copy(repository("models/mini/sdxl/vae/diffusion_pytorch_model.safetensors"), unet.join(name)).unwrap();
    }
    assert!(inspect(&["unet"]).contains("family     VAE by diffusers' names"));
    let nothing = folder.path().join("nothing");
    fs::create_dir(&nothing).unwrap();
    assert!(ended(folder.path(), &["inspect", "nothing"]).1.contains("holds no weights"));
}

#[test]
fn texts_may_begin_with_a_dash() {
    let folder = tempfile::tempdir().unwrap();
    let size = ["--steps", "1", "--width", "64", "--height", "64", "--output", "a.png", "--json"];
    let report = |texts: &[&str]| -> Value {
        serde_json::from_str(&succeed(folder.path(), &[&["generate"], texts, &size[..]].concat())).unwrap()
    };
    for texts in [
        ["--prompt", "-x, a person", "--negative-prompt", "-y"],
        ["--prompt=-x, a person", "--guidance=2", "--negative-prompt", "-y"],
        ["--negative-prompt=-y", "--guidance=2", "--prompt", "-x, a person"],
    ] {
        let report = report(&texts);
        let parameters = report["parameters"].as_str().unwrap();
        assert!(parameters.starts_with("-x, a person\nNegative prompt: -y\n"), "{parameters}");
    }
    let message = refuse(folder.path(), &["generate", "--prompt", "--steps", "1"]);
    assert!(message.contains("--prompt"), "{message}");
}

#[test]
fn samplers_go_by_other_programs_names() {
    let folder = tempfile::tempdir().unwrap();
    let made = |flags: &[&str]| {
        let report = succeed(folder.path(), &[&GENERATE[..], &["--output", "a.png", "--json"], flags].concat());
        let report: Value = serde_json::from_str(&report).unwrap();
        let settings = report["parameters"].as_str().unwrap().lines().last().unwrap().to_owned();
        settings.split(", ").skip(1).take(2).map(str::to_owned).collect::<Vec<_>>().join(", ")
    };
    let same = |flags: &[&str], plain: &[&str]| assert_eq!(made(flags), made(plain), "{flags:?}");
    let karras = ["--sampler", "dpmpp_2m", "--spacing", "karras"];
    same(&["--sampler", "DPM++ 2M Karras"], &karras);
    same(&["--sampler", "DPMSolverMultistepScheduler"], &["--sampler", "dpmpp_2m"]);
    same(&["--sampler", "dpmpp_sde_gpu"], &["--sampler", "dpmpp_sde"]);
    same(&["--sampler", "Euler", "--spacing", "Karras"], &["--sampler", "euler", "--spacing", "karras"]);
    same(&["--sampler", "DPM++ 2M SGM Uniform"], &["--sampler", "dpmpp_2m", "--spacing", "trailing"]);
    // What is named itself wins, wherever it stands.
    let trailing = ["--sampler", "dpmpp_2m", "--spacing", "trailing"];
    same(&["--sampler", "DPM++ 2M Karras", "--spacing", "trailing"], &trailing);
    same(&["--spacing", "trailing", "--sampler", "DPM++ 2M Karras"], &trailing);
    for (flags, part) in [
        (
            ["--sampler", "Euler a"],
            "`Euler a` is a sampler that is not here; there are dpmpp_2m, dpmpp_sde, euler, ddim (elsewhere DPM++ 2M",
        ),
        (["--sampler", "UniPC"], "`UniPC` is a sampler that is not here"),
        (["--sampler", "quick"], "`quick` is not one of dpmpp_2m, dpmpp_sde, euler, ddim"),
        (
            ["--spacing", "polyexponential"],
            "`polyexponential` is a schedule that is not here; there are karras, trailing, leading, linspace, karras_diffusers, exponential",
        ),
    ] {
        let message = refuse(folder.path(), &[&GENERATE[..], &flags].concat());
        assert!(message.contains(part), "{part}: {message}");
    }
}
