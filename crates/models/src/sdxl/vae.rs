//! AutoencoderKL: images to latents and back.

use crate::config::Config;
use crate::layers::{Attend, Conv, activation, add, attention, slice, upsample_nearest};
use crate::wrapped::unwrapped;
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::Activation;
use pulid_tensor::{Error, Result};
use serde::Deserialize;

const EPS: f32 = 1e-6;

/// A diffusers `vae/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    /// Channels of an image.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Channels of a decoded image.
    #[serde(default = "three")]
    pub out_channels: usize,
    /// Channels of a latent.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// Channels of each level, the image's first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    #[serde(default = "one")]
    pub layers_per_block: usize,
    /// Groups of the group norms.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// What latents are multiplied with for the UNet.
    #[serde(default = "sd_scale")]
    pub scaling_factor: f32,
    /// Whether the encoder ends in a 1 x 1 convolution.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether the decoder begins with a 1 x 1 convolution.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle attends.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
}

fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn one() -> usize {
    1
}
fn thirty_two() -> usize {
    32
}
fn sd_scale() -> f32 {
    0.18215
}
fn yes() -> bool {
    true
}

impl VaeConfig {
    /// Reads a configuration; `name` is the file, for messages.
    ///
    /// # Errors
    /// When it is malformed or describes a network that is not built here.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Blocks {
            #[serde(default)]
            down_block_types: Vec<String>,
            #[serde(default)]
            up_block_types: Vec<String>,
        }
        let config = Config::parse(text, name)?;
        config.accept(&[
            ("act_fn", &["silu", "swish"]),
            ("latents_mean", &[]),
            ("latents_std", &[]),
            ("shift_factor", &[]),
        ])?;
        let blocks: Blocks = Config::parse(text, name)?.read()?;
        let config: Self = config.read()?;
        let levels = config.block_out_channels.len();
        Config::require(name, levels > 0 && config.block_out_channels.iter().all(|&c| c > 0), || {
            "`block_out_channels` must hold numbers above 0".into()
        })?;
        Config::require(name, levels <= 16, || format!("{levels} levels; at most 16 are built"))?;
        for (types, known) in
            [(blocks.down_block_types, "DownEncoderBlock2D"), (blocks.up_block_types, "UpDecoderBlock2D")]
        {
            if let Some(other) = types.iter().find(|t| *t != known) {
                return Err(Error::file(name, format!("holds the block {other}; accepted: {known}")));
            }
        }
        Ok(config)
    }

    /// Pixels of an image per pixel of its latent, along each side.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// The VAE's weights and how to build its two graphs.
#[derive(Clone, Debug)]
pub struct Vae {
    config: VaeConfig,
    vars: Vars,
}

impl Vae {
    /// The file's tensors that the graph built last has no use for.
    pub(super) fn unread(&self) -> Vec<String> {
        self.vars.unread()
    }

    /// A VAE from its configuration and weights.
    pub fn new(config: VaeConfig, checkpoint: Checkpoint, precision: Precision) -> Self {
        Vae { config, vars: Vars::new(checkpoint, precision) }
    }

    /// Opens a diffusers `vae/` folder, the file of a VAE alone (by diffusers' or by Stability's names; configured by a
    /// `config.json` beside it, else by its tensors and SDXL's own values) or a single file with a whole SDXL.
    ///
    /// # Errors
    /// When the configuration or the weights cannot be read.
    pub fn open(path: impl AsRef<std::path::Path>, precision: Precision) -> Result<Self> {
        let file = unwrapped(&Checkpoint::open(&path)?).into_owned();
        if super::single_file::is_single_file(&file) {
            return super::SdxlModel::open(path.as_ref())?.vae(precision);
        }
        let weights = super::single_file::any_part(super::Part::Vae, &file)?;
        let config = match crate::config::beside(path.as_ref())? {
            Some((text, name)) => VaeConfig::parse(&text, &name)?,
            None => VaeConfig::infer(&weights)?,
        };
        Ok(Self::new(config, weights, precision))
    }

    /// The configuration.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The decoder: `latent` [B, h, w, C], already divided by the scaling factor, to `sample` [B, H, W, 3] of about
    /// -1 to 1. Channels last, f32.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn decoder(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        self.vars.complete(|| self.build_decoder(batch, height, width))
    }

    fn build_decoder(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        let mut graph = Graph::new("vae-decoder");
        let (g, vs, config) = (&mut graph, &self.vars, &self.config);
        let mut x = vs.input(g, "latent", [batch, height, width, config.latent_channels], Rate::Step)?;
        if config.use_post_quant_conv {
            x = vs.conv2d(g, "post_quant_conv", x, config.latent_channels, Conv::POINT)?;
        }
        let x = vs.scope(g, "decoder", |vs, g| {
            let levels = config.block_out_channels.len();
            let top = config.block_out_channels[levels - 1];
            let mut x = vs.conv2d(g, "conv_in", x, top, Conv::SAME_3)?;
            x = vs.scope(g, "mid_block", |vs, g| self.mid_block(vs, g, x))?;
            for (i, &channels) in config.block_out_channels.iter().rev().enumerate() {
                x = vs.scope(g, format!("up_blocks.{i}"), |vs, g| {
                    for j in 0..=config.layers_per_block {
                        x = vs.scope(g, format!("resnets.{j}"), |vs, g| self.resnet(vs, g, x, channels))?;
                    }
                    if i + 1 == levels {
                        return Ok(x);
                    }
                    vs.scope(g, "upsamplers.0", |vs, g| {
                        let size = [2 * g.shape(x)[1], 2 * g.shape(x)[2]];
                        let x = upsample_nearest(g, x, size)?;
                        vs.conv2d(g, "conv", x, channels, Conv::SAME_3)
                    })
                })?;
            }
            x = self.norm_out(vs, g, x)?;
            vs.conv2d(g, "conv_out", x, config.out_channels, Conv::SAME_3)
        })?;
        vs.output(g, "sample", x)?;
        Ok(graph)
    }

    /// The encoder: `sample` [B, H, W, 3] of -1 to 1 to `mean` and `logvar` [B, h, w, C], not yet multiplied by the
    /// scaling factor. Channels last, f32. The log variance is clamped to -30 .. 20, as diffusers does.
    ///
    /// # Errors
    /// When a weight is missing or mismatched, or the image is too small.
    pub fn encoder(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        self.vars.complete(|| self.build_encoder(batch, height, width))
    }

    fn build_encoder(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        let mut graph = Graph::new("vae-encoder");
        let (g, vs, config) = (&mut graph, &self.vars, &self.config);
        let x = vs.input(g, "sample", [batch, height, width, config.in_channels], Rate::Step)?;
        let moments = 2 * config.latent_channels;
        let mut x = vs.scope(g, "encoder", |vs, g| {
            let levels = config.block_out_channels.len();
            let mut x = vs.conv2d(g, "conv_in", x, config.block_out_channels[0], Conv::SAME_3)?;
            for (i, &channels) in config.block_out_channels.iter().enumerate() {
                x = vs.scope(g, format!("down_blocks.{i}"), |vs, g| {
                    for j in 0..config.layers_per_block {
                        x = vs.scope(g, format!("resnets.{j}"), |vs, g| self.resnet(vs, g, x, channels))?;
                    }
                    if i + 1 == levels {
                        return Ok(x);
                    }
                    // One row and column of zeros, below and to the right only.
                    let half = Conv { kernel: 3, stride: 2, padding: [0, 0, 1, 1] };
                    vs.conv2d(g, "downsamplers.0.conv", x, channels, half)
                })?;
            }
            x = vs.scope(g, "mid_block", |vs, g| self.mid_block(vs, g, x))?;
            x = self.norm_out(vs, g, x)?;
            vs.conv2d(g, "conv_out", x, moments, Conv::SAME_3)
        })?;
        if config.use_quant_conv {
            x = vs.conv2d(g, "quant_conv", x, moments, Conv::POINT)?;
        }
        let mean = slice(g, x, 3, 0, config.latent_channels)?;
        let logvar = slice(g, x, 3, config.latent_channels, config.latent_channels)?;
        let logvar = activation(g, Activation::Clamp(-30.0, 20.0), logvar)?;
        vs.output(g, "mean", mean)?;
        vs.output(g, "logvar", logvar)?;
        Ok(graph)
    }

    fn norm_out(&self, vs: &Vars, g: &mut Graph, x: NodeId) -> Result<NodeId> {
        vs.group_norm(g, "conv_norm_out", x, self.config.norm_num_groups, EPS, Activation::Silu)
    }

    fn resnet(&self, vs: &Vars, g: &mut Graph, x: NodeId, channels: usize) -> Result<NodeId> {
        let groups = self.config.norm_num_groups;
        let h = vs.group_norm(g, "norm1", x, groups, EPS, Activation::Silu)?;
        let h = vs.conv2d(g, "conv1", h, channels, Conv::SAME_3)?;
        let h = vs.group_norm(g, "norm2", h, groups, EPS, Activation::Silu)?;
        let shortcut = match g.shape(x).last() == channels {
            true => x,
            false => vs.conv2d(g, "conv_shortcut", x, channels, Conv::POINT)?,
        };
        let h = vs.conv2d(g, "conv2", h, channels, Conv::SAME_3)?;
        g.scoped("conv2", |g| add(g, shortcut, h))
    }

    fn mid_block(&self, vs: &Vars, g: &mut Graph, x: NodeId) -> Result<NodeId> {
        let channels = g.shape(x).last();
        let mut x = vs.scope(g, "resnets.0", |vs, g| self.resnet(vs, g, x, channels))?;
        if self.config.mid_block_add_attention {
            x = vs.scope(g, "attentions.0", |vs, g| self.attention(vs, g, x))?;
        }
        vs.scope(g, "resnets.1", |vs, g| self.resnet(vs, g, x, channels))
    }

    /// Attention of one head over all pixels.
    fn attention(&self, vs: &Vars, g: &mut Graph, x: NodeId) -> Result<NodeId> {
        let shape = g.shape(x).clone();
        let channels = shape.last();
        // Files from before diffusers 0.18 have the older names.
        let older = vs.contains("query.weight");
        let name = |new: &'static str, old: &'static str| if older { old } else { new };
        let h = vs.group_norm(g, "group_norm", x, self.config.norm_num_groups, EPS, Activation::None)?;
        let h = g.reshape(h, [shape[0], shape[1] * shape[2], channels])?;
        let q = vs.linear(g, name("to_q", "query"), h, channels)?;
        let k = vs.linear(g, name("to_k", "key"), h, channels)?;
        let v = vs.linear(g, name("to_v", "value"), h, channels)?;
        let h = attention(g, q, k, v, Attend::heads(1))?;
        let h = vs.linear(g, name("to_out.0", "proj_attn"), h, channels)?;
        let h = g.reshape(h, shape)?;
        add(g, x, h)
    }
}
