//! The program itself against what other implementations answer: every network golden through `pulid run` and every
//! pipeline golden through `pulid generate`, photos through `pulid embed`, on the device `PULID_TEST_DEVICE` (default: the best there is). The networks also
//! run on the CPU reference, which shares no kernel with any device.

use image::RgbImage;
use libtest_mimic::{Arguments, Failed, Trial};
use pulid_checkpoint::Checkpoint;
use pulid_models::golden::{Golden, limit};
use pulid_tensor::DType;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome = Result<(), Failed>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    let mut trials = Vec::new();
    for case in folders(&root).iter().flat_map(|family| folders(family)) {
        let name = case.strip_prefix(&root).expect("below root").to_string_lossy().into_owned();
        if case.join("golden.json").exists() {
            let golden = Golden::read(&case).expect("goldens are whole");
            let ways: &[Way] = if golden.network == "tokenizer" {
                // It computes nothing on a device.
                &[Way::F32]
            } else if golden.options.gradient.is_some() && golden.network == "onnx" {
                // Half precision turns single units of a recogniser over the kink of their PReLU: one pixel's gradient is then 0.64
                // deviations off, in PyTorch's own half precision too.
                &[Way::F32, Way::Reference]
            } else {
                &Way::ALL
            };
            for &way in ways {
                let golden = golden.clone();
                trials.push(Trial::test(format!("run {name} {}", way.name()), move || network(&golden, way)));
            }
        }
        match json(&case.join("case.json")) {
            Some(golden) if golden["picture"].is_string() => {
                trials.push(Trial::test(format!("generate {name}"), move || pipeline(&case, &golden)));
            }
            Some(golden) if golden["photos"].is_array() => {
                trials.push(Trial::test(format!("embed {name}"), move || photos(&case, &golden)));
            }
            Some(golden) if golden["embed"].is_object() => {
                trials.push(Trial::test(format!("embed {name}"), move || extended(&case, &golden)));
            }
            _ => {}
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Where and in which storage type a network runs.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    F32,
    F16,
    Reference,
}

impl Way {
    const ALL: [Way; 3] = [Way::F32, Way::F16, Way::Reference];

    fn name(self) -> &'static str {
        match self {
            Way::F32 => "f32",
            Way::F16 => "f16",
            Way::Reference => "reference",
        }
    }

    fn device(self) -> String {
        match self {
            Way::Reference => "reference".into(),
            _ => std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into()),
        }
    }
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).expect("goldens are in the repository");
    let mut folders: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

fn pulid(arguments: &[String], way: Way) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_pulid"))
        .args(arguments)
        .args(["--device", &way.device(), "--autotune", "off"])
        .output()
        .map_err(|e| Failed::from(e.to_string()))?;
    if !output.status.success() {
        return Err(format!("pulid {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn path(case: &Path, value: &Value) -> Option<String> {
    Some(case.join(value.as_str()?).to_string_lossy().into_owned())
}

fn network(golden: &Golden, way: Way) -> Outcome {
    let folder = tempfile::tempdir()?;
    let result = folder.path().join("outputs.safetensors");
    let mut arguments = vec!["run".into(), golden.network.clone()];
    let file = |path: &Path| path.to_string_lossy().into_owned();
    let files = [
        ("--weights", Some(&golden.options.weights)),
        ("--adapter", golden.options.adapter.as_ref()),
        ("--inputs", golden.inputs.as_ref()),
        ("--outputs", Some(&result)),
    ];
    for (flag, path) in files {
        arguments.extend(path.into_iter().flat_map(|path| [flag.to_owned(), file(path)]));
    }
    let dtype = if way == Way::F16 { DType::F16 } else { DType::F32 };
    arguments.extend(["--dtype".to_owned(), dtype.to_string()]);
    for (key, value) in &golden.options.settings {
        arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
    }
    arguments.extend(golden.options.gradient.is_some().then(|| "--gradient".to_owned()));
    pulid(&arguments, way)?;
    let limit = if golden.options.gradient.is_some() && way == Way::F16 { HALF_GRADIENT_LIMIT } else { limit(dtype) };
    let got = Checkpoint::open(&result).map_err(Failed::from)?;
    for (key, want) in golden.outputs().map_err(Failed::from)? {
        let got = got.tensor(&key).map_err(Failed::from)?;
        if want.dtype() == DType::U32 {
            if got.cast(DType::U32) != want {
                return Err(format!("{key} is {:?}, expected {:?}", got.data(), want.data()).into());
            }
            continue;
        }
        let error = got.deviation_from(&want);
        if error > limit {
            let id = format!("{}/{}/{key}", golden.name(), way.name());
            pulid_conformance::keep_failure(&id, &[("actual", &got), ("expected", &want)]).map_err(Failed::from)?;
            return Err(format!("{key} differs by {error:.2e} standard deviations, limit {limit:.0e}").into());
        }
    }
    Ok(())
}

/// Standard deviations by which gradients in half precision may be off: PyTorch's own are by 1.1e-1 in the UNet's identity, where
/// sums over few positions nearly cancel; measured on lavapipe are 1.4e-1.
const HALF_GRADIENT_LIMIT: f64 = 2e-1;

/// Standard deviations by which latents may be off after all steps; measured on lavapipe are 5e-6.
const LATENTS_LIMIT: f64 = 1e-4;

/// Levels of 255 by which an image may be off; measured is 1, where a level lies between two.
const LEVELS: u8 = 2;

/// Standard deviations by which a person's embeddings may be off; measured are 4e-3 for four photos, 5e-4 for others. Wider than a network's
/// limit: pixels of crop and mask are rounded to whole numbers, and a single one that falls the other way moves the tokens by a few
/// thousandths.
const IDENTITY_LIMIT: f64 = 1e-2;

/// Latents and image of a whole generation.
fn pipeline(case: &Path, golden: &Value) -> Outcome {
    let folder = std::env::temp_dir().join(format!("pulid-pipeline-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (image, latents) = (folder.join("picture.png"), folder.join("latents.safetensors"));
    let mut arguments = vec!["generate".to_owned()];
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value]);
        }
    };
    flag("--model", path(case, &golden["model"]));
    flag("--adapter", path(case, &golden["adapter"]));
    flag("--identity", path(case, &golden["identity"]));
    for (key, value) in golden["arguments"].as_object().into_iter().flatten() {
        flag(&format!("--{key}"), Some(text(value)));
    }
    flag("--output", Some(image.to_string_lossy().into_owned()));
    flag("--save-latents", Some(latents.to_string_lossy().into_owned()));
    pulid(&arguments, Way::F32)?;
    let want = Checkpoint::open(case.join(text(&golden["outputs"]))).map_err(Failed::from)?;
    let got = Checkpoint::open(&latents).map_err(Failed::from)?;
    let latents = |file: &Checkpoint| file.tensor("latents").map_err(Failed::from);
    let error = latents(&got)?.deviation_from(&latents(&want)?);
    if error > LATENTS_LIMIT {
        return Err(format!("latents differ by {error:.2e} standard deviations").into());
    }
    let open = |p: &Path| image::open(p).map(|i| i.to_rgb8()).map_err(|e| Failed::from(e.to_string()));
    let got = match golden["arguments"]["batch"].as_u64() {
        None => open(&image)?,
        Some(count) => stacked((0..count).map(|i| open(&folder.join(format!("picture-{i}.png")))))?,
    };
    let want = open(&case.join(text(&golden["picture"])))?;
    if got.dimensions() != want.dimensions() {
        return Err(format!("the image is {:?}, expected {:?}", got.dimensions(), want.dimensions()).into());
    }
    let worst = got.as_raw().iter().zip(want.as_raw()).map(|(&a, &b)| a.abs_diff(b)).max().unwrap_or(0);
    if worst > LEVELS {
        return Err(format!("the image differs by {worst} of 255").into());
    }
    Ok(std::fs::remove_dir_all(&folder)?)
}

/// Images of one width, one above the other, as a batch's golden has them.
fn stacked(images: impl Iterator<Item = Result<RgbImage, Failed>>) -> Result<RgbImage, Failed> {
    let (mut width, mut height, mut bytes) = (0, 0, Vec::new());
    for image in images {
        let image = image?;
        width = image.width();
        height += image.height();
        bytes.extend(image.into_raw());
    }
    RgbImage::from_raw(width, height, bytes).ok_or_else(|| "the images of a batch differ in size".into())
}

/// Identity tokens and face embeddings of photos.
fn photos(case: &Path, golden: &Value) -> Outcome {
    embed(case, &golden["photos"], &golden["outputs"], &mini_models(), &[])
}

/// The same with a detector of facexlib's, an adapter of PuLID v1 or a mix of identities.
fn extended(case: &Path, golden: &Value) -> Outcome {
    let how = &golden["embed"];
    let folder = tempfile::tempdir()?;
    let mut models = mini_models();
    if let Some(detector) = path(case, &how["retinaface"]) {
        // The mini models with one file more.
        std::fs::create_dir(folder.path().join("antelopev2"))?;
        for file in FACE_FILES {
            std::fs::copy(models.join(file), folder.path().join(file))?;
        }
        std::fs::copy(detector, folder.path().join("detection_Resnet50_Final.safetensors"))?;
        models = folder.path().to_owned();
    }
    let mut flags = Vec::new();
    if let Some(adapter) = path(case, &how["adapter"]) {
        flags.extend(["--adapter".to_owned(), adapter]);
    }
    if how["id_mix"] == true {
        flags.push("--id-mix".to_owned());
    }
    embed(case, &how["photos"], &golden["outputs"], &models, &flags)
}

/// What reading a person takes.
const FACE_FILES: [&str; 6] = [
    "antelopev2/scrfd_10g_bnkps.onnx",
    "antelopev2/glintr100.onnx",
    "parsing_bisenet.safetensors",
    "eva_clip.safetensors",
    "eva_clip.json",
    "pulid_v1.1.safetensors",
];

fn mini_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini")
}

fn embed(case: &Path, photos: &Value, outputs: &Value, models: &Path, flags: &[String]) -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("identity.safetensors");
    let mut arguments = vec!["embed".to_owned()];
    arguments.extend(photos.as_array().into_iter().flatten().filter_map(|photo| path(case, photo)));
    for (flag, value) in [("--output", file.as_path()), ("--models-dir", models)] {
        arguments.extend([flag.to_owned(), value.to_string_lossy().into_owned()]);
    }
    arguments.extend_from_slice(flags);
    pulid(&arguments, Way::F32)?;
    let want = Checkpoint::open(case.join(text(outputs))).map_err(Failed::from)?;
    let got = Checkpoint::open(&file).map_err(Failed::from)?;
    for key in ["face_embedding", "id_embedding", "uncond_id_embedding"] {
        let (got, want) = (got.tensor(key).map_err(Failed::from)?, want.tensor(key).map_err(Failed::from)?);
        let error = got.deviation_from(&want);
        if error > IDENTITY_LIMIT {
            return Err(format!("{key} differs by {error:.2e} standard deviations").into());
        }
    }
    Ok(())
}
