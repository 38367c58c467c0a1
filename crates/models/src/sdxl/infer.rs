//! Configurations of files that bring none: what the tensors tell, and SDXL's own values for the rest.

use super::{ClipConfig, UnetConfig, VaeConfig};
use pulid_checkpoint::Checkpoint;
use pulid_tensor::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Channels of a head in SDXL's UNet and its text encoders.
const HEAD: usize = 64;

/// Length of SDXL's embedding of a size number.
const TIME_IDS: usize = 256;

/// Levels, residual blocks or layers that are looked for.
const MOST: usize = 256;

/// One extent of a tensor.
fn extent(file: &Checkpoint, key: &str, rank: usize, axis: usize) -> Result<usize> {
    let shape = file.info(key)?.shape;
    if shape.rank() != rank {
        let detail = format!("expected {rank} axes, found {shape}");
        return Err(Error::Weight { key: key.into(), source_name: file.name().into(), detail });
    }
    Ok(shape[axis])
}

fn count(file: &Checkpoint, key: impl Fn(usize) -> String) -> usize {
    (0..MOST).take_while(|&i| file.contains(&key(i))).count()
}

fn heads(file: &Checkpoint, channels: usize) -> Result<usize> {
    if channels == 0 || !channels.is_multiple_of(HEAD) {
        let detail = format!(
            "has attention over {channels} channels, which do not divide into SDXL's heads of {HEAD}; a folder with \
             this network's config.json must say how many heads there are; name it as `config`"
        );
        return Err(Error::file(file.name(), detail));
    }
    Ok(channels / HEAD)
}

/// Checks that the attentions of these blocks, which are one level's, are equally deep: one number is all that a
/// configuration has for them.
fn even_depth(file: &Checkpoint, blocks: &[String]) -> Result<()> {
    let mut depths = BTreeSet::new();
    for block in blocks {
        let attentions = count(file, |j| format!("{block}.attentions.{j}.norm.weight"));
        for j in 0..attentions {
            depths.insert(count(file, |k| format!("{block}.attentions.{j}.transformer_blocks.{k}.norm1.weight")));
        }
    }
    match depths.len() {
        0 | 1 => Ok(()),
        _ => {
            let detail = format!(
                "has attentions of different depths {depths:?} in {}; such distilled UNets are not built",
                blocks.join(" and ")
            );
            Err(Error::file(file.name(), detail))
        }
    }
}

impl UnetConfig {
    /// The configuration of a UNet by diffusers' names: sizes from its tensors; heads of 64 channels, 32 groups and sizes
    /// embedded in 256 dimensions as in SDXL.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing, or channels do not divide into SDXL's heads.
    pub fn infer(file: &Checkpoint) -> Result<Self> {
        Self::parse(&Self::infer_text(file)?, file.name())
    }

    /// [`UnetConfig::infer`] as the text of a `config.json`.
    ///
    /// # Errors
    /// As there.
    pub fn infer_text(file: &Checkpoint) -> Result<String> {
        let channels = extent(file, "conv_in.weight", 4, 0)?;
        let levels = count(file, |i| format!("down_blocks.{i}.resnets.0.conv1.weight"));
        let resnets = |i: usize| count(file, |j| format!("down_blocks.{i}.resnets.{j}.conv1.weight"));
        let depth = |block: &str| count(file, |k| format!("{block}.attentions.0.transformer_blocks.{k}.norm1.weight"));
        let block_types = |way: &str, cross: &str, plain: &str| -> Vec<String> {
            let name = |i| if depth(&format!("{way}_blocks.{i}")) > 0 { cross } else { plain };
            (0..levels).map(|i| name(i).to_owned()).collect()
        };
        let widths = (0..levels)
            .map(|i| extent(file, &format!("down_blocks.{i}.resnets.0.conv1.weight"), 4, 0))
            .collect::<Result<Vec<_>>>()?;
        let mut depths = Vec::new();
        let mut head_counts = Vec::new();
        for (i, &width) in widths.iter().enumerate() {
            even_depth(file, &[format!("down_blocks.{i}"), format!("up_blocks.{}", levels - 1 - i)])?;
            // The lowest level's configuration is the mid block's too, which attends in any case.
            let lowest = if i + 1 == levels { depth("mid_block") } else { 0 };
            let attends = depth(&format!("down_blocks.{i}")).max(lowest);
            depths.push(attends.max(1));
            head_counts.push(if attends > 0 { heads(file, width)? } else { 1 });
        }
        let first = |part: &str| file.keys().find(|k| k.ends_with(part)).map(str::to_owned);
        let missing = |key: &str| file.info(key).map(drop).err();
        let key = |part: &str| {
            first(part).ok_or_else(|| {
                missing(&format!("mid_block.attentions.0{part}"))
                    .unwrap_or_else(|| Error::file(file.name(), "is no UNet"))
            })
        };
        let text = key(".transformer_blocks.0.attn2.to_k.weight")?;
        let projection = file.info(&key(".proj_in.weight")?)?.shape.rank();
        let mut config = json!({
            "in_channels": extent(file, "conv_in.weight", 4, 1)?,
            "out_channels": extent(file, "conv_out.weight", 4, 0)?,
            "block_out_channels": widths,
            "down_block_types": block_types("down", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": block_types("up", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": (0..levels).map(resnets).collect::<Vec<_>>(),
            "transformer_layers_per_block": depths,
            "attention_head_dim": head_counts,
            "cross_attention_dim": extent(file, &text, 2, 1)?,
            "use_linear_projection": projection == 2,
        });
        if widths.first() != Some(&channels) {
            return Err(Error::file(
                file.name(),
                "is no SDXL UNet: its first convolution and first level differ in width",
            ));
        }
        if file.contains("add_embedding.linear_1.weight") {
            config["addition_embed_type"] = "text_time".into();
            config["addition_time_embed_dim"] = TIME_IDS.into();
            config["projection_class_embeddings_input_dim"] =
                extent(file, "add_embedding.linear_1.weight", 2, 1)?.into();
        }
        Ok(config.to_string())
    }
}

impl VaeConfig {
    /// The configuration of a VAE by diffusers' names: sizes from its tensors, 32 groups and SDXL's scaling factor.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing.
    pub fn infer(file: &Checkpoint) -> Result<Self> {
        Self::parse(&Self::infer_text(file)?, file.name())
    }

    /// [`VaeConfig::infer`] as the text of a `config.json`.
    ///
    /// # Errors
    /// As there.
    pub fn infer_text(file: &Checkpoint) -> Result<String> {
        let levels = count(file, |i| format!("decoder.up_blocks.{i}.resnets.0.conv1.weight"));
        let widths = (0..levels)
            .rev()
            .map(|i| extent(file, &format!("decoder.up_blocks.{i}.resnets.0.conv1.weight"), 4, 0))
            .collect::<Result<Vec<_>>>()?;
        let resnets = count(file, |j| format!("decoder.up_blocks.0.resnets.{j}.conv1.weight"));
        let config = json!({
            "in_channels": extent(file, "decoder.conv_out.weight", 4, 0)?,
            "out_channels": extent(file, "decoder.conv_out.weight", 4, 0)?,
            "latent_channels": extent(file, "decoder.conv_in.weight", 4, 1)?,
            "block_out_channels": widths,
            // The decoder has one more than the encoder, which the number counts.
            "layers_per_block": resnets.saturating_sub(1),
            "scaling_factor": 0.13025,
            "use_quant_conv": file.contains("quant_conv.weight"),
            "use_post_quant_conv": file.contains("post_quant_conv.weight"),
            "mid_block_add_attention": file.contains("decoder.mid_block.attentions.0.group_norm.weight"),
        });
        Ok(config.to_string())
    }
}

impl ClipConfig {
    /// The configuration of a text encoder by transformers' names: sizes from its tensors, heads of 64 channels. SDXL's first
    /// encoder has OpenAI's `quick_gelu`, the second, which alone projects, `gelu`.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing, or channels do not divide into heads.
    pub fn infer(file: &Checkpoint) -> Result<Self> {
        Self::parse(&Self::infer_text(file)?, file.name())
    }

    /// [`ClipConfig::infer`] as the text of a `config.json`.
    ///
    /// # Errors
    /// As there.
    pub fn infer_text(file: &Checkpoint) -> Result<String> {
        let body = file.with_optional_prefix("text_model.");
        let table = "embeddings.token_embedding.weight";
        let width = extent(&body, table, 2, 1)?;
        let projects = file.contains("text_projection.weight");
        let mut config = json!({
            "hidden_size": width,
            "intermediate_size": extent(&body, "encoder.layers.0.mlp.fc1.weight", 2, 0)?,
            "num_attention_heads": heads(file, width)?,
            "num_hidden_layers": count(&body, |i| format!("encoder.layers.{i}.layer_norm1.weight")),
            "max_position_embeddings": extent(&body, "embeddings.position_embedding.weight", 2, 0)?,
            "vocab_size": extent(&body, table, 2, 0)?,
        });
        config["hidden_act"] = Value::from(if projects { "gelu" } else { "quick_gelu" });
        Ok(config.to_string())
    }
}
