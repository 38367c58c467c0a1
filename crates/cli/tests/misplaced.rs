//! Files as people damage, exchange and wrap them: what is said of them, and that what is right in them is read.

mod support;

use pulid_checkpoint::{Checkpoint, write_safetensors};
use pulid_tensor::HostTensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{copy_folder, pulid, refuse, repository, succeed, tree};

type Tensors = BTreeMap<String, HostTensor>;

fn model() -> PathBuf {
    repository("tests/goldens/pipeline/model")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn tensors(path: &Path) -> Tensors {
    let file = Checkpoint::open(path).unwrap();
    file.keys().map(|key| (key.to_owned(), file.tensor(key).unwrap())).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    write_safetensors(path, tensors.iter().map(|(key, t)| (key.as_str(), t)), &BTreeMap::new()).unwrap();
}

/// A tensor with one value exchanged.
fn with_value(tensor: &HostTensor, at: usize, value: f32) -> HostTensor {
    let values = tensor.to_f32_vec();
    HostTensor::from_fn(tensor.shape().clone(), |i| if i == at { value } else { values[i] })
}

const SMALL: [&str; 16] = [
    "generate",
    "--prompt",
    "a portrait",
    "--width",
    "64",
    "--height",
    "64",
    "--steps",
    "2",
    "--guidance",
    "2",
    "--seed",
    "5",
    "--sampler",
    "euler",
    "--no-metadata",
];

#[test]
fn weights_that_are_not_finite_are_named_with_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let damage = |part: &Path, name: &str, key: &str, value: f32| {
        let mut all = tensors(part);
        let damaged = with_value(&all[key], 1, value);
        all.insert(key.into(), damaged);
        let path = home.join(name);
        write(&path, &all);
        text(&path)
    };
    // It fails once it runs, and leaves nothing behind.
    let message = |flags: &[&str]| {
        let before = tree(home);
        let output = pulid(home, &[&SMALL[..], flags].concat());
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(tree(home), before);
        String::from_utf8(output.stderr).unwrap()
    };
    let (base, unet) = (text(&model()), model().join("unet"));
    let key = "mid_block.resnets.0.conv1.weight";
    for value in [f32::NAN, f32::INFINITY] {
        let path = damage(&unet, "nan_unet.safetensors", key, value);
        let message = message(&["--model", &base, "--unet", &path]);
        for part in ["unet: operator ", &format!("{path}: `{key}` (1 of "), "fetch the file again"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
    // The adapter's own answer is looked at by the UNet alone.
    let (person, adapter) = (text(&model().join("identity.safetensors")), model().join("adapter.safetensors"));
    let all = tensors(&adapter);
    let key = all.keys().find(|key| key.ends_with("id_to_v.weight")).unwrap();
    let path = damage(&adapter, "nan_adapter.safetensors", key, f32::NAN);
    let found = message(&["--model", &base, "--identity", &person, "--adapter", &path]);
    let name = key.strip_prefix("id_adapter_attn_layers.").unwrap();
    assert!(found.contains(&format!("{path}: `")) && found.contains(name), "{found}");
    // A number that is finite as it is, and too large to be computed with.
    let path = home.join("large_unet.safetensors");
    let mut all = tensors(&unet);
    let large = HostTensor::from_fn(all["conv_out.weight"].shape().clone(), |_| 3e38);
    all.insert("conv_out.weight".into(), large);
    write(&path, &all);
    let found = message(&["--model", &base, "--unet", &text(&path)]);
    assert!(found.contains("check the weights and inputs") && !found.contains("themselves"), "{found}");
    // What is looked up on the host is no operator's.
    let broken = home.join("broken");
    copy_folder(&model(), &broken);
    let file = broken.join("text_encoder/model.safetensors");
    let mut all = tensors(&file);
    let table = "text_model.embeddings.token_embedding.weight";
    let nan = HostTensor::from_fn(all[table].shape().clone(), |_| f32::NAN);
    all.insert(table.into(), nan);
    write(&file, &all);
    let found = refuse(home, &[&SMALL[..], &["--model", &text(&broken)]].concat());
    assert!(found.contains("token_embedding.weight") && found.contains("NaN or infinity"), "{found}");
}

#[test]
fn an_adapter_within_a_wrapper_gives_the_same_person_and_picture() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let wrapped = home.join("wrapped.safetensors");
    let wrap = |from: &Path, wrapper: &str| {
        let all = tensors(from).into_iter().map(|(key, tensor)| (format!("{wrapper}{key}"), tensor)).collect();
        write(&wrapped, &all);
    };
    let portrait = support::portrait("ada.jpg");
    let official = repository("models/mini/pulid_v1.1.safetensors");
    let embed = |adapter: &Path| {
        let output = text(&home.join("person.safetensors"));
        succeed(home, &["embed", &portrait, "--adapter", &text(adapter), "--output", &output]);
        tensors(Path::new(&output))
    };
    let latents = |adapter: &Path| {
        let (image, latents) = (text(&home.join("x.png")), home.join("x.safetensors"));
        let person = text(&model().join("identity.safetensors"));
        let flags =
            ["--model", &text(&model()), "--identity", &person, "--adapter", &text(adapter), "--output", &image];
        succeed(home, &[&SMALL[..], &flags, &["--save-latents", &text(&latents)]].concat());
        tensors(&latents)
    };
    let (want, shown) = (embed(&official), latents(&model().join("adapter.safetensors")));
    for wrapper in ["module.", "state_dict."] {
        wrap(&official, wrapper);
        assert_eq!(embed(&wrapped), want, "{wrapper}");
        wrap(&model().join("adapter.safetensors"), wrapper);
        assert_eq!(latents(&wrapped), shown, "{wrapper}");
    }
}

#[test]
fn exchanged_face_networks_are_told_apart_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let photos = home.join("photos");
    copy_folder(&repository("models/mini"), &photos);
    let [detector, recogniser] =
        ["scrfd_10g_bnkps.onnx", "glintr100.onnx"].map(|name| photos.join("antelopev2").join(name));
    let portrait = support::portrait("ada.jpg");
    let flags = |command| [command, portrait.as_str(), "--models-dir", "photos"];
    let mini = repository("models/mini/antelopev2");
    for (place, other, parts) in [
        (
            &detector,
            "glintr100.onnx",
            ["is not a face detector (SCRFD) but a face recogniser (ArcFace)", "antelopev2/glintr100.onnx"],
        ),
        (
            &recogniser,
            "scrfd_10g_bnkps.onnx",
            ["is not a face recogniser (ArcFace) but a face detector (SCRFD)", "antelopev2/scrfd_10g_bnkps.onnx"],
        ),
    ] {
        let kept = std::fs::read(place).unwrap();
        std::fs::copy(mini.join(other), place).unwrap();
        let message = refuse(home, &[&flags("embed")[..], &["--output", "person.safetensors"]].concat());
        for part in parts.iter().chain(&["`--models-dir`", place.file_name().unwrap().to_str().unwrap()]) {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!message.contains("recognising"), "a network ran: {message}");
        std::fs::write(place, kept).unwrap();
    }
    std::fs::copy(mini.join("glintr100.onnx"), &detector).unwrap();
    let message = refuse(home, &flags("faces"));
    assert!(message.contains("is not a face detector (SCRFD) but a face recogniser"), "{message}");
}

#[test]
fn what_a_folder_was_loaded_from_tells_a_distilled_model() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path();
    let own = home.join("own");
    copy_folder(&model(), &own);
    let say = |file: &str, name: &str| {
        let path = own.join(file);
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["_name_or_path"] = name.into();
        std::fs::write(path, config.to_string()).unwrap();
    };
    let made = |flags: &[&str]| {
        let image = text(&home.join("x.png"));
        let common = ["generate", "--prompt", "x", "--width", "64", "--height", "64", "--json", "--output", &image];
        let report: serde_json::Value = serde_json::from_str(&succeed(home, &[&common[..], flags].concat())).unwrap();
        let note = |notes: &serde_json::Value| notes.to_string();
        (report["parameters"].as_str().unwrap().to_owned(), note(&report["notes"]))
    };
    for (file, name, steps, kind) in [
        ("model_index.json", "stabilityai/sdxl-turbo", 4, "SDXL Turbo"),
        ("model_index.json", "ByteDance/SDXL-Lightning", 4, "SDXL-Lightning"),
        (
            "unet/config.json",
            "/cache/models--someone--sdxl-lightning-2step/snapshots/0a1b/unet",
            2,
            "SDXL-Lightning of 2 steps",
        ),
    ] {
        say(file, name);
        let (parameters, notes) = made(&["--model", "own"]);
        assert!(
            parameters.contains(&format!("Steps: {steps}, Sampler: Euler, Schedule type: SGM Uniform")),
            "{parameters}"
        );
        assert!(notes.contains(&format!("looks like {kind}")), "{notes}");
        // It was said of the model's own UNet.
        let other = text(&model().join("unet"));
        let (_, notes) = made(&["--model", "own", "--unet", &other, "--steps", "2"]);
        assert!(!notes.contains("looks like"), "{notes}");
        let part = text(&own.join("unet"));
        let (_, notes) = made(&["--model", &text(&model()), "--unet", &part]);
        assert!(notes.contains(&format!("looks like {kind}")), "{notes}");
        say(file, "stabilityai/stable-diffusion-xl-base-1.0");
    }
    let (_, notes) = made(&["--model", "own", "--steps", "2"]);
    assert!(!notes.contains("looks like"), "{notes}");
}
