//! Names of PuLID's tensors: the official files', and those of ComfyUI's.

use pulid_checkpoint::Checkpoint;
use pulid_tensor::Result;
use std::borrow::Cow;

/// The identity encoder as ComfyUI's PuLID files name it (`PulidModelLoader` of cubiq's PuLID_ComfyUI).
const COMFY_ENCODER: &str = "image_proj.";

/// The identity attention there. Its layers have the official files' numbers, which are IP-Adapter's: odd ones, in diffusers' order.
const COMFY_ATTENTION: &str = "ip_adapter.";

/// A PuLID file by the official names. ComfyUI's, such as `ip-adapter_pulid_sdxl_fp16.safetensors`, holds the same tensors under
/// `image_proj.*` and `ip_adapter.N.to_{k,v}_ip.weight`.
///
/// # Errors
/// When a file has a tensor under both names.
pub(super) fn official_names(file: &Checkpoint) -> Result<Cow<'_, Checkpoint>> {
    if file.with_prefix(COMFY_ENCODER).is_empty() && file.with_prefix(COMFY_ATTENTION).is_empty() {
        return Ok(Cow::Borrowed(file));
    }
    file.rename(|key| Some(official(key).unwrap_or_else(|| key.to_owned()))).map(Cow::Owned)
}

/// The tensors of a PuLID file that neither its identity encoder nor its attention has, by their own names.
pub fn unread_tensors(file: &Checkpoint) -> Vec<String> {
    let known = |key: &str| ["id_adapter.", "id_adapter_attn_layers."].iter().any(|begin| key.starts_with(begin));
    let unread = |key: &&str| !known(key) && !official(key).is_some_and(|new| known(&new));
    file.keys().filter(unread).map(str::to_owned).collect()
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
        let tensor = pulid_tensor::HostTensor::zeros([1]);
        let keys = ["id_adapter.latents", "ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_q.weight", "step"];
        let bytes =
            pulid_checkpoint::safetensors::to_bytes(keys.map(|key| (key, &tensor)), &Default::default()).unwrap();
        let source = std::sync::Arc::new(pulid_checkpoint::MemorySource::new("a", bytes));
        let file = Checkpoint::from_source(source).unwrap();
        assert_eq!(unread_tensors(&file), ["ip_adapter.1.to_q.weight", "step"]);
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
