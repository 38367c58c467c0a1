//! SDXL in one file, as Stability's own code names it and as most models are passed around.
//!
//! A file holds `model.diffusion_model.` (the UNet), `first_stage_model.` (the VAE), and below `conditioner.embedders.` the
//! text encoders: `0.transformer.`, named as transformers does, and `1.model.`, named as open_clip does. Here they get the
//! names of diffusers and transformers. Nothing is read or copied: layers that the file keeps as one are seen as three, and
//! what it keeps transposed is seen the other way round. Other prefixes and mixtures of these names are in `names.rs`.

use super::names::{self, query_key_value};
use super::{Part, TextEncoder};
use pulid_checkpoint::{Checkpoint, View};
use pulid_tensor::{Error, Result, Shape};
use std::collections::BTreeMap;

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";

/// Whether these are the tensors of a whole SDXL, or at least its UNet, in one file.
pub fn is_single_file(checkpoint: &Checkpoint) -> bool {
    !checkpoint.with_prefix(UNET).is_empty() || names::is_whole(checkpoint)
}

/// A network by diffusers' and transformers' names, whatever its file calls it: one that is alone in its file, with or without a
/// prefix, or in a whole one. What is not known stays as it is; its missing tensors are reported by name.
///
/// # Errors
/// When the names of two tensors become one.
pub fn any_part(part: Part, file: &Checkpoint) -> Result<Checkpoint> {
    match part {
        Part::Unet if names::find(file, &names::UNET, names::is_unet).is_some() => unet(file),
        Part::Vae if names::find(file, &names::VAE, names::is_vae).is_some() => vae(file),
        Part::TextEncoder(which) => match names::find(file, names::text_encoder(which), names::is_text_encoder) {
            Some(found) => text_encoder_by_name(which, &found),
            None if names::is_text_encoder(file) => text_encoder_by_name(which, file),
            None => Ok(file.clone()),
        },
        _ => Ok(file.clone()),
    }
}

/// The part of a file below `prefix`, or an error that names what is missing.
fn part(file: &Checkpoint, prefix: &str, what: &str) -> Result<Checkpoint> {
    let part = file.with_prefix(prefix);
    if part.is_empty() {
        let detail = format!("holds no {what}: no tensor begins with `{prefix}`; is this a whole SDXL in one file?");
        return Err(Error::file(file.name(), detail));
    }
    Ok(part)
}

/// Names of the layers of a residual block.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
];

/// Names of the layers outside of blocks.
const UNET_LAYERS: [(&str, &str); 7] = [
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("label_emb.0.0.", "add_embedding.linear_1."),
    ("label_emb.0.2.", "add_embedding.linear_2."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
];

/// The UNet of a single file, or a file of a UNet alone, by diffusers' names.
///
/// # Errors
/// When the file holds none.
pub fn unet(file: &Checkpoint) -> Result<Checkpoint> {
    let part = match names::find(file, &names::UNET, names::is_unet) {
        Some(found) if !names::is_original_unet(&found) => return Ok(found),
        Some(found) => found,
        None => part(file, UNET, "UNet")?,
    };
    let blocks = unet_blocks(&part);
    // What is not known keeps its name, so that somebody can be told of it.
    let known = |key: &str| {
        if let Some(new) = exchange(key, &UNET_LAYERS) {
            return Some(new);
        }
        let (block, layer) = split_after(key, if key.starts_with("middle_block.") { 2 } else { 3 })?;
        let (new, kind) = blocks.get(block)?;
        match kind {
            Block::Resnet => exchange(layer, &RESNET).map(|layer| format!("{new}.{layer}")),
            Block::Transformer => Some(format!("{new}.{layer}")),
            Block::Resample => {
                let layer = layer.strip_prefix("op.").or(layer.strip_prefix("conv."))?;
                Some(format!("{new}.conv.{layer}"))
            }
        }
    };
    part.rename(|key| Some(known(key).unwrap_or_else(|| key.to_owned())))
}

#[derive(Clone, Copy)]
enum Block {
    Resnet,
    Transformer,
    Resample,
}

/// The new name and the kind of each block. The file counts blocks through all levels; where a level ends is told by the
/// layers that halve or double the image.
fn unet_blocks(file: &Checkpoint) -> BTreeMap<String, (String, Block)> {
    let mut blocks = BTreeMap::new();
    let resnet = |block: &str| file.contains(&format!("{block}.in_layers.0.weight"));
    let transformer = |block: &str| file.contains(&format!("{block}.proj_in.weight"));

    let (mut level, mut place) = (0, 0);
    for n in 1.. {
        let [first, second] = [0, 1].map(|i| format!("input_blocks.{n}.{i}"));
        if file.contains(&format!("{first}.op.weight")) {
            blocks.insert(first, (format!("down_blocks.{level}.downsamplers.0"), Block::Resample));
            (level, place) = (level + 1, 0);
            continue;
        }
        if !resnet(&first) {
            break;
        }
        if transformer(&second) {
            blocks.insert(second, (format!("down_blocks.{level}.attentions.{place}"), Block::Transformer));
        }
        blocks.insert(first, (format!("down_blocks.{level}.resnets.{place}"), Block::Resnet));
        place += 1;
    }

    for (n, (new, kind)) in [
        ("mid_block.resnets.0", Block::Resnet),
        ("mid_block.attentions.0", Block::Transformer),
        ("mid_block.resnets.1", Block::Resnet),
    ]
    .into_iter()
    .enumerate()
    {
        blocks.insert(format!("middle_block.{n}"), (new.to_owned(), kind));
    }

    let (mut level, mut place) = (0, 0);
    for n in 0.. {
        let [first, second, third] = [0, 1, 2].map(|i| format!("output_blocks.{n}.{i}"));
        if !resnet(&first) {
            break;
        }
        blocks.insert(first, (format!("up_blocks.{level}.resnets.{place}"), Block::Resnet));
        let attends = transformer(&second);
        let last = if attends { third } else { second.clone() };
        if attends {
            blocks.insert(second, (format!("up_blocks.{level}.attentions.{place}"), Block::Transformer));
        }
        place += 1;
        if file.contains(&format!("{last}.conv.weight")) {
            blocks.insert(last, (format!("up_blocks.{level}.upsamplers.0"), Block::Resample));
            (level, place) = (level + 1, 0);
        }
    }
    blocks
}

/// The VAE of a single file, or a file of a VAE alone, by diffusers' names.
///
/// # Errors
/// When the file holds none.
pub fn vae(file: &Checkpoint) -> Result<Checkpoint> {
    let part = match names::find(file, &names::VAE, names::is_vae) {
        Some(found) if !names::is_original_vae(&found) => return Ok(found),
        Some(found) => found,
        None if is_single_file(file) => part(file, VAE, "VAE")?,
        None => file.with_optional_prefix(VAE),
    };
    let levels = (0..).take_while(|i| part.contains(&format!("decoder.up.{i}.block.0.norm1.weight"))).count();
    part.remap(|key, _| match vae_key(key, levels) {
        // The file has filters of 1 x 1 where diffusers has matrices.
        Some(new) if new.contains(".attentions.") && new.ends_with("weight") && !new.contains("group_norm") => {
            vec![(new, View::Matrix)]
        }
        new => vec![(new.unwrap_or_else(|| key.to_owned()), View::Whole)],
    })
}

fn vae_key(key: &str, levels: usize) -> Option<String> {
    let Some((side, rest)) = key.split_once('.').filter(|(side, _)| ["encoder", "decoder"].contains(side)) else {
        return Some(key.to_owned());
    };
    let parts: Vec<&str> = rest.split('.').collect();
    let new = match parts.as_slice() {
        ["norm_out", rest @ ..] => format!("conv_norm_out.{}", rest.join(".")),
        [direction @ ("down" | "up"), level, rest @ ..] => {
            // Diffusers counts the decoder's levels from the latent, the file from the image.
            let level: usize = level.parse().ok()?;
            let level = if *direction == "up" { levels.checked_sub(level + 1)? } else { level };
            match rest {
                ["block", n, rest @ ..] => format!("{direction}_blocks.{level}.resnets.{n}.{}", vae_resnet(rest)),
                [resample, rest @ ..] => {
                    format!("{direction}_blocks.{level}.{resample}rs.0.{}", rest.join("."))
                }
                [] => return None,
            }
        }
        ["mid", "block_1", rest @ ..] => format!("mid_block.resnets.0.{}", vae_resnet(rest)),
        ["mid", "block_2", rest @ ..] => format!("mid_block.resnets.1.{}", vae_resnet(rest)),
        ["mid", "attn_1", layer, rest @ ..] => {
            let layer = match *layer {
                "norm" => "group_norm",
                "q" => "to_q",
                "k" => "to_k",
                "v" => "to_v",
                "proj_out" => "to_out.0",
                other => other,
            };
            format!("mid_block.attentions.0.{layer}.{}", rest.join("."))
        }
        _ => rest.to_owned(),
    };
    Some(format!("{side}.{new}"))
}

fn vae_resnet(layer: &[&str]) -> String {
    layer.join(".").replacen("nin_shortcut", "conv_shortcut", 1)
}

/// The first text encoder of a single file, by transformers' names.
///
/// # Errors
/// When the file holds none.
pub fn text_encoder(file: &Checkpoint) -> Result<Checkpoint> {
    match names::find(file, names::text_encoder(TextEncoder::First), names::is_text_encoder) {
        Some(found) => text_encoder_by_name(TextEncoder::First, &found),
        None => part(file, names::text_encoder(TextEncoder::First)[0], "first text encoder"),
    }
}

/// Names of open_clip's layers and of transformers'.
const OPEN_CLIP: [(&str, &str); 5] = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("attn.out_proj.", "self_attn.out_proj."),
];

/// The second text encoder of a single file, by transformers' names.
///
/// # Errors
/// When the file holds none.
pub fn text_encoder_2(file: &Checkpoint) -> Result<Checkpoint> {
    let part = match names::find(file, names::text_encoder(TextEncoder::Second), names::is_text_encoder) {
        Some(found) => found,
        None => part(file, names::text_encoder(TextEncoder::Second)[0], "second text encoder")?,
    };
    text_encoder_by_name(TextEncoder::Second, &part)
}

/// The second text encoder's projection by transformers' names.
const PROJECTION: &str = "text_projection.weight";

/// A text encoder by transformers' names, from these or open_clip's. open_clip's projection is a parameter, `text_projection` [D, P]; a
/// linear layer's, `text_projection.weight`, is [P, D], and there are files with this name among open_clip's.
fn text_encoder_by_name(which: TextEncoder, part: &Checkpoint) -> Result<Checkpoint> {
    let open_clip = names::is_open_clip(part);
    // stable-diffusion.cpp keeps the projection within the encoder.
    let within = |key: &'static str| [key.to_owned(), format!("text_model.{key}")];
    let (parameter, linear) = (within("text_projection"), within("text_projection.weight"));
    let is_linear = linear.iter().any(|key| part.contains(key));
    part.remap(|key, shape| match key {
        // SDXL's first text encoder does not project; some programs save a matrix that is not used.
        _ if parameter.iter().any(|name| name == key) && (which == TextEncoder::First || is_linear) => Vec::new(),
        _ if linear.iter().any(|name| name == key) && which == TextEncoder::First => Vec::new(),
        _ if parameter.iter().any(|name| name == key) => vec![(PROJECTION.to_owned(), View::Transposed)],
        _ if linear.iter().any(|name| name == key) => whole(PROJECTION),
        _ if !open_clip => names::transformers_key(key, shape),
        "positional_embedding" => whole("text_model.embeddings.position_embedding.weight"),
        "token_embedding.weight" => whole("text_model.embeddings.token_embedding.weight"),
        "ln_final.weight" | "ln_final.bias" => whole(&key.replacen("ln_final", "text_model.final_layer_norm", 1)),
        // Of training, and a constant.
        "logit_scale" | "attn_mask" => Vec::new(),
        _ => open_clip_block(key, shape).unwrap_or_else(|| whole(key)),
    })
}

fn whole(key: &str) -> Vec<(String, View)> {
    vec![(key.to_owned(), View::Whole)]
}

fn open_clip_block(key: &str, shape: &Shape) -> Option<Vec<(String, View)>> {
    let (number, layer) = key.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    let block = format!("text_model.encoder.layers.{number}");
    match layer.strip_prefix("attn.in_proj_") {
        Some(kind) => Some(query_key_value(&block, kind, shape)),
        None => exchange(layer, &OPEN_CLIP).map(|layer| whole(&format!("{block}.{layer}"))),
    }
}

/// The key with its beginning exchanged, if it is one of these.
fn exchange(key: &str, names: &[(&str, &str)]) -> Option<String> {
    names.iter().find_map(|(old, new)| key.strip_prefix(old).map(|rest| format!("{new}{rest}")))
}

/// The first `count` parts of a key and the rest.
fn split_after(key: &str, count: usize) -> Option<(&str, &str)> {
    let (end, _) = key.match_indices('.').nth(count - 1)?;
    Some((&key[..end], &key[end + 1..]))
}

/// The tensors of a whole model in one file that belong to none of its networks.
pub(super) fn outside_of_parts(file: &Checkpoint) -> impl Iterator<Item = &str> {
    let [first, second] =
        TextEncoder::BOTH.map(|which| names::prefix(file, names::text_encoder(which), names::is_text_encoder));
    let parts = [
        names::prefix(file, &names::UNET, names::is_unet),
        names::prefix(file, &names::VAE, names::is_vae),
        first,
        second,
    ];
    file.keys().filter(move |key| !parts.iter().flatten().any(|prefix| key.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_vae_become_diffusers() {
        for (old, new) in [
            ("encoder.conv_in.weight", "encoder.conv_in.weight"),
            ("encoder.down.1.block.0.nin_shortcut.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"),
            ("encoder.down.0.downsample.conv.weight", "encoder.down_blocks.0.downsamplers.0.conv.weight"),
            ("decoder.up.3.block.2.conv1.weight", "decoder.up_blocks.0.resnets.2.conv1.weight"),
            ("decoder.up.1.upsample.conv.bias", "decoder.up_blocks.2.upsamplers.0.conv.bias"),
            ("decoder.mid.attn_1.proj_out.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.mid.block_2.norm2.weight", "decoder.mid_block.resnets.1.norm2.weight"),
            ("decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            assert_eq!(vae_key(old, 4).as_deref(), Some(new));
        }
        assert_eq!(vae_key("decoder.up.4.block.0.norm1.weight", 4), None);
    }
}
