//! Tensors of failed comparisons, kept for whoever looks at them elsewhere: the machine that failed may be out of reach.

use pulid_checkpoint::write_safetensors;
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The environment variable that names the folder.
pub const FAILURES: &str = "PULID_FAILURES";

/// Writes the tensors of a failed comparison to a safetensors file in the folder that the environment variable
/// `PULID_FAILURES` names, which is made where it is missing; does nothing where the variable is not set. The file is named
/// after `id`, which also stands in its metadata.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn keep_failure(id: &str, tensors: &[(&str, &HostTensor)]) -> Result<()> {
    match std::env::var_os(FAILURES).filter(|folder| !folder.is_empty()) {
        Some(folder) => write(Path::new(&folder), id, tensors),
        None => Ok(()),
    }
}

fn write(folder: &Path, id: &str, tensors: &[(&str, &HostTensor)]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let metadata = BTreeMap::from([("id".to_owned(), id.to_owned())]);
    write_safetensors(folder.join(file_name(id)), tensors.iter().copied(), &metadata)
}

/// A name that every file system and archive takes: ids have slashes, colons, stars and angle brackets.
fn file_name(id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.=,".contains(c) { c } else { '_' };
    // Most file systems take 255 bytes.
    let stem: String = id.chars().map(plain).take(200).collect();
    format!("{stem}.safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_checkpoint::Checkpoint;

    #[test]
    fn a_failure_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let (actual, expected) = (HostTensor::from_fn([3], |i| i as f32), HostTensor::zeros([3]));
        let id = "norm/layer_norm:dtype=f32;kernel=flat;rows=2*3";
        let below = folder.path().join("made/when/missing");
        write(&below, id, &[("actual", &actual), ("expected", &expected)]).unwrap();
        let file = Checkpoint::open(below.join("norm_layer_norm_dtype=f32_kernel=flat_rows=2_3.safetensors")).unwrap();
        assert_eq!(file.tensor("actual").unwrap(), actual);
        assert_eq!(file.tensor("expected").unwrap(), expected);
        assert_eq!(file_name(&"x".repeat(1000)).len(), 212);
    }
}
