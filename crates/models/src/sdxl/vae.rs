//! AutoencoderKL: images to latents and back.

use super::bands::{BandedImage, Banding};
use crate::config::Config;
use crate::layers::{Attend, Conv, activation, add, attention, attention_in_rows, concat, slice};
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::Activation;
use pulid_tensor::{Error, Result};
use serde::Deserialize;

const EPS: f32 = 1e-6;

/// Widest head that the fused attention takes without computing scores again and again.
const FUSED_HEAD: usize = 160;

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
        let file = Checkpoint::open(&path)?;
        if super::single_file::is_single_file(&file) {
            return super::SdxlModel::open(path.as_ref())?.vae(precision);
        }
        let weights = if super::single_file::is_original_vae(&file) { super::single_file::vae(&file)? } else { file };
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
    /// -1 to 1. Channels last, f32. No value takes more than `limit` bytes: larger ones are computed in bands of rows, and
    /// the images of a batch then one by one.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn decoder(&self, batch: usize, height: usize, width: usize, limit: usize) -> Result<Graph> {
        self.vars.complete(|| self.build_decoder(batch, height, width, limit))
    }

    fn build_decoder(&self, batch: usize, height: usize, width: usize, limit: usize) -> Result<Graph> {
        let mut graph = Graph::new("vae-decoder");
        let (g, config) = (&mut graph, &self.config);
        let x = self.vars.input(g, "latent", [batch, height, width, config.latent_channels], Rate::Step)?;
        let f = config.factor();
        let x = self.one_by_one(g, x, [height * f, width * f], limit, |vs, g, bands, x| {
            let mut x = BandedImage::new(g, x);
            if config.use_post_quant_conv {
                x = bands.conv2d(vs, g, "post_quant_conv", &x, config.latent_channels, Conv::POINT, None)?;
            }
            vs.scope(g, "decoder", |vs, g| {
                let levels = config.block_out_channels.len();
                let top = config.block_out_channels[levels - 1];
                let mut x = bands.conv2d(vs, g, "conv_in", &x, top, Conv::SAME_3, None)?;
                x = vs.scope(g, "mid_block", |vs, g| self.mid_block(vs, g, bands, &x))?;
                for (i, &channels) in config.block_out_channels.iter().rev().enumerate() {
                    x = vs.scope(g, format!("up_blocks.{i}"), |vs, g| {
                        for j in 0..=config.layers_per_block {
                            x = vs.scope(g, format!("resnets.{j}"), |vs, g| self.resnet(vs, g, bands, &x, channels))?;
                        }
                        if i + 1 == levels {
                            return Ok(x);
                        }
                        vs.scope(g, "upsamplers.0", |vs, g| {
                            let x = bands.upsample(g, &x)?;
                            bands.conv2d(vs, g, "conv", &x, channels, Conv::SAME_3, None)
                        })
                    })?;
                }
                x = self.norm_out(vs, g, bands, &x)?;
                bands.conv2d(vs, g, "conv_out", &x, config.out_channels, Conv::SAME_3, None)?.whole(g)
            })
        })?;
        self.vars.output(g, "sample", x)?;
        Ok(graph)
    }

    /// The encoder: `sample` [B, H, W, 3] of -1 to 1 to `mean` and `logvar` [B, h, w, C], not yet multiplied by the
    /// scaling factor. Channels last, f32. The log variance is clamped to -30 .. 20, as diffusers does. For `limit` see
    /// [`Vae::decoder`].
    ///
    /// # Errors
    /// When a weight is missing or mismatched, or the image is too small.
    pub fn encoder(&self, batch: usize, height: usize, width: usize, limit: usize) -> Result<Graph> {
        self.vars.complete(|| self.build_encoder(batch, height, width, limit))
    }

    fn build_encoder(&self, batch: usize, height: usize, width: usize, limit: usize) -> Result<Graph> {
        let mut graph = Graph::new("vae-encoder");
        let (g, config) = (&mut graph, &self.config);
        let x = self.vars.input(g, "sample", [batch, height, width, config.in_channels], Rate::Step)?;
        let moments = 2 * config.latent_channels;
        let x = self.one_by_one(g, x, [height, width], limit, |vs, g, bands, x| {
            let x = BandedImage::new(g, x);
            let x = vs.scope(g, "encoder", |vs, g| {
                let levels = config.block_out_channels.len();
                let mut x = bands.conv2d(vs, g, "conv_in", &x, config.block_out_channels[0], Conv::SAME_3, None)?;
                for (i, &channels) in config.block_out_channels.iter().enumerate() {
                    x = vs.scope(g, format!("down_blocks.{i}"), |vs, g| {
                        for j in 0..config.layers_per_block {
                            x = vs.scope(g, format!("resnets.{j}"), |vs, g| self.resnet(vs, g, bands, &x, channels))?;
                        }
                        if i + 1 == levels {
                            return Ok(x);
                        }
                        // One row and column of zeros, below and to the right only.
                        let half = Conv { kernel: 3, stride: 2, padding: [0, 0, 1, 1] };
                        bands.conv2d(vs, g, "downsamplers.0.conv", &x, channels, half, None)
                    })?;
                }
                x = vs.scope(g, "mid_block", |vs, g| self.mid_block(vs, g, bands, &x))?;
                x = self.norm_out(vs, g, bands, &x)?;
                bands.conv2d(vs, g, "conv_out", &x, moments, Conv::SAME_3, None)
            })?;
            match config.use_quant_conv {
                true => bands.conv2d(vs, g, "quant_conv", &x, moments, Conv::POINT, None)?.whole(g),
                false => x.whole(g),
            }
        })?;
        let mean = slice(g, x, 3, 0, config.latent_channels)?;
        let logvar = slice(g, x, 3, config.latent_channels, config.latent_channels)?;
        let logvar = activation(g, Activation::Clamp(-30.0, 20.0), logvar)?;
        self.vars.output(g, "mean", mean)?;
        self.vars.output(g, "logvar", logvar)?;
        Ok(graph)
    }

    /// Builds a network over a batch, or where its values would exceed the limit over each image of the batch.
    fn one_by_one(
        &self,
        g: &mut Graph,
        x: NodeId,
        [height, width]: [usize; 2],
        limit: usize,
        build: impl Fn(&Vars, &mut Graph, Banding, NodeId) -> Result<NodeId>,
    ) -> Result<NodeId> {
        let bands = Banding { limit, element: 4 };
        let batch = g.shape(x)[0];
        // The widest level of all, at the image's own size: more than any value takes.
        let widest = self.config.block_out_channels.iter().copied().max().unwrap_or(1);
        let most = [batch, height, width, widest, bands.element].iter().fold(1usize, |n, &d| n.saturating_mul(d));
        if batch == 1 || most <= limit {
            return build(&self.vars, g, bands, x);
        }
        let images = (0..batch)
            .map(|i| {
                let one = slice(g, x, 0, i, 1)?;
                build(&self.vars, g, bands, one)
            })
            .collect::<Result<Vec<_>>>()?;
        concat(g, 0, &images)
    }

    fn norm_out(&self, vs: &Vars, g: &mut Graph, bands: Banding, x: &BandedImage) -> Result<BandedImage> {
        bands.group_norm(vs, g, "conv_norm_out", x, self.config.norm_num_groups, EPS, Activation::Silu)
    }

    fn resnet(
        &self,
        vs: &Vars,
        g: &mut Graph,
        bands: Banding,
        x: &BandedImage,
        channels: usize,
    ) -> Result<BandedImage> {
        let groups = self.config.norm_num_groups;
        let h = bands.group_norm(vs, g, "norm1", x, groups, EPS, Activation::Silu)?;
        let h = bands.conv2d(vs, g, "conv1", &h, channels, Conv::SAME_3, None)?;
        let h = bands.group_norm(vs, g, "norm2", &h, groups, EPS, Activation::Silu)?;
        let shortcut = match x.channels() == channels {
            true => x.clone(),
            false => bands.conv2d(vs, g, "conv_shortcut", x, channels, Conv::POINT, None)?,
        };
        bands.conv2d(vs, g, "conv2", &h, channels, Conv::SAME_3, Some(&shortcut))
    }

    fn mid_block(&self, vs: &Vars, g: &mut Graph, bands: Banding, x: &BandedImage) -> Result<BandedImage> {
        let channels = x.channels();
        let mut x = vs.scope(g, "resnets.0", |vs, g| self.resnet(vs, g, bands, x, channels))?;
        if self.config.mid_block_add_attention {
            x = vs.scope(g, "attentions.0", |vs, g| self.attention(vs, g, bands, &x))?;
        }
        vs.scope(g, "resnets.1", |vs, g| self.resnet(vs, g, bands, &x, channels))
    }

    /// Attention of one head over all pixels.
    fn attention(&self, vs: &Vars, g: &mut Graph, bands: Banding, x: &BandedImage) -> Result<BandedImage> {
        let x = x.whole(g)?;
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
        let h = match channels <= FUSED_HEAD {
            true => attention(g, q, k, v, Attend::heads(1))?,
            false => attention_in_rows(g, q, k, v, bands.limit / 2)?,
        };
        let h = vs.linear(g, name("to_out.0", "proj_attn"), h, channels)?;
        let h = g.reshape(h, shape)?;
        let y = add(g, x, h)?;
        Ok(BandedImage::new(g, y))
    }
}
