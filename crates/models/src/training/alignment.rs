use super::{affine, mean_square, part};
use crate::layers::{Attend, add, attention, cast};
use crate::sdxl::{Unet, UnetSize};
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{Activation, Binary, Unary};
use pulid_tensor::{DType, Error, Result};
use std::str::FromStr;

/// How the alignment loss measures the difference of two values of a layer. PuLID's paper writes ‖·‖₂ and says neither how it is scaled
/// nor how layers are averaged; both kinds here are independent of a layer's extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlignmentNorm {
    /// ‖a - b‖₂ / ‖b‖₂, so that layers of large values count as much as others.
    #[default]
    Relative,
    /// ‖a - b‖₂ / √n, the root of the mean square.
    Rms,
}

impl FromStr for AlignmentNorm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "relative" => Ok(AlignmentNorm::Relative),
            "rms" => Ok(AlignmentNorm::Rms),
            _ => Err(Error::invalid("norm", format!("`{text}` is neither relative nor rms"))),
        }
    }
}

/// Added under roots: equal values, as before anything is learnt, have a gradient of zero instead of none.
const EPSILON: f32 = 1e-12;

impl AlignmentNorm {
    /// The distance of a from b, both f32 [B, L, C], of each sample: [B].
    fn distance(self, g: &mut Graph, a: NodeId, b: NodeId) -> Result<NodeId> {
        let difference = g.apply(Binary::sub(), &[a, b])?;
        let mut square = mean_square(g, difference)?;
        if self == AlignmentNorm::Relative {
            let of_b = mean_square(g, b)?;
            let of_b = affine(g, of_b, 1.0, EPSILON)?;
            square = g.apply(Binary::div(), &[square, of_b])?;
        }
        let square = affine(g, square, 1.0, EPSILON)?;
        g.apply(Unary(Activation::Sqrt), &[square])
    }
}

/// The UNet with identity and PuLID's alignment losses behind it (arXiv 2404.16022, section 3): with Q_id the image's queries
/// in a cross-attention, Q those of the same latent without identity, K the keys of the text and d the width of a head,
///
/// - `semantic`: ‖ softmax(K Q_idᵀ / √d) Q_id - softmax(K Qᵀ / √d) Q ‖, what each text token finds in the image; the softmax is over
///   positions of the image, and heads are those of the layer;
/// - `layout`: ‖ Q_id - Q ‖,
///
/// each the mean over all cross-attentions.
///
/// Inputs: those of [`Unet::graph`] with identity, and `reference.q.N` [B, L, C], of the UNet's element type: what
/// [`Unet::graph_with_queries`] without identity gives as `q.N` for the same latent. Outputs, f32: `sample`, as the UNet's;
/// `semantic` and `layout` [B].
///
/// # Errors
/// As [`Unet::graph`]; where the size has no identity.
pub fn alignment_graph(unet: &Unet, size: UnetSize, norm: AlignmentNorm) -> Result<Graph> {
    if size.identity.is_none() {
        return Err(Error::invalid("alignment loss", "compares a UNet that reads an identity with one that does not"));
    }
    let mut graph = Graph::new("alignment-loss");
    let g = &mut graph;
    let outputs = g.inline(&unet.graph_with_queries(size)?, &[])?;
    g.output("sample", part(&outputs, "sample")?)?;
    let mut sums: [Option<NodeId>; 2] = [None; 2];
    let layers = unet.identity_layers()?;
    for (layer, heads) in layers.iter().zip(unet.identity_heads()?) {
        let number = layer.number;
        let (q, text_k) = (part(&outputs, &format!("q.{number}"))?, part(&outputs, &format!("text_k.{number}"))?);
        let reference = g.input(format!("reference.q.{number}"), g.ty(q).clone(), Rate::Step)?;
        let both = g.scoped(format!("alignment.{number}"), |g| {
            let distance = |g: &mut Graph, [a, b]: [NodeId; 2]| {
                let (a, b) = (cast(g, a, DType::F32)?, cast(g, b, DType::F32)?);
                norm.distance(g, a, b)
            };
            let found = |g: &mut Graph, q: NodeId| attention(g, text_k, q, q, Attend::heads(heads));
            let pair = [found(g, q)?, found(g, reference)?];
            Ok([g.scoped("semantic", |g| distance(g, pair))?, g.scoped("layout", |g| distance(g, [q, reference]))?])
        })?;
        for (sum, of_layer) in sums.iter_mut().zip(both) {
            *sum = Some(match *sum {
                Some(sum) => g.scoped("alignment", |g| add(g, sum, of_layer))?,
                None => of_layer,
            });
        }
    }
    for (name, sum) in ["semantic", "layout"].into_iter().zip(sums) {
        let sum = sum.ok_or_else(|| Error::invalid("alignment loss", "this UNet has no cross-attention"))?;
        let mean = g.scoped("alignment", |g| affine(g, sum, 1.0 / layers.len() as f32, 0.0))?;
        g.output(name, mean)?;
    }
    Ok(graph)
}
