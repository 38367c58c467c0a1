//! The EVA02-CLIP vision tower, with the hidden states that PuLID's identity encoders read.
//!
//! Published sizes (EVA02-CLIP-L-14-336): 24 blocks, width 1024, 16 heads, feed-forward 2730, patches of 14 pixels,
//! images of 336, output 768. All are read from the tensors here.

use crate::eva_names::{KEY_BIAS, Tower, tower};
use crate::family::{Role, require};
use crate::layers::{Attend, Conv, add, attention, concat, expand, rotary, slice};
use crate::unread::harmless;
use crate::wrapped::unwrapped;
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{MatMul, SwiGlu};
use pulid_tensor::{Error, HostTensor, Result, TensorType};

const EPS: f32 = 1e-6;

/// Hidden states come after k/6 of the blocks, k = 1 .. 5.
const PARTS: usize = 6;

/// Base of the rotary frequencies.
const THETA: f32 = 1e4;

/// What the weights do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaSettings {
    /// Heads of the attention; `None` reads them from the rotary tables where the file holds them, else takes heads
    /// of 64.
    pub heads: Option<usize>,
    /// Side of the patch grid of the pretraining, to which rotary positions are scaled.
    pub pretrained_grid: usize,
}

impl Default for EvaSettings {
    fn default() -> Self {
        EvaSettings { heads: None, pretrained_grid: 16 }
    }
}

/// The tower's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct EvaClip {
    vars: Vars,
    /// Tensors of the file that belong to no part of a CLIP.
    others: Vec<String>,
    settings: EvaSettings,
    width: usize,
    heads: usize,
    patch: usize,
    grid: usize,
    depth: usize,
    output: usize,
}

impl EvaClip {
    /// The tower of a file in the official key names, timm's or, around these, open_clip's; alone or among other towers.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing or the sizes do not agree.
    pub fn new(checkpoint: &Checkpoint, precision: Precision, settings: EvaSettings) -> Result<Self> {
        const PATCHES: &str = "patch_embed.proj.weight";
        require(checkpoint, "a vision tower of EVA02-CLIP", &[Role::VisionTower])?;
        let Tower { weights, module, others } = tower(&unwrapped(checkpoint))?;
        let vars = Vars::new(weights, precision);
        let vars = if module.is_empty() { vars } else { vars.pp(module) };
        let (width, patch) = (vars.extent(PATCHES, 4, 0)?, vars.extent(PATCHES, 4, 2)?);
        let positions = vars.extent("pos_embed", 3, 1)?;
        let grid = positions.saturating_sub(1).isqrt();
        if grid == 0 || grid * grid + 1 != positions {
            let detail = format!("expected a class token and a square of patches, found {positions} positions");
            return Err(vars.error("pos_embed", detail));
        }
        let heads = match settings.heads {
            Some(heads) => heads,
            None if vars.contains("rope.freqs_cos") => width / vars.extent("rope.freqs_cos", 2, 1)?.max(1),
            None => width / 64,
        };
        // Each of the two axes rotates pairs of channels.
        if heads == 0 || !width.is_multiple_of(heads) || !(width / heads).is_multiple_of(4) {
            let detail = format!("{heads} heads do not divide {width} channels into multiples of 4; give --set heads=");
            return Err(Error::invalid("heads", detail));
        }
        if settings.pretrained_grid == 0 {
            return Err(Error::invalid("pretrained_grid", "is 0; the published tower has 16"));
        }
        let depth = vars.count("blocks", "norm1.weight");
        if depth == 0 || !depth.is_multiple_of(PARTS) {
            return Err(vars.error("blocks", format!("expected a multiple of {PARTS} blocks, found {depth}")));
        }
        let output = vars.extent("head.weight", 2, 0)?;
        Ok(EvaClip { vars, others, settings, width, heads, patch, grid, depth, output })
    }

    /// Side of the images it takes, in pixels.
    pub fn image_size(&self) -> usize {
        self.grid * self.patch
    }

    /// Tokens of an image: the class token and the patches.
    pub fn tokens(&self) -> usize {
        self.grid * self.grid + 1
    }

    /// Width of the hidden states.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Width of the class embedding.
    pub fn output_dim(&self) -> usize {
        self.output
    }

    /// The graph of `batch` images.
    ///
    /// Input: `image` f32 [B, S, S, 3], normalised with CLIP's mean and deviation. Outputs: `cls` [B, D], not L2-normalised;
    /// `hidden_0` .. `hidden_4` [B, tokens, W], the stream after 1/6 .. 5/6 of the blocks, without a norm.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn graph(&self, batch: usize) -> Result<Graph> {
        self.vars.complete(|| self.build(batch))
    }

    /// The tensors of the file that have no use: those that the tower's graph does not read, and those outside of it that are no part of
    /// a CLIP. A CLIP's text encoder is none of them, nor are tables that are computed here, nor a bias of zeros.
    ///
    /// # Errors
    /// As [`graph`](EvaClip::graph); a bias that cannot be read.
    pub fn unread(&self) -> Result<Vec<String>> {
        self.graph(1)?;
        let mut unread = self.others.clone();
        for key in self.vars.unread() {
            // What is outside of the tower is among the others, if it has no place in a CLIP.
            let Some(name) = self.vars.name_of(&key) else { continue };
            let computed = name.ends_with("rope.freqs_cos") || name.ends_with("rope.freqs_sin");
            let zeros = || -> Result<bool> {
                let shape = self.vars.shape(name)?;
                let few = KEY_BIAS.iter().any(|bias| name.ends_with(bias)) && shape.extents() == [self.width];
                Ok(few && self.vars.tensor(name, shape)?.to_f32_vec().iter().all(|value| *value == 0.0))
            };
            if !harmless(name) && !computed && !zeros()? {
                unread.push(key);
            }
        }
        Ok(unread)
    }

    fn build(&self, batch: usize) -> Result<Graph> {
        let mut graph = Graph::new("eva-clip");
        let (g, vs) = (&mut graph, &self.vars);
        let size = self.image_size();
        let image = vs.input(g, "image", [batch, size, size, 3], Rate::Step)?;
        let mut x = self.embed(g, batch, image)?;
        let (cos, sin) = self.rotary_tables();
        let tables = [g.constant("rope.freqs_cos", cos), g.constant("rope.freqs_sin", sin)];
        let step = self.depth / PARTS;
        for i in 0..self.depth {
            x = vs.scope(g, format!("blocks.{i}"), |vs, g| self.block(vs, g, x, tables))?;
            let done = i + 1;
            if done.is_multiple_of(step) && done < self.depth {
                vs.output(g, &format!("hidden_{}", done / step - 1), x)?;
            }
        }
        let class = slice(g, x, 1, 0, 1)?;
        let class = g.reshape(class, [batch, self.width])?;
        let class = vs.layer_norm(g, "norm", class, EPS)?;
        let class = vs.linear(g, "head", class, self.output)?;
        vs.output(g, "cls", class)?;
        Ok(graph)
    }

    /// Class token and patches with their positions, [B, tokens, W].
    fn embed(&self, g: &mut Graph, batch: usize, image: NodeId) -> Result<NodeId> {
        let (vs, width, patches) = (&self.vars, self.width, self.grid * self.grid);
        let x = vs.conv2d(
            g,
            "patch_embed.proj",
            image,
            width,
            Conv { kernel: self.patch, stride: self.patch, padding: [0; 4] },
        )?;
        let x = g.reshape(x, [batch, patches, width])?;
        vs.shape("cls_token")?;
        let positions = move |vs: &Vars| Ok(vs.tensor("pos_embed", [1, patches + 1, width])?.to_f32_vec());
        let class = TensorType::new(vs.dtype(), [1, 1, width]);
        let class =
            vs.computed(g, "cls_token", &["cls_token", "pos_embed"], "at the first position", class, move |vs| {
                let token = vs.tensor("cls_token", [1, 1, width])?.to_f32_vec();
                let sum = token.iter().zip(positions(vs)?).map(|(a, b)| a + b).collect();
                HostTensor::from_f32([1, 1, width], sum)
            });
        let table = TensorType::f32([patches, width]);
        let table = vs.computed(g, "pos_embed", &["pos_embed"], "without the first", table, move |vs| {
            HostTensor::from_f32([patches, width], positions(vs)?.split_off(width))
        });
        g.scoped("pos_embed", |g| {
            let class = expand(g, class, [batch, 1, width])?;
            let x = add(g, x, table)?;
            concat(g, 1, &[class, x])
        })
    }

    /// Pre-norm attention and feed-forward, each with one more norm inside before its last layer.
    fn block(&self, vs: &Vars, g: &mut Graph, x: NodeId, tables: [NodeId; 2]) -> Result<NodeId> {
        let (width, heads) = (self.width, self.heads);
        let h = vs.layer_norm(g, "norm1", x, EPS)?;
        let h = vs.scope(g, "attn", |vs, g| {
            let biased = |g: &mut Graph, name: &str, bias: &str| {
                let weight = vs.matrix(g, &format!("{name}.weight"), width, width)?;
                let bias = vs.parameter(g, bias, [width])?;
                g.scoped(name, |g| g.apply(MatMul::linear(), &[h, weight, bias]))
            };
            let q = biased(g, "q_proj", "q_bias")?;
            let k = vs.linear_no_bias(g, "k_proj", h, width)?;
            let v = biased(g, "v_proj", "v_bias")?;
            let q = g.scoped("rope", |g| rotary(g, q, tables, heads))?;
            let k = g.scoped("rope", |g| rotary(g, k, tables, heads))?;
            let h = attention(g, q, k, v, Attend::heads(heads))?;
            let h = vs.layer_norm(g, "inner_attn_ln", h, EPS)?;
            vs.linear(g, "proj", h, width)
        })?;
        let x = add(g, x, h)?;
        let h = vs.layer_norm(g, "norm2", x, EPS)?;
        let h = vs.scope(g, "mlp", |vs, g| {
            let hidden = vs.extent("w1.weight", 2, 0)?;
            let gate = vs.linear(g, "w1", h, hidden)?;
            let value = vs.linear(g, "w2", h, hidden)?;
            let h = g.apply(SwiGlu, &[gate, value])?;
            let h = vs.layer_norm(g, "ffn_ln", h, EPS)?;
            vs.linear(g, "w3", h, width)
        })?;
        add(g, x, h)
    }

    /// cos and sin [tokens, head]: rows of the grid rotate the first half of a head, columns the second; neighbouring
    /// channels form a pair with one frequency. The class token in front is not rotated.
    fn rotary_tables(&self) -> (HostTensor, HostTensor) {
        let head = self.width / self.heads;
        let axis = head / 2;
        let grid = self.grid;
        let scale = self.settings.pretrained_grid as f32 / grid as f32;
        let angle = move |i: usize| {
            let (token, channel) = (i / head, i % head);
            let Some(patch) = token.checked_sub(1) else { return 0.0 };
            let position = if channel < axis { patch / grid } else { patch % grid };
            let pair = (channel % axis) / 2;
            let frequency = THETA.powf(-((2 * pair) as f32) / axis as f32);
            position as f32 * scale * frequency
        };
        let table = |f: fn(f32) -> f32| HostTensor::from_fn([self.tokens(), head], |i| f(angle(i)));
        (table(f32::cos), table(f32::sin))
    }
}
