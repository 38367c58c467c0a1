//! torchvision's residual networks, on which facexlib's face networks stand.

use crate::Vars;
use crate::layers::{Conv, activation, add};
use pulid_graph::{Graph, NodeId};
use pulid_ops::{Activation, MaxPool2d};
use pulid_tensor::Result;

/// A residual network without its head; keys `conv1`, `bn1`, `layer1` to `layer4`. Blocks of two 3 x 3 convolutions
/// (ResNet-18) and of three, 1 x 1 around 3 x 3 (ResNet-50), are told apart by their tensors.
///
/// The results stand at an eighth, a sixteenth and a thirty-second of the image's size.
pub(super) fn resnet(vs: &Vars, g: &mut Graph, image: NodeId) -> Result<[NodeId; 3]> {
    let x = vs.conv2d_batch_norm(g, "conv1", "bn1", image, Conv::same(7).every(2))?;
    let x = activation(g, Activation::Relu, x)?;
    let x = g.scoped("maxpool", |g| g.apply(MaxPool2d::square(3, 2, 1), &[x]))?;
    let x = layer(vs, g, x, 1, 1)?;
    let eighth = layer(vs, g, x, 2, 2)?;
    let sixteenth = layer(vs, g, eighth, 3, 2)?;
    let thirty_second = layer(vs, g, sixteenth, 4, 2)?;
    Ok([eighth, sixteenth, thirty_second])
}

fn layer(vs: &Vars, g: &mut Graph, mut x: NodeId, number: usize, stride: usize) -> Result<NodeId> {
    // A file without the first block must be refused, not skipped.
    let name = format!("layer{number}");
    for block in 0..vs.count(&name, "conv1.weight").max(1) {
        let stride = if block == 0 { stride } else { 1 };
        x = vs.scope(g, format!("{name}.{block}"), |vs, g| self::block(vs, g, x, stride))?;
    }
    Ok(x)
}

fn block(vs: &Vars, g: &mut Graph, x: NodeId, stride: usize) -> Result<NodeId> {
    let shortcut = match vs.contains("downsample.0.weight") {
        true => vs.conv2d_batch_norm(g, "downsample.0", "downsample.1", x, Conv::POINT.every(stride))?,
        false => x,
    };
    let relu = |g: &mut Graph, x| activation(g, Activation::Relu, x);
    let h = match vs.contains("conv3.weight") {
        true => {
            let h = vs.conv2d_batch_norm(g, "conv1", "bn1", x, Conv::POINT)?;
            let h = relu(g, h)?;
            let h = vs.conv2d_batch_norm(g, "conv2", "bn2", h, Conv::SAME_3.every(stride))?;
            let h = relu(g, h)?;
            vs.conv2d_batch_norm(g, "conv3", "bn3", h, Conv::POINT)?
        }
        false => {
            let h = vs.conv2d_batch_norm(g, "conv1", "bn1", x, Conv::SAME_3.every(stride))?;
            let h = relu(g, h)?;
            vs.conv2d_batch_norm(g, "conv2", "bn2", h, Conv::SAME_3)?
        }
    };
    let sum = add(g, shortcut, h)?;
    relu(g, sum)
}
