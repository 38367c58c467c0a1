//! Under which names SDXL's networks are published: what their keys begin with, and whose names follow.
//!
//! Stability's whole files, ComfyUI's, stable-diffusion.cpp's and diffusers-like ones differ in prefixes; converters drop them
//! where a file holds one network alone.

use super::TextEncoder;
use pulid_checkpoint::{Checkpoint, View};
use pulid_tensor::Shape;

/// What a UNet's keys begin with, the usual first.
pub(super) const UNET: [&str; 7] =
    ["model.diffusion_model.", "diffusion_model.", "unet.", "model.", "module.", "_orig_mod.", ""];

/// What a VAE's keys begin with.
pub(super) const VAE: [&str; 4] = ["first_stage_model.", "vae.", "model.", ""];

/// What the keys of a text encoder begin with.
pub(super) const fn text_encoder(which: TextEncoder) -> &'static [&'static str] {
    match which {
        TextEncoder::First => &[
            "conditioner.embedders.0.transformer.",
            "conditioner.embedders.0.",
            "cond_stage_model.transformer.",
            "cond_stage_model.0.transformer.",
            "text_encoders.clip_l.transformer.",
            "text_encoders.clip_l.",
            "clip_l.transformer.",
            "clip_l.",
            "text_encoder.",
        ],
        TextEncoder::Second => &[
            "conditioner.embedders.1.model.",
            "conditioner.embedders.1.transformer.",
            "conditioner.embedders.1.",
            "cond_stage_model.1.transformer.",
            "cond_stage_model.1.model.",
            "text_encoders.clip_g.transformer.",
            "text_encoders.clip_g.",
            "clip_g.transformer.",
            "clip_g.",
            "text_encoder_2.",
        ],
    }
}

/// Whether a UNet has Stability's names.
pub(super) fn is_original_unet(part: &Checkpoint) -> bool {
    part.contains("input_blocks.0.0.weight")
}

/// Whether this is a UNet by Stability's or diffusers' names.
pub(super) fn is_unet(part: &Checkpoint) -> bool {
    is_original_unet(part) || part.contains("conv_in.weight") && part.contains("time_embedding.linear_1.weight")
}

/// Whether a VAE has Stability's names.
pub(super) fn is_original_vae(part: &Checkpoint) -> bool {
    ["decoder", "encoder"].iter().any(|side| part.contains(&format!("{side}.mid.block_1.norm1.weight")))
}

/// Whether this is a VAE by Stability's or diffusers' names.
pub(super) fn is_vae(part: &Checkpoint) -> bool {
    let diffusers = |side: &&str| part.contains(&format!("{side}.mid_block.resnets.0.norm1.weight"));
    is_original_vae(part) || ["decoder", "encoder"].iter().any(diffusers)
}

/// Whether a text encoder has open_clip's names.
pub(super) fn is_open_clip(part: &Checkpoint) -> bool {
    part.contains("token_embedding.weight")
}

/// Whether this is a text encoder by open_clip's or transformers' names.
pub(super) fn is_text_encoder(part: &Checkpoint) -> bool {
    const TABLE: &str = "embeddings.token_embedding.weight";
    is_open_clip(part) || part.contains(TABLE) || part.contains(&format!("text_model.{TABLE}"))
}

/// The part of a file below the first of these prefixes where there is such a network.
pub(super) fn find(file: &Checkpoint, prefixes: &[&str], is: impl Fn(&Checkpoint) -> bool) -> Option<Checkpoint> {
    prefixes.iter().map(|prefix| file.with_prefix(prefix)).find(is)
}

/// The first of these prefixes below which a file has such a network.
pub(super) fn prefix<'p>(file: &Checkpoint, prefixes: &[&'p str], is: impl Fn(&Checkpoint) -> bool) -> Option<&'p str> {
    prefixes.iter().copied().find(|prefix| is(&file.with_prefix(prefix)))
}

/// Whether a file holds more networks than a UNet.
pub(super) fn is_whole(file: &Checkpoint) -> bool {
    let text = |which| find(file, text_encoder(which), is_text_encoder).is_some();
    let others = || TextEncoder::BOTH.into_iter().any(text) || find(file, &VAE, is_vae).is_some();
    find(file, &UNET, is_unet).is_some() && others()
}

/// The views by transformers' names of a tensor that has these or nearly these: stable-diffusion.cpp keeps open_clip's fused matrices
/// among them.
pub(super) fn transformers_key(key: &str, shape: &Shape) -> Vec<(String, View)> {
    match key.split_once(".self_attn.in_proj") {
        Some((layer, kind)) if kind.len() > 1 => query_key_value(layer, &kind[1..], shape),
        _ => vec![(key.to_owned(), View::Whole)],
    }
}

/// Query, key and value, which a file keeps one below the other.
pub(super) fn query_key_value(layer: &str, kind: &str, shape: &Shape) -> Vec<(String, View)> {
    let rows = shape.first().copied().unwrap_or(0) / 3;
    let part = |(i, name)| (format!("{layer}.self_attn.{name}.{kind}"), View::Rows(i * rows..(i + 1) * rows));
    ["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(part).collect()
}
