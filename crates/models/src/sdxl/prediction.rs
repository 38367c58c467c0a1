//! What a file of weights says of its network's predictions.
//!
//! A network that predicts velocity has the same tensors as one that predicts noise, and makes an image of noise when it is taken for
//! one. Programs that train and save such models have agreed on tensors that mark them, which are often empty, as ComfyUI's
//! `SDXL.model_type` (`comfy/supported_models.py`) reads them; others write Stability's model specification into the metadata
//! (<https://github.com/Stability-AI/ModelSpec>).

use super::names;
use crate::wrapped::unwrapped;
use pulid_checkpoint::Checkpoint;
use pulid_tensor::{Error, Result};
use std::path::Path;

/// What a network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predicts {
    /// The noise.
    Noise,
    /// The velocity of Salimans and Ho (2022).
    Velocity,
}

/// What a file says of its network's predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PredictionMarks {
    /// What it predicts; `None` where the file does not say.
    pub predicts: Option<Predicts>,
    /// Whether it was trained down to pure noise at the last timestep (Lin et al. 2023).
    pub zero_terminal_snr: bool,
}

/// Marks of networks that are trained on Karras et al.'s noise levels, and who has them.
const EDM: [(&str, &str); 4] = [
    ("edm_mean", "as Playground 2.5"),
    ("edm_std", "as Playground 2.5"),
    ("edm_vpred.sigma_max", "as CosXL"),
    ("edm_vpred.sigma_min", "as CosXL"),
];

/// Keys of Stability's model specification, and of ComfyUI's.
const METADATA: [&str; 2] = ["modelspec.prediction_type", "modelspec.predict_key"];

/// What kohya's trainers write of how they trained, as Python writes true (`train_network.py`, `sdxl_train.py` of sd-scripts).
const TRAINED_ON_VELOCITY: &str = "ss_v_parameterization";
const TRAINED_TO_NOISE: &str = "ss_zero_terminal_snr";

/// Refuses a file that by its name predicts the clean image: SDXL-Lightning's for one step, which nothing else tells from the others.
///
/// # Errors
/// Says so, and which files predict noise.
pub(crate) fn refuse_clean_image(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !["unet_x0", "1step_x0"].iter().any(|part| name.contains(part)) {
        return Ok(());
    }
    let detail = "is called a UNet that predicts the clean image (`x0`), which is not supported; SDXL-Lightning's for two and more \
                  steps predict noise";
    Err(Error::file(path, detail))
}

impl PredictionMarks {
    /// The marks of a file: a whole model's, a UNet's, by whatever names.
    ///
    /// # Errors
    /// For a kind of prediction that is not built.
    pub fn of(file: &Checkpoint) -> Result<Self> {
        let file = &*unwrapped(file);
        let said = |name: &str| {
            file.metadata().get(name).is_some_and(|said| ["true", "1"].contains(&said.trim().to_lowercase().as_str()))
        };
        let marked = |name: &str| {
            said(name)
                || file.contains(name)
                || names::UNET.iter().any(|prefix| file.contains(&format!("{prefix}{name}")))
        };
        if let Some((name, who)) = EDM.into_iter().find(|(name, _)| marked(name)) {
            let detail = format!(
                "is marked by `{name}`: a network trained on EDM's noise levels, {who}, which are not supported; SDXL's \
                 networks predict noise or velocity on SDXL's own schedule"
            );
            return Err(Error::file(file.name(), detail));
        }
        let zero_terminal_snr = marked("ztsnr") || said(TRAINED_TO_NOISE);
        if marked("v_pred") {
            return Ok(PredictionMarks { predicts: Some(Predicts::Velocity), zero_terminal_snr });
        }
        // A mark of zero terminal SNR alone says nothing of the prediction; there is ComfyUI's precedent for leaving it out.
        let Some((key, value)) =
            METADATA.iter().find_map(|key| Some((key, file.metadata().get(*key).filter(|v| !v.trim().is_empty())?)))
        else {
            let velocity = PredictionMarks { predicts: Some(Predicts::Velocity), zero_terminal_snr };
            return Ok(if said(TRAINED_ON_VELOCITY) { velocity } else { PredictionMarks::default() });
        };
        let predicts = match value.trim().to_lowercase().as_str() {
            "epsilon" | "eps" | "noise" => Some(Predicts::Noise),
            "v" | "v_prediction" | "v-prediction" | "v_pred" | "vpred" | "velocity" => Some(Predicts::Velocity),
            other => {
                let detail = format!("says of itself that it predicts `{other}` ({key}); epsilon and v are supported");
                return Err(Error::file(file.name(), detail));
            }
        };
        let zero_terminal_snr = predicts == Some(Predicts::Velocity) && zero_terminal_snr;
        Ok(PredictionMarks { predicts, zero_terminal_snr })
    }
}

/// Whether a tensor is such a mark, by its name without a network's prefix.
pub(crate) fn is_mark(key: &str) -> bool {
    key == "v_pred" || key == "ztsnr" || EDM.iter().any(|(name, _)| *name == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_checkpoint::{MemorySource, safetensors};
    use pulid_tensor::HostTensor;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn marks(keys: &[&str], metadata: &[(&str, &str)]) -> Result<PredictionMarks> {
        // ComfyUI saves `torch.tensor([])`.
        let empty = HostTensor::zeros([0]);
        let metadata: BTreeMap<_, _> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let bytes = safetensors::to_bytes(keys.iter().map(|key| (*key, &empty)), &metadata).unwrap();
        PredictionMarks::of(&Checkpoint::from_source(Arc::new(MemorySource::new("a.safetensors", bytes))).unwrap())
    }

    fn velocity(zero_terminal_snr: bool) -> PredictionMarks {
        PredictionMarks { predicts: Some(Predicts::Velocity), zero_terminal_snr }
    }

    #[test]
    fn tensors_and_metadata_tell() {
        let none = PredictionMarks::default();
        let noise = PredictionMarks { predicts: Some(Predicts::Noise), ..none };
        assert_eq!(marks(&["conv_in.weight"], &[("format", "pt")]).unwrap(), none);
        assert_eq!(marks(&["v_pred"], &[]).unwrap(), velocity(false));
        assert_eq!(marks(&["v_pred", "ztsnr"], &[]).unwrap(), velocity(true));
        assert_eq!(
            marks(&["model.diffusion_model.v_pred", "model.diffusion_model.ztsnr"], &[]).unwrap(),
            velocity(true)
        );
        assert_eq!(marks(&["unet.v_pred"], &[]).unwrap(), velocity(false));
        assert!(marks(&["_orig_mod.edm_mean"], &[]).is_err());
        let both = [("modelspec.prediction_type", ""), ("modelspec.predict_key", "v")];
        assert_eq!(marks(&[], &both).unwrap(), velocity(false));
        // Tensors before metadata: ComfyUI reads these alone.
        assert_eq!(marks(&["v_pred"], &[("modelspec.prediction_type", "epsilon")]).unwrap(), velocity(false));
        for (key, value, want) in [
            ("modelspec.prediction_type", "v", velocity(false)),
            ("modelspec.prediction_type", "Epsilon", noise),
            ("modelspec.predict_key", "v", velocity(false)),
            ("modelspec.predict_key", "noise", noise),
            ("modelspec.predict_key", "", none),
        ] {
            assert_eq!(marks(&["x"], &[(key, value)]).unwrap(), want, "{key} {value}");
        }
        assert_eq!(marks(&["x", "ztsnr"], &[("modelspec.predict_key", "v")]).unwrap(), velocity(true));
        assert_eq!(marks(&["ztsnr"], &[]).unwrap(), none);
        // As a pickle may say beside its weights.
        assert_eq!(marks(&["x"], &[("v_pred", "true"), ("ztsnr", "1")]).unwrap(), velocity(true));
        assert_eq!(marks(&["x"], &[("v_pred", "false")]).unwrap(), none);
        // kohya's, as Python prints them.
        let (trained, to_noise) = (("ss_v_parameterization", "True"), ("ss_zero_terminal_snr", "True"));
        assert_eq!(marks(&["x"], &[trained]).unwrap(), velocity(false));
        assert_eq!(marks(&["x"], &[trained, to_noise]).unwrap(), velocity(true));
        assert_eq!(marks(&["x"], &[trained, ("ss_zero_terminal_snr", "False")]).unwrap(), velocity(false));
        assert_eq!(marks(&["x"], &[("ss_v_parameterization", "False"), to_noise]).unwrap(), none);
        assert_eq!(marks(&["v_pred"], &[to_noise]).unwrap(), velocity(true));
        // The model specification says it of the file, kohya's keys of a training that it may have come through.
        assert_eq!(marks(&["x"], &[trained, ("modelspec.prediction_type", "epsilon")]).unwrap(), noise);
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for key in ["edm_mean", "edm_vpred.sigma_max", "diffusion_model.edm_std"] {
            let message = marks(&[key, "v_pred"], &[]).unwrap_err().to_string();
            assert!(message.contains("EDM") && message.contains("a.safetensors"), "{message}");
        }
        let message = marks(&[], &[("modelspec.prediction_type", "sample")]).unwrap_err().to_string();
        assert!(message.contains("`sample`") && message.contains("epsilon and v"), "{message}");
    }
}
