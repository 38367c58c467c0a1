//! The program on the mini models: what it writes, what it refuses, and that it then leaves nothing behind.

mod support;

use image::{Rgb, RgbImage};
use pulid_checkpoint::Checkpoint;
use pulid_models::golden::Golden;
use pulid_tensor::HostTensor;
use serde_json::Value;
use std::path::Path;
use support::{copy_folder, portrait, program, pulid, refuse, repository, succeed, tree};

fn faces_of(folder: &Path, photo: &str) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&succeed(folder, &["faces", photo, "--json"])).unwrap();
    listed["faces"].as_array().unwrap().clone()
}

/// The largest face must be the one in the middle; the mini detector may see a second, unlikely one in somebody's hair.
#[test]
fn every_portrait_shows_its_face() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for file in std::fs::read_dir(repository("examples/faces")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|e| e != "jpg") {
            continue;
        }
        let faces = faces_of(folder.path(), &path.to_string_lossy());
        let largest: Vec<_> = faces.iter().filter(|f| f["largest"] == true).collect();
        assert_eq!(largest.len(), 1, "{}: {faces:?}", path.display());
        let number = |value: &Value| value.as_f64().unwrap();
        let [x0, y0, x1, y1] = [0, 1, 2, 3].map(|i| number(&largest[0]["bbox"][i]));
        let landmarks = largest[0]["landmarks"].as_array().unwrap();
        assert_eq!(landmarks.len(), 5);
        let inside = |p: &Value| (x0..x1).contains(&number(&p[0])) && (y0..y1).contains(&number(&p[1]));
        assert!(landmarks.iter().all(inside), "{}: {largest:?}", path.display());
        let eyes_above_mouth = number(&landmarks[0][1]) < number(&landmarks[3][1]);
        assert!(eyes_above_mouth && number(&largest[0]["score"]) > 0.6, "{}: {largest:?}", path.display());
        seen += 1;
    }
    assert_eq!(seen, 12);
}

#[test]
fn an_identity_file_gives_the_image_of_its_photos() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let photos = [portrait("ada.jpg"), portrait("ben.jpg")];
    let debug = at("debug");
    succeed(
        folder.path(),
        &["embed", &photos[0], &photos[1], "--output", "both.safetensors", "--debug-dir", &debug.to_string_lossy()],
    );
    let file = Checkpoint::open(at("both.safetensors")).unwrap();
    let extents = |key: &str| file.tensor(key).unwrap().shape().extents().to_vec();
    assert_eq!(extents("id_embedding"), extents("uncond_id_embedding"));
    assert_eq!(extents("face_embedding"), [2, 512]);
    assert_eq!(file.metadata()["photos"], r#"["ada.jpg","ben.jpg"]"#);
    assert_eq!(file.metadata()["adapter_sha256"].len(), 64);
    for picture in ["1_crop.png", "1_mask.png", "2_gray.png", "2_features_5.png"] {
        assert!(debug.join(picture).is_file(), "{picture}");
    }

    let make = |output: &str, person: &[&str]| {
        let settings = ["--prompt", "a photo of a person", "--steps", "3", "--seed", "4", "--no-metadata"];
        succeed(folder.path(), &[&["generate", "--output", output], person, &settings[..]].concat());
        std::fs::read(at(output)).unwrap()
    };
    let from_file = make("file.png", &["--identity", "both.safetensors"]);
    let from_photos = make("photos.png", &["--id", &photos[0], &photos[1]]);
    assert!(from_file == from_photos, "the same person gives the same image");
    assert!(make("nobody.png", &[]) != from_file, "the identity changes the image");
}

#[test]
fn scale_zero_is_the_image_without_identity_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, person: &[&str]| {
        let settings = ["--prompt", "an oil painting of a person", "--steps", "3", "--guidance", "2.5", "--seed", "9"];
        let files = ["--output", name, "--save-latents", "latents.safetensors"];
        succeed(folder.path(), &[&["generate"], &settings[..], &files[..], person].concat());
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        (read(name), read("latents.safetensors"))
    };
    let ada = portrait("ada.jpg");
    let without = make("without.png", &[]);
    let zero = make("zero.png", &["--id", &ada, "--id-scale", "0"]);
    assert!(without == zero);
    // An empty window is no identity either.
    let never = make("never.png", &["--id", &ada, "--id-start", "0.5", "--id-end", "0.5", "--no-metadata"]);
    assert!(never.1 == without.1);
}

#[test]
fn batches_are_numbered_and_reports_are_json() {
    let folder = tempfile::tempdir().unwrap();
    let text = succeed(
        folder.path(),
        &[
            "generate",
            "--prompt",
            "a comic picture of a person",
            "--steps",
            "2",
            "--batch",
            "2",
            "--width",
            "64",
            "--height",
            "96",
            "--output",
            "pair.png",
            "--save-latents",
            "pair.safetensors",
            "--json",
        ],
    );
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["files"].as_array().unwrap().len(), 2);
    assert!(report["seconds"]["denoising"].as_f64().unwrap() > 0.0);
    for name in ["pair-0.png", "pair-1.png"] {
        let picture = image::open(folder.path().join(name)).unwrap();
        assert_eq!((picture.width(), picture.height()), (64, 96));
    }
    let latents: HostTensor =
        Checkpoint::open(folder.path().join("pair.safetensors")).unwrap().tensor("latents").unwrap();
    assert_eq!(latents.shape().extents(), [2, 4, 12, 8]);
}

#[test]
fn photos_without_a_usable_face_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, image: &RgbImage| {
        image.save(folder.path().join(name)).unwrap();
        name.to_owned()
    };
    let ada = portrait("ada.jpg");
    let wall = save("wall.png", &RgbImage::from_fn(200, 200, |x, _| Rgb([100 + (x / 4) as u8, 120, 140])));
    let face = image::open(&ada).unwrap().to_rgb8();
    let mut far = RgbImage::from_pixel(1000, 1000, Rgb([120, 130, 140]));
    image::imageops::replace(&mut far, &image::imageops::thumbnail(&face, 48, 48), 400, 400);
    let far = save("far.png", &far);
    std::fs::write(folder.path().join("notes.jpg"), "not a photo").unwrap();
    let whole = std::fs::read(&ada).unwrap();
    std::fs::write(folder.path().join("cut.jpg"), &whole[..whole.len() / 2]).unwrap();
    // A PNG header that claims 60,000 x 60,000 pixels.
    let mut huge = std::fs::read(folder.path().join(&wall)).unwrap();
    huge[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    huge[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    std::fs::write(folder.path().join("huge.png"), huge).unwrap();

    for photo in [wall.as_str(), &far, "notes.jpg", "cut.jpg", "huge.png", "missing.jpg", "."] {
        let message = refuse(folder.path(), &["embed", &ada, photo, "--output", "x.safetensors", "--debug-dir", "d"]);
        assert!(message.contains(photo) || photo == ".", "{photo}: {message}");
    }
    let generate = ["generate", "--prompt", "a person", "--steps", "2", "--output", "x.png", "--id"];
    refuse(folder.path(), &[&generate[..], &[&wall]].concat());
    refuse(folder.path(), &["faces", &wall]);
    refuse(folder.path(), &["faces", "notes.jpg", "--json"]);
    // Where the threshold is the reason, it is named, and what would do.
    let message = refuse(folder.path(), &["faces", &portrait("ada.jpg"), "--threshold", "0.995"]);
    assert!(
        message.contains("no face scores 0.995 or more; the best has 0.") && message.contains("--threshold"),
        "{message}"
    );
    // That score is the best at any threshold, and would do.
    let best = message.split("the best has ").nth(1).unwrap().split(':').next().unwrap();
    // As a number, since 0.7 is said without a last zero.
    let higher = ((best.parse::<f64>().unwrap() * 100.0).round() + 1.0) / 100.0;
    let message = refuse(folder.path(), &["faces", &portrait("ada.jpg"), "--threshold", &higher.to_string()]);
    assert!(message.contains(&format!("no face scores {higher} or more; the best has {best}:")), "{message}");
    assert!(succeed(folder.path(), &["faces", &portrait("ada.jpg"), "--threshold", best]).contains("score"));
}

#[test]
fn either_detector_s_faces_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let goldens = repository("tests/goldens/photos");
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(goldens.join("photos.json")).unwrap()).unwrap();
    let case = expected["cases"].as_array().unwrap().iter().find(|c| c["name"] == "pair").unwrap();
    let photo = goldens.join("pair.png").to_string_lossy().into_owned();
    let models = goldens.to_string_lossy().into_owned();
    let retinaface = ["faces", &photo, "--json", "--detector", "retinaface"];
    let list = |flags: &[&str]| -> Vec<Value> {
        let listed: Value = serde_json::from_str(&succeed(folder.path(), &[&retinaface[..], flags].concat())).unwrap();
        listed["faces"].as_array().unwrap().clone()
    };
    let faces = list(&["--models-dir", &models]);
    assert_eq!(faces.len(), case["faces"].as_array().unwrap().len());
    let central: Vec<_> = (0..faces.len()).filter(|&i| faces[i]["central"] == true).collect();
    assert_eq!(central, [case["chosen"].as_u64().unwrap() as usize]);
    let number = |value: &Value| value.as_f64().unwrap();
    for (face, expected) in faces.iter().zip(case["faces"].as_array().unwrap()) {
        for i in 0..4 {
            assert!((number(&face["bbox"][i]) - number(&expected["box"][i])).abs() < 0.01, "{face} for {expected}");
        }
    }
    assert!(list(&["--models-dir", &models, "--threshold", "0.9999"]).len() < faces.len());

    // The mini models have no such detector.
    let message = refuse(folder.path(), &retinaface);
    assert!(message.contains("detection_Resnet50_Final.pth"), "{message}");
    refuse(folder.path(), &["faces", &photo, "--threshold", "2"]);
    refuse(folder.path(), &["faces", &photo, "--detector", "mtcnn"]);
}

#[test]
fn flags_that_cannot_be_followed_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ada = portrait("ada.jpg");
    let five = [ada.as_str(); 5];
    refuse(folder.path(), &[&["embed", "--output", "x.safetensors"], &five[..]].concat());
    std::fs::write(folder.path().join("text.safetensors"), "no tensors here").unwrap();
    let settings: [&[&str]; 14] = [
        &["--width", "100"],
        &["--height", "0"],
        &["--steps", "0"],
        &["--batch", "0"],
        &["--guidance", "nan"],
        &["--sampler", "magic"],
        &["--ortho", "v3"],
        &["--id-start", "0.9", "--id-end", "0.1"],
        &["--model", "nowhere"],
        &["--identity", "text.safetensors"],
        &["--identity", "a.safetensors", "--id", &ada],
        &["--id", &ada, "--adapter", "text.safetensors"],
        &["--debug-dir", "d"],
        &["--models-dir", "nowhere"],
    ];
    for flags in settings {
        refuse(folder.path(), &[&["generate", "--prompt", "a person", "--output", "x.png"], flags].concat());
    }
    refuse(folder.path(), &["generate", "--prompt", "a person", "--output", "no/folder/x.png"]);
}

/// Mean of a channel-wise function over a part of an image, the part given in fractions of its sides.
fn mean(picture: &RgbImage, [x0, y0, x1, y1]: [f64; 4], value: impl Fn(&Rgb<u8>) -> f64) -> f64 {
    let (w, h) = (f64::from(picture.width()), f64::from(picture.height()));
    let columns = (x0 * w) as u32..(x1 * w) as u32;
    let rows = (y0 * h) as u32..(y1 * h) as u32;
    let count = f64::from(columns.len() as u32 * rows.len() as u32);
    rows.flat_map(|y| columns.clone().map(move |x| (x, y))).map(|(x, y)| value(picture.get_pixel(x, y))).sum::<f64>()
        / count
}

/// The recogniser's embedding of the largest face in an image, at unit length; `None` where no face is found.
fn face_embedding(folder: &Path, picture: &str) -> Option<Vec<f32>> {
    let output = pulid(folder, &["embed", picture, "--output", "face.safetensors"]);
    if !output.status.success() {
        return None;
    }
    let values =
        Checkpoint::open(folder.join("face.safetensors")).unwrap().tensor("face_embedding").unwrap().to_f32_vec();
    let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    Some(values.iter().map(|v| v / length).collect())
}

/// What the mini models must keep of a person and of the base model's image: the face is nearer to its own photo than to
/// the others' photos, and the background is that of the image without identity. Many more images, and a recogniser that
/// no training saw, are behind the figures of models/mini/MODEL_CARD.md.
#[test]
fn pictures_show_the_person_and_keep_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let picture = |person: &[&str]| {
        let settings = ["--prompt", "a photo of a person, smiling, in a garden", "--seed", "21", "--output", "a.png"];
        succeed(folder.path(), &[&["generate"], &settings[..], person].concat());
        image::open(folder.path().join("a.png")).unwrap().to_rgb8()
    };
    let corners = [[0.0, 0.0, 0.12, 0.25], [0.88, 0.0, 1.0, 0.25]];
    let plain = picture(&[]);
    let names = ["ada", "ben", "cleo", "hugo", "lars", "omar"];
    let photos = names.map(|name| face_embedding(folder.path(), &portrait(&format!("{name}.jpg"))).unwrap());
    let (mut own, mut others, mut first) = (0.0, 0.0, 0);
    for (index, name) in names.iter().enumerate() {
        let shown = picture(&["--id", &portrait(&format!("{name}.jpg"))]);
        for corner in corners {
            for channel in 0..3 {
                let value = |p: &Rgb<u8>| f64::from(p.0[channel]);
                let moved = (mean(&shown, corner, value) - mean(&plain, corner, value)).abs();
                assert!(moved < 40.0, "{name}: the background moved by {moved:.0} of 255");
            }
        }
        let Some(face) = face_embedding(folder.path(), "a.png") else { continue };
        let cosine = photos.each_ref().map(|p| p.iter().zip(&face).map(|(a, b)| a * b).sum::<f32>());
        own += cosine[index];
        others += (cosine.iter().sum::<f32>() - cosine[index]) / 5.0;
        first += usize::from(cosine.iter().all(|&c| c <= cosine[index]));
    }
    let (own, others) = (own / 6.0, others / 6.0);
    // Unrelated faces are at 0; renders of one person in two styles are at 0.6.
    assert!(own - others > 0.15, "cosine to the own photo {own:.2}, to the others' {others:.2}");
    assert!(first >= 2, "the own photo is the nearest of six for {first} people of six");
}

#[test]
fn prompts_set_the_style() {
    let folder = tempfile::tempdir().unwrap();
    let saturation = |prompt: &str| {
        succeed(
            folder.path(),
            &["generate", "--id", &portrait("ada.jpg"), "--prompt", prompt, "--output", "style.png"],
        );
        let picture = image::open(folder.path().join("style.png")).unwrap().to_rgb8();
        mean(&picture, [0.0, 0.0, 1.0, 1.0], |p| f64::from(p.0.iter().max().unwrap() - p.0.iter().min().unwrap()))
    };
    // A pencil sketch is gray, a neon picture is not.
    let sketch = saturation("a pencil sketch of a person, in a library");
    let neon = saturation("a neon picture of a person, under a night sky");
    assert!(sketch < 25.0 && neon > sketch + 15.0, "sketch {sketch}, neon {neon}");
}

#[test]
fn a_reader_that_has_gone_away_ends_the_work_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 4] =
        [&["devices"], &["doctor"], &["bench", "--filter", "permute"], &["quantize", "--to", "q8", "--output", "q8"]];
    for arguments in commands {
        for both in [false, true] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let mut command = program(folder.path(), arguments);
            if both {
                command.stderr(writer.try_clone().unwrap());
            }
            let output = command.stdout(writer).output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(!message.contains("panicked") && output.status.code() != Some(101), "{arguments:?}: {message}");
            let _ = std::fs::remove_dir_all(folder.path().join("q8"));
        }
    }
}

/// Sets one element of an f16 tensor to infinity.
fn poison(path: &Path, key: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header[key]["dtype"], "F16");
    let offset = 8 + length + header[key]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[offset..offset + 2].copy_from_slice(&0x7C00u16.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn infinity_is_reported_where_it_arose_and_never_painted() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("poisoned");
    copy_folder(&repository("models/mini/sdxl"), &model);
    poison(&model.join("unet/diffusion_pytorch_model.safetensors"), "mid_block.resnets.0.conv1.bias");
    let small = ["--steps", "1", "--width", "64", "--height", "64", "--output", "black.png", "--autotune", "off"];
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    for device in [device.as_str(), "reference"] {
        let output = program(folder.path(), &["generate", "--model", "poisoned", "--prompt", "a person"])
            .args(small)
            .args(["--device", device])
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{device}: {message}");
        let named = "error: unet: operator mid_block.resnets.0.conv1 conv2d(";
        assert!(message.contains(named), "{device}: {message}");
        assert!(!folder.path().join("black.png").exists());
    }
}

/// Weights and inputs of a small UNet without a person.
fn golden_unet() -> [String; 2] {
    let case = repository("tests/goldens/unet/even");
    let weights = Golden::read(&case).unwrap().options.weights;
    [weights, case.join("inputs.safetensors")].map(|path| path.to_string_lossy().into_owned())
}

#[test]
fn an_adapter_that_no_input_asks_for_is_checked_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let [weights, inputs] = golden_unet();
    let adapter = repository("models/mini/pulid_v1.1.safetensors").to_string_lossy().into_owned();
    let run = ["run", "unet", "--weights", &weights, "--inputs", &inputs, "--outputs", "out.safetensors"];
    let cases: [(&[&str], &str); 6] = [
        (&["--adapter", "missing.safetensors"], "missing.safetensors"),
        (&["--adapter", &inputs], "no PuLID file"),
        (&["--set", "id_scale=strong"], "--set id_scale: `strong`"),
        (&["--set", "id_scale=nan"], "id_scale"),
        (&["--set", "num_zero=5000", "--adapter", &adapter], "num_zero: 5000"),
        (&["--set", "ortho=v9"], "v9"),
    ];
    for (flags, part) in cases {
        let message = refuse(folder.path(), &[&run[..], flags].concat());
        assert!(message.contains(part), "{part}: {message}");
    }
    // The input is optional, and the plain UNet what remains without it.
    let read = || std::fs::read(folder.path().join("out.safetensors")).unwrap();
    succeed(folder.path(), &run);
    let plain = read();
    let output = pulid(folder.path(), &[&run[..], &["--adapter", &adapter, "--set", "id_scale=2"]].concat());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && message.contains("note: without an input `id_embedding`"), "{message}");
    assert!(read() == plain);
}

#[test]
fn a_plan_that_nobody_makes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = repository("models/mini/sdxl/tokenizer").to_string_lossy().into_owned();
    let tokenize =
        ["run", "tokenizer", "--weights", &tokenizer, "--set", "text=a person", "--outputs", "ids.safetensors"];
    let message = refuse(folder.path(), &[&tokenize[..], &["--dump-plan", "plan.txt"]].concat());
    assert!(message.contains("--dump-plan: tokenizer has no plan"), "{message}");
    succeed(folder.path(), &tokenize);

    let [weights, inputs] = golden_unet();
    let unet = ["run", "unet", "--weights", &weights, "--inputs", &inputs, "--outputs", "out.safetensors"];
    let output = program(folder.path(), &unet).args(["--device", "reference", "--dump-plan", "plan.txt"]).output();
    let output = output.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("--dump-plan"), "{message}");
    assert!(!folder.path().join("plan.txt").exists() && !folder.path().join("out.safetensors").exists());
}

#[test]
fn the_help_says_where_defaults_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["generate", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let flags = ["width", "height", "steps", "guidance", "id-scale", "num-zero", "ortho", "sampler", "spacing"];
    for flag in flags {
        let own =
            help.split_once(&format!("--{flag} <")).unwrap_or_else(|| panic!("--{flag} is not listed:\n{help}")).1;
        let own = own.split_once("\n      --").map_or(own, |(own, _)| own);
        assert!(own.contains("[default: ") && own.contains("generation_defaults.json"), "--{flag}: {own}");
    }
}

#[test]
fn bench_measures_whole_images() {
    let folder = tempfile::tempdir().unwrap();
    let report: Value = serde_json::from_str(&succeed(folder.path(), &["bench", "--picture", "--json"])).unwrap();
    let figure = |name: &str| report["picture"][name].as_f64();
    assert!(figure("first_seconds").unwrap() > 0.1 && figure("again_seconds").unwrap() > 0.1, "{report}");
    if cfg!(target_os = "linux") {
        // The weights alone are more than that.
        assert!(figure("peak_resident_bytes").unwrap() > 3e7, "{report}");
    }
    assert_eq!(tree(folder.path()), Vec::<std::path::PathBuf>::new());
    let message = refuse(folder.path(), &["bench", "--picture", "--id", "nobody.jpg"]);
    assert!(message.contains("nobody.jpg"), "{message}");
    // A budget holds for the programs that bench starts.
    let message = refuse(folder.path(), &["bench", "--picture", "--memory", "300kB"]);
    assert!(message.contains("does not fit a budget"), "{message}");
}
