//! Checkpoints of the published networks' names and shapes with random weights, to try sizes without downloads.

use crate::{Outcome, root};
use pulid_checkpoint::write_safetensors_one_by_one;
use pulid_tensor::{DType, TensorType, f16};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// What can be made: name, networks of `published.json`, and what it is.
const MODELS: [(&str, &[&str], &str); 6] = [
    ("sdxl", &["unet", "vae", "text_encoder", "text_encoder_2"], "SDXL 1.0 in diffusers' layout, 7 GB"),
    ("pulid", &["pulid_v1.1"], "PuLID v1.1's adapter, 1 GB"),
    ("pulid-v1", &["pulid_v1"], "PuLID v1's adapter, 0.8 GB"),
    ("eva", &["eva_clip"], "the EVA02-CLIP-L/14-336 vision tower, 0.6 GB"),
    ("parser", &["bisenet"], "facexlib's BiSeNet face parser, 27 MB"),
    ("detector", &["retinaface"], "facexlib's RetinaFace-R50 detector, 55 MB"),
];

/// `cargo xtask random-model [--shapes] NAME... DIR`. With `--shapes` files hold names and shapes, and zeros that take no room on the disk.
pub fn make(arguments: &[String]) -> Outcome {
    let shapes = arguments.iter().any(|argument| argument == "--shapes");
    let arguments: Vec<String> = arguments.iter().filter(|argument| *argument != "--shapes").cloned().collect();
    let usage = || {
        let lines: Vec<_> = MODELS.iter().map(|(name, _, what)| format!("  {name:<9} {what}")).collect();
        format!("usage: cargo xtask random-model [--shapes] NAME... DIR\n\nNames:\n{}", lines.join("\n"))
    };
    let (folder, names) = arguments.split_last().filter(|(_, names)| !names.is_empty()).ok_or_else(usage)?;
    let folder = Path::new(folder);
    let text = std::fs::read_to_string(root().join("crates/models/tests/data/published.json"));
    let published: Value = serde_json::from_str(&text.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    for name in names {
        let (_, networks, _) = MODELS.iter().find(|(known, ..)| known == name).ok_or_else(usage)?;
        for network in *networks {
            let target = match *network {
                "unet" | "vae" => folder.join("sdxl").join(network).join("diffusion_pytorch_model.safetensors"),
                "text_encoder" | "text_encoder_2" => folder.join("sdxl").join(network).join("model.safetensors"),
                "eva_clip" => folder.join("EVA02_CLIP_L_336_psz14_s6B.safetensors"),
                "bisenet" => folder.join("parsing_bisenet.safetensors"),
                "retinaface" => folder.join("detection_Resnet50_Final.safetensors"),
                other => folder.join(format!("{other}.safetensors")),
            };
            write(&published[network], network, &target, shapes)?;
        }
        if name == "sdxl" {
            // A tokenizer cannot be random: the mini models' words stand in, 706 of the encoders' 49,408.
            for part in ["tokenizer", "tokenizer_2", "scheduler", "model_index.json"] {
                copy(&root().join("models/mini/sdxl").join(part), &folder.join("sdxl").join(part))?;
            }
        }
    }
    Ok(())
}

fn write(network: &Value, name: &str, target: &Path, shapes: bool) -> Outcome {
    let parent = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
    if let Some(config) = network["config"].as_object() {
        let text = serde_json::to_string_pretty(config).map_err(|e| e.to_string())?;
        std::fs::write(parent.join("config.json"), text).map_err(|e| format!("{}: {e}", parent.display()))?;
    }
    let tensors = network["tensors"].as_object().ok_or("published.json lacks a network")?;
    let extents = |shape: &Value| -> Vec<usize> {
        shape.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|n| n as usize).collect()
    };
    let list: Vec<(String, TensorType)> =
        tensors.iter().map(|(key, shape)| (key.clone(), TensorType::new(DType::F16, extents(shape)))).collect();
    if shapes {
        return write_shapes(&list, target).map_err(|e| format!("{}: {e}", target.display()));
    }
    println!(
        "writing {} ({:.2} GB)",
        target.display(),
        list.iter().map(|(_, t)| t.bytes()).sum::<usize>() as f64 / 1e9
    );
    let mut random = Random::of(name);
    let table: Vec<f32> = (0..1 << 16).map(|_| random.normal()).collect();
    write_safetensors_one_by_one(target, &list, &BTreeMap::new(), |i, write| {
        let (key, ty) = &list[i];
        let (mean, deviation) = statistics(key, &ty.shape);
        let scaled: Vec<f16> = table.iter().map(|v| f16::from_f32(mean + deviation * v)).collect();
        let mut left = ty.shape.count();
        let mut piece = Vec::with_capacity(1 << 20);
        while left > 0 {
            piece.clear();
            while piece.len() + 4 <= 1 << 20 && piece.len() < left {
                let bits = random.next();
                piece.extend([0, 16, 32, 48].map(|shift| scaled[(bits >> shift) as u16 as usize]));
            }
            piece.truncate(left);
            left -= piece.len();
            let bytes: Vec<u8> = piece.iter().flat_map(|v| v.to_le_bytes()).collect();
            write(&bytes)?;
        }
        Ok(())
    })
    .map_err(|e| e.to_string())
}

/// A safetensors file of which only the header is written: what follows is a hole.
fn write_shapes(list: &[(String, TensorType)], target: &Path) -> std::io::Result<()> {
    let (mut entries, mut offset) = (serde_json::Map::new(), 0);
    for (key, ty) in list {
        let end = offset + ty.bytes();
        let shape: &[usize] = ty.shape.extents();
        entries.insert(key.clone(), serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::fs::File::create(target)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.set_len((8 + header.len() + offset) as u64)
}

/// Mean and deviation that keep values of a network of any depth in range.
fn statistics(key: &str, shape: &[usize]) -> (f32, f32) {
    match shape {
        _ if key.ends_with("running_var") => (1.0, 0.05),
        // Gains of norms are the only weights with one axis.
        [_] if key.ends_with("weight") => (1.0, 0.05),
        [] | [_] => (0.0, 0.02),
        [_, inputs @ ..] => (0.0, (3.0 * inputs.iter().product::<usize>() as f32).sqrt().recip()),
    }
}

fn copy(from: &Path, to: &Path) -> Outcome {
    let fail = |e: std::io::Error| format!("{}: {e}", to.display());
    if !from.is_dir() {
        return std::fs::copy(from, to).map(drop).map_err(fail);
    }
    std::fs::create_dir_all(to).map_err(fail)?;
    for entry in std::fs::read_dir(from).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// xorshift64*: the same weights on every machine.
struct Random(u64);

impl Random {
    fn of(name: &str) -> Random {
        Random(name.bytes().fold(0x9E37_79B9_7F4A_7C15, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn normal(&mut self) -> f32 {
        let mut uniform = || (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
    }
}
