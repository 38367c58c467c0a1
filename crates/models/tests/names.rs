//! SDXL's networks under every name by which they are published: the same tensors as diffusers' folder.

#[allow(dead_code, reason = "shared with the reader's own tests")]
#[path = "../../checkpoint/tests/support/gguf.rs"]
mod gguf;
#[path = "support/original.rs"]
mod original;

use gguf::Gguf;
use pulid_checkpoint::{Checkpoint, write_safetensors};
use pulid_models::Precision;
use pulid_models::sdxl::{Part, SdxlModel, TextEncoder, Unet};
use pulid_tensor::{DType, HostTensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

type Tensors = BTreeMap<String, HostTensor>;

fn tensors(checkpoint: &Checkpoint) -> Tensors {
    checkpoint.keys().map(|key| (key.to_owned(), checkpoint.tensor(key).unwrap())).collect()
}

fn open(path: &str) -> Tensors {
    tensors(&Checkpoint::open(repository(path)).unwrap())
}

fn renamed(tensors: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(key, tensor)| (name(key), tensor.clone())).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    write_safetensors(path, tensors, &BTreeMap::new()).unwrap();
}

/// Floats in the order of the file, extents the other way round.
fn write_gguf(path: &Path, tensors: &Tensors) {
    let file = tensors.iter().fold(Gguf::default(), |file, (key, tensor)| {
        let extents: Vec<u64> = tensor.shape().iter().rev().map(|&n| n as u64).collect();
        let kind = if tensor.dtype() == DType::F16 { 1 } else { 0 };
        file.tensor(key, &extents, kind, tensor.bytes())
    });
    std::fs::write(path, file.bytes()).unwrap();
}

const MINI_UNET: &str = "models/mini/sdxl/unet";

/// The mini model's UNet by Stability's names: one residual block a level going down, the last level up does not attend.
fn original_unet() -> Tensors {
    let unet = open(MINI_UNET);
    let all = renamed(&unet, |key| original::unet_key(key, 1, |level| level < 2));
    assert_eq!(all.len(), unet.len());
    all
}

#[test]
fn a_unet_alone_is_the_folder_s_under_every_name() {
    let want = open(MINI_UNET);
    let folder = tempfile::tempdir().unwrap();
    let original = original_unet();
    assert!(original.contains_key("input_blocks.0.0.weight") && original.contains_key("output_blocks.1.2.conv.bias"));
    let mut cases: Vec<(String, Tensors)> = Vec::new();
    for prefix in ["", "diffusion_model.", "model.diffusion_model.", "model.", "unet."] {
        cases.push((format!("original {prefix}"), renamed(&original, |key| format!("{prefix}{key}"))));
        cases.push((format!("diffusers {prefix}"), renamed(&want, |key| format!("{prefix}{key}"))));
    }
    let model = SdxlModel::open(repository("models/mini/sdxl")).unwrap();
    for (name, tensors_there) in &cases {
        for format in ["safetensors", "gguf"] {
            let path = folder.path().join(format!("w.{format}"));
            match format {
                "gguf" => write_gguf(&path, tensors_there),
                _ => write(&path, tensors_there),
            }
            let with = model.clone().with_unet(&path);
            let got = with.part(Part::Unet).unwrap().weights;
            assert!(tensors(&got) == want, "{name} in {format}");
            with.unet(Precision::F32).unwrap();
        }
    }
    // By itself, as `pulid run unet` opens it, with a configuration beside it.
    std::fs::copy(repository(MINI_UNET).join("config.json"), folder.path().join("config.json")).unwrap();
    write(&folder.path().join("w.safetensors"), &original);
    assert_eq!(Unet::open(folder.path().join("w.safetensors"), Precision::F32).unwrap().config().in_channels, 4);
}

#[test]
fn projections_stored_as_filters_are_matrices() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.gguf");
    let mut all = original_unet();
    let mut changed = 0;
    for (key, tensor) in &mut all {
        if key.ends_with(".proj_in.weight") || key.ends_with(".proj_out.weight") {
            *tensor = tensor.clone().reshape([96, 96, 1, 1]).unwrap();
            changed += 1;
        }
    }
    assert!(changed > 6);
    write_gguf(&path, &all);
    let size = pulid_models::sdxl::UnetSize { batch: 1, height: 64, width: 64, text_tokens: 77, identity: None };
    let model = SdxlModel::open(repository("models/mini/sdxl")).unwrap();
    let types = |model: SdxlModel| -> Vec<String> {
        let graph = model.unet(Precision::F32).unwrap().graph(size).unwrap();
        graph.nodes().iter().map(|node| node.ty.to_string()).collect()
    };
    assert_eq!(types(model.clone().with_unet(path)), types(model));
}

/// transformers writes a text encoder's tensors with or without this prefix; whole files have it.
fn with_text_model(tensors: &Tensors) -> Tensors {
    renamed(tensors, |key| {
        if key.starts_with("text_model.") || key == "text_projection.weight" {
            key.into()
        } else {
            format!("text_model.{key}")
        }
    })
}

fn bare(tensors: Tensors) -> Tensors {
    let tensors = tensors.into_iter().filter(|(key, _)| !key.ends_with("position_ids"));
    tensors.map(|(key, tensor)| (key.strip_prefix("text_model.").unwrap_or(&key).to_owned(), tensor)).collect()
}

#[test]
fn whole_files_of_other_programs_hold_the_folder_s_networks() {
    let folder = |part: Part| open(&format!("tests/goldens/pipeline/model/{}", part.folder()));
    let file = open("tests/goldens/single-file/sdxl.safetensors");
    let below = |prefix: &str| -> Tensors {
        let part = file.iter().filter_map(|(key, t)| Some((key.strip_prefix(prefix)?.to_owned(), t.clone())));
        part.collect()
    };
    let [first, second] = TextEncoder::BOTH.map(|which| with_text_model(&folder(Part::TextEncoder(which))));
    let (unet, vae) = (below("model.diffusion_model."), below("first_stage_model."));
    let open_clip = below("conditioner.embedders.1.model.");
    let put = |parts: &[(&str, &Tensors)]| -> Tensors {
        parts.iter().flat_map(|(prefix, t)| renamed(t, |key| format!("{prefix}{key}"))).collect()
    };
    // stable-diffusion.cpp gives open_clip's tensors transformers' names and leaves the projection as open_clip has it.
    let mut cpp = second.clone();
    let projection = cpp.remove("text_projection.weight").unwrap();
    cpp.insert("text_model.text_projection".into(), projection.permute(&[1, 0]).unwrap());
    // ComfyUI's files may hold a projection of the first encoder, which SDXL does not use.
    let mut comfy = first.clone();
    comfy.insert("text_projection.weight".into(), HostTensor::zeros([4, 4]));
    let cases = [
        (
            "stable-diffusion.cpp",
            [
                ("model.diffusion_model.", &unet),
                ("first_stage_model.", &vae),
                ("cond_stage_model.transformer.", &first),
                ("cond_stage_model.1.transformer.", &cpp),
            ],
        ),
        (
            "ComfyUI",
            [
                ("model.diffusion_model.", &unet),
                ("vae.", &vae),
                ("text_encoders.clip_l.transformer.", &comfy),
                ("text_encoders.clip_g.transformer.", &second),
            ],
        ),
        (
            "open_clip",
            [
                ("diffusion_model.", &unet),
                ("first_stage_model.", &vae),
                ("conditioner.embedders.0.transformer.", &first),
                ("cond_stage_model.1.model.", &open_clip),
            ],
        ),
        (
            "diffusers",
            [
                ("unet.", &folder(Part::Unet)),
                ("vae.", &folder(Part::Vae)),
                ("text_encoder.", &first),
                ("text_encoder_2.", &second),
            ],
        ),
    ];
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("whole.gguf");
    for (name, parts) in cases {
        write_gguf(&path, &put(&parts));
        let model = SdxlModel::open(&path).unwrap().with_config(repository("tests/goldens/pipeline/model")).unwrap();
        for part in Part::ALL {
            let got = model.part(part).unwrap().weights;
            assert!(bare(tensors(&got)) == bare(folder(part)), "{name}: {}", part.folder());
        }
    }
}

#[test]
fn a_folder_s_networks_may_have_other_names() {
    let mini = repository("models/mini/sdxl");
    let temporary = tempfile::tempdir().unwrap();
    for part in ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"] {
        let to = temporary.path().join(part);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(mini.join(part)).unwrap() {
            let from = entry.unwrap().path();
            if from.extension().is_none_or(|e| e != "safetensors") {
                std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
            }
        }
    }
    write_gguf(&temporary.path().join("unet/unet-f16.gguf"), &original_unet());
    write_gguf(&temporary.path().join("vae/vae-f16.gguf"), &open("models/mini/sdxl/vae"));
    for part in ["text_encoder", "text_encoder_2"] {
        let all = with_text_model(&open(&format!("models/mini/sdxl/{part}")));
        let prefix = if part == "text_encoder" { "text_encoders.clip_l.transformer." } else { "" };
        write_gguf(&temporary.path().join(part).join("clip.gguf"), &renamed(&all, |key| format!("{prefix}{key}")));
    }
    let (model, want) = (SdxlModel::open(temporary.path()).unwrap(), SdxlModel::open(mini).unwrap());
    for part in Part::ALL {
        let [got, want] = [&model, &want].map(|model| bare(tensors(&model.part(part).unwrap().weights)));
        assert!(got == want, "{}", part.folder());
    }
}

#[test]
fn fused_and_turned_matrices_among_transformers_names_are_seen_apart() {
    let want = with_text_model(&open("models/mini/sdxl/text_encoder_2"));
    let mut fused = want.clone();
    let layer = "text_model.encoder.layers.0.self_attn";
    for kind in ["weight", "bias"] {
        let parts = ["q_proj", "k_proj", "v_proj"].map(|name| fused.remove(&format!("{layer}.{name}.{kind}")).unwrap());
        let mut shape = parts[0].shape().to_vec();
        shape[0] *= 3;
        let bytes = parts.each_ref().map(HostTensor::bytes).concat();
        let ty = pulid_tensor::TensorType::new(parts[0].dtype(), shape);
        fused.insert(format!("{layer}.in_proj.{kind}"), HostTensor::from_bytes(&ty, &bytes).unwrap());
    }
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("w.safetensors");
    write(&path, &renamed(&fused, |key| format!("cond_stage_model.1.transformer.{key}")));
    let file = Checkpoint::open(&path).unwrap();
    let got = pulid_models::sdxl::single_file::any_part(Part::TextEncoder(TextEncoder::Second), &file).unwrap();
    assert!(bare(tensors(&got)) == bare(want));
}
