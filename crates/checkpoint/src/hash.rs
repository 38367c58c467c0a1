use crate::Source;
use pulid_tensor::Result;
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
    Ok(hasher.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
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
    fn chunks_join() {
        let long: Vec<u8> = (0..(2 * CHUNK + 5)).map(|i| i as u8).collect();
        let whole: String = Sha256::digest(&long).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sha256_hex(&MemorySource::new("m", long)).unwrap(), whole);
    }
}
