//! Whole SDXLs in one file: the published one by its names, a small one by its tensors, and CLIP's own tokenizer.

use pulid_checkpoint::{Checkpoint, MemorySource};
use pulid_models::sdxl::{ClipConfig, Predicts, SdxlModel, TextEncoder, UnetConfig, VaeConfig, single_file};
use pulid_models::{ClipTokenizer, Padding, Precision, run};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(path)
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The keys of a tree of names.
fn flatten(tree: &Value, path: &str, found: &mut BTreeMap<String, Vec<usize>>) {
    match tree {
        Value::Object(nodes) => {
            for (name, node) in nodes {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(node, &path, found);
            }
        }
        shape => drop(found.insert(path.to_owned(), serde_json::from_value(shape.clone()).unwrap())),
    }
}

/// A checkpoint of these shapes. Its file has a hole where the elements would be, which takes no room on the disk.
fn names_only(shapes: &BTreeMap<String, Vec<usize>>) -> Checkpoint {
    let (mut entries, mut offset) = (Map::new(), 0u64);
    for (key, shape) in shapes {
        let end = offset + 2 * shape.iter().product::<usize>() as u64;
        entries.insert(key.clone(), json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let text = serde_json::to_string(&entries).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sdxl.safetensors");
    let header = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    std::fs::write(&path, &header).unwrap();
    // The map outlives the file's name.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(header.len() as u64 + offset).unwrap();
    Checkpoint::open(&path).unwrap()
}

fn shapes_of(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<usize>> {
    checkpoint.keys().map(|k| (k.to_owned(), checkpoint.info(k).unwrap().shape.to_vec())).collect()
}

/// transformers writes the text encoders' tensors with or without this prefix.
fn unprefixed(shapes: BTreeMap<String, Vec<usize>>) -> BTreeMap<String, Vec<usize>> {
    let bare = |k: String| k.strip_prefix("text_model.").map(str::to_owned).unwrap_or(k);
    shapes.into_iter().map(|(k, s)| (bare(k), s)).filter(|(k, _)| !k.ends_with("position_ids")).collect()
}

#[test]
fn the_published_names_become_diffusers_and_tell_the_configurations() {
    let mut shapes = BTreeMap::new();
    flatten(&read_json(golden("single-file/published.json")), "", &mut shapes);
    let file = names_only(&shapes);
    assert!(single_file::is_single_file(&file));
    let all = read_json(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/published.json"));
    let published =
        |part: &str| -> BTreeMap<String, Vec<usize>> { serde_json::from_value(all[part]["tensors"].clone()).unwrap() };
    let parts = [
        ("unet", single_file::unet(&file).unwrap()),
        ("vae", single_file::vae(&file).unwrap()),
        ("text_encoder", single_file::text_encoder(&file).unwrap()),
        ("text_encoder_2", single_file::text_encoder_2(&file).unwrap()),
    ];
    for (name, part) in &parts {
        assert_eq!(unprefixed(shapes_of(part)), unprefixed(published(name)), "{name}");
    }

    let config = |part: &str| all[part]["config"].to_string();
    let (got, want) = (UnetConfig::infer(&parts[0].1).unwrap(), UnetConfig::parse(&config("unet"), "config").unwrap());
    assert_eq!(got.layers_per_block.expand(3, "").unwrap(), want.layers_per_block.expand(3, "").unwrap());
    // The first level does not attend, and 5 heads there mean nothing.
    assert_eq!(want.attention_head_dim.expand(3, "").unwrap(), [5, 10, 20]);
    assert_eq!(got.attention_head_dim.expand(3, "").unwrap(), [1, 10, 20]);
    let rest = |config: UnetConfig| {
        let same = pulid_models::PerBlock::Same(1);
        format!("{:?}", UnetConfig { layers_per_block: same.clone(), attention_head_dim: same, ..config })
    };
    assert_eq!(rest(got), rest(want));
    let (got, want) = (VaeConfig::infer(&parts[1].1).unwrap(), VaeConfig::parse(&config("vae"), "config").unwrap());
    assert_eq!(format!("{got:?}"), format!("{want:?}"));
    for (name, part) in &parts[2..] {
        let (got, want) = (ClipConfig::infer(part).unwrap(), ClipConfig::parse(&config(name), "config").unwrap());
        assert_eq!(format!("{got:?}"), format!("{want:?}"), "{name}");
    }
}

#[test]
fn one_of_two_text_encoders_is_named() {
    let ids = pulid_tensor::HostTensor::from_u32([1, 77], vec![3; 77]).unwrap();
    let inputs = run::Tensors::from([("input_ids".to_owned(), ids)]);
    let prepare = |weights: &str, encoder: Option<&str>| {
        let mut options = run::RunOptions::new(golden(weights));
        options.settings.extend(encoder.map(|number| ("encoder".to_owned(), number.to_owned())));
        match run::prepare("text-encoder", &options, &inputs) {
            Ok(run::Prepared::Graph(run)) => Ok(run.graph.nodes().len()),
            Ok(run::Prepared::Done(_)) => panic!("a text encoder has a graph"),
            Err(error) => Err(error.to_string()),
        }
    };
    for (number, part) in [("1", "pipeline/model/text_encoder"), ("2", "pipeline/model/text_encoder_2")] {
        assert_eq!(prepare("pipeline/model", Some(number)), prepare(part, None));
    }
    assert!(prepare("pipeline/model", Some("3")).unwrap_err().contains("neither 1 nor 2"));
    let message = prepare("single-file/sdxl.safetensors", None).unwrap_err();
    assert!(message.contains("--set encoder=1 or 2"), "{message}");
}

#[test]
fn uneven_unets_are_refused() {
    let mut shapes = BTreeMap::new();
    flatten(&read_json(golden("single-file/published.json")), "", &mut shapes);
    // As in the distilled SSD-1B: fewer blocks in the second attention of a level.
    shapes.retain(|key, _| !key.starts_with("model.diffusion_model.input_blocks.8.1.transformer_blocks.9."));
    let message = UnetConfig::infer(&single_file::unet(&names_only(&shapes)).unwrap()).unwrap_err().to_string();
    assert!(message.contains("different depths {9, 10} in down_blocks.2 and up_blocks.0"), "{message}");
}

#[test]
fn a_small_file_holds_the_folder_s_tensors() {
    let file = Checkpoint::open(golden("single-file/sdxl.safetensors")).unwrap();
    for (name, part) in [
        ("unet", single_file::unet(&file).unwrap()),
        ("vae", single_file::vae(&file).unwrap()),
        ("text_encoder", single_file::text_encoder(&file).unwrap()),
        ("text_encoder_2", single_file::text_encoder_2(&file).unwrap()),
    ] {
        let folder = Checkpoint::open(golden("pipeline/model").join(name)).unwrap();
        assert_eq!(unprefixed(shapes_of(&part)), unprefixed(shapes_of(&folder)), "{name}");
        let bare = part.with_optional_prefix("text_model.");
        for key in folder.keys().filter(|k| !k.ends_with("position_ids")) {
            let short = key.strip_prefix("text_model.").unwrap_or(key);
            let got = if bare.contains(short) { bare.bytes(short) } else { part.bytes(short) };
            assert_eq!(got.unwrap(), folder.bytes(key).unwrap(), "{name}: {key}");
        }
    }
}

#[test]
fn parts_open_from_files() {
    let model = SdxlModel::open(golden("single-file/sdxl.safetensors")).unwrap();
    // 16 channels are no heads of 64: the file alone does not tell this network.
    let message = model.unet(Precision::F32).map(drop).unwrap_err().to_string();
    assert!(message.contains("`config`"), "{message}");
    let model = model.with_config(golden("pipeline/model")).unwrap();
    assert_eq!(model.unet(Precision::F32).unwrap().config().pooled_dim(), Some(20));
    assert_eq!(model.tokenizer(TextEncoder::Second).unwrap().eos(), 598);
    assert_eq!(model.vae(Precision::F32).unwrap().config().factor(), 8);
    assert!(model.text_encoder(TextEncoder::Second, Precision::F32).unwrap().has_projection());

    let unet = golden("pipeline/model/unet/diffusion_pytorch_model.safetensors");
    let message = SdxlModel::open(&unet).unwrap_err().to_string();
    assert!(message.contains("is no SDXL in one file"), "{message}");
    let model = SdxlModel::open(golden("pipeline/model")).unwrap().with_unet(unet);
    assert!(model.unet(Precision::F32).is_ok());
}

#[test]
fn models_that_predict_velocity_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let [plain, velocity] = ["plain", "velocity"].map(|name| folder.path().join(name).with_extension("safetensors"));
    let tensor = pulid_tensor::HostTensor::zeros([1]);
    let first = ("model.diffusion_model.input_blocks.0.0.weight", &tensor);
    pulid_checkpoint::write_safetensors(&plain, [first], &BTreeMap::new()).unwrap();
    pulid_checkpoint::write_safetensors(&velocity, [first, ("v_pred", &tensor)], &BTreeMap::new()).unwrap();
    let predicts = |model: SdxlModel| model.prediction().unwrap().predicts;
    assert_eq!(predicts(SdxlModel::open(&plain).unwrap()), None);
    assert_eq!(predicts(SdxlModel::open(&velocity).unwrap()), Some(Predicts::Velocity));
    // The UNet that is taken decides.
    assert_eq!(predicts(SdxlModel::open(&velocity).unwrap().with_unet(&plain)), None);
    assert_eq!(predicts(SdxlModel::open(&plain).unwrap().with_unet(&velocity)), Some(Predicts::Velocity));
    assert_eq!(predicts(SdxlModel::open(golden("pipeline/model")).unwrap()), None);
}

#[test]
fn a_file_without_a_part_says_so() {
    let tensor = pulid_tensor::HostTensor::zeros([1]);
    let key = "model.diffusion_model.input_blocks.0.0.weight";
    let bytes = pulid_checkpoint::safetensors::to_bytes([(key, &tensor)], &BTreeMap::new()).unwrap();
    let file = Checkpoint::from_source(Arc::new(MemorySource::new("unet only", bytes))).unwrap();
    for (result, prefix) in [
        (single_file::vae(&file), "first_stage_model."),
        (single_file::text_encoder_2(&file), "conditioner.embedders.1"),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(prefix) && message.contains("unet only"), "{message}");
    }
}

#[test]
fn the_built_in_tokenizer_gives_transformers_ids() {
    let golden = read_json(golden("single-file/tokens.json"));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 13);
    for (name, padding) in [("end_of_text", Padding::EndOfText), ("exclamation", Padding::Exclamation)] {
        let tokenizer = ClipTokenizer::published(padding).unwrap();
        assert_eq!((tokenizer.length(), tokenizer.eos()), (77, 49407));
        for case in cases {
            let ids = tokenizer.encode(case["prompt"].as_str().unwrap()).unwrap();
            assert_eq!(json!(ids), case[name], "{name}: {}", case["prompt"]);
        }
    }
}
