//! What people should hear of a model before it makes an image.

use super::scheduler_config;
use crate::sampler::{PredictionType, SchedulerConfig};
use pulid_checkpoint::files;
use pulid_models::sdxl::SdxlModel;
use pulid_tensor::Result;

/// Examines a model's files, of which only headers are read, and gives what is worth a note: tensors that nothing is done with, and a
/// UNet whose own file says another thing of its predictions than the scheduler beside it.
///
/// # Errors
/// As [`SdxlModel::examine`]: a network of another kind, or tensors that are missing. A broken scheduler.
pub fn examine(model: &SdxlModel) -> Result<Vec<String>> {
    let taken = scheduler_config(model)?;
    let mut notes: Vec<_> = model.examine()?.iter().map(ToString::to_string).collect();
    if let Some(path) = model.scheduler_file()
        && let Ok(said) = SchedulerConfig::from_json(&files::read_to_string(&path)?)
        && said.prediction_type != taken.prediction_type
    {
        let what = match taken.prediction_type {
            PredictionType::Epsilon => "noise",
            PredictionType::VPrediction => "velocity",
        };
        let unet = model.other_unet().unwrap_or(model.path()).display();
        notes.push(format!(
            "{unet} says of itself that it predicts {what}, which is taken before what {} says",
            path.display()
        ));
    }
    Ok(notes)
}
