use pulid::image::decode_photo_within;
use pulid_checkpoint::onnx::Model;
use pulid_checkpoint::{Checkpoint, MemorySource};
use pulid_models::onnx::OnnxNetwork;
use pulid_models::sdxl::{ClipConfig, Part, UnetConfig, VaeConfig, single_file};
use pulid_models::{ClipTokenizer, Padding, Precision, TokenizerFiles, family};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pixels of the largest image that is decoded here: enough for every path, and quick.
const MAX_PIXELS: u64 = 1 << 20;

/// Extents that unknown ones of an ONNX graph's inputs get.
const EXTENT: usize = 8;

/// Everything that a checkpoint can be asked for.
fn checkpoint(name: &str, bytes: &[u8]) {
    let length = bytes.len() as u64;
    let Ok(file) = Checkpoint::from_source(Arc::new(MemorySource::new(name, bytes.to_vec()))) else { return };
    for key in file.keys() {
        let Ok(info) = file.info(key) else { panic!("a key without a tensor") };
        // A tensor may repeat elements of its file, but not without end.
        if info.element.bytes(&info.shape).is_some_and(|size| size <= length) {
            let _ = file.tensor(key);
            let _ = file.rows(key, &[0]);
            let _ = file.blocks(key);
        }
    }
    let _ = family(&file);
    for part in Part::ALL {
        let _ = single_file::any_part(part, &file);
    }
    let _ = UnetConfig::infer(&file);
    let _ = VaeConfig::infer(&file);
    let _ = ClipConfig::infer(&file);
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) {
    checkpoint("w.safetensors", bytes);
}

/// A GGUF file.
pub fn gguf(bytes: &[u8]) {
    checkpoint("w.gguf", bytes);
}

/// The pickle of a PyTorch file, in a zip archive around it that is as it should be.
pub fn pickle(bytes: &[u8]) {
    checkpoint("w.pth", &archive(&[("a/data.pkl", bytes), ("a/byteorder", b"little"), ("a/data/0", &[0; 64])]));
    // The older format has no archive: pickles, one after the other.
    checkpoint("w.pth", bytes);
}

/// A PyTorch file as it is, archive and all.
pub fn zip(bytes: &[u8]) {
    checkpoint("w.pth", bytes);
}

/// An ONNX file: read, and built with small inputs.
pub fn onnx(bytes: &[u8]) {
    let source = MemorySource::new("w.onnx", bytes.to_vec());
    let Ok(model) = Model::read(&source) else { return };
    let network = OnnxNetwork::new(model);
    let shapes: BTreeMap<String, Vec<usize>> = network
        .input_names()
        .into_iter()
        .filter_map(|name| {
            let extents = network.input_extents(name)?;
            Some((name.to_owned(), extents.into_iter().map(|e| e.unwrap_or(EXTENT).min(EXTENT * EXTENT)).collect()))
        })
        .collect();
    let _ = network.build(&shapes, Precision::F32);
}

/// The JSON of a network's configuration, or of a tokenizer's vocabulary.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let merges = "#version: 0.2\na b</w>";
    let _ = ClipTokenizer::new(
        TokenizerFiles { name: "t", vocab: text, merges, config: None, special_tokens_map: None },
        Padding::Exclamation,
    );
    let _ = ClipTokenizer::from_json("t", text, Some(text), None, Padding::EndOfText);
    let _ = UnetConfig::parse(text, "config.json");
    let _ = ClipConfig::parse(text, "config.json");
    if let Ok(config) = VaeConfig::parse(text, "config.json") {
        let _ = config.factor();
    }
}

/// A photo.
pub fn image(bytes: &[u8]) {
    let _ = decode_photo_within("photo", bytes, MAX_PIXELS);
}

/// A zip archive of these entries, stored as torch.save stores them.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let [length, offset] = [bytes.len() as u32, out.len() as u32].map(u32::to_le_bytes);
        // Our reader does not look at checksums.
        let crc = [0; 4];
        let name_length = (name.len() as u16).to_le_bytes();
        // Version, flags, method, time, date.
        let common = [0u8; 8];
        out.extend_from_slice(b"PK\x03\x04\0\0");
        out.extend_from_slice(&common);
        out.extend([crc, length, length].concat());
        out.extend_from_slice(&name_length);
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(bytes);
        directory.extend_from_slice(b"PK\x01\x02\0\0\0\0");
        directory.extend_from_slice(&common);
        directory.extend([crc, length, length].concat());
        directory.extend_from_slice(&name_length);
        directory.extend_from_slice(&[0; 12]);
        directory.extend_from_slice(&offset);
        directory.extend_from_slice(name.as_bytes());
    }
    let [size, start] = [directory.len() as u32, out.len() as u32].map(u32::to_le_bytes);
    let count = (entries.len() as u16).to_le_bytes();
    out.extend(directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend([count, count].concat());
    out.extend([size, start].concat());
    out.extend_from_slice(&[0, 0]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_around_a_pickle_is_one() {
        // An empty dictionary: a checkpoint of nothing is an error of its own, not one of the archive.
        let bytes = archive(&[("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"little"), ("a/data/0", &[0; 64])]);
        let read = Checkpoint::from_source(Arc::new(MemorySource::new("w.pth", bytes)));
        let message = read.map_or_else(|e| e.to_string(), |c| format!("{} tensors", c.len()));
        assert!(message.contains("tensor"), "{message}");
    }
}
