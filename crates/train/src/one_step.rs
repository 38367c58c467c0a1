//! L_id on one-step estimates: whose face the clean latents show that L_diff's own prediction stands for.
//!
//! The PuLID paper's baseline (arXiv 2404.16022, table 2, "naive ID loss"), as PhotoMaker's and others' have it: it needs no branch, but
//! sees at high noise levels a blur that is nobody's.

use crate::batch::Batch;
use crate::face::{FaceAnswer, FaceGraphs, FaceLoss};
use crate::memory::{Decided, Part};
use crate::terms::Call;
use pulid::identity::FaceModels;
use pulid::runtime::{Quiet, Reporter, Runtime};
use pulid_engine::Observer;
use pulid_tensor::{Error, HostTensor, Result};
use std::sync::Arc;

/// Its name in a run's memory.
const WHOSE: &str = "L_id";

/// Its networks.
pub(crate) struct OneStep {
    face: FaceLoss,
    predicts_v: bool,
}

impl OneStep {
    /// Loads it for latents of a call's size.
    ///
    /// # Errors
    /// As [`FaceLoss::load`].
    pub async fn load(
        runtime: &Runtime,
        faces: &FaceModels,
        graphs: Arc<FaceGraphs>,
        call: &Call,
        predicts_v: bool,
        decided: &Decided,
        reporter: &dyn Reporter,
    ) -> Result<OneStep> {
        let checkpointing = decided.checkpointing(&FaceGraphs::loss_name(WHOSE, &call.at()));
        let face = FaceLoss::load(runtime, faces, graphs, call.latent, checkpointing, reporter).await?;
        Ok(OneStep { face, predicts_v })
    }

    /// What it takes for latents of a call's size.
    pub fn part_of_size(graphs: &Arc<FaceGraphs>, call: &Call) -> Part<'static> {
        graphs.part_of_size(WHOSE, &call.at(), call.latent)
    }

    /// What it takes for latents of any size.
    pub fn part_of_photos(graphs: &Arc<FaceGraphs>) -> Part<'static> {
        graphs.part_of_photos(WHOSE)
    }

    /// Takes the networks for latents of these rows and columns.
    ///
    /// # Errors
    /// A device out of memory, cancellation.
    pub async fn take(&mut self, latent: [usize; 2], observer: &dyn Observer) -> Result<()> {
        self.face.take(latent, observer).await
    }

    /// The loss by the prediction of `batch`, and, where a picture shows a face, its gradient in the prediction, times `weight`.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn run(
        &mut self,
        batch: &Batch,
        prediction: &HostTensor,
        weight: f64,
        reporter: &dyn Reporter,
    ) -> Result<FaceAnswer> {
        let clean = estimate(self.predicts_v, batch, prediction)?;
        let mut answer = self.face.run(&clean, batch, weight, &Quiet(reporter)).await?;
        if let Some((_, gradient)) = &mut answer.loss {
            *gradient = in_prediction(self.predicts_v, batch, gradient)?;
        }
        Ok(answer)
    }
}

/// Factors of the sample and of the prediction in the clean latents: x_0 = (x_t - s ε) / a, or x_0 = a x_t - s v.
fn factors(predicts_v: bool, [signal, noise]: [f64; 2]) -> [f64; 2] {
    if predicts_v { [signal, -noise] } else { [1.0 / signal, -noise / signal] }
}

/// The clean latents that a prediction stands for.
fn estimate(predicts_v: bool, batch: &Batch, prediction: &HostTensor) -> Result<HostTensor> {
    let (x, f) = (batch.sample.as_f32()?, prediction.as_f32()?);
    if prediction.shape() != batch.sample.shape() {
        let detail = format!("of {} was given for latents {}", prediction.shape(), batch.sample.shape());
        return Err(Error::invalid("prediction", detail));
    }
    let each = x.len() / batch.levels.len();
    Ok(HostTensor::from_fn(prediction.shape().clone(), |i| {
        let [a, b] = factors(predicts_v, batch.levels[i / each]);
        (a * f64::from(x[i]) + b * f64::from(f[i])) as f32
    }))
}

/// The gradient in the prediction, of that in the clean latents.
fn in_prediction(predicts_v: bool, batch: &Batch, gradient: &HostTensor) -> Result<HostTensor> {
    let values = gradient.as_f32()?;
    let each = values.len() / batch.levels.len();
    Ok(HostTensor::from_fn(gradient.shape().clone(), |i| {
        (factors(predicts_v, batch.levels[i / each])[1] * f64::from(values[i])) as f32
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of noisy latents and what a perfect network says of them the estimate is what the noise was put on.
    #[test]
    fn a_perfect_prediction_gives_the_clean_latents() {
        let shape = [2, 1, 2, 1];
        let of = |values: [f64; 4]| HostTensor::from_fn(shape, |i| values[i] as f32);
        let levels: [[f64; 2]; 2] = [[0.8, 0.6], [0.28, 0.96]];
        let (clean, noise) = ([0.5, -1.0, 2.0, 0.25], [1.5, 0.5, -0.75, 1.0]);
        let mixed = |a: [f64; 4], b: [f64; 4], sign: f64, swap: bool| {
            of(std::array::from_fn(|i| {
                let [signal, level] = levels[i / 2];
                let [signal, level] = if swap { [level, signal] } else { [signal, level] };
                signal * a[i] + sign * level * b[i]
            }))
        };
        for predicts_v in [false, true] {
            let batch = Batch {
                sample: mixed(clean, noise, 1.0, false),
                levels: levels.to_vec(),
                ..crate::batch::tests::nothing()
            };
            // v = a noise - s clean.
            let prediction = if predicts_v { mixed(clean.map(|v| -v), noise, 1.0, true) } else { of(noise) };
            let found = estimate(predicts_v, &batch, &prediction).unwrap();
            for (found, wanted) in found.as_f32().unwrap().iter().zip(clean) {
                assert!((f64::from(*found) - wanted).abs() < 1e-5, "{predicts_v}: {found} {wanted}");
            }
            // A small change of the prediction changes the estimate by the gradient's factor.
            let moved = HostTensor::from_fn(shape, |i| prediction.as_f32().unwrap()[i] + 0.125);
            let moved = estimate(predicts_v, &batch, &moved).unwrap();
            let slopes = in_prediction(predicts_v, &batch, &of([1.0; 4])).unwrap();
            for i in 0..4 {
                let change = (moved.as_f32().unwrap()[i] - found.as_f32().unwrap()[i]) / 0.125;
                assert!((change - slopes.as_f32().unwrap()[i]).abs() < 1e-4, "{predicts_v}");
            }
        }
    }
}
