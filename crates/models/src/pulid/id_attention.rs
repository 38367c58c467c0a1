//! PuLID's identity cross-attention: beside the text, every cross-attention of the UNet reads identity tokens.
//!
//! It is cut at the keys and values. [`IdentityAdapter`] makes them from the tokens, once for an image, and holds all weights; the
//! UNet takes them and the strength as inputs ([`IdentityInputs`]), and so serves every person, strength and adapter.

use super::names::official_names;
use crate::layers::{Attend, attention};
use crate::wrapped::unwrapped;
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{IdentityProjection, Ortho};
use pulid_tensor::{Error, Result};

/// How strongly and in which way identity enters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IdentitySettings {
    /// Factor of the identity attention; 0 leaves it out.
    pub id_scale: f32,
    /// Zero tokens appended to the identity tokens. They have zero keys and values and so draw attention away.
    pub num_zero: usize,
    /// Treatment of the part along the text features.
    pub ortho: Ortho,
}

impl Default for IdentitySettings {
    /// PuLID v1.1's own defaults.
    fn default() -> Self {
        IdentitySettings { id_scale: 0.8, num_zero: 20, ortho: Ortho::V2 }
    }
}

impl IdentitySettings {
    /// Zero tokens at most: some hundred times PuLID's own 20, beyond which the identity has no part left.
    pub const MOST_ZERO_TOKENS: usize = 4096;

    /// What a UNet's graph is told of an identity of so many tokens.
    pub fn inputs(&self, tokens: usize) -> IdentityInputs {
        IdentityInputs { tokens, num_zero: self.num_zero, ortho: self.ortho }
    }

    /// Refuses what no adapter can follow, which needs no file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a scale that is no finite number or more zero tokens than [`Self::MOST_ZERO_TOKENS`].
    pub fn check(&self) -> Result<()> {
        if !self.id_scale.is_finite() {
            return Err(Error::invalid("id_scale", format!("{} is no finite number", self.id_scale)));
        }
        if self.num_zero > Self::MOST_ZERO_TOKENS {
            let detail = format!("{} is above {}", self.num_zero, Self::MOST_ZERO_TOKENS);
            return Err(Error::invalid("num_zero", detail));
        }
        Ok(())
    }
}

/// A cross-attention of the UNet that reads the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityLayer {
    /// N of `id_adapter_attn_layers.N`: attention layers counted as diffusers lists them (down, up, mid; self-attentions, which
    /// read no identity, included), so these are odd.
    pub number: usize,
    /// C, the channels of its keys and values.
    pub channels: usize,
}

impl IdentityLayer {
    /// Names of its keys and values in graphs, `k.N` and `v.N`.
    pub fn names(self) -> [String; 2] {
        [format!("k.{}", self.number), format!("v.{}", self.number)]
    }
}

/// What the published files call the identity attention's layers.
const ADAPTER_LAYERS: &str = "id_adapter_attn_layers";

/// The identity attention's weights: `id_adapter_attn_layers.N.id_to_{k,v}.weight`.
#[derive(Clone, Debug)]
pub struct IdentityAdapter {
    vars: Vars,
}

impl IdentityAdapter {
    /// The adapter of a PuLID file, by the official names or ComfyUI's.
    ///
    /// # Errors
    /// When the file holds no adapter; it says what the file is where that is known.
    pub fn new(checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        let file = official_names(checkpoint)?;
        let first = format!("{ADAPTER_LAYERS}.1.id_to_k.weight");
        if !unwrapped(checkpoint).contains(&first) {
            // IP-Adapter's names are ComfyUI's.
            crate::family::require(checkpoint, "a PuLID file for SDXL", &[crate::Role::Adapter])?;
        }
        if !file.contains(&first) {
            return Err(Error::Weight {
                key: first,
                source_name: checkpoint.name().into(),
                detail: "is missing: this is no PuLID file for SDXL, or not all of one".into(),
            });
        }
        let adapter = IdentityAdapter { vars: Vars::new(file.into_owned(), precision).pp(ADAPTER_LAYERS) };
        adapter.id_dim()?;
        Ok(adapter)
    }

    /// Width E of an identity token.
    ///
    /// # Errors
    /// When the first layer is missing.
    pub fn id_dim(&self) -> Result<usize> {
        self.vars.extent("1.id_to_k.weight", 2, 1)
    }

    /// The graph that gives the UNet's layers their keys and values.
    ///
    /// Input, f32: `id_embedding` [B, N, E]. Outputs, f32: `k.N` and `v.N` [B, N, C] for each layer
    /// ([`Unet::identity_layers`](crate::sdxl::Unet::identity_layers)).
    ///
    /// # Errors
    /// When a layer's weights are missing or mismatched.
    pub fn graph(&self, layers: &[IdentityLayer], batch: usize, tokens: usize) -> Result<Graph> {
        self.complete(|| {
            let mut graph = Graph::new("identity-adapter");
            let g = &mut graph;
            let all = self.keys_values(g, layers, batch, tokens)?;
            for (layer, pair) in layers.iter().zip(all) {
                for (name, id) in layer.names().iter().zip(pair) {
                    self.vars.output(g, name, id)?;
                }
            }
            Ok(graph)
        })
    }

    /// [`Vars::complete`] for the adapter's own weights.
    pub(crate) fn complete(&self, build: impl FnOnce() -> Result<Graph>) -> Result<Graph> {
        self.vars.complete(build)
    }

    /// Keys and values of each layer from an input `id_embedding`.
    pub(crate) fn keys_values(
        &self,
        g: &mut Graph,
        layers: &[IdentityLayer],
        batch: usize,
        tokens: usize,
    ) -> Result<Vec<[NodeId; 2]>> {
        let tokens = self.vars.input(g, "id_embedding", [batch, tokens, self.id_dim()?], Rate::Run)?;
        let pair = |g: &mut Graph, layer: &IdentityLayer| {
            self.vars.scope(g, layer.number, |vs, g| {
                let k = vs.linear_no_bias(g, "id_to_k", tokens, layer.channels)?;
                let v = vs.linear_no_bias(g, "id_to_v", tokens, layer.channels)?;
                Ok([k, v])
            })
        };
        g.scoped(ADAPTER_LAYERS, |g| layers.iter().map(|layer| pair(g, layer)).collect())
    }
}

/// What a UNet's graph is told of the identity that it is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdentityInputs {
    /// Tokens of the identity.
    pub tokens: usize,
    /// Zero tokens after them.
    pub num_zero: usize,
    /// Treatment of the part along the text features.
    pub ortho: Ortho,
}

/// The identity in a UNet's graph.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdentityAttention {
    pub inputs: IdentityInputs,
    /// Strength in each image, f32 [B].
    pub scale: NodeId,
}

impl IdentityAttention {
    /// Adds the identity attention to the text attention's result.
    ///
    /// `text` and the queries `q` are [B, L, C], `k` and `v` [B, N, C]; the result is [B, L, C].
    pub fn attend(&self, g: &mut Graph, text: NodeId, q: NodeId, [k, v]: [NodeId; 2], heads: usize) -> Result<NodeId> {
        let IdentityInputs { num_zero, ortho, .. } = self.inputs;
        g.scoped("id_attention", |g| {
            let identity = attention(g, q, k, v, Attend { zero_keys: num_zero, ..Attend::heads(heads) })?;
            let projection = IdentityProjection { mode: ortho, heads, zero_keys: num_zero as u32 };
            let operands = [text, identity, self.scale, q, k];
            g.apply(projection, if ortho == Ortho::V2 { &operands } else { &operands[..3] })
        })
    }
}
