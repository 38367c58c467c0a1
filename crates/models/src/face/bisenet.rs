//! BiSeNet, the face parser, in facexlib's key names: a label for each pixel.

use super::resnet::resnet;
use crate::family::{Role, require};
use crate::layers::{Conv, activation, add, concat, global_average, mul, resize_bilinear_aligned, upsample_nearest};
use crate::unread::harmless;
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::Activation;
use pulid_tensor::{Error, Result};

/// The parser's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct BiSeNet {
    vars: Vars,
    classes: usize,
}

impl BiSeNet {
    /// The parser of a facexlib file, with or without a prefix that parallel training left in its keys, such as `module.`.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing; a file of another kind.
    pub fn new(checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        require(checkpoint, "a face parser (BiSeNet)", &[Role::FaceParser])?;
        let vars = Vars::unwrapped(checkpoint, precision);
        let classes = vars.extent("conv_out.conv_out.weight", 4, 0)?;
        Ok(BiSeNet { vars, classes })
    }

    /// Number of labels, 19 as published.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The graph of images of one size.
    ///
    /// Input: `image` f32 [B, H, W, 3], normalised with ImageNet's mean and deviation. Output: `logits`
    /// [B, H, W, classes].
    ///
    /// # Errors
    /// When a weight is missing or mismatched, or the image is too small.
    pub fn graph(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        self.vars.complete(|| self.build(batch, height, width))
    }

    /// The tensors of the file that the parser's graph does not read, and that are not known to be of no use.
    ///
    /// # Errors
    /// As [`graph`](Self::graph).
    pub fn unread(&self) -> Result<Vec<String>> {
        self.graph(1, 64, 64)?;
        // The heads that only training reads.
        let trained = |key: &String| {
            let key = key.strip_prefix("module.").unwrap_or(key);
            ["conv_out16.", "conv_out32."].iter().any(|head| key.starts_with(head))
        };
        Ok(self.vars.unread().into_iter().filter(|key| !harmless(key) && !trained(key)).collect())
    }

    fn build(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        if batch == 0 || height < 32 || width < 32 {
            let detail = format!("{batch} images of {height} x {width} pixels; at least 32 x 32 are needed");
            return Err(Error::invalid("image", detail));
        }
        let mut graph = Graph::new("bisenet");
        let (g, vs) = (&mut graph, &self.vars);
        let image = vs.input(g, "image", [batch, height, width, 3], Rate::Step)?;
        let (detail, context) = vs.scope(g, "cp", |vs, g| context_path(vs, g, image))?;
        let x = vs.scope(g, "ffm", |vs, g| fusion(vs, g, detail, context))?;
        let x = vs.scope(g, "conv_out", |vs, g| {
            let x = conv_relu(vs, g, "conv", x, Conv::SAME_3)?;
            vs.conv2d_no_bias(g, "conv_out", x, self.classes, Conv::POINT)
        })?;
        let x = resize_bilinear_aligned(g, x, [height, width])?;
        vs.output(g, "logits", x)?;
        Ok(graph)
    }
}

/// `ConvBNReLU`.
fn conv_relu(vs: &Vars, g: &mut Graph, name: &str, x: NodeId, conv: Conv) -> Result<NodeId> {
    vs.scope(g, name, |vs, g| {
        let x = vs.conv2d_batch_norm(g, "conv", "bn", x, conv)?;
        activation(g, Activation::Relu, x)
    })
}

/// `ContextPath`: features at an eighth, those of the image's detail and those that know the whole face.
fn context_path(vs: &Vars, g: &mut Graph, image: NodeId) -> Result<(NodeId, NodeId)> {
    let [eighth, sixteenth, thirty_second] = vs.scope(g, "resnet", |vs, g| resnet(vs, g, image))?;
    let whole = global_average(g, thirty_second)?;
    let whole = conv_relu(vs, g, "conv_avg", whole, Conv::POINT)?;

    let low = vs.scope(g, "arm32", |vs, g| attention_refinement(vs, g, thirty_second))?;
    // One pixel enlarged by nearest neighbour is the same everywhere.
    let low = add(g, low, whole)?;
    let low = enlarge(g, low, sixteenth)?;
    let low = conv_relu(vs, g, "conv_head32", low, Conv::SAME_3)?;

    let mid = vs.scope(g, "arm16", |vs, g| attention_refinement(vs, g, sixteenth))?;
    let mid = add(g, mid, low)?;
    let mid = enlarge(g, mid, eighth)?;
    let mid = conv_relu(vs, g, "conv_head16", mid, Conv::SAME_3)?;
    Ok((eighth, mid))
}

/// Nearest neighbour to the size of another image.
fn enlarge(g: &mut Graph, x: NodeId, like: NodeId) -> Result<NodeId> {
    let size = [g.shape(like)[1], g.shape(like)[2]];
    upsample_nearest(g, x, size)
}

/// `AttentionRefinementModule`: channels weighted by a gate that sees the whole image.
fn attention_refinement(vs: &Vars, g: &mut Graph, x: NodeId) -> Result<NodeId> {
    let x = conv_relu(vs, g, "conv", x, Conv::SAME_3)?;
    let gate = global_average(g, x)?;
    let gate = vs.conv2d_batch_norm(g, "conv_atten", "bn_atten", gate, Conv::POINT)?;
    let gate = activation(g, Activation::Sigmoid, gate)?;
    mul(g, x, gate)
}

/// `FeatureFusionModule`: x + x·gate of both features together.
fn fusion(vs: &Vars, g: &mut Graph, detail: NodeId, context: NodeId) -> Result<NodeId> {
    let x = concat(g, 3, &[detail, context])?;
    let x = conv_relu(vs, g, "convblk", x, Conv::POINT)?;
    let gate = global_average(g, x)?;
    let inner = vs.extent("conv1.weight", 4, 0)?;
    let gate = vs.conv2d_no_bias(g, "conv1", gate, inner, Conv::POINT)?;
    let gate = activation(g, Activation::Relu, gate)?;
    let channels = g.shape(x).last();
    let gate = vs.conv2d_no_bias(g, "conv2", gate, channels, Conv::POINT)?;
    let gate = activation(g, Activation::Sigmoid, gate)?;
    let gated = mul(g, x, gate)?;
    add(g, gated, x)
}
