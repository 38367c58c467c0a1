use super::{mean_square, part};
use crate::sdxl::{Predicts, Unet, UnetSize};
use pulid_graph::{Graph, Rate};
use pulid_ops::Binary;
use pulid_tensor::{Result, TensorType};

/// The UNet with the loss of diffusion behind it, PuLID's L_diff (equation 1 of arXiv 2404.16022, as the mean square that Ho et al.,
/// arXiv 2006.11239, equation 14, and every trainer takes):
///
/// L_diff = mean (target - unet(x_t, t, C))², where the target is the noise ε in x_t, or, for a network that predicts
/// [`Predicts::Velocity`], v = α ε - σ x_0 (Salimans and Ho, arXiv 2202.00512, appendix D), with x_t = α x_0 + σ ε.
///
/// Inputs, f32: those of [`Unet::graph`], and `noise` [B, H, W, C]; for velocity also `clean` [B, H, W, C], the latent x_0, and `alpha`
/// and `sigma` [B]. Output: `diffusion` [B], the mean over a sample's elements.
///
/// # Errors
/// As [`Unet::graph`].
pub fn diffusion_graph(unet: &Unet, size: UnetSize, predicts: Predicts) -> Result<Graph> {
    let mut graph = Graph::new("diffusion-loss");
    let g = &mut graph;
    let predicted = part(&g.inline(&unet.graph(size)?, &[])?, "sample")?;
    let ty = g.ty(predicted).clone();
    let noise = g.input("noise", ty.clone(), Rate::Step)?;
    let loss = g.scoped("loss", |g| {
        let target = match predicts {
            Predicts::Noise => noise,
            Predicts::Velocity => {
                let clean = g.input("clean", ty, Rate::Step)?;
                let mut of_sample = |name: &str| {
                    let factor = g.input(name, TensorType::f32([size.batch]), Rate::Step)?;
                    g.reshape(factor, [size.batch, 1, 1, 1])
                };
                let (alpha, sigma) = (of_sample("alpha")?, of_sample("sigma")?);
                let noise = g.apply(Binary::mul(), &[noise, alpha])?;
                let clean = g.apply(Binary::mul(), &[clean, sigma])?;
                g.apply(Binary::sub(), &[noise, clean])?
            }
        };
        let difference = g.apply(Binary::sub(), &[predicted, target])?;
        mean_square(g, difference)
    })?;
    g.output("diffusion", loss)?;
    Ok(graph)
}
