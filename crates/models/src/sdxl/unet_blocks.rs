//! The blocks of the UNet, named as in the checkpoint.

use super::unet::{Level, UnetConfig};
use crate::Vars;
use crate::layers::{Attend, Conv, add, attention, concat, upsample_nearest};
use crate::pulid::IdentityAttention;
use pulid_graph::{Graph, NodeId};
use pulid_ops::{Activation, GeGlu};
use pulid_tensor::{Error, Result};
use std::collections::HashMap;

/// What all blocks read beside the image.
pub(super) struct Conditioning<'a> {
    pub config: &'a UnetConfig,
    /// SiLU of the time embedding [B, 4·C].
    pub time: NodeId,
    /// Text embeddings [B, T, D].
    pub text: NodeId,
    /// The identity, and the keys and values of each layer that reads it.
    pub identity: Option<(IdentityAttention, HashMap<usize, [NodeId; 2]>)>,
    /// Number of the next attention layer as adapters count them, self-attentions included.
    pub layer: usize,
    /// Of each cross-attention so far its number, queries [B, L, C] and keys of the text [B, T, C].
    pub queries: Vec<(usize, [NodeId; 2])>,
}

/// `DownBlock2D` and `CrossAttnDownBlock2D`.
pub(super) fn down_block(
    vs: &Vars,
    g: &mut Graph,
    cx: &mut Conditioning<'_>,
    mut x: NodeId,
    skips: &mut Vec<NodeId>,
    level: Level,
    attends: bool,
    downsample: bool,
) -> Result<NodeId> {
    for i in 0..level.resnets {
        x = vs.scope(g, format!("resnets.{i}"), |vs, g| resnet(vs, g, cx, x, level.channels))?;
        if attends {
            x = vs.scope(g, format!("attentions.{i}"), |vs, g| transformer(vs, g, cx, x, level))?;
        }
        skips.push(x);
    }
    if downsample {
        let conv = Conv { kernel: 3, stride: 2, padding: [cx.config.downsample_padding; 4] };
        x = vs.conv2d(g, "downsamplers.0.conv", x, level.channels, conv)?;
        skips.push(x);
    }
    Ok(x)
}

/// `UNetMidBlock2DCrossAttn`.
pub(super) fn mid_block(
    vs: &Vars,
    g: &mut Graph,
    cx: &mut Conditioning<'_>,
    x: NodeId,
    level: Level,
) -> Result<NodeId> {
    let x = vs.scope(g, "resnets.0", |vs, g| resnet(vs, g, cx, x, level.channels))?;
    let x = vs.scope(g, "attentions.0", |vs, g| transformer(vs, g, cx, x, level))?;
    vs.scope(g, "resnets.1", |vs, g| resnet(vs, g, cx, x, level.channels))
}

/// `UpBlock2D` and `CrossAttnUpBlock2D`. The image grows to the size of the next skip, which is one row or column
/// short of twice the size where the way down met an odd number.
pub(super) fn up_block(
    vs: &Vars,
    g: &mut Graph,
    cx: &mut Conditioning<'_>,
    mut x: NodeId,
    skips: &mut Vec<NodeId>,
    level: Level,
    attends: bool,
    upsample: bool,
) -> Result<NodeId> {
    for i in 0..=level.resnets {
        let skip = skips.pop().ok_or_else(|| Error::invalid("unet", "the way up has more blocks than the way down"))?;
        x = vs.scope(g, format!("resnets.{i}"), |vs, g| {
            let both = concat(g, 3, &[x, skip])?;
            resnet(vs, g, cx, both, level.channels)
        })?;
        if attends {
            x = vs.scope(g, format!("attentions.{i}"), |vs, g| transformer(vs, g, cx, x, level))?;
        }
    }
    if upsample {
        let shape = g.shape(x);
        let size = skips.last().map_or([2 * shape[1], 2 * shape[2]], |&skip| [g.shape(skip)[1], g.shape(skip)[2]]);
        x = vs.scope(g, "upsamplers.0", |vs, g| {
            let x = upsample_nearest(g, x, size)?;
            vs.conv2d(g, "conv", x, level.channels, Conv::SAME_3)
        })?;
    }
    Ok(x)
}

/// `ResnetBlock2D`: two normalised convolutions around the time embedding, and a shortcut.
fn resnet(vs: &Vars, g: &mut Graph, cx: &Conditioning<'_>, x: NodeId, channels: usize) -> Result<NodeId> {
    let (groups, eps) = (cx.config.norm_num_groups, cx.config.norm_eps);
    let h = vs.group_norm(g, "norm1", x, groups, eps, Activation::Silu)?;
    let h = vs.conv2d(g, "conv1", h, channels, Conv::SAME_3)?;
    let time = vs.linear(g, "time_emb_proj", cx.time, channels)?;
    let time = g.reshape(time, [g.shape(x)[0], 1, 1, channels])?;
    // Under the convolution's name, which adds it before it stores.
    let h = g.scoped("conv1", |g| add(g, h, time))?;
    let h = vs.group_norm(g, "norm2", h, groups, eps, Activation::Silu)?;
    let shortcut = match g.shape(x).last() == channels {
        true => x,
        false => vs.conv2d(g, "conv_shortcut", x, channels, Conv::POINT)?,
    };
    let h = vs.conv2d(g, "conv2", h, channels, Conv::SAME_3)?;
    g.scoped("conv2", |g| add(g, shortcut, h))
}

/// `Transformer2DModel` over the pixels of an image.
fn transformer(vs: &Vars, g: &mut Graph, cx: &mut Conditioning<'_>, image: NodeId, level: Level) -> Result<NodeId> {
    let &[batch, height, width, channels] = g.shape(image).extents() else {
        return Err(Error::operator("transformer", format!("expected an image, got {}", g.shape(image))));
    };
    if !channels.is_multiple_of(level.heads) {
        let detail = format!("{channels} channels do not divide into {} heads", level.heads);
        return Err(Error::invalid("attention_head_dim", detail));
    }
    let project = |g: &mut Graph, name: &str, x: NodeId| match cx.config.use_linear_projection {
        true => vs.linear(g, name, x, channels),
        false => vs.conv2d(g, name, x, channels, Conv::POINT),
    };
    // Channels last, an image and its list of pixels are the same bytes.
    let pixels = [batch, height * width, channels];
    let x = vs.group_norm(g, "norm", image, cx.config.norm_num_groups, 1e-6, Activation::None)?;
    let x = project(g, "proj_in", x)?;
    let mut x = g.reshape(x, pixels)?;
    for i in 0..level.depth {
        x = vs.scope(g, format!("transformer_blocks.{i}"), |vs, g| transformer_block(vs, g, cx, x, level.heads))?;
    }
    let x = g.reshape(x, [batch, height, width, channels])?;
    let x = project(g, "proj_out", x)?;
    g.scoped("proj_out", |g| add(g, image, x))
}

/// `BasicTransformerBlock`: self-attention, attention on the text (and identity), gated feed-forward.
fn transformer_block(vs: &Vars, g: &mut Graph, cx: &mut Conditioning<'_>, x: NodeId, heads: usize) -> Result<NodeId> {
    const EPS: f32 = 1e-5;
    let channels = g.shape(x).last();
    let h = vs.layer_norm(g, "norm1", x, EPS)?;
    let h = vs.scope(g, "attn1", |vs, g| {
        let q = vs.linear_no_bias(g, "to_q", h, channels)?;
        let k = vs.linear_no_bias(g, "to_k", h, channels)?;
        let v = vs.linear_no_bias(g, "to_v", h, channels)?;
        let h = attention(g, q, k, v, Attend::heads(heads))?;
        vs.linear(g, "to_out.0", h, channels)
    })?;
    let x = add(g, x, h)?;
    cx.layer += 1;

    let h = vs.layer_norm(g, "norm2", x, EPS)?;
    let h = vs.scope(g, "attn2", |vs, g| {
        let q = vs.linear_no_bias(g, "to_q", h, channels)?;
        let k = vs.linear_no_bias(g, "to_k", cx.text, channels)?;
        cx.queries.push((cx.layer, [q, k]));
        let v = vs.linear_no_bias(g, "to_v", cx.text, channels)?;
        let mut h = attention(g, q, k, v, Attend::heads(heads))?;
        if let Some((identity, keys_values)) = &cx.identity {
            let missing = || Error::invalid("unet", format!("attention layer {} has no identity", cx.layer));
            h = identity.attend(g, h, q, *keys_values.get(&cx.layer).ok_or_else(missing)?, heads)?;
        }
        vs.linear(g, "to_out.0", h, channels)
    })?;
    let x = add(g, x, h)?;
    cx.layer += 1;

    let h = vs.layer_norm(g, "norm3", x, EPS)?;
    let h = vs.scope(g, "ff", |vs, g| {
        let inner = vs.extent_or("net.2.weight", 2, 1, channels.saturating_mul(4))?;
        let h = vs.linear(g, "net.0.proj", h, 2 * inner)?;
        let h = g.scoped("net.0", |g| g.apply(GeGlu, &[h]))?;
        vs.linear(g, "net.2", h, channels)
    })?;
    add(g, x, h)
}
