//! UNet2DConditionModel as SDXL configures it, with PuLID's identity attention where it is asked for.

use super::unet_blocks::{Conditioning, down_block, mid_block, up_block};
use crate::config::{Config, PerBlock};
use crate::layers::{Conv, activation, add, concat};
use crate::pulid::{IdentityAdapter, IdentityAttention, IdentityInputs, IdentityLayer};
use crate::wrapped::unwrapped;
use crate::{Precision, Vars};
use pulid_checkpoint::{Checkpoint, View};
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{Activation, TimeEmbedding};
use pulid_tensor::{Error, Result, TensorType};
use serde::Deserialize;

/// A diffusers `unet/config.json`. Keys that do not change the network are ignored, other designs are refused.
#[derive(Clone, Debug, Deserialize)]
pub struct UnetConfig {
    /// Channels of the latent.
    #[serde(default = "four")]
    pub in_channels: usize,
    /// Channels of the prediction.
    #[serde(default = "four")]
    pub out_channels: usize,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// `DownBlock2D` or `CrossAttnDownBlock2D` for each level.
    pub down_block_types: Vec<String>,
    /// `UpBlock2D` or `CrossAttnUpBlock2D` for each level, the lowest first.
    pub up_block_types: Vec<String>,
    /// Residual blocks of each level on the way down; one more on the way up.
    #[serde(default = "two")]
    pub layers_per_block: PerBlock,
    /// Transformer blocks of each attention.
    #[serde(default = "one")]
    pub transformer_layers_per_block: PerBlock,
    /// Heads of each level's attention. The name is diffusers' old mistake: these are counts, not sizes.
    #[serde(default = "eight")]
    pub attention_head_dim: PerBlock,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
    /// `text_time`, or `None` for a UNet without size conditioning.
    #[serde(default)]
    pub addition_embed_type: Option<String>,
    /// Length of the embedding of each of the six time ids.
    #[serde(default)]
    pub addition_time_embed_dim: Option<usize>,
    /// Length of pooled text and size embeddings together.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Whether transformers are entered and left by linear layers, else by 1 x 1 convolutions.
    #[serde(default)]
    pub use_linear_projection: bool,
    /// Groups of the group norms.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' group norms.
    #[serde(default = "unet_eps")]
    pub norm_eps: f32,
    /// Zeros around the image before it is halved.
    #[serde(default = "one_number")]
    pub downsample_padding: usize,
    /// Cosines before sines in the time embedding.
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    /// Shift of the time embedding's frequencies.
    #[serde(default)]
    pub freq_shift: f32,
}

fn one_number() -> usize {
    1
}
fn four() -> usize {
    4
}
fn thirty_two() -> usize {
    32
}
fn one() -> PerBlock {
    PerBlock::Same(1)
}
fn two() -> PerBlock {
    PerBlock::Same(2)
}
fn eight() -> PerBlock {
    PerBlock::Same(8)
}
fn unet_eps() -> f32 {
    1e-5
}
fn yes() -> bool {
    true
}

impl UnetConfig {
    /// Time ids of SDXL's size conditioning: original size, crop, target size.
    pub const TIME_IDS: usize = 6;

    /// Reads a configuration; `name` is the file, for messages.
    ///
    /// # Errors
    /// When it is malformed or describes a network that is not built here.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let config = Config::parse(text, name)?;
        config.accept(&[
            ("act_fn", &["silu", "swish"]),
            ("addition_embed_type", &["text_time"]),
            ("attention_type", &["default"]),
            ("center_input_sample", &[]),
            ("class_embed_type", &[]),
            ("conv_in_kernel", &["3"]),
            ("conv_out_kernel", &["3"]),
            ("cross_attention_norm", &[]),
            ("dual_cross_attention", &[]),
            ("encoder_hid_dim", &[]),
            ("encoder_hid_dim_type", &[]),
            ("mid_block_only_cross_attention", &[]),
            ("mid_block_scale_factor", &["1"]),
            ("mid_block_type", &["UNetMidBlock2DCrossAttn"]),
            ("num_class_embeds", &[]),
            ("only_cross_attention", &[]),
            ("resnet_out_scale_factor", &["1"]),
            ("resnet_skip_time_act", &[]),
            ("resnet_time_scale_shift", &["default"]),
            ("reverse_transformer_layers_per_block", &[]),
            ("time_cond_proj_dim", &[]),
            ("time_embedding_act_fn", &[]),
            ("time_embedding_type", &["positional"]),
            ("timestep_post_act", &[]),
        ])?;
        let config: Self = config.read()?;
        let levels = config.block_out_channels.len();
        Config::require(name, levels > 0 && config.block_out_channels.iter().all(|&c| c > 0), || {
            "`block_out_channels` must hold numbers above 0".into()
        })?;
        for (types, key, known) in [
            (&config.down_block_types, "down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"]),
            (&config.up_block_types, "up_block_types", ["UpBlock2D", "CrossAttnUpBlock2D"]),
        ] {
            Config::require(name, types.len() == levels, || {
                format!("`{key}` has {} blocks and `block_out_channels` {levels}", types.len())
            })?;
            if let Some(other) = types.iter().find(|t| !known.contains(&t.as_str())) {
                return Err(Error::file(name, format!("`{key}` holds {other}; accepted: {}", known.join(", "))));
            }
        }
        for (numbers, key) in [
            (&config.layers_per_block, "layers_per_block"),
            (&config.transformer_layers_per_block, "transformer_layers_per_block"),
            (&config.attention_head_dim, "attention_head_dim"),
        ] {
            let numbers = numbers.expand(levels, key).map_err(|e| Error::file(name, e.to_string()))?;
            Config::require(name, !numbers.contains(&0), || format!("`{key}` holds a 0"))?;
        }
        if config.addition_embed_type.is_some() {
            let given = config.addition_time_embed_dim.zip(config.projection_class_embeddings_input_dim);
            let fits = given
                .is_some_and(|(time, all)| time > 0 && all / Self::TIME_IDS >= time && all > Self::TIME_IDS * time);
            Config::require(name, fits, || {
                "text_time needs `addition_time_embed_dim` and a `projection_class_embeddings_input_dim` above six \
                 times it"
                    .into()
            })?;
        }
        Ok(config)
    }

    /// Width P of the pooled text embedding, if the network takes one.
    pub fn pooled_dim(&self) -> Option<usize> {
        self.addition_embed_type.as_ref()?;
        let (time, all) = self.addition_time_embed_dim.zip(self.projection_class_embeddings_input_dim)?;
        all.checked_sub(time.checked_mul(Self::TIME_IDS)?)
    }

    pub(super) fn level(&self, level: usize) -> Result<Level> {
        let at = |numbers: &PerBlock, key: &str| Ok(numbers.expand(self.block_out_channels.len(), key)?[level]);
        Ok(Level {
            channels: self.block_out_channels[level],
            resnets: at(&self.layers_per_block, "layers_per_block")?,
            depth: at(&self.transformer_layers_per_block, "transformer_layers_per_block")?,
            heads: at(&self.attention_head_dim, "attention_head_dim")?,
        })
    }
}

/// One level's configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub channels: usize,
    pub resnets: usize,
    pub depth: usize,
    pub heads: usize,
}

/// `max_period` of diffusers' `get_timestep_embedding`, which its UNets leave at the default.
const MAX_PERIOD: f32 = 10_000.0;

/// Attention layers that no network has; SDXL has 70. A configuration may ask for more than memory holds.
const MOST_LAYERS: usize = 4096;

/// Extents of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnetSize {
    /// Latents at once; the two guidance passes are a batch of two.
    pub batch: usize,
    /// Rows of the latent.
    pub height: usize,
    /// Columns of the latent.
    pub width: usize,
    /// Text tokens, 77 for CLIP.
    pub text_tokens: usize,
    /// The identity to read beside the text, if any.
    pub identity: Option<IdentityInputs>,
}

/// Weights whose projections around transformers are the matrices that the configuration says: stable-diffusion.cpp stores them as
/// filters of 1 x 1. Others stay as they are, to be reported.
fn projections(config: &UnetConfig, weights: Checkpoint) -> Checkpoint {
    let is = |key: &str| key.ends_with(".proj_in.weight") || key.ends_with(".proj_out.weight");
    let filters = |key: &str| is(key) && weights.info(key).is_ok_and(|info| info.shape.ends_with(&[1, 1]));
    if !config.use_linear_projection || !weights.keys().any(filters) {
        return weights;
    }
    let seen = weights.remap(|key, shape| {
        let filters = is(key) && shape.rank() == 4 && shape.ends_with(&[1, 1]);
        vec![(key.to_owned(), if filters { View::Matrix } else { View::Whole })]
    });
    seen.unwrap_or(weights)
}

/// The UNet's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct Unet {
    config: UnetConfig,
    vars: Vars,
}

impl Unet {
    /// The file's tensors that the graph built last has no use for.
    pub(super) fn unread(&self) -> Vec<String> {
        self.vars.unread()
    }

    /// A UNet from its configuration and weights.
    pub fn new(config: UnetConfig, checkpoint: Checkpoint, precision: Precision) -> Self {
        let vars = Vars::new(projections(&config, checkpoint), precision);
        Unet { config, vars }
    }

    /// Opens a diffusers `unet/` folder, the file of a UNet alone (configured by a `config.json` beside it, else by its tensors
    /// and SDXL's own values) or a single file with a whole SDXL.
    ///
    /// # Errors
    /// When the configuration or the weights cannot be read.
    pub fn open(path: impl AsRef<std::path::Path>, precision: Precision) -> Result<Self> {
        let weights = unwrapped(&Checkpoint::open(&path)?).into_owned();
        if super::single_file::is_single_file(&weights) {
            return super::SdxlModel::open(path.as_ref())?.unet(precision);
        }
        crate::family::require(&weights, "an SDXL UNet", &[crate::Role::Unet])?;
        let weights = super::single_file::any_part(super::Part::Unet, &weights)?;
        let config = match crate::config::beside(path.as_ref())? {
            Some((text, name)) => UnetConfig::parse(&text, &name)?,
            None => UnetConfig::infer(&weights)?,
        };
        Ok(Self::new(config, weights, precision))
    }

    /// The configuration.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// The cross-attentions that can read an identity, in the order of their numbers.
    ///
    /// # Errors
    /// When the configuration's lists have another length than its levels, or there are more layers than any network has.
    pub fn identity_layers(&self) -> Result<Vec<IdentityLayer>> {
        let transformers = self.transformers()?;
        let layers = transformers.iter().map(|(level, count)| level.depth.saturating_mul(*count));
        if layers.fold(0, usize::saturating_add) > MOST_LAYERS {
            return Err(Error::invalid("unet", format!("has more than {MOST_LAYERS} attention layers")));
        }
        let channels = transformers.iter().flat_map(|(level, n)| std::iter::repeat_n(level.channels, n * level.depth));
        Ok(channels.enumerate().map(|(i, channels)| IdentityLayer { number: 2 * i + 1, channels }).collect())
    }

    /// The levels that have transformers and how many, as adapters number attention layers: down, up, mid.
    fn transformers(&self) -> Result<Vec<(Level, usize)>> {
        let config = &self.config;
        let levels = config.block_out_channels.len();
        let mut found = Vec::new();
        for (i, _) in config.down_block_types.iter().enumerate().filter(|(_, kind)| *kind == "CrossAttnDownBlock2D") {
            let level = config.level(i)?;
            found.push((level, level.resnets));
        }
        for (i, _) in config.up_block_types.iter().enumerate().filter(|(_, kind)| *kind == "CrossAttnUpBlock2D") {
            let level = config.level(levels - 1 - i)?;
            found.push((level, level.resnets.saturating_add(1)));
        }
        found.push((config.level(levels - 1)?, 1));
        Ok(found)
    }

    /// The graph of one call.
    ///
    /// Inputs, all f32: `sample` [B, H, W, C] channels last and `timestep` [B], which change with every step;
    /// `encoder_hidden_states` [B, T, D], `text_embeds` [B, P] and `time_ids` [B, 6] (where the configuration has
    /// them), which do not. With an identity also `id_scale` [B], its strength in each image, and `k.N` and `v.N` [B, N, C], what
    /// [`IdentityAdapter::graph`] gives for each of [`Unet::identity_layers`]. While `id_scale` is zero the identity costs
    /// nothing, and the result is the very one without. Output: `sample` [B, H, W, C].
    ///
    /// # Errors
    /// When a weight is missing or mismatched, or an extent is 0.
    pub fn graph(&self, size: UnetSize) -> Result<Graph> {
        self.with_keys_values(size, false)
    }

    /// [`Unet::graph`] that also gives, of each of [`Unet::identity_layers`], what PuLID's alignment loss compares: `q.N` [B, L, C], the
    /// image's queries, and `text_k.N` [B, T, C], the text's keys, both of the UNet's own element type and with the heads still side by
    /// side.
    ///
    /// # Errors
    /// As [`Unet::graph`].
    pub fn graph_with_queries(&self, size: UnetSize) -> Result<Graph> {
        self.with_keys_values(size, true)
    }

    fn with_keys_values(&self, size: UnetSize, queries: bool) -> Result<Graph> {
        self.vars.complete(|| {
            self.build(size, queries, |g, layers, inputs| {
                let pair = |layer: &IdentityLayer| {
                    let shape = [size.batch, inputs.tokens, layer.channels];
                    let [k, v] = layer.names();
                    Ok([self.vars.input(g, &k, shape, Rate::Run)?, self.vars.input(g, &v, shape, Rate::Run)?])
                };
                layers.iter().map(pair).collect()
            })
        })
    }

    /// Heads of each of [`Unet::identity_layers`].
    ///
    /// # Errors
    /// As [`Unet::identity_layers`].
    pub fn identity_heads(&self) -> Result<Vec<usize>> {
        let layers = self.identity_layers()?.len();
        let transformers = self.transformers()?;
        let heads = transformers.iter().flat_map(|(level, n)| std::iter::repeat_n(level.heads, n * level.depth));
        Ok(heads.take(layers).collect())
    }

    /// [`Unet::graph`] with the adapter's own graph in front: `id_embedding` [B, N, E] in place of keys and values.
    ///
    /// # Errors
    /// As [`Unet::graph`], for the adapter's weights too.
    pub fn graph_with_adapter(&self, size: UnetSize, adapter: &IdentityAdapter) -> Result<Graph> {
        let keys_values = |g: &mut Graph, layers: &[IdentityLayer], inputs: IdentityInputs| {
            // An adapter in f32 serves a UNet in half precision too.
            let of_unet = |g: &mut Graph, id: NodeId| crate::layers::cast(g, id, self.vars.dtype());
            let pairs = adapter.keys_values(g, layers, size.batch, inputs.tokens)?;
            pairs.into_iter().map(|[k, v]| Ok([of_unet(g, k)?, of_unet(g, v)?])).collect()
        };
        self.vars.complete(|| adapter.complete(|| self.build(size, false, keys_values)))
    }

    fn build(
        &self,
        size: UnetSize,
        queries: bool,
        keys_values: impl FnOnce(&mut Graph, &[IdentityLayer], IdentityInputs) -> Result<Vec<[NodeId; 2]>>,
    ) -> Result<Graph> {
        let mut graph = Graph::new("unet");
        let (g, vs, config) = (&mut graph, &self.vars, &self.config);
        let UnetSize { batch, height, width, .. } = size;
        let sample = vs.input(g, "sample", [batch, height, width, config.in_channels], Rate::Step)?;
        let timestep = g.input("timestep", TensorType::f32([batch]), Rate::Step)?;
        let text_shape = [batch, size.text_tokens, config.cross_attention_dim];
        let text = vs.input(g, "encoder_hidden_states", text_shape, Rate::Run)?;
        let time = self.time(g, batch, timestep)?;
        let identity = match size.identity {
            Some(inputs) => {
                let layers = self.identity_layers()?;
                let scale = g.input("id_scale", TensorType::f32([batch]), Rate::Step)?;
                let pairs = keys_values(g, &layers, inputs)?;
                let of_layer = layers.iter().map(|layer| layer.number).zip(pairs).collect();
                Some((IdentityAttention { inputs, scale }, of_layer))
            }
            None => None,
        };

        let levels = config.block_out_channels.len();
        // The finest level's layers are few and small, but what they lose is lost in the image: they take two thirds of
        // the error of 8 bits with them, for half a percent of SDXL's weights.
        let finest = vs.unquantized();
        let mut cx = Conditioning { config, time, text, identity, layer: 0, queries: Vec::new() };
        let mut x = vs.conv2d(g, "conv_in", sample, config.block_out_channels[0], Conv::SAME_3)?;
        let mut skips = vec![x];
        for (i, kind) in config.down_block_types.iter().enumerate() {
            let attends = kind == "CrossAttnDownBlock2D";
            let level = if i == 0 { &finest } else { vs };
            x = level.scope(g, format!("down_blocks.{i}"), |vs, g| {
                down_block(vs, g, &mut cx, x, &mut skips, config.level(i)?, attends, i + 1 < levels)
            })?;
        }
        // The mid block's layers have the last numbers.
        let first_up = cx.layer;
        let before = self.transformers()?.into_iter().rev().skip(1);
        cx.layer = before.fold(0, |sum: usize, (level, n)| sum.saturating_add(level.depth.saturating_mul(2 * n)));
        x = vs.scope(g, "mid_block", |vs, g| mid_block(vs, g, &mut cx, x, config.level(levels - 1)?))?;
        cx.layer = first_up;
        for (i, kind) in config.up_block_types.iter().enumerate() {
            let attends = kind == "CrossAttnUpBlock2D";
            let level = if i + 1 == levels { &finest } else { vs };
            x = level.scope(g, format!("up_blocks.{i}"), |vs, g| {
                up_block(vs, g, &mut cx, x, &mut skips, config.level(levels - 1 - i)?, attends, i + 1 < levels)
            })?;
        }
        x = vs.group_norm(g, "conv_norm_out", x, config.norm_num_groups, config.norm_eps, Activation::Silu)?;
        x = finest.conv2d(g, "conv_out", x, config.out_channels, Conv::SAME_3)?;
        vs.output(g, "sample", x)?;
        if queries {
            cx.queries.sort_unstable();
            for (number, [q, text_k]) in cx.queries {
                g.output(format!("q.{number}"), q)?;
                g.output(format!("text_k.{number}"), text_k)?;
            }
        }
        Ok(graph)
    }

    /// SiLU of the sum of time and size embeddings [B, 4·C], which every residual block reads.
    fn time(&self, g: &mut Graph, batch: usize, timestep: NodeId) -> Result<NodeId> {
        let (vs, config) = (&self.vars, &self.config);
        let dtype = vs.dtype();
        let embedding = |dim: usize| TimeEmbedding {
            dim,
            flip_sin_to_cos: config.flip_sin_to_cos,
            downscale_freq_shift: config.freq_shift,
            max_period: MAX_PERIOD,
            output: dtype,
        };
        let mlp = |vs: &Vars, g: &mut Graph, x: NodeId| {
            let width = vs.extent_or("linear_1.weight", 2, 0, config.block_out_channels[0].saturating_mul(4))?;
            let h = vs.linear(g, "linear_1", x, width)?;
            let h = activation(g, Activation::Silu, h)?;
            vs.linear(g, "linear_2", h, width)
        };
        let mut added = None;
        if let Some(pooled) = config.pooled_dim() {
            let text = vs.input(g, "text_embeds", [batch, pooled], Rate::Run)?;
            let ids = g.input("time_ids", TensorType::f32([batch, UnetConfig::TIME_IDS]), Rate::Run)?;
            let dim = config.addition_time_embed_dim.unwrap_or_default();
            let sizes = g.scoped("add_time_proj", |g| g.apply(embedding(dim), &[ids]))?;
            let sizes = g.reshape(sizes, [batch, UnetConfig::TIME_IDS * dim])?;
            let both = g.scoped("add_embedding", |g| concat(g, 1, &[text, sizes]))?;
            added = Some(vs.unquantized().scope(g, "add_embedding", |vs, g| mlp(vs, g, both))?);
        }
        let time = g.scoped("time_proj", |g| g.apply(embedding(config.block_out_channels[0]), &[timestep]))?;
        let time = vs.unquantized().scope(g, "time_embedding", |vs, g| mlp(vs, g, time))?;
        g.scoped("time_embedding", |g| {
            let sum = match added {
                Some(added) => add(g, added, time)?,
                None => time,
            };
            activation(g, Activation::Silu, sum)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"block_out_channels":[8,16],"down_block_types":["DownBlock2D","CrossAttnDownBlock2D"],
        "up_block_types":["CrossAttnUpBlock2D","UpBlock2D"],"attention_head_dim":[1,2],"cross_attention_dim":32,
        "addition_embed_type":"text_time","addition_time_embed_dim":8,"projection_class_embeddings_input_dim":68}"#;

    #[test]
    fn reads_lists_and_numbers() {
        let config = UnetConfig::parse(SMALL, "config.json").unwrap();
        assert_eq!(config.pooled_dim(), Some(20));
        let level = config.level(1).unwrap();
        assert_eq!((level.channels, level.resnets, level.depth, level.heads), (16, 2, 1, 2));
    }

    #[test]
    fn refuses_what_it_does_not_build() {
        for (from, to, named) in [
            ("[1,2]", "[1,2,3]", "attention_head_dim"),
            ("[1,2]", "0", "attention_head_dim"),
            ("\"DownBlock2D\"", "\"KDownBlock2D\"", "KDownBlock2D"),
            ("\"UpBlock2D\"", "\"UpBlock2D\",\"UpBlock2D\"", "up_block_types"),
            ("68", "48", "projection_class_embeddings_input_dim"),
            ("\"text_time\"", "\"image\"", "addition_embed_type"),
            ("[8,16]", "[]", "block_out_channels"),
        ] {
            let error = UnetConfig::parse(&SMALL.replace(from, to), "config.json").unwrap_err().to_string();
            assert!(error.contains(named) && error.starts_with("config.json"), "{error}");
        }
    }
}
