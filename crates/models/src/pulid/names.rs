//! Names of PuLID's tensors: the official files', and those of ComfyUI's.

use super::{IdEncoder, IdFormer, IdentityLayer, PulidVersion};
use crate::Precision;
use crate::unread::harmless;
use crate::wrapped::unwrapped;
use pulid_checkpoint::{Checkpoint, sha256_values};
use pulid_tensor::Result;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// The identity encoder as ComfyUI's PuLID files name it (`PulidModelLoader` of cubiq's PuLID_ComfyUI).
const COMFY_ENCODER: &str = "image_proj.";

/// The identity attention there. Its layers have the official files' numbers, which are IP-Adapter's: odd ones, in diffusers' order.
const COMFY_ATTENTION: &str = "ip_adapter.";

/// A PuLID file by the official names. ComfyUI's, such as `ip-adapter_pulid_sdxl_fp16.safetensors`, holds the same tensors under
/// `image_proj.*` and `ip_adapter.N.to_{k,v}_ip.weight`. What a wrapper put before all names is gone.
///
/// # Errors
/// When a file has a tensor under both names.
pub(super) fn official_names(file: &Checkpoint) -> Result<Cow<'_, Checkpoint>> {
    let file = unwrapped(file);
    if file.with_prefix(COMFY_ENCODER).is_empty() && file.with_prefix(COMFY_ATTENTION).is_empty() {
        return Ok(file);
    }
    file.rename(|key| Some(official(key).unwrap_or_else(|| key.to_owned()))).map(Cow::Owned)
}

/// What the official files call the identity encoder.
const ENCODER: &str = "id_adapter.";

/// What they call the identity attention.
pub(super) const ATTENTION: &str = "id_adapter_attn_layers.";

/// The tensors of a PuLID file, by its own names, that have no use: those that its identity encoder does not read, those of attention
/// layers that are none of `layers`, where these are known, and those that belong to neither. Of an encoder that is not whole none are.
///
/// # Errors
/// When a file has a tensor under both names.
pub fn unread_tensors(file: &Checkpoint, layers: Option<&[IdentityLayer]>) -> Result<Vec<String>> {
    let file = &*unwrapped(file);
    let official_file = official_names(file)?;
    let unread_by_encoder = match PulidVersion::of(file) {
        Some(PulidVersion::V1) => IdEncoder::new(&official_file, Precision::F32).and_then(|encoder| encoder.unread()),
        Some(PulidVersion::V1_1) => IdFormer::new(&official_file, Precision::F32).and_then(|encoder| encoder.unread()),
        None => Ok(official_file.keys().map(str::to_owned).collect()),
    };
    let unread_by_encoder: BTreeSet<_> = unread_by_encoder.unwrap_or_default().into_iter().collect();
    // A file of the encoder alone may hold the bare module.
    let bare = official_file.with_prefix(ENCODER).is_empty() && !unread_by_encoder.is_empty();
    let unread = |key: &str| match key.strip_prefix(ATTENTION) {
        Some(layer) => !layers_tensor(layer, layers),
        None if bare || key.starts_with(ENCODER) => unread_by_encoder.contains(key),
        None => true,
    };
    let named = |key: &&str| unread(&official(key).unwrap_or_else(|| (*key).to_owned()));
    Ok(file.keys().filter(|key| !harmless(key)).filter(named).map(str::to_owned).collect())
}

/// The SHA-256 of what a PuLID file holds, whatever it is saved as: of the values of the identity encoder and attention, in half precision,
/// under the official names.
///
/// # Errors
/// When a tensor cannot be read, or the file has one under both names.
pub fn content_sha256(file: &Checkpoint) -> Result<String> {
    let file = official_names(file)?;
    let own = |key: &&str| key.starts_with(ENCODER) || key.starts_with(ATTENTION);
    // A file of the encoder alone may hold the bare module.
    match file.keys().any(|key| own(&key)) {
        true => sha256_values(&file, file.keys().filter(own)),
        false => sha256_values(&file, file.keys()),
    }
}

/// Whether `N.id_to_k.weight` or `N.id_to_v.weight` is of one of these layers, or of any where they are not known.
fn layers_tensor(name: &str, layers: Option<&[IdentityLayer]>) -> bool {
    let Some((number, rest)) = name.split_once('.') else { return false };
    let Ok(number) = number.parse::<usize>() else { return false };
    ["id_to_k.weight", "id_to_v.weight"].contains(&rest)
        && layers.is_none_or(|layers| layers.iter().any(|layer| layer.number == number))
}

fn official(key: &str) -> Option<String> {
    if let Some(rest) = key.strip_prefix(COMFY_ENCODER) {
        return Some(format!("id_adapter.{rest}"));
    }
    let (number, layer) = key.strip_prefix(COMFY_ATTENTION)?.split_once('.')?;
    let layer = match layer {
        "to_k_ip.weight" => "id_to_k.weight",
        "to_v_ip.weight" => "id_to_v.weight",
        _ => return None,
    };
    Some(format!("id_adapter_attn_layers.{number}.{layer}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_no_part_is_listed() {
        let file = |keys: &[&str]| {
            let tensor = pulid_tensor::HostTensor::zeros([1]);
            let tensors = keys.iter().map(|key| (*key, &tensor));
            let bytes = pulid_checkpoint::safetensors::to_bytes(tensors, &Default::default()).unwrap();
            let source = std::sync::Arc::new(pulid_checkpoint::MemorySource::new("a", bytes));
            Checkpoint::from_source(source).unwrap()
        };
        let keys = [
            "ip_adapter.1.to_k_ip.weight",
            "ip_adapter.1.to_q.weight",
            "ip_adapter.998.to_v_ip.weight",
            "image_proj.foo",
            "global_step",
            "other",
        ];
        let layers = [IdentityLayer { number: 1, channels: 64 }];
        let always = ["image_proj.foo", "ip_adapter.1.to_q.weight", "other"];
        let unread = |layers| unread_tensors(&file(&keys), layers).unwrap();
        assert_eq!(unread(None), always);
        assert_eq!(unread(Some(&layers)), [always[0], always[1], "ip_adapter.998.to_v_ip.weight", always[2]]);
    }

    #[test]
    fn every_tensor_of_the_small_files_has_its_use_and_others_in_them_have_none() {
        let goldens = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
        for path in ["../../models/mini/pulid_v1.1.safetensors", "identity/pulid_v1.safetensors"] {
            let file = Checkpoint::open(goldens.join(path)).unwrap();
            assert_eq!(unread_tensors(&file, None).unwrap(), [""; 0], "{path}");
            let extended = file.remap(|key, _| {
                let more = ["mapping_0.6.bias", "latents"].iter().any(|end| key.ends_with(end));
                let view = |key: String| (key, pulid_checkpoint::View::Whole);
                let own = [view(key.to_owned())];
                own.into_iter().chain(more.then(|| view(format!("{key}_other")))).collect()
            });
            let unread = unread_tensors(&extended.unwrap(), None).unwrap();
            assert!(unread.contains(&"id_adapter.mapping_0.6.bias_other".to_owned()), "{unread:?}");
        }
    }

    #[test]
    fn comfyui_s_names_become_the_official_ones() {
        for (theirs, ours) in [
            ("image_proj.latents", Some("id_adapter.latents")),
            ("image_proj.body.0.weight", Some("id_adapter.body.0.weight")),
            ("ip_adapter.1.to_k_ip.weight", Some("id_adapter_attn_layers.1.id_to_k.weight")),
            ("ip_adapter.139.to_v_ip.weight", Some("id_adapter_attn_layers.139.id_to_v.weight")),
            ("ip_adapter.1.to_q.weight", None),
            ("id_adapter.latents", None),
        ] {
            assert_eq!(official(theirs).as_deref(), ours);
        }
    }
}
