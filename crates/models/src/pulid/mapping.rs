//! The three-layer perceptron that both identity encoders are made of.

use crate::Vars;
use crate::layers::activation;
use pulid_graph::{Graph, NodeId};
use pulid_ops::Activation;
use pulid_tensor::Result;

/// Epsilon of PyTorch's LayerNorm, which PuLID leaves as it is.
pub(super) const EPS: f32 = 1e-5;

/// Linear, LayerNorm, LeakyReLU, linear, LayerNorm, LeakyReLU, linear: `nn.Sequential` entries 0 to 6.
pub(super) fn mapping(vs: &Vars, g: &mut Graph, name: &str, x: NodeId) -> Result<NodeId> {
    vs.scope(g, name, |vs, g| {
        let mut x = x;
        for (linear, norm) in [("0", "1"), ("3", "4")] {
            let width = vs.extent(&format!("{linear}.weight"), 2, 0)?;
            x = vs.linear(g, linear, x, width)?;
            x = vs.layer_norm(g, norm, x, EPS)?;
            x = activation(g, Activation::LeakyRelu(0.01), x)?;
        }
        let width = vs.extent("6.weight", 2, 0)?;
        vs.linear(g, "6", x, width)
    })
}
