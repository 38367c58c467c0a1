use crate::{Checkpoint, Source};
use pulid_tensor::{DType, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Bytes hashed at once, so that a source which copies never holds the whole file.
const CHUNK: u64 = 8 << 20;

/// The SHA-256 of all bytes of `source` as 64 lower-case hexadecimal digits.
///
/// # Errors
/// When the source cannot be read.
pub fn sha256_hex(source: &dyn Source) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut start = 0;
    while start < source.len() {
        let end = (start + CHUNK).min(source.len());
        hasher.update(source.read(start..end)?);
        start = end;
    }
    Ok(hex(hasher))
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The SHA-256 of these tensors' names, shapes and values, as [`sha256_hex`] spells it. Values are rounded to half precision first, so
/// that a file saved in another format, in another order or as half precision gives the same.
///
/// # Errors
/// When a tensor cannot be read.
pub fn sha256_values<'k>(file: &Checkpoint, keys: impl IntoIterator<Item = &'k str>) -> Result<String> {
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_unstable();
    let mut hasher = Sha256::new();
    for key in keys {
        let tensor = file.tensor(key)?.into_dtype(DType::F16);
        // Lengths go before what they are the lengths of, so that no two lists of tensors are one text.
        hasher.update((key.len() as u64).to_le_bytes());
        hasher.update(key);
        hasher.update((tensor.shape().rank() as u64).to_le_bytes());
        tensor.shape().extents().iter().for_each(|&extent| hasher.update((extent as u64).to_le_bytes()));
        hasher.update(tensor.bytes());
    }
    Ok(hex(hasher))
}

/// [`sha256_hex`] of a file.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(path: impl AsRef<std::path::Path>) -> Result<String> {
    sha256_hex(&*crate::files::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemorySource;
    use pulid_tensor::HostTensor;

    #[test]
    fn agrees_with_the_standards_examples() {
        // FIPS 180-4's examples: the empty message, "abc", and a million times "a" (FIPS 180-2, B.3).
        let hash = |bytes: Vec<u8>| sha256_hex(&MemorySource::new("m", bytes)).unwrap();
        assert_eq!(hash(vec![]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hash(b"abc".to_vec()), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let million = vec![b'a'; 1_000_000];
        assert_eq!(hash(million), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }

    #[test]
    fn values_are_hashed_under_their_names_and_not_as_they_are_stored() {
        let hash = |tensors: &[(&str, HostTensor)]| {
            let bytes = crate::safetensors::to_bytes(tensors.iter().map(|(k, t)| (*k, t)), &Default::default());
            let file = Checkpoint::from_source(std::sync::Arc::new(MemorySource::new("m", bytes.unwrap()))).unwrap();
            sha256_values(&file, file.keys()).unwrap()
        };
        let tensor = |first: f32| HostTensor::from_fn([2, 3], |i| if i == 0 { first } else { i as f32 / 3.0 });
        let single = hash(&[("a", tensor(0.1)), ("b", tensor(1.0))]);
        assert_eq!(hash(&[("b", tensor(1.0).cast(DType::F16)), ("a", tensor(0.1).cast(DType::F16))]), single);
        for other in [
            vec![("a", tensor(0.1))],
            vec![("a", tensor(0.11)), ("b", tensor(1.0))],
            vec![("a", tensor(0.1)), ("c", tensor(1.0))],
            vec![("a", tensor(0.1).reshape([3, 2]).unwrap()), ("b", tensor(1.0))],
        ] {
            assert_ne!(hash(&other), single, "{other:?}");
        }
    }

    #[test]
    fn chunks_join() {
        let long: Vec<u8> = (0..(2 * CHUNK + 5)).map(|i| i as u8).collect();
        let whole: String = Sha256::digest(&long).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sha256_hex(&MemorySource::new("m", long)).unwrap(), whole);
    }
}
