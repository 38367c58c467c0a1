//! Every file among the repository's goldens that is in a format read here opens, and its tensors can be read.

use pulid_checkpoint::{Checkpoint, onnx::Model};
use std::path::{Path, PathBuf};

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn goldens(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens"), extension, &mut found);
    assert!(!found.is_empty());
    found
}

#[test]
fn safetensors_written_by_python_open() {
    for path in goldens("safetensors") {
        let checkpoint = Checkpoint::open(&path).unwrap();
        for key in checkpoint.keys() {
            let info = checkpoint.info(key).unwrap();
            assert_eq!(checkpoint.bytes(key).unwrap().len() as u64, info.element.bytes(&info.shape).unwrap());
            if info.element.is_float() {
                assert_eq!(checkpoint.tensor(key).unwrap().shape(), &info.shape);
            } else {
                assert_eq!(checkpoint.integers(key).unwrap().len(), info.shape.count());
            }
        }
    }
}

#[test]
fn onnx_models_written_by_python_open_and_fit_their_goldens() {
    let beside_goldens = |path: &PathBuf| path.with_file_name("golden.json").exists();
    for path in goldens("onnx").into_iter().filter(beside_goldens) {
        let model = Model::open(&path).unwrap();
        for (file, values) in [("inputs", &model.graph.inputs), ("outputs", &model.graph.outputs)] {
            let golden = Checkpoint::open(path.with_file_name(format!("{file}.safetensors"))).unwrap();
            let mut names: Vec<&str> = values.iter().map(|v| v.name.as_str()).collect();
            names.sort();
            assert_eq!(names, golden.keys().collect::<Vec<_>>(), "{}", path.display());
        }
    }
}
