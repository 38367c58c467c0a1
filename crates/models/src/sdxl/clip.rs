//! CLIPTextModel and CLIPTextModelWithProjection: SDXL's two text encoders.

use crate::clip_block::ClipBlock;
use crate::config::Config;
use crate::layers::{Attend, add, gather};
use crate::wrapped::unwrapped;
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, Rate};
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};
use serde::Deserialize;

/// A transformers `text_encoder/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipConfig {
    /// Width of the stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of positions.
    #[serde(default = "seventy_seven")]
    pub max_position_embeddings: usize,
    /// Number of tokens.
    #[serde(default = "clip_vocabulary")]
    pub vocab_size: usize,
    /// `quick_gelu` or `gelu`.
    #[serde(default = "quick_gelu")]
    pub hidden_act: String,
    /// Epsilon of the layer norms.
    #[serde(default = "clip_eps")]
    pub layer_norm_eps: f32,
    /// The token whose position gives the pooled output; the default is the value 2 that old files hold by mistake
    /// and that stands for "the largest id of the text".
    #[serde(default = "legacy_eos")]
    pub eos_token_id: u32,
}

fn seventy_seven() -> usize {
    77
}
fn clip_vocabulary() -> usize {
    49408
}
fn quick_gelu() -> String {
    "quick_gelu".into()
}
fn clip_eps() -> f32 {
    1e-5
}
fn legacy_eos() -> u32 {
    LEGACY_EOS
}

const LEGACY_EOS: u32 = 2;

impl ClipConfig {
    /// Reads a configuration; `name` is the file, for messages.
    ///
    /// # Errors
    /// When it is malformed or describes a network that is not built here.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let config = Config::parse(text, name)?;
        config.accept(&[("hidden_act", &["quick_gelu", "gelu"]), ("model_type", &["clip_text_model", "clip"])])?;
        let config: Self = config.read()?;
        let heads = config.num_attention_heads;
        Config::require(name, heads > 0 && config.hidden_size > 0 && config.hidden_size.is_multiple_of(heads), || {
            format!("`hidden_size` {} does not divide into {heads} heads", config.hidden_size)
        })?;
        Config::require(name, config.num_hidden_layers > 0, || "`num_hidden_layers` is 0".into())?;
        Ok(config)
    }
}

/// A text encoder's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct ClipTextModel {
    config: ClipConfig,
    vars: Vars,
    body: Vars,
}

impl ClipTextModel {
    /// The file's tensors that the graph built last has no use for.
    pub(super) fn unread(&self) -> Vec<String> {
        self.vars.unread()
    }

    /// A text encoder from its configuration and weights.
    pub fn new(config: ClipConfig, checkpoint: Checkpoint, precision: Precision) -> Self {
        let vars = Vars::new(checkpoint, precision);
        // Newer versions of transformers save the encoder's tensors without the prefix.
        let prefixed = vars.pp("text_model");
        let body = if prefixed.contains("final_layer_norm.weight") { prefixed } else { vars.clone() };
        ClipTextModel { config, vars, body }
    }

    /// Opens a diffusers `text_encoder/` or `text_encoder_2/` folder, or the file of a text encoder alone by transformers' or open_clip's names
    /// (configured by a `config.json` beside it, else by its tensors and SDXL's own values).
    ///
    /// # Errors
    /// When the configuration or the weights cannot be read.
    pub fn open(path: impl AsRef<std::path::Path>, precision: Precision) -> Result<Self> {
        let weights = unwrapped(&Checkpoint::open(&path)?).into_owned();
        if super::single_file::is_single_file(&weights) {
            let detail = "is a whole SDXL with two text encoders; say which one (--set encoder=1 or 2)";
            return Err(Error::file(path.as_ref(), detail));
        }
        let weights = super::single_file::any_part(super::Part::TextEncoder(super::TextEncoder::Second), &weights)?;
        let config = match crate::config::beside(path.as_ref())? {
            Some((text, name)) => ClipConfig::parse(&text, &name)?,
            None => ClipConfig::infer(&weights)?,
        };
        Ok(Self::new(config, weights, precision))
    }

    /// The configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Whether the pooled output is projected.
    pub fn has_projection(&self) -> bool {
        self.vars.contains("text_projection.weight")
    }

    /// The graph's inputs for rows of token ids [B, T]: `inputs_embeds` and `eos_index`.
    ///
    /// Embeddings are looked up here: of a table that alone would exceed what some devices bind, only the rows in use
    /// are read.
    ///
    /// # Errors
    /// When the ids are no matrix, an id is not in the vocabulary, or the table is missing or mismatched.
    pub fn inputs(&self, input_ids: &HostTensor) -> Result<[(&'static str, HostTensor); 2]> {
        let ids = input_ids.as_u32()?;
        let &[rows, length] = input_ids.shape().extents() else {
            return Err(Error::invalid("input_ids", format!("expected [B, 77], got {}", input_ids.shape())));
        };
        let ClipConfig { vocab_size, hidden_size, .. } = self.config;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            let detail = format!(
                "token {id} is beyond the vocabulary of {vocab_size} of {}; does the tokenizer belong to this model?",
                self.vars.source_name()
            );
            return Err(Error::invalid("input_ids", detail));
        }
        let table = "embeddings.token_embedding.weight";
        let embeddings = self.body.rows(table, [vocab_size, hidden_size], ids)?.reshape([rows, length, hidden_size])?;
        let ends = ids.chunks(length.max(1)).enumerate().map(|(row, ids)| (row * length + self.end(ids)) as u32);
        let ends = HostTensor::from_u32([rows], ends.collect())?;
        Ok([("inputs_embeds", embeddings), ("eos_index", ends)])
    }

    /// Position of the token that stands for the whole text.
    fn end(&self, ids: &[u32]) -> usize {
        let wanted = match self.config.eos_token_id {
            LEGACY_EOS => ids.iter().copied().max().unwrap_or(0),
            id => id,
        };
        // Like argmax of a mask, 0 where the token is missing.
        ids.iter().position(|&id| id == wanted).unwrap_or(0)
    }

    /// The graph of `batch` texts of `length` tokens.
    ///
    /// Inputs: `inputs_embeds` f32 [B, T, D] and `eos_index` [B] (positions in the B·T tokens), from
    /// [`ClipTextModel::inputs`].
    /// Outputs: `hidden_states` [B, T, D], what enters the last block; `pooled` [B, P].
    ///
    /// # Errors
    /// When a weight is missing or mismatched, or there are more tokens than positions.
    pub fn graph(&self, batch: usize, length: usize) -> Result<Graph> {
        self.vars.complete(|| self.build(batch, length))
    }

    fn build(&self, batch: usize, length: usize) -> Result<Graph> {
        let (config, vs) = (&self.config, &self.body);
        if length > config.max_position_embeddings || length == 0 || batch == 0 {
            let detail = format!("[{batch}, {length}] tokens; 1 to {} fit", config.max_position_embeddings);
            return Err(Error::invalid("input_ids", detail));
        }
        let mut graph = Graph::new("text-encoder");
        let g = &mut graph;
        let width = config.hidden_size;
        let x = self.vars.input(g, "inputs_embeds", [batch, length, width], Rate::Step)?;
        let eos = g.input("eos_index", TensorType::new(DType::U32, [batch]), Rate::Step)?;
        let mut x = vs.scope(g, "embeddings", |vs, g| {
            let positions = config.max_position_embeddings;
            let all = [positions, width];
            let used = TensorType::f32([length, width]);
            let name = "position_embedding.weight";
            vs.shape(name)?;
            let table = vs.computed(g, name, &[name], "first rows", used, move |vs| {
                let table = vs.tensor(name, all)?.to_f32_vec();
                HostTensor::from_f32([length, width], table[..length * width].to_vec())
            });
            g.scoped("position_embedding", |g| add(g, x, table))
        })?;
        let block = ClipBlock {
            width,
            inner: config.intermediate_size,
            eps: config.layer_norm_eps,
            act: &config.hidden_act,
            attend: Attend { causal: true, ..Attend::heads(config.num_attention_heads) },
        };
        for i in 0..config.num_hidden_layers {
            if i + 1 == config.num_hidden_layers {
                self.vars.output(g, "hidden_states", x)?;
            }
            x = vs.scope(g, format!("encoder.layers.{i}"), |vs, g| block.apply(vs, g, x))?;
        }
        // Only the pooled token is normalised: the norm works on each token alone.
        let rows = g.reshape(x, [batch * length, width])?;
        let pooled = g.scoped("final_layer_norm", |g| gather(g, rows, eos))?;
        let mut pooled = vs.layer_norm(g, "final_layer_norm", pooled, config.layer_norm_eps)?;
        if self.has_projection() {
            let outputs = self.vars.extent("text_projection.weight", 2, 0)?;
            pooled = self.vars.linear_no_bias(g, "text_projection", pooled, outputs)?;
        }
        self.vars.output(g, "pooled", pooled)?;
        Ok(graph)
    }
}
