//! Names of EVA02-CLIP's tensors: the official file's, timm's (`eva02_large_patch14_clip_336`), and open_clip's, whose towers are timm's
//! `trunk`s. timm's `checkpoint_filter_fn` in `timm/models/eva.py` goes the other way.

use pulid_checkpoint::{Checkpoint, View};
use pulid_tensor::{Result, Shape};

/// What the tower's names begin with: open_clip's, the official file's, none, each as it is or as parallel training left it.
pub(crate) const PREFIXES: [&str; 8] =
    ["visual.trunk.", "module.visual.trunk.", "visual.", "module.visual.", "trunk.", "module.trunk.", "module.", ""];

/// What the names begin with that a CLIP has beside its vision tower: the text encoder's, below a prefix or bare as open_clip's are.
const TEXT: [&str; 9] = [
    "text.",
    "text_model.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_",
    "attn_mask",
];

/// A file's vision tower.
pub(crate) struct Tower {
    /// A file whose tower has the official names.
    pub weights: Checkpoint,
    /// The module that the tower is there; empty where it is all of the file.
    pub module: &'static str,
    /// The file's tensors that belong to neither the tower nor a CLIP's text encoder.
    pub others: Vec<String>,
}

/// The tower of a file. Where it has none that is known, all of the file, so that what is missing can be said.
///
/// # Errors
/// When a file has a tensor under two names.
pub(crate) fn tower(file: &Checkpoint) -> Result<Tower> {
    let patches = |prefix: &&str| file.contains(&format!("{prefix}patch_embed.proj.weight"));
    let prefix = PREFIXES.into_iter().find(patches).unwrap_or_default();
    let text = |key: &str| {
        let key = key.strip_prefix("module.").unwrap_or(key);
        TEXT.iter().any(|begin| key.starts_with(begin))
    };
    let others = file.keys().filter(|key| !key.starts_with(prefix) && !text(key)).map(str::to_owned).collect();
    let theirs =
        ["blocks.0.attn.norm.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight", "blocks.0.mlp.w12.weight"];
    if theirs.iter().any(|key| file.contains(&format!("{prefix}{key}"))) {
        return Ok(Tower { weights: file.with_prefix(prefix).remap(official)?, module: "", others });
    }
    Ok(Tower { weights: file.clone(), module: prefix.trim_end_matches('.'), others })
}

/// The bias of the keys, which the tower has not, and which some files hold as zeros.
pub(crate) const KEY_BIAS: [&str; 2] = ["attn.k_bias", "attn.k_proj.bias"];

fn official(key: &str, shape: &Shape) -> Vec<(String, View)> {
    let unchanged = || vec![(key.to_owned(), View::Whole)];
    let Some((block, layer)) = block_and_layer(key) else { return unchanged() };
    let part = |count: usize, index: usize, name: &str| {
        let rows = shape.first().copied().unwrap_or(0) / count;
        (format!("{block}.{name}"), View::Rows(index * rows..(index + 1) * rows))
    };
    let name = match layer {
        // Query, key and value, one below the other.
        "attn.qkv.weight" => {
            return vec![
                part(3, 0, "attn.q_proj.weight"),
                part(3, 1, "attn.k_proj.weight"),
                part(3, 2, "attn.v_proj.weight"),
            ];
        }
        // The key's is zeros, which is looked at.
        "attn.qkv.bias" => {
            return vec![part(3, 0, "attn.q_bias"), part(3, 1, KEY_BIAS[0]), part(3, 2, "attn.v_bias")];
        }
        // Gate and value.
        "mlp.fc1.weight" | "mlp.w12.weight" => return vec![part(2, 0, "mlp.w1.weight"), part(2, 1, "mlp.w2.weight")],
        "mlp.fc1.bias" | "mlp.w12.bias" => return vec![part(2, 0, "mlp.w1.bias"), part(2, 1, "mlp.w2.bias")],
        "attn.q_proj.bias" => "attn.q_bias",
        "attn.v_proj.bias" => "attn.v_bias",
        "attn.norm.weight" => "attn.inner_attn_ln.weight",
        "attn.norm.bias" => "attn.inner_attn_ln.bias",
        "mlp.fc1_g.weight" => "mlp.w1.weight",
        "mlp.fc1_g.bias" => "mlp.w1.bias",
        "mlp.fc1_x.weight" => "mlp.w2.weight",
        "mlp.fc1_x.bias" => "mlp.w2.bias",
        "mlp.norm.weight" => "mlp.ffn_ln.weight",
        "mlp.norm.bias" => "mlp.ffn_ln.bias",
        "mlp.fc2.weight" => "mlp.w3.weight",
        "mlp.fc2.bias" => "mlp.w3.bias",
        _ => return unchanged(),
    };
    vec![(format!("{block}.{name}"), View::Whole)]
}

/// `blocks.N` and what is below it.
fn block_and_layer(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix("blocks.")?;
    let number = rest.find('.')?;
    Some((&key[.."blocks.".len() + number], &rest[number + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_checkpoint::{MemorySource, safetensors};
    use pulid_tensor::HostTensor;

    fn file(keys: &[String]) -> Checkpoint {
        let tensor = HostTensor::zeros([6, 1]);
        let bytes = safetensors::to_bytes(keys.iter().map(|key| (key.as_str(), &tensor)), &Default::default()).unwrap();
        Checkpoint::from_source(std::sync::Arc::new(MemorySource::new("a", bytes))).unwrap()
    }

    #[test]
    fn a_tower_is_found_below_each_prefix_and_what_is_beside_it_is_told() {
        for prefix in PREFIXES {
            let own = ["patch_embed.proj.weight", "blocks.0.attn.inner_attn_ln.weight", "foo"];
            let beside = ["audio.proj", "text.positional_embedding", "module.logit_scale"].map(str::to_owned);
            let keys: Vec<_> = own.iter().map(|key| format!("{prefix}{key}")).chain(beside).collect();
            let Tower { weights, module, others } = tower(&file(&keys)).unwrap();
            assert_eq!((format!("{module}."), weights.len()), (format!("{}.", prefix.trim_end_matches('.')), 6));
            // Without a prefix all of the file is the tower's.
            let told: &[&str] = if prefix.is_empty() { &[] } else { &["audio.proj"] };
            assert_eq!(others, told, "{prefix}");
        }
    }

    #[test]
    fn no_bias_is_dropped_without_being_looked_at() {
        let keys = ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"];
        let Tower { weights, .. } = tower(&file(&keys.map(|key| format!("module.visual.{key}")))).unwrap();
        for name in ["q_bias", "k_bias", "v_bias", "q_proj.weight", "k_proj.weight", "v_proj.weight"] {
            assert_eq!(weights.info(&format!("blocks.0.attn.{name}")).unwrap().shape.extents()[0], 2, "{name}");
        }
    }
}
