//! Identities as files.

use super::DebugImage;
use crate::pipeline::IdentityTokens;
use pulid_checkpoint::{Checkpoint, safetensors};
use pulid_models::{Role, Unread, require};
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::path::Path;

/// A person as PuLID's networks see them.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Conditional and unconditional identity tokens, [1, N, E] each.
    pub tokens: IdentityTokens,
    /// The recogniser's raw embedding of each photo, [n, 512]; comparing two people takes the cosine.
    pub face_embedding: HostTensor,
    /// What the identity encoder was told of each photo beside the tower's hidden states, [n, 512 + D]: the raw face
    /// embedding and the tower's class embedding of length 1. Not kept in the file.
    pub id_cond: HostTensor,
    /// SHA-256 of the adapter whose encoder made the tokens; they mean nothing to another one.
    pub adapter_sha256: String,
    /// SHA-256 of what that adapter holds, whatever it is saved as ([`content_sha256`](pulid_models::pulid::content_sha256)).
    pub adapter_content_sha256: String,
    /// The name of that adapter's file, for messages.
    pub adapter: String,
    /// Names of the photos, in order.
    pub photos: Vec<String>,
    /// What the networks saw, where it was asked for. Not kept in the file.
    pub debug_images: Vec<DebugImage>,
}

impl Identity {
    /// The identity as a safetensors file: tensors `id_embedding`, `uncond_id_embedding`, `face_embedding`; metadata
    /// `adapter_sha256` (of its file), `adapter_content_sha256`, `adapter` (its file's name) and `photos` (a JSON list of names).
    ///
    /// # Errors
    /// Never, with these names.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let photos = serde_json::Value::from(self.photos.clone()).to_string();
        let metadata = [
            ("adapter_sha256", &self.adapter_sha256),
            ("adapter_content_sha256", &self.adapter_content_sha256),
            ("adapter", &self.adapter),
            ("photos", &photos),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        let tensors = [
            ("id_embedding", &self.tokens.id_embedding),
            ("uncond_id_embedding", &self.tokens.uncond_id_embedding),
            ("face_embedding", &self.face_embedding),
        ];
        safetensors::to_bytes(tensors, &metadata)
    }

    /// Writes [`Identity::to_bytes`], whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        crate::image::write_atomically(path.as_ref(), &self.to_bytes()?)
    }

    /// The tensors of such a file that have no use.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn unread(path: impl AsRef<Path>) -> Result<Option<Unread>> {
        let path = path.as_ref();
        let file = Checkpoint::open(path)?;
        let unread = file.keys().filter(|key| !["id_embedding", "uncond_id_embedding", "face_embedding"].contains(key));
        let keys: Vec<_> = unread.map(str::to_owned).collect();
        Ok((!keys.is_empty()).then(|| Unread { path: path.to_owned(), network: None, keys }))
    }

    /// Reads the tokens from any file that holds `id_embedding` and `uncond_id_embedding`, each [1, N, E] or [N, E].
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or holds NaN or infinity, or the two differ in shape.
    pub fn load_tokens(path: impl AsRef<Path>) -> Result<IdentityTokens> {
        let path = path.as_ref();
        let file = Checkpoint::open(path)?;
        require(&file, "a person's identity", &[Role::Identity])?;
        let read = |key: &str| -> Result<HostTensor> {
            let tensor = file.tensor(key)?.cast(DType::F32);
            if tensor.as_f32()?.iter().any(|v| !v.is_finite()) {
                return Err(Error::file(path, format!("`{key}` holds NaN or infinity; make the identity again")));
            }
            match *tensor.shape().extents() {
                [n, e] if n * e > 0 => tensor.reshape([1, n, e]),
                [1, n, e] if n * e > 0 => Ok(tensor),
                _ => Err(Error::file(path, format!("`{key}` has shape {}, expected [1, N, E]", tensor.shape()))),
            }
        };
        let (id_embedding, uncond_id_embedding) = (read("id_embedding")?, read("uncond_id_embedding")?);
        if id_embedding.shape() != uncond_id_embedding.shape() {
            let (a, b) = (id_embedding.shape(), uncond_id_embedding.shape());
            return Err(Error::file(
                path,
                format!("`id_embedding` is {a}, `uncond_id_embedding` {b}; they must agree"),
            ));
        }
        Ok(IdentityTokens { id_embedding, uncond_id_embedding })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_checkpoint::write_safetensors;
    use std::collections::BTreeMap;

    fn identity() -> Identity {
        Identity {
            tokens: IdentityTokens {
                id_embedding: HostTensor::from_fn([1, 3, 4], |i| i as f32 * 0.5 - 1.0),
                uncond_id_embedding: HostTensor::from_fn([1, 3, 4], |i| -(i as f32)),
            },
            face_embedding: HostTensor::from_fn([2, 512], |i| i as f32),
            id_cond: HostTensor::zeros([2, 512 + 768]),
            adapter_sha256: "ab".repeat(32),
            adapter_content_sha256: "cd".repeat(32),
            adapter: "pulid.safetensors".into(),
            photos: vec!["a \"quoted\".jpg".into(), "b.png".into()],
            debug_images: Vec::new(),
        }
    }

    #[test]
    fn identities_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ada.safetensors");
        let identity = identity();
        identity.save(&path).unwrap();
        let tokens = Identity::load_tokens(&path).unwrap();
        assert_eq!(tokens.id_embedding, identity.tokens.id_embedding);
        assert_eq!(tokens.uncond_id_embedding, identity.tokens.uncond_id_embedding);
        let file = Checkpoint::open(&path).unwrap();
        assert_eq!(file.tensor("face_embedding").unwrap(), identity.face_embedding);
        assert_eq!(file.metadata()["adapter_sha256"], identity.adapter_sha256);
        assert_eq!(file.metadata()["adapter_content_sha256"], identity.adapter_content_sha256);
        assert_eq!(serde_json::from_str::<Vec<String>>(&file.metadata()["photos"]).unwrap(), identity.photos);
    }

    #[test]
    fn other_files_are_read_or_refused_by_what_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.safetensors");
        let table = |rows: usize| HostTensor::from_fn([rows, 2], |i| i as f32);
        let write = |a: &HostTensor, b: &HostTensor| {
            write_safetensors(&path, [("id_embedding", a), ("uncond_id_embedding", b)], &BTreeMap::new()).unwrap();
            Identity::load_tokens(&path)
        };
        let tokens = write(&table(3).cast(DType::F16), &table(3)).unwrap();
        assert_eq!(tokens.id_embedding.shape().extents(), [1, 3, 2]);
        assert_eq!(tokens.id_embedding.dtype(), DType::F32);
        assert!(write(&table(3), &table(2)).is_err());
        assert!(write(&HostTensor::zeros([2, 3, 2]), &table(3)).is_err());
        assert!(write(&HostTensor::from_fn([3, 2], |_| f32::NAN), &table(3)).is_err());
        write_safetensors(&path, [("id_embedding", &table(3))], &BTreeMap::new()).unwrap();
        let message = Identity::load_tokens(&path).unwrap_err().to_string();
        assert!(message.contains("uncond_id_embedding"), "{message}");
    }
}
