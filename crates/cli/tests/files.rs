//! Models as they are passed around: whole in one file, a UNet alone, pickles; and what `pulid inspect` says of each.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    root.join(path).to_string_lossy().into_owned()
}

fn pulid(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_pulid")).args(arguments).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The file of the image that a model makes.
fn image(output: &Path, model: &[&str]) -> Vec<u8> {
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let settings = [
        "--prompt",
        "a portrait of a woman with glasses",
        "--width",
        "64",
        "--height",
        "64",
        "--steps",
        "3",
        "--guidance",
        "2",
        "--seed",
        "5",
        "--no-metadata",
        "--autotune",
        "off",
        "--device",
        &device,
        "--output",
    ];
    let output = output.to_string_lossy();
    pulid(&[&["generate"], model, &settings[..], &[&output]].concat()).unwrap();
    std::fs::read(&*output).unwrap()
}

#[test]
fn one_file_gives_the_folder_s_image_byte_for_byte() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let (folder, file) = (golden("pipeline/model"), golden("single-file/sdxl.safetensors"));
    let want = image(&at("folder.png"), &["--model", &folder]);
    assert!(
        want == image(&at("file.png"), &["--model", &file, "--config", &folder]),
        "a named folder of configurations"
    );

    // The same where configurations lie beside the file, without weights.
    let beside = at("small.safetensors");
    std::fs::copy(&file, &beside).unwrap();
    for part in ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"] {
        std::fs::create_dir_all(at("small").join(part)).unwrap();
        for entry in std::fs::read_dir(Path::new(&folder).join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "safetensors") {
                std::fs::copy(&path, at("small").join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    assert!(want == image(&at("beside.png"), &["--model", &beside.to_string_lossy()]), "a folder beside the file");

    // A UNet alone, from a file of its own and from a whole model, over the folder and over the file.
    let unet = at("unet.safetensors");
    std::fs::copy(Path::new(&folder).join("unet/diffusion_pytorch_model.safetensors"), &unet).unwrap();
    let unet = unet.to_string_lossy();
    assert!(want == image(&at("unet-1.png"), &["--model", &folder, "--unet", &unet]), "a UNet over a folder");
    let over_file = ["--model", &file, "--config", &folder, "--unet", &unet];
    assert!(want == image(&at("unet-2.png"), &over_file), "a UNet over a file");
    assert!(want == image(&at("unet-3.png"), &["--model", &folder, "--unet", &file]), "a whole file's UNet");
}

#[test]
fn another_unet_gives_another_image() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let folder = golden("pipeline/model");
    let from = Path::new(&folder).join("unet/diffusion_pytorch_model.safetensors");
    // The last bytes are weights.
    let mut bytes = std::fs::read(from).unwrap();
    let length = bytes.len();
    bytes[length - 4000..].iter_mut().skip(1).step_by(2).for_each(|high| *high ^= 0x80);
    std::fs::write(at("other.safetensors"), bytes).unwrap();
    let want = image(&at("folder.png"), &["--model", &folder]);
    let other = at("other.safetensors");
    assert!(want != image(&at("other.png"), &["--model", &folder, "--unet", &other.to_string_lossy()]));
}

#[test]
fn files_that_belong_elsewhere_are_named_with_what_they_are() {
    let folder = golden("pipeline/model");
    let vae = PathBuf::from(&folder).join("vae/diffusion_pytorch_model.safetensors").to_string_lossy().into_owned();
    let message = pulid(&["generate", "--model", &vae, "--prompt", "x"]).unwrap_err();
    assert!(message.contains("is not an SDXL in one file but this: VAE by diffusers' names"), "{message}");
    let temporary = tempfile::tempdir().unwrap();
    let output = temporary.path().join("x.png").to_string_lossy().into_owned();
    let size = ["--width", "64", "--height", "64", "--steps", "1", "--device", "reference"];
    let files = ["generate", "--prompt", "x", "--model", &folder, "--unet", &vae, "--output", &output];
    let message = pulid(&[&files[..], &size[..]].concat()).unwrap_err();
    for part in ["is not an SDXL UNet but this: VAE by diffusers' names", &vae] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn inspecting_tells_formats_and_families() {
    let mini = |path: &str| golden("../../models/mini") + "/" + path;
    for (path, format, family) in [
        (golden("single-file/sdxl.safetensors"), "safetensors", "SDXL, a single file"),
        (golden("pipeline/model"), "folder", "SDXL, a folder in diffusers' layout"),
        (golden("pipeline/model/unet"), "folder", "UNet by diffusers' names"),
        (golden("pipeline/model/vae/diffusion_pytorch_model.safetensors"), "safetensors", "VAE by diffusers' names"),
        (golden("pipeline/model/text_encoder/model.safetensors"), "safetensors", "CLIP text encoder"),
        (golden("pipeline/model/identity.safetensors"), "safetensors", "identity, from pulid embed"),
        (golden("bisenet/weights/bisenet.pth"), "PyTorch (zip)", "BiSeNet"),
        (golden("bisenet/weights/bisenet_legacy.pth"), "PyTorch (legacy)", "BiSeNet"),
        (golden("retinaface/wide-pyramid/weights.safetensors"), "safetensors", "RetinaFace"),
        (golden("checkpoint/types.pth"), "PyTorch (zip)", "unknown"),
        (mini("pulid_v1.1.safetensors"), "safetensors", "PuLID v1.1"),
        (mini("eva_clip.safetensors"), "safetensors", "EVA02-CLIP"),
        (mini("antelopev2/scrfd_10g_bnkps.onnx"), "ONNX", "SCRFD"),
        (mini("antelopev2/glintr100.onnx"), "ONNX", "ArcFace (IResNet)"),
    ] {
        let found: Value = serde_json::from_str(&pulid(&["inspect", &path, "--json"]).unwrap()).unwrap();
        assert_eq!((&found["format"], &found["family"]), (&format.into(), &family.into()), "{path}");
        assert!(found["count"].as_u64().unwrap() > 0 && found["bytes"].as_u64().unwrap() > 0, "{path}");
        assert!(found.get("tensors").is_none(), "{path}");
    }
    let text = pulid(&["inspect", &golden("checkpoint/types.pth"), "--keys"]).unwrap();
    for line in ["bfloat16 BF16[2, 3]", "empty F32[0, 4]", "scalar F32[]", "elements   I64: 1 tensors, 48 B"] {
        assert!(text.lines().any(|l| l == line), "{line}:\n{text}");
    }
    let message = pulid(&["inspect", &golden("checkpoint/refused/program.pth")]).unwrap_err();
    assert!(message.contains("print`"), "{message}");
    assert!(pulid(&["inspect", &golden("checkpoint/nothing.pth")]).is_err());
}
