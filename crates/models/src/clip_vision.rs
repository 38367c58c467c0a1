//! CLIPVisionModelWithProjection, CLIP's image encoder in transformers' layout, and the whole CLIP around it.
//!
//! Sizes and heads come from `config.json`, as transformers writes it for a whole CLIP (`text_config` and `vision_config` in it) or for
//! the image encoder alone. What it leaves out is as in transformers' own `CLIPVisionConfig` and `CLIPTextConfig`.

use crate::clip_block::ClipBlock;
use crate::config::{Config, beside};
use crate::layers::{Attend, Conv, add, concat, expand, slice};
use crate::sdxl::{ClipConfig, ClipTextModel};
use crate::{ClipTokenizer, Padding, Precision, Vars};
use pulid_checkpoint::{Checkpoint, json};
use pulid_graph::{Graph, NodeId, Rate};
use pulid_tensor::{Error, HostTensor, Result, TensorType};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Images of more pixels a side than any CLIP reads are a mistake in the file.
const MOST_PIXELS: usize = 4096;

/// A transformers `CLIPVisionConfig`, with its defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Width of the stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Side of the images, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Width of the image's embedding.
    pub projection_dim: usize,
    /// `quick_gelu` or `gelu`.
    pub hidden_act: String,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        ClipVisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            num_hidden_layers: 12,
            image_size: 224,
            patch_size: 32,
            projection_dim: 512,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Reads the image encoder's part of a configuration; `name` is the file, for messages.
    ///
    /// # Errors
    /// When it is malformed or describes a network that is not built here.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let config = Config::parse(&part(text, name, "vision_config")?, name)?;
        config.accept(&[
            ("hidden_act", &["quick_gelu", "gelu"]),
            ("model_type", &["clip_vision_model", "clip"]),
            ("num_channels", &["3"]),
        ])?;
        let config: Self = config.read()?;
        let (heads, width) = (config.num_attention_heads, config.hidden_size);
        Config::require(name, heads > 0 && width > 0 && width.is_multiple_of(heads), || {
            format!("`hidden_size` {width} does not divide into {heads} heads")
        })?;
        Config::require(name, config.num_hidden_layers > 0, || "`num_hidden_layers` is 0".into())?;
        let (image, patch) = (config.image_size, config.patch_size);
        Config::require(name, patch > 0 && image >= patch && image <= MOST_PIXELS, || {
            format!("`image_size` {image} and `patch_size` {patch} are those of no image encoder")
        })?;
        Ok(config)
    }

    /// Patches along a side; what is left over at the right and below is not looked at, as in transformers.
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of an image: the class token and the patches.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid() + 1
    }
}

/// The text of one encoder's configuration, of its own file or of a whole CLIP's.
fn part(text: &str, name: &str, key: &str) -> Result<String> {
    let all: Value = json::from_str(text).map_err(|e| Error::file(name, format!("is not a configuration: {e}")))?;
    let Some(found) = all.get(key) else { return Ok(text.to_owned()) };
    let mut found = match found {
        Value::Object(found) => found.clone(),
        Value::Null => Map::new(),
        _ => return Err(Error::file(name, format!("`{key}` is no object"))),
    };
    // The whole CLIP's is what its encoders are built with.
    if let Some(width) = all.get("projection_dim").filter(|width| width.is_number()) {
        found.insert("projection_dim".into(), width.clone());
    }
    Ok(Value::Object(found).to_string())
}

/// The text encoder's configuration in a whole CLIP's, with the defaults of transformers' `CLIPTextConfig`.
fn text_config(text: &str, name: &str) -> Result<ClipConfig> {
    let own: Value = json::from_str(&part(text, name, "text_config")?)
        .map_err(|e| Error::file(name, format!("is not a configuration: {e}")))?;
    let mut filled = serde_json::json!({
        "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12, "eos_token_id": 49407
    });
    if let (Value::Object(filled), Value::Object(own)) = (&mut filled, own) {
        filled.extend(own);
    }
    ClipConfig::parse(&filled.to_string(), name)
}

/// An image encoder's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct ClipVisionModel {
    config: ClipVisionConfig,
    vars: Vars,
}

impl ClipVisionModel {
    /// An image encoder from its configuration and weights.
    pub fn new(config: ClipVisionConfig, checkpoint: Checkpoint, precision: Precision) -> Self {
        ClipVisionModel { config, vars: Vars::new(checkpoint, precision) }
    }

    /// Opens a folder in transformers' layout, of a whole CLIP or of its image encoder, or a file with a `config.json` beside it.
    ///
    /// # Errors
    /// When configuration or weights cannot be read, or these are of something else.
    pub fn open(path: impl AsRef<Path>, precision: Precision) -> Result<Self> {
        let path = path.as_ref();
        let weights = Checkpoint::open(path)?;
        require_clip(&weights, path)?;
        let (text, name) = configuration(path)?;
        Ok(Self::new(ClipVisionConfig::parse(&text, &name)?, weights, precision))
    }

    /// The configuration.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// The graph of `batch` images.
    ///
    /// Input: `pixel_values` f32 [B, S, S, 3], normalised. Outputs: `image_embeds` [B, P], projected and not L2-normalised;
    /// `last_hidden_state` [B, tokens, D], the stream after the last block, without a norm.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn graph(&self, batch: usize) -> Result<Graph> {
        self.vars.complete(|| self.build(batch))
    }

    fn build(&self, batch: usize) -> Result<Graph> {
        let config = &self.config;
        if batch == 0 {
            return Err(Error::invalid("pixel_values", "holds no image"));
        }
        let mut graph = Graph::new("clip-vision");
        let g = &mut graph;
        let (side, width, eps) = (config.image_size, config.hidden_size, config.layer_norm_eps);
        let image = self.vars.input(g, "pixel_values", [batch, side, side, 3], Rate::Step)?;
        let body = self.vars.pp("vision_model");
        let mut x = body.scope(g, "embeddings", |vs, g| self.embed(vs, g, batch, image))?;
        // Spelt so in every published file.
        x = body.layer_norm(g, "pre_layrnorm", x, eps)?;
        let block = ClipBlock {
            width,
            inner: config.intermediate_size,
            eps: config.layer_norm_eps,
            act: &config.hidden_act,
            attend: Attend::heads(config.num_attention_heads),
        };
        for i in 0..config.num_hidden_layers {
            x = body.scope(g, format!("encoder.layers.{i}"), |vs, g| block.apply(vs, g, x))?;
        }
        self.vars.output(g, "last_hidden_state", x)?;
        let class = slice(g, x, 1, 0, 1)?;
        let class = g.reshape(class, [batch, width])?;
        let class = body.layer_norm(g, "post_layernorm", class, eps)?;
        let embedding = self.vars.linear_no_bias(g, "visual_projection", class, config.projection_dim)?;
        self.vars.output(g, "image_embeds", embedding)?;
        Ok(graph)
    }

    /// Class token and patches with their positions, [B, tokens, D].
    fn embed(&self, vs: &Vars, g: &mut Graph, batch: usize, image: NodeId) -> Result<NodeId> {
        const CLASS: &str = "class_embedding";
        const POSITIONS: &str = "position_embedding.weight";
        let (width, grid, patch) = (self.config.hidden_size, self.config.grid(), self.config.patch_size);
        let (patches, seen) = (grid * grid, grid * patch);
        let mut x = image;
        if seen != self.config.image_size {
            x = slice(g, x, 1, 0, seen)?;
            x = slice(g, x, 2, 0, seen)?;
        }
        let conv = Conv { kernel: patch, stride: patch, padding: [0; 4] };
        let x = vs.conv2d_no_bias(g, "patch_embedding", x, width, conv)?;
        let x = g.reshape(x, [batch, patches, width])?;
        let shape = [patches + 1, width];
        for (name, expected) in [(CLASS, vec![width]), (POSITIONS, shape.to_vec())] {
            let found = vs.shape(name)?;
            if found.extents() != expected {
                return Err(vs.error(name, format!("expected {expected:?}, found {found}")));
            }
        }
        let positions = move |vs: &Vars| Ok(vs.tensor(POSITIONS, shape)?.to_f32_vec());
        let class = TensorType::new(vs.dtype(), [1, 1, width]);
        let class = vs.computed(g, CLASS, &[CLASS, POSITIONS], "at the first position", class, move |vs| {
            let token = vs.tensor(CLASS, [width])?.to_f32_vec();
            let sum = token.iter().zip(positions(vs)?).map(|(a, b)| a + b).collect();
            HostTensor::from_f32([1, 1, width], sum)
        });
        let table = TensorType::f32([patches, width]);
        let table = vs.computed(g, POSITIONS, &[POSITIONS], "without the first", table, move |vs| {
            HostTensor::from_f32([patches, width], positions(vs)?.split_off(width))
        });
        g.scoped("position_embedding", |g| {
            let class = expand(g, class, [batch, 1, width])?;
            let x = add(g, x, table)?;
            concat(g, 1, &[class, x])
        })
    }
}

/// A whole CLIP, which tells how near a picture is to a text and to another picture: both encoders with their projections, and the
/// tokenizer.
#[derive(Debug)]
pub struct Clip {
    /// The image encoder; its output `image_embeds` is the projected one.
    pub vision: ClipVisionModel,
    /// The text encoder; its output `pooled` is the projected one.
    pub text: ClipTextModel,
    /// The tokenizer beside them.
    pub tokenizer: ClipTokenizer,
}

impl Clip {
    /// Opens the folder of a CLIP in transformers' layout (`config.json`, `model.safetensors`, `tokenizer.json` or `vocab.json` and
    /// `merges.txt`).
    ///
    /// # Errors
    /// When a part is missing or of another kind, or the encoders do not project to one width.
    pub fn open(folder: impl AsRef<Path>, precision: Precision) -> Result<Clip> {
        let folder = folder.as_ref();
        let vision = ClipVisionModel::open(folder, precision)?;
        let weights = Checkpoint::open(folder)?;
        if !weights.contains("text_projection.weight") {
            let detail = "holds no `text_projection.weight`: a whole CLIP is needed, with text encoder and projections, not its \
                          image encoder alone";
            return Err(Error::file(folder, detail));
        }
        let (text, name) = configuration(folder)?;
        let text = ClipTextModel::new(text_config(&text, &name)?, weights, precision);
        let tokenizer = ClipTokenizer::open(folder, Padding::EndOfText)?;
        Ok(Clip { vision, text, tokenizer })
    }
}

/// Text and name of the configuration, which must be there: heads stand nowhere else.
fn configuration(path: &Path) -> Result<(String, String)> {
    beside(path)?.ok_or_else(|| {
        Error::file(path, "has no config.json beside it, which says how many heads CLIP's image encoder has")
    })
}

fn require_clip(weights: &Checkpoint, path: &Path) -> Result<()> {
    let has = |key: &str| weights.contains(key);
    if has("vision_model.embeddings.class_embedding") && has("visual_projection.weight") {
        return Ok(());
    }
    let what = if has("visual.class_embedding") {
        "holds a CLIP by OpenAI's or open_clip's names; one by transformers' names is needed (`vision_model.`, `visual_projection.weight`)"
    } else if has("vision_model.embeddings.class_embedding") {
        "holds no `visual_projection.weight`: a CLIPModel or CLIPVisionModelWithProjection is needed"
    } else {
        "is no CLIP in transformers' layout: no `vision_model.embeddings.class_embedding` is in it"
    };
    Err(Error::file(path, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read_alone_and_within_a_whole_clip_s() {
        let whole = r#"{"model_type": "clip", "projection_dim": 24, "text_config": {"hidden_size": 40, "projection_dim": 512},
                        "vision_config": {"hidden_size": 48, "num_attention_heads": 3, "hidden_act": "gelu", "projection_dim": 512}}"#;
        let vision = ClipVisionConfig::parse(whole, "config.json").unwrap();
        assert_eq!((vision.hidden_size, vision.projection_dim, vision.patch_size), (48, 24, 32));
        assert_eq!(vision.tokens(), 50);
        let text = text_config(whole, "config.json").unwrap();
        assert_eq!((text.hidden_size, text.num_attention_heads, text.eos_token_id), (40, 8, 49407));
        let alone = r#"{"model_type": "clip_vision_model", "image_size": 30, "patch_size": 8, "projection_dim": 16}"#;
        let alone = ClipVisionConfig::parse(alone, "config.json").unwrap();
        assert_eq!((alone.projection_dim, alone.grid()), (16, 3));
    }

    #[test]
    fn what_is_not_built_is_named() {
        for (bad, part) in [
            (r#"{"vision_config": 3}"#, "vision_config"),
            (r#"{"vision_config": {"hidden_act": "relu"}}"#, "relu"),
            (r#"{"hidden_size": 50, "num_attention_heads": 12}"#, "12 heads"),
            (r#"{"patch_size": 0}"#, "patch_size"),
            (r#"{"image_size": 100000}"#, "100000"),
            (r#"{"num_channels": 4}"#, "num_channels"),
            ("{", "configuration"),
        ] {
            let error = ClipVisionConfig::parse(bad, "config.json").unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("config.json"), "{bad}: {error}");
        }
    }
}
