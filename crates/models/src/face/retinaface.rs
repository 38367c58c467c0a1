//! RetinaFace with a ResNet-50 backbone, facexlib's face detector.

use super::resnet::resnet;
use crate::family::{Role, require};
use crate::layers::{Conv, activation, add, concat, upsample_nearest};
use crate::unread::harmless;
use crate::{Precision, Vars};
use pulid_checkpoint::Checkpoint;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{Activation, Softmax};
use pulid_tensor::{Error, Result};

/// The detector's weights and how to build its graph.
#[derive(Clone, Debug)]
pub struct RetinaFace {
    vars: Vars,
    channels: usize,
}

impl RetinaFace {
    /// The detector of a facexlib file, with or without a prefix that parallel training left in its keys, such as `module.`.
    ///
    /// # Errors
    /// When a tensor that tells a size is missing; a file of another kind.
    pub fn new(checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        require(checkpoint, "a face detector (RetinaFace)", &[Role::FaceDetector])?;
        let vars = Vars::unwrapped(checkpoint, precision);
        let channels = vars.extent("fpn.output1.0.weight", 4, 0)?;
        Ok(RetinaFace { vars, channels })
    }

    /// The graph of images of one size.
    ///
    /// Input: `image` f32 [B, H, W, 3] in BGR order, 104, 117 and 123 subtracted. Outputs for A anchors, those of the
    /// finest level first, two at each place: `loc` [B, A, 4], `conf` [B, A, 2] (probabilities of background and face),
    /// `landms` [B, A, 10].
    ///
    /// # Errors
    /// When a weight is missing or mismatched, or the image is too small.
    pub fn graph(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        self.vars.complete(|| self.build(batch, height, width))
    }

    /// The tensors of the file that the detector's graph does not read, and that are not known to be of no use.
    ///
    /// # Errors
    /// As [`graph`](Self::graph).
    pub fn unread(&self) -> Result<Vec<String>> {
        self.graph(1, 64, 64)?;
        // The classifier of the backbone, which detection does not ask.
        let classifier = |key: &String| key.strip_prefix("module.").unwrap_or(key).starts_with("body.fc.");
        Ok(self.vars.unread().into_iter().filter(|key| !harmless(key) && !classifier(key)).collect())
    }

    fn build(&self, batch: usize, height: usize, width: usize) -> Result<Graph> {
        if batch == 0 || height < 32 || width < 32 {
            let detail = format!("{batch} images of {height} x {width} pixels; at least 32 x 32 are needed");
            return Err(Error::invalid("image", detail));
        }
        let mut graph = Graph::new("retinaface");
        let (g, vs) = (&mut graph, &self.vars);
        let image = vs.input(g, "image", [batch, height, width, 3], Rate::Step)?;
        let features = vs.scope(g, "body", |vs, g| resnet(vs, g, image))?;
        let levels = vs.scope(g, "fpn", |vs, g| self.pyramid(vs, g, features))?;
        let mut contexts = Vec::new();
        for (i, level) in levels.into_iter().enumerate() {
            contexts.push(vs.scope(g, format!("ssh{}", i + 1), |vs, g| self.context(vs, g, level))?);
        }
        for (output, head, per_anchor) in
            [("loc", "BboxHead", 4), ("conf", "ClassHead", 2), ("landms", "LandmarkHead", 10)]
        {
            let mut parts = Vec::new();
            for (i, &x) in contexts.iter().enumerate() {
                let name = format!("{head}.{i}.conv1x1");
                let channels = vs.extent(&format!("{name}.weight"), 4, 0)?;
                if channels == 0 || !channels.is_multiple_of(per_anchor) {
                    let detail = format!("expected {per_anchor} outputs for each anchor, found {channels}");
                    return Err(vs.error(&format!("{name}.weight"), detail));
                }
                let x = vs.conv2d(g, &name, x, channels, Conv::POINT)?;
                // Channels last, a place's anchors already stand one after another.
                let anchors = g.shape(x).count() / (batch * per_anchor);
                parts.push(g.reshape(x, [batch, anchors, per_anchor])?);
            }
            let mut x = g.scoped(head, |g| concat(g, 1, &parts))?;
            if output == "conf" {
                x = g.scoped(head, |g| g.apply(Softmax, &[x]))?;
            }
            vs.output(g, output, x)?;
        }
        Ok(graph)
    }

    /// Slim pyramids leak; the published one is wide.
    fn activation(&self) -> Activation {
        if self.channels <= 64 { Activation::LeakyRelu(0.1) } else { Activation::Relu }
    }

    /// Convolution, batch norm and activation: an `nn.Sequential`.
    fn conv(&self, vs: &Vars, g: &mut Graph, name: &str, x: NodeId, conv: Conv) -> Result<NodeId> {
        let x = linear_conv(vs, g, name, x, conv)?;
        g.scoped(name, |g| activation(g, self.activation(), x))
    }

    /// `FPN`: each level joined by the one below it.
    fn pyramid(&self, vs: &Vars, g: &mut Graph, features: [NodeId; 3]) -> Result<[NodeId; 3]> {
        let fine = self.conv(vs, g, "output1", features[0], Conv::POINT)?;
        let middle = self.conv(vs, g, "output2", features[1], Conv::POINT)?;
        let coarse = self.conv(vs, g, "output3", features[2], Conv::POINT)?;
        let join = |g: &mut Graph, name: &str, level: NodeId, below: NodeId| {
            let size = [g.shape(level)[1], g.shape(level)[2]];
            let sum = g.scoped(name, |g| {
                let below = upsample_nearest(g, below, size)?;
                add(g, level, below)
            })?;
            self.conv(vs, g, name, sum, Conv::SAME_3)
        };
        let middle = join(g, "merge2", middle, coarse)?;
        let fine = join(g, "merge1", fine, middle)?;
        Ok([fine, middle, coarse])
    }

    /// `SSH`: views of three widths side by side.
    fn context(&self, vs: &Vars, g: &mut Graph, x: NodeId) -> Result<NodeId> {
        let narrow = linear_conv(vs, g, "conv3X3", x, Conv::SAME_3)?;
        let shared = self.conv(vs, g, "conv5X5_1", x, Conv::SAME_3)?;
        let medium = linear_conv(vs, g, "conv5X5_2", shared, Conv::SAME_3)?;
        let wide = self.conv(vs, g, "conv7X7_2", shared, Conv::SAME_3)?;
        let wide = linear_conv(vs, g, "conv7x7_3", wide, Conv::SAME_3)?;
        let x = concat(g, 3, &[narrow, medium, wide])?;
        activation(g, Activation::Relu, x)
    }
}

fn linear_conv(vs: &Vars, g: &mut Graph, name: &str, x: NodeId, conv: Conv) -> Result<NodeId> {
    vs.scope(g, name, |vs, g| vs.conv2d_batch_norm(g, "0", "1", x, conv))
}
