//! Finds the weights in a folder and joins shards.

use crate::{Checkpoint, files, json};
use pulid_tensor::{Error, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// File names without `.safetensors`, in the order they are looked for.
const STEMS: [&str; 2] = ["model", "diffusion_pytorch_model"];

/// File names without `.bin`, looked for where there is no `.safetensors` file.
const PICKLE_STEMS: [&str; 2] = ["pytorch_model", "diffusion_pytorch_model"];

/// Largest index file that is read: some hundred times that of the largest SDXL checkpoint.
const MAX_INDEX: u64 = 64 << 20;

pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    if files::is_dir(path) {
        let found = find(path)?;
        return if is_index(&found) { open_shards(&found) } else { open_file(&found) };
    }
    if is_index(path) { open_shards(path) } else { open_file(path) }
}

fn open_file(path: &Path) -> Result<Checkpoint> {
    Checkpoint::from_source(files::open(path)?)
}

fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "json")
}

/// The weights file or the index of shards in a folder.
fn find(folder: &Path) -> Result<PathBuf> {
    let mut names = Vec::new();
    for stem in STEMS {
        names.push(format!("{stem}.safetensors"));
        names.push(format!("{stem}.safetensors.index.json"));
    }
    for stem in STEMS {
        names.push(format!("{stem}.fp16.safetensors"));
        // Both orders are in use, depending on the version that wrote the folder.
        names.push(format!("{stem}.safetensors.index.fp16.json"));
        names.push(format!("{stem}.fp16.safetensors.index.json"));
    }
    if let Some(found) = names.iter().map(|n| folder.join(n)).find(|p| files::is_file(p)) {
        return Ok(found);
    }
    let others = only(folder, "safetensors")?;
    let pickles: Vec<String> = ["", ".fp16"]
        .iter()
        .flat_map(|half| {
            PICKLE_STEMS.iter().flat_map(move |stem| {
                [
                    format!("{stem}{half}.bin"),
                    format!("{stem}.bin.index{half}.json"),
                    format!("{stem}{half}.bin.index.json"),
                ]
            })
        })
        .collect();
    match others.as_slice() {
        [one] => Ok(one.clone()),
        [] => match pickles.iter().map(|n| folder.join(n)).find(|p| files::is_file(p)) {
            Some(found) => Ok(found),
            None => {
                match only(folder, "gguf")?.as_slice() {
                    [] => {}
                    [one] => return Ok(one.clone()),
                    several => return Err(ambiguous(folder, several)),
                }
                let kind = other_kind(folder).unwrap_or(
                    "no model.safetensors, diffusion_pytorch_model.safetensors or pytorch_model.bin, no only .safetensors or \
                     .gguf file; name the file itself",
                );
                Err(Error::file(folder, format!("holds no weights: {kind}")))
            }
        },
        several => Err(ambiguous(folder, several)),
    }
}

/// What a folder without weights is, and what to name in its place.
fn other_kind(folder: &Path) -> Option<&'static str> {
    const IMAGES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
    let has = |name: &str| files::is_file(folder.join(name));
    let found = files::list(folder).ok()?;
    let is_image = |path: &PathBuf| {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        IMAGES.contains(&extension.as_str())
    };
    if found.is_empty() {
        Some("it is empty")
    } else if has("model_index.json") {
        Some("it is a pipeline's folder; name one of its networks, for example its folder unet")
    } else if has("scheduler_config.json") {
        Some("it is the folder of a scheduler; name the folder of the model or of a network")
    } else if has("vocab.json") || has("tokenizer.json") || has("tokenizer_config.json") {
        Some("it is the folder of a tokenizer; name the folder of the model or of a network")
    } else if found.iter().any(is_image) {
        Some("there are images in it")
    } else {
        None
    }
}

/// What a JSON text is that is no index of shards, and what to name in its place; `None` for a broken index and for what is no JSON.
fn other_json(path: &Path, text: &str) -> Option<&'static str> {
    const SETTINGS: [&str; 4] = ["_class_name", "architectures", "model_type", "tokenizer_class"];
    let value: serde_json::Value = json::from_str(text).ok()?;
    let has = |key: &str| value.get(key).is_some();
    if has("weight_map") {
        return None;
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let settings = name == "generation_defaults.json" || name.ends_with("config.json");
    Some(if name == "model_index.json" {
        "is a pipeline's index, not weights: name its folder"
    } else if settings || SETTINGS.iter().any(|key| has(key)) {
        "holds settings of a model, not weights: name the model's folder or file"
    } else {
        "is JSON, not weights"
    })
}

/// The files of this extension.
fn only(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = files::list(folder)?;
    found.retain(|path| path.extension().is_some_and(|e| e == extension) && files::is_file(path));
    found.sort();
    Ok(found)
}

fn ambiguous(folder: &Path, several: &[PathBuf]) -> Error {
    let list: Vec<_> = several.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy())).collect();
    Error::file(folder, format!("holds several weights files ({}); name one of them", list.join(", ")))
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Opens every shard that an index file names and holds them to the index.
fn open_shards(index_path: &Path) -> Result<Checkpoint> {
    let fail = |detail: String| Error::file(index_path, detail);
    let file = files::open(index_path)?;
    if file.len() > MAX_INDEX {
        return Err(fail(format!("has {} bytes, too many for an index of shards", file.len())));
    }
    let text = file.read(0..file.len())?;
    let no_index = |e: &dyn std::fmt::Display| fail(format!("is no index of shards with a `weight_map` ({e})"));
    let text = std::str::from_utf8(&text).map_err(|e| no_index(&e))?;
    let index: ShardIndex = json::from_str(text)
        .map_err(|e| other_json(index_path, text).map_or_else(|| no_index(&e), |kind| fail(kind.into())))?;
    let folder = index_path.parent().unwrap_or(Path::new(""));
    let mut shards = Vec::new();
    for name in index.weight_map.values().collect::<BTreeSet<_>>() {
        // An index from the network must not reach outside its folder.
        let mut components = Path::new(name).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
            return Err(fail(format!("names the shard `{name}`, which is not a plain file name")));
        }
        let path = folder.join(name);
        if !files::is_file(&path) {
            return Err(fail(format!("names the shard `{name}`, which is not in the folder; fetch it too")));
        }
        shards.push(files::open(path)?);
    }
    let checkpoint = Checkpoint::from_sources(index_path.display().to_string(), shards)?;
    match index.weight_map.iter().find(|(key, _)| !checkpoint.contains(key) && !checkpoint.consumes(key)) {
        Some((key, shard)) => {
            Err(fail(format!("promises the tensor `{key}` in `{shard}`, which does not hold it; fetch both again")))
        }
        None => Ok(checkpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_safetensors;
    use pulid_tensor::HostTensor;

    fn write(folder: &Path, name: &str, keys: &[&str]) {
        let tensor = HostTensor::from_fn([2], |i| i as f32);
        write_safetensors(folder.join(name), keys.iter().map(|k| (*k, &tensor)), &BTreeMap::new()).unwrap();
    }

    fn index(folder: &Path, name: &str, map: &str) {
        std::fs::write(folder.join(name), format!(r#"{{"metadata": {{"total_size": 16}}, "weight_map": {{{map}}}}}"#))
            .unwrap();
    }

    #[test]
    fn full_precision_comes_before_half_and_single_before_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(open(folder).unwrap_err().to_string().contains("holds no weights"));
        write(folder, "other.safetensors", &["other"]);
        assert!(open(folder).unwrap().contains("other"));
        write(folder, "another.safetensors", &["another"]);
        let message = open(folder).unwrap_err().to_string();
        assert!(message.contains("another.safetensors, other.safetensors"), "{message}");
        write(folder, "diffusion_pytorch_model.fp16.safetensors", &["half"]);
        assert!(open(folder).unwrap().contains("half"));
        write(folder, "diffusion_pytorch_model.safetensors", &["full"]);
        assert!(open(folder).unwrap().contains("full"));
    }

    #[test]
    fn shards_are_joined_whichever_way_they_are_named() {
        for name in [
            "model.safetensors.index.json",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16.safetensors.index.json",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            write(folder, "a-00001-of-00002.safetensors", &["x", "y"]);
            write(folder, "a-00002-of-00002.safetensors", &["z"]);
            let (a, b) = ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors");
            index(folder, name, &format!(r#""x": "{a}", "y": "{a}", "z": "{b}""#));
            for path in [folder.to_owned(), folder.join(name)] {
                let c = open(&path).unwrap();
                assert_eq!(c.keys().collect::<Vec<_>>(), ["x", "y", "z"]);
                assert_eq!(c.tensor("z").unwrap().as_f32().unwrap(), &[0.0, 1.0]);
            }
        }
    }

    #[test]
    fn other_folders_and_other_json_are_called_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            std::fs::write(at(name), text).unwrap();
        };
        std::fs::create_dir(at("empty")).unwrap();
        write("tokenizer/vocab.json", "{}");
        write("scheduler/scheduler_config.json", "{}");
        write("photos/a.JPG", "");
        write("pipeline/model_index.json", r#"{"_class_name": "StableDiffusionXLPipeline"}"#);
        write("pipeline/generation_defaults.json", r#"{"steps": 4}"#);
        write("any.json", r#"{"a":1}"#);
        write("list.json", "[1, 2]");
        write("network.json", r#"{"_class_name": "UNet2DConditionModel"}"#);
        write("other/notes.txt", "");
        for (name, part) in [
            ("empty", "holds no weights: it is empty"),
            ("tokenizer", "holds no weights: it is the folder of a tokenizer"),
            ("scheduler", "holds no weights: it is the folder of a scheduler"),
            ("photos", "holds no weights: there are images in it"),
            ("pipeline", "holds no weights: it is a pipeline's folder"),
            ("other", "holds no weights: no model.safetensors"),
            ("pipeline/model_index.json", "is a pipeline's index, not weights: name its folder"),
            ("pipeline/generation_defaults.json", "holds settings of a model, not weights"),
            ("network.json", "holds settings of a model, not weights"),
            ("any.json", "is JSON, not weights"),
            ("list.json", "is JSON, not weights"),
        ] {
            let message = open(&at(name)).unwrap_err().to_string();
            assert!(message.contains(part) && !message.contains("line 1"), "{name}: {message}");
        }
    }

    #[test]
    fn broken_indices_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let name = "model.safetensors.index.json";
        write(folder, "a.safetensors", &["x"]);
        write(folder, "b.safetensors", &["x"]);
        let outside = folder.join("a.safetensors").display().to_string();
        for (map, expected) in [
            (r#""x": "missing.safetensors""#.to_owned(), "not in the folder"),
            (r#""x": "../a.safetensors""#.to_owned(), "plain file name"),
            (format!(r#""x": {}"#, serde_json::json!(outside)), "plain file name"),
            (r#""x": """#.to_owned(), "plain file name"),
            (r#""q": "a.safetensors""#.to_owned(), "does not hold it"),
            (r#""x": "a.safetensors", "y": "b.safetensors""#.to_owned(), "is in"),
            (r#""x": 3"#.to_owned(), "weight_map"),
        ] {
            index(folder, name, &map);
            let message = open(folder).unwrap_err().to_string();
            assert!(message.contains(expected), "{map}: {message}");
        }
        std::fs::write(folder.join(name), b"{").unwrap();
        assert!(open(folder).is_err());
        assert!(open(&folder.join("absent.safetensors")).is_err());
    }
}
