//! IDFormer, PuLID v1.1's identity encoder: a perceiver resampler over face and vision-tower features.

use super::mapping::{EPS, mapping};
use super::names::official_names;
use crate::layers::{Attend, activation, add, attention, concat, expand, slice};
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{Activation, MatMul};
use pulid_tensor::{Error, Result};

/// Width of an attention head: a convention of the published module that its tensors do not tell.
const HEAD: usize = 64;

/// Hidden states of the vision tower that the identity encoders read.
pub(crate) const SCALES: usize = 5;

/// Sizes, all read from the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    queries: usize,
    dim: usize,
    output: usize,
    vision: usize,
    condition: usize,
    id_tokens: usize,
    layers: usize,
    heads: usize,
}

/// The module's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct IdFormer {
    vars: Vars,
    sizes: Sizes,
}

impl IdFormer {
    /// The IDFormer of a PuLID v1.1 file (`id_adapter.*`) or of a file that holds the bare module.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing or the sizes do not agree.
    pub fn new(checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        let vars = Vars::optional(&*official_names(checkpoint)?, precision, "id_adapter");
        let (queries, dim) = (vars.extent("latents", 3, 1)?, vars.extent("latents", 3, 2)?);
        let inner = vars.extent("layers.0.0.to_q.weight", 2, 0)?;
        let tokens = vars.extent("id_embedding_mapping.6.weight", 2, 0)?;
        let layers = vars.count("layers", "0.to_q.weight");
        let sizes = Sizes {
            queries,
            dim,
            output: vars.extent("proj_out", 2, 1)?,
            vision: vars.extent("mapping_0.0.weight", 2, 1)?,
            condition: vars.extent("id_embedding_mapping.0.weight", 2, 1)?,
            id_tokens: tokens / dim.max(1),
            layers,
            heads: inner / HEAD,
        };
        if dim == 0 || tokens == 0 || !tokens.is_multiple_of(dim) {
            let detail = format!("expected a multiple of the width {dim}, found {tokens}");
            return Err(vars.error("id_embedding_mapping.6.weight", detail));
        }
        if inner == 0 || !inner.is_multiple_of(HEAD) {
            return Err(vars.error("layers.0.0.to_q.weight", format!("expected heads of {HEAD}, found {inner} rows")));
        }
        if layers == 0 || !layers.is_multiple_of(SCALES) {
            return Err(vars.error("layers", format!("expected a multiple of {SCALES} layers, found {layers}")));
        }
        Ok(IdFormer { vars, sizes })
    }

    /// Dimension of the identity condition of a photo: face embedding and vision tower's class embedding.
    pub fn condition_dim(&self) -> usize {
        self.sizes.condition
    }

    /// Identity tokens and their width.
    pub fn output_shape(&self) -> [usize; 2] {
        [self.sizes.queries, self.sizes.output]
    }

    /// The graph for `photos` photos of each person, whose `tokens` vision tokens in all stand one photo after another.
    ///
    /// Inputs, f32: `id_cond` [B, photos, C] and `hidden_0` .. `hidden_4` [B, tokens, V]. Output: `id_embedding`
    /// [B, N, D].
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn graph(&self, batch: usize, photos: usize, tokens: usize) -> Result<Graph> {
        self.vars.complete(|| self.build(batch, photos, tokens))
    }

    /// The tensors of the file, by the official names, that the encoder's graph does not read.
    ///
    /// # Errors
    /// As [`graph`](Self::graph).
    pub(super) fn unread(&self) -> Result<Vec<String>> {
        self.graph(1, 1, 2)?;
        Ok(self.vars.unread())
    }

    fn build(&self, batch: usize, photos: usize, tokens: usize) -> Result<Graph> {
        let mut graph = Graph::new("id-former");
        let (g, vs, sizes) = (&mut graph, &self.vars, self.sizes);
        if batch == 0 || photos == 0 || tokens == 0 {
            return Err(Error::invalid("id_cond", "at least one person, photo and vision token are needed"));
        }
        let condition = vs.input(g, "id_cond", [batch, photos, sizes.condition], Rate::Step)?;
        let identity = mapping(vs, g, "id_embedding_mapping", condition)?;
        let identity = g.reshape(identity, [batch, photos * sizes.id_tokens, sizes.dim])?;
        let queries = vs.activation_weight(g, "latents", [1, sizes.queries, sizes.dim])?;
        let queries = expand(g, queries, [batch, sizes.queries, sizes.dim])?;
        let mut x = concat(g, 1, &[queries, identity])?;
        let per_scale = sizes.layers / SCALES;
        for scale in 0..SCALES {
            let hidden = vs.input(g, &format!("hidden_{scale}"), [batch, tokens, sizes.vision], Rate::Step)?;
            let mapped = mapping(vs, g, &format!("mapping_{scale}"), hidden)?;
            let context = concat(g, 1, &[identity, mapped])?;
            for layer in scale * per_scale..(scale + 1) * per_scale {
                x = vs.scope(g, format!("layers.{layer}"), |vs, g| self.layer(vs, g, context, x))?;
            }
        }
        let x = slice(g, x, 1, 0, sizes.queries)?;
        let projection = vs.weight(g, "proj_out", [sizes.dim, sizes.output])?;
        let x = g.scoped("proj_out", |g| g.apply(MatMul::default(), &[x, projection]))?;
        vs.output(g, "id_embedding", x)?;
        Ok(graph)
    }

    /// Latents attend to context and latents, then a feed-forward block; nothing has a bias.
    fn layer(&self, vs: &Vars, g: &mut Graph, context: NodeId, x: NodeId) -> Result<NodeId> {
        let Sizes { dim, heads, .. } = self.sizes;
        let inner = heads * HEAD;
        let update = vs.scope(g, "0", |vs, g| {
            let latents = vs.layer_norm(g, "norm2", x, EPS)?;
            let context = vs.layer_norm(g, "norm1", context, EPS)?;
            let both = concat(g, 1, &[context, latents])?;
            let q = vs.linear_no_bias(g, "to_q", latents, inner)?;
            let kv = vs.linear_no_bias(g, "to_kv", both, 2 * inner)?;
            let k = slice(g, kv, 2, 0, inner)?;
            let v = slice(g, kv, 2, inner, inner)?;
            let out = attention(g, q, k, v, Attend::heads(heads))?;
            vs.linear_no_bias(g, "to_out", out, dim)
        })?;
        let x = add(g, x, update)?;
        let update = vs.scope(g, "1", |vs, g| {
            let h = vs.layer_norm(g, "0", x, EPS)?;
            let hidden = vs.extent("1.weight", 2, 0)?;
            let h = vs.linear_no_bias(g, "1", h, hidden)?;
            let h = activation(g, Activation::Gelu, h)?;
            vs.linear_no_bias(g, "3", h, dim)
        })?;
        add(g, x, update)
    }
}
