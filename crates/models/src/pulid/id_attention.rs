//! PuLID's identity cross-attention: beside the text, every cross-attention of the UNet reads identity tokens.

use crate::layers::{Attend, attention};
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId};
use pulid_ops::{IdentityProjection, Projection};
use pulid_tensor::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// What is done with the part of the identity features that lies along the text features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ortho {
    /// It stays.
    Off,
    /// It is removed.
    V1,
    /// It stays in proportion to the attention that the global identity tokens get.
    V2,
}

impl fmt::Display for Ortho {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ortho::Off => "off",
            Ortho::V1 => "v1",
            Ortho::V2 => "v2",
        })
    }
}

impl FromStr for Ortho {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Ortho::Off),
            "v1" => Ok(Ortho::V1),
            "v2" => Ok(Ortho::V2),
            _ => Err(Error::invalid("ortho", format!("`{text}` is none of off, v1, v2"))),
        }
    }
}

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
    /// Refuses what no adapter can follow, which needs no file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a scale that is no finite number or more zero tokens than 4096.
    pub fn check(&self) -> Result<()> {
        if !self.id_scale.is_finite() {
            return Err(Error::invalid("id_scale", format!("{} is no finite number", self.id_scale)));
        }
        if self.num_zero > 4096 {
            return Err(Error::invalid("num_zero", format!("{} is above 4096", self.num_zero)));
        }
        Ok(())
    }
}

/// The identity attention's weights: `id_adapter_attn_layers.N.id_to_{k,v}.weight`.
///
/// N counts attention layers as diffusers lists them (down, up, mid; self-attentions, which have no weights here,
/// included), so cross-attentions are odd.
#[derive(Clone, Debug)]
pub struct IdentityAdapter {
    vars: Vars,
    settings: IdentitySettings,
}

impl IdentityAdapter {
    /// The adapter of a PuLID file.
    ///
    /// # Errors
    /// When the file holds no adapter, or a setting is out of range.
    pub fn new(checkpoint: &Checkpoint, precision: Precision, settings: IdentitySettings) -> Result<Self> {
        settings.check()?;
        let layers = "id_adapter_attn_layers";
        if checkpoint.with_prefix(&format!("{layers}.")).is_empty() {
            return Err(Error::Weight {
                key: format!("{layers}.1.id_to_k.weight"),
                source_name: checkpoint.name().into(),
                detail: "is missing; this is no PuLID file for SDXL".into(),
            });
        }
        let adapter = IdentityAdapter { vars: Vars::new(checkpoint.clone(), precision).pp(layers), settings };
        adapter.id_dim()?;
        Ok(adapter)
    }

    /// [`Vars::complete`] for the adapter's own weights.
    pub(crate) fn complete(&self, build: impl FnOnce() -> Result<Graph>) -> Result<Graph> {
        self.vars.complete(build)
    }

    /// The settings.
    pub fn settings(&self) -> IdentitySettings {
        self.settings
    }

    /// Width of an identity token.
    ///
    /// # Errors
    /// When the first layer is missing.
    pub fn id_dim(&self) -> Result<usize> {
        self.vars.extent("1.id_to_k.weight", 2, 1)
    }

    /// Adds the identity attention of layer `layer` to the text attention's result.
    ///
    /// `text` and the queries `q` are [B, L, C], `tokens` [B, N, E]; the result is [B, L, C].
    ///
    /// # Errors
    /// When the layer's weights are missing or misshapen.
    pub fn attend(
        &self,
        g: &mut Graph,
        layer: usize,
        text: NodeId,
        q: NodeId,
        tokens: NodeId,
        heads: usize,
    ) -> Result<NodeId> {
        let IdentitySettings { id_scale, num_zero, ortho } = self.settings;
        let channels = g.shape(text).last();
        let vs = self.vars.pp(layer);
        g.scoped("id_attention", |g| {
            let k = vs.linear_no_bias(g, "id_to_k", tokens, channels)?;
            let v = vs.linear_no_bias(g, "id_to_v", tokens, channels)?;
            let identity = attention(g, q, k, v, Attend { zero_keys: num_zero, ..Attend::heads(heads) })?;
            let mode = match ortho {
                Ortho::Off => Projection::Off,
                Ortho::V1 => Projection::V1,
                Ortho::V2 => Projection::V2,
            };
            let projection = IdentityProjection { mode, heads, zero_keys: num_zero as u32, id_scale };
            let operands = [text, identity, q, k];
            g.apply(projection, if ortho == Ortho::V2 { &operands } else { &operands[..2] })
        })
    }
}
