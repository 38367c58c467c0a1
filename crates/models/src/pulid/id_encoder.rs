//! IDEncoder, PuLID v1's identity encoder: perceptrons that give some global tokens and one token for each scale.

use super::id_former::SCALES;
use super::mapping::mapping;
use super::names::official_names;
use crate::layers::{add, concat, mean_of_rows, slice};
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, Rate};
use pulid_tensor::{Error, Result};

/// The module's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct IdEncoder {
    vars: Vars,
    condition: usize,
    global_tokens: usize,
    dim: usize,
    vision: usize,
}

impl IdEncoder {
    /// The IDEncoder of a PuLID v1 file (`id_adapter.*`) or of a file that holds the bare module.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing or the sizes do not agree.
    pub fn new(checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        let vars = Vars::optional(&*official_names(checkpoint)?, precision, "id_adapter");
        let dim = vars.extent("mapping_0.6.weight", 2, 0)?;
        let rows = vars.extent("body.6.weight", 2, 0)?;
        if dim == 0 || rows == 0 || !rows.is_multiple_of(dim) {
            return Err(vars.error("body.6.weight", format!("expected a multiple of {dim} rows, found {rows}")));
        }
        Ok(IdEncoder {
            condition: vars.extent("body.0.weight", 2, 1)?,
            global_tokens: rows / dim,
            dim,
            vision: vars.extent("mapping_0.0.weight", 2, 1)?,
            vars,
        })
    }

    /// Dimension of the identity condition of a photo: face embedding and vision tower's class embedding.
    pub fn condition_dim(&self) -> usize {
        self.condition
    }

    /// Identity tokens and their width.
    pub fn output_shape(&self) -> [usize; 2] {
        [self.global_tokens + SCALES, self.dim]
    }

    /// The graph for one photo of each person with `tokens` vision tokens, the class token first.
    ///
    /// Inputs, f32: `id_cond` [B, C] and `hidden_0` .. `hidden_4` [B, tokens, V]. Output: `id_embedding` [B, N, D].
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn graph(&self, batch: usize, tokens: usize) -> Result<Graph> {
        self.vars.complete(|| self.build(batch, tokens))
    }

    /// The tensors of the file, by the official names, that the encoder's graph does not read.
    ///
    /// # Errors
    /// As [`graph`](Self::graph).
    pub(super) fn unread(&self) -> Result<Vec<String>> {
        self.graph(1, 2)?;
        Ok(self.vars.unread())
    }

    fn build(&self, batch: usize, tokens: usize) -> Result<Graph> {
        let mut graph = Graph::new("id-encoder");
        let (g, vs) = (&mut graph, &self.vars);
        if batch == 0 || tokens < 2 {
            return Err(Error::invalid("hidden_0", format!("expected a class token and patches, got {tokens} tokens")));
        }
        let condition = vs.input(g, "id_cond", [batch, self.condition], Rate::Step)?;
        let body = mapping(vs, g, "body", condition)?;
        let mut parts = vec![g.reshape(body, [batch, self.global_tokens, self.dim])?];
        for scale in 0..SCALES {
            let hidden = vs.input(g, &format!("hidden_{scale}"), [batch, tokens, self.vision], Rate::Step)?;
            let class = slice(g, hidden, 1, 0, 1)?;
            let class = mapping(vs, g, &format!("mapping_{scale}"), class)?;
            let patches = slice(g, hidden, 1, 1, tokens - 1)?;
            let patches = mapping(vs, g, &format!("mapping_patch_{scale}"), patches)?;
            let patches = mean_of_rows(g, patches)?;
            parts.push(add(g, class, patches)?);
        }
        let x = concat(g, 1, &parts)?;
        vs.output(g, "id_embedding", x)?;
        Ok(graph)
    }
}
