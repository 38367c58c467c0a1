//! Which PuLID a file belongs to.

use super::names::official_names;
use pulid_checkpoint::Checkpoint;
use std::fmt;

/// The published PuLIDs for SDXL. They differ in their identity encoder; the identity attention is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PulidVersion {
    /// [`IdEncoder`](super::IdEncoder): perceptrons, 10 tokens (`pulid_v1.bin`).
    V1,
    /// [`IdFormer`](super::IdFormer): a resampler, 32 tokens (`pulid_v1.1.safetensors`).
    V1_1,
}

impl PulidVersion {
    /// The version whose identity encoder a file holds, as `id_adapter.*`, as `image_proj.*` (ComfyUI's) or as the bare module; `None`
    /// where it holds none.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let checkpoint = official_names(checkpoint).ok()?;
        let encoder = checkpoint.with_optional_prefix("id_adapter.");
        // Tensors that only this encoder has. IP-Adapter's resamplers have latents too.
        let telling = [("body.0.weight", PulidVersion::V1), ("id_embedding_mapping.0.weight", PulidVersion::V1_1)];
        telling.into_iter().find(|(key, _)| encoder.contains(key)).map(|(_, version)| version)
    }
}

impl fmt::Display for PulidVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PulidVersion::V1 => "PuLID v1",
            PulidVersion::V1_1 => "PuLID v1.1",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn files_tell_their_version() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
        for (file, version) in [
            ("id-encoder/pulid-file/weights.safetensors", Some(PulidVersion::V1)),
            ("id-encoder/bare-module/weights.safetensors", Some(PulidVersion::V1)),
            ("id-former/weights/pulid-file/weights.safetensors", Some(PulidVersion::V1_1)),
            ("id-former/weights/bare/weights.safetensors", Some(PulidVersion::V1_1)),
            ("unet/adapters/lists/adapter.safetensors", None),
        ] {
            assert_eq!(PulidVersion::of(&Checkpoint::open(goldens.join(file)).unwrap()), version, "{file}");
        }
    }
}
