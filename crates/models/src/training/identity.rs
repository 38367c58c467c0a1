use super::{affine, part};
use crate::Precision;
use crate::onnx::OnnxNetwork;
use crate::sdxl::Vae;
use pulid_graph::{Graph, Rate};
use pulid_ops::{AffineSample, Binary, L2Normalize, Permute, Reduce, Reduction};
use pulid_tensor::{DType, Error, Result, TensorType};
use std::collections::BTreeMap;

/// Extents of [`identity_graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityLossSize {
    /// Latents at once.
    pub batch: usize,
    /// Rows of the latent.
    pub height: usize,
    /// Columns of the latent.
    pub width: usize,
}

/// Rows and columns of a recogniser's crop where its file does not say: ArcFace's.
const CROP: usize = 112;

/// PuLID's identity loss (arXiv 2404.16022, section 3) of clean latents:
///
/// L_id = 1 - cos(φ(C_id), φ(x)), where x is the decoded latent and φ the embedding of the face in it.
///
/// The VAE decodes, the face is cropped by a given matrix to the recogniser's 112 x 112 pixels, black outside as insightface does, and
/// the recogniser reads RGB of -1 to 1, (value - 127.5) / 127.5, which is the decoder's own range. Values are neither clamped nor rounded to 8 bits:
/// where they were, there would be no gradient.
///
/// Inputs, f32: `latent` [B, h, w, C] as the UNet has it, before the scaling factor is undone; `crop` [B, 2, 3], for each sample the map of
/// the crop's pixels (u, v, 1) to the picture's, which has no gradient; `target` [B, D], the embedding of the photo, of any length.
/// Outputs: `picture` [B, H, W, 3], the decoded latent, and `identity` [B], 0 to 2. A sample without a face takes any matrix and an upstream gradient of zero
/// ([`sample_weights`](super::sample_weights)).
///
/// # Errors
/// As [`Vae::decoder`] and [`OnnxNetwork::build`]; when the recogniser does not take one picture and give one embedding.
pub fn identity_graph(
    vae: &Vae,
    recogniser: &OnnxNetwork,
    size: IdentityLossSize,
    precision: Precision,
) -> Result<Graph> {
    let IdentityLossSize { batch, height, width } = size;
    let refused = |detail: String| Err(Error::invalid("recogniser", detail));
    let (inputs, outputs) = (recogniser.input_names(), recogniser.output_names());
    let (&[picture], &[embedding]) = (inputs.as_slice(), outputs.as_slice()) else {
        let detail = format!("takes {} and gives {}", inputs.join(", "), outputs.join(", "));
        return refused(format!("{detail}; a face recogniser takes one picture and gives one embedding"));
    };
    let crop = match recogniser.input_extents(picture).as_deref() {
        Some(&[_, channels, rows, columns]) if channels.is_none_or(|c| c == 3) => {
            [rows.unwrap_or(CROP), columns.unwrap_or(CROP)]
        }
        None => [CROP; 2],
        Some(other) => return refused(format!("takes {} axes, not a picture [N, 3, H, W]", other.len())),
    };

    let mut graph = Graph::new("identity-loss");
    let g = &mut graph;
    let channels = vae.config().latent_channels;
    let latent = g.input("latent", TensorType::f32([batch, height, width, channels]), Rate::Step)?;
    let matrix = g.input("crop", TensorType::f32([batch, 2, 3]), Rate::Step)?;
    let unscaled = g.scoped("latent", |g| affine(g, latent, 1.0 / vae.config().scaling_factor, 0.0))?;
    let decoded = g.inline(&vae.decoder(batch, height, width)?, &[("latent", unscaled)])?;
    let decoded = part(&decoded, "sample")?;
    g.output("picture", decoded)?;
    let face = g.scoped("crop", |g| {
        // Zero outside becomes black.
        let shifted = affine(g, decoded, 1.0, 1.0)?;
        let face = g.apply(AffineSample { size: crop }, &[shifted, matrix])?;
        let face = affine(g, face, 1.0, -1.0)?;
        g.apply(Permute::new([0, 3, 1, 2]), &[face])
    })?;
    let shapes = BTreeMap::from([(picture.to_owned(), g.shape(face).to_vec())]);
    let found = g.inline(&recogniser.build(&shapes, precision)?, &[(picture, face)])?;
    let found = part(&found, embedding)?;
    let ty = g.ty(found).clone();
    if ty.dtype != DType::F32 || ty.shape.rank() != 2 || ty.shape[0] != batch {
        return refused(format!("gives {ty}, not an embedding for each of {batch} pictures"));
    }
    let target = g.input("target", ty, Rate::Run)?;
    let loss = g.scoped("cosine", |g| {
        let found = g.apply(L2Normalize::default(), &[found])?;
        let target = g.apply(L2Normalize::default(), &[target])?;
        let products = g.apply(Binary::mul(), &[found, target])?;
        let cosine = g.apply(Reduce { reduction: Reduction::Sum, axes: vec![1], keep_dims: false }, &[products])?;
        affine(g, cosine, -1.0, 1.0)
    })?;
    g.output("identity", loss)?;
    Ok(graph)
}
