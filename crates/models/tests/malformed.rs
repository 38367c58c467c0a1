//! Configurations that do not fit their weights, or no network at all: refused with an error, never a panic.

use pulid_checkpoint::Checkpoint;
use pulid_models::sdxl::{ClipConfig, ClipTextModel, Unet, UnetConfig, UnetSize, Vae, VaeConfig};
use pulid_models::{EvaClip, EvaSettings, Precision};
use pulid_tensor::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(path)
}

/// Builds a network from every configuration that differs in one value from the given folder's, and counts those that
/// are refused.
fn refusals(folder: &str, build: impl Fn(&str, Checkpoint) -> Result<()>) -> usize {
    let text = std::fs::read_to_string(golden(folder).join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(golden(folder)).unwrap();
    build(&text, checkpoint.clone()).expect("the configuration as it is");
    let config: Value = serde_json::from_str(&text).unwrap();
    let strange = [
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(u64::MAX),
        json!(i64::MAX),
        json!(u32::MAX),
        json!([]),
        json!([0, 0, 0]),
        json!([1, 1]),
        json!([u64::MAX, u64::MAX, u64::MAX]),
        json!(vec![1; 100]),
        json!("strange"),
        json!(["strange"]),
        json!(null),
        json!(true),
        json!({"a": 1}),
    ];
    let mut refused = 0;
    for key in config.as_object().unwrap().keys() {
        for value in &strange {
            let mut changed = config.clone();
            changed[key] = value.clone();
            refused += usize::from(build(&changed.to_string(), checkpoint.clone()).is_err());
        }
    }
    for text in ["", "{", "[]", "null", "{}", "\u{0}"] {
        assert!(build(text, checkpoint.clone()).is_err(), "{text:?} is accepted");
    }
    refused
}

#[test]
fn unet_configurations() {
    for folder in ["unet/weights/lists", "unet/weights/scalars"] {
        let refused = refusals(folder, |text, checkpoint| {
            let config = UnetConfig::parse(text, "config.json")?;
            let size = UnetSize { batch: 1, height: 9, width: 7, text_tokens: 77, identity: None };
            Unet::new(config, checkpoint, Precision::F32).graph(size).map(drop)
        });
        assert!(refused > 300, "only {refused} are refused");
    }
}

#[test]
fn vae_configurations() {
    let refused = refusals("vae/weights/f8", |text, checkpoint| {
        let vae = Vae::new(VaeConfig::parse(text, "config.json")?, checkpoint, Precision::F32);
        vae.config().factor();
        vae.decoder(1, 5, 7)?;
        vae.encoder(1, 45, 35).map(drop)
    });
    assert!(refused > 100, "only {refused} are refused");
}

#[test]
fn text_encoder_configurations() {
    let refused = refusals("text-encoder/weights/gelu-projected", |text, checkpoint| {
        let config = ClipConfig::parse(text, "config.json")?;
        let encoder = ClipTextModel::new(config, checkpoint, Precision::F32);
        let ids = pulid_tensor::HostTensor::from_u32([1, 77], vec![3; 77])?;
        encoder.inputs(&ids)?;
        encoder.graph(1, 77).map(drop)
    });
    assert!(refused > 60, "only {refused} are refused");
}

#[test]
fn all_that_is_missing_is_told_at_once() {
    let file = Checkpoint::open(golden("unet/weights/lists")).unwrap();
    let text = std::fs::read_to_string(golden("unet/weights/lists/config.json")).unwrap();
    let size = UnetSize { batch: 1, height: 8, width: 8, text_tokens: 77, identity: None };
    let build = |file: Checkpoint| {
        let config = UnetConfig::parse(&text, "config.json").unwrap();
        let network = Unet::new(config, file, Precision::F32);
        network.graph(size).map(drop).map_err(|e| e.to_string())
    };
    let without = |gone: &dyn Fn(&str) -> bool| file.rename(|k| (!gone(k)).then(|| k.to_owned())).unwrap();
    build(without(&|_| false)).unwrap();

    let message = build(without(&|k| k == "conv_in.bias")).unwrap_err();
    assert!(
        message.starts_with("weight `conv_in.bias` in ") && message.contains("is missing; closest are"),
        "{message}"
    );

    let count = file.len();
    let gone = file.keys().filter(|k| k.contains(".ff.net.")).count();
    let message = build(without(&|k| k.contains(".ff.net."))).unwrap_err();
    let expected = format!("{gone} of {count} tensors are missing, first: `");
    for part in [&*expected, "ff.net.2.weight`", "UNet by diffusers' names", &format!("holds {} tensors", count - gone)]
    {
        assert!(message.contains(part), "{part}: {message}");
    }

    // Two convolutions that changed their places.
    let swapped = file.rename(|k| {
        Some(match k.split_once('.') {
            Some(("conv_in", rest)) => format!("conv_out.{rest}"),
            Some(("conv_out", rest)) => format!("conv_in.{rest}"),
            _ => k.to_owned(),
        })
    });
    let message = build(swapped.unwrap()).unwrap_err();
    assert!(
        message.contains("tensors have another shape, first: `conv_in.weight` [") && message.contains("expected [")
    );
}

#[test]
fn extents_of_nothing() {
    let unet = Unet::open(golden("unet/weights/lists"), Precision::F32).unwrap();
    let size = UnetSize { batch: 1, height: 8, width: 8, text_tokens: 77, identity: None };
    for bad in [
        UnetSize { batch: 0, ..size },
        UnetSize { height: 0, ..size },
        UnetSize { width: usize::MAX, ..size },
        UnetSize { text_tokens: 0, ..size },
    ] {
        assert!(unet.graph(bad).is_err(), "{bad:?}");
    }
    let vae = Vae::open(golden("vae/weights/f8"), Precision::F32).unwrap();
    assert!(vae.decoder(1, 0, 8).is_err() && vae.encoder(0, 8, 8).is_err());
    let file = Checkpoint::open(golden("eva-clip/scaled-grid/tower.safetensors")).unwrap();
    for heads in [0, 5, usize::MAX] {
        let settings = EvaSettings { heads: Some(heads), pretrained_grid: 4 };
        assert!(EvaClip::new(&file, Precision::F32, settings).is_err(), "{heads} heads");
    }
}
