//! The block that both encoders of CLIP are made of.

use crate::Vars;
use crate::layers::{Attend, activation, add, attention};
use pulid_graph::{Graph, NodeId};
use pulid_ops::Activation;
use pulid_tensor::Result;

/// `CLIPEncoderLayer` of transformers: attention and feed-forward layers, each behind a layer norm and beside a shortcut.
pub(crate) struct ClipBlock<'a> {
    /// Width of the stream.
    pub width: usize,
    /// Width between the feed-forward layers.
    pub inner: usize,
    /// Epsilon of the layer norms.
    pub eps: f32,
    /// `gelu`, or else `quick_gelu`.
    pub act: &'a str,
    /// Heads and mask of the attention.
    pub attend: Attend,
}

impl ClipBlock<'_> {
    /// The block's result of tokens [B, T, width], of the same shape.
    pub fn apply(&self, vs: &Vars, g: &mut Graph, x: NodeId) -> Result<NodeId> {
        let h = vs.layer_norm(g, "layer_norm1", x, self.eps)?;
        let h = vs.scope(g, "self_attn", |vs, g| {
            let q = vs.linear(g, "q_proj", h, self.width)?;
            let k = vs.linear(g, "k_proj", h, self.width)?;
            let v = vs.linear(g, "v_proj", h, self.width)?;
            let h = attention(g, q, k, v, self.attend)?;
            vs.linear(g, "out_proj", h, self.width)
        })?;
        let x = add(g, x, h)?;
        let h = vs.layer_norm(g, "layer_norm2", x, self.eps)?;
        let h = vs.scope(g, "mlp", |vs, g| {
            let h = vs.linear(g, "fc1", h, self.inner)?;
            let gelu = if self.act == "gelu" { Activation::Gelu } else { Activation::QuickGelu };
            let h = activation(g, gelu, h)?;
            vs.linear(g, "fc2", h, self.width)
        })?;
        add(g, x, h)
    }
}
