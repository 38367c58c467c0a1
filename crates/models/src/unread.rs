//! Tensors that no network reads: what people should hear of, and what is of no use to anybody.

use crate::sdxl::is_mark;
use pulid_checkpoint::Checkpoint;
use pulid_tensor::Result;
use std::path::PathBuf;

/// Tensors of a file that nothing is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The file or folder.
    pub path: PathBuf,
    /// What the network is called that they are in; none where they are in no network, or the file holds but one.
    pub network: Option<&'static str>,
    /// Their names, those of a network without its prefix.
    pub keys: Vec<String>,
}

/// Names a note lists.
const NAMED: usize = 3;

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match self.network {
            Some(network) => format!(" of its {network}"),
            None => String::new(),
        };
        let named: Vec<_> = self.keys.iter().take(NAMED).map(|key| format!("`{key}`")).collect();
        let more = if self.keys.len() > NAMED { ", ..." } else { "" };
        let count = self.keys.len();
        let (s, are) = if count == 1 { ("", "is") } else { ("s", "are") };
        write!(
            f,
            "{}: {count} tensor{s}{place} {are} not known and left out: {}{more}",
            self.path.display(),
            named.join(", ")
        )
    }
}

/// Beginnings of names that training and other programs leave behind, and that change no image.
const LEFT_BEHIND: [&str; 12] = [
    "model_ema.",
    "ema.",
    "loss.",
    "denoiser.",
    "optimizer",
    "lr_scheduler",
    "callbacks",
    "loops",
    "sqrt_",
    "log_one_minus_",
    "posterior_",
    "alphas_cumprod",
];

/// The whole of such names.
const ALONE: [&str; 13] = [
    "decay",
    "num_updates",
    "optimization_step",
    "betas",
    "logvar",
    "lvlb_weights",
    "global_step",
    "epoch",
    "step",
    "iteration",
    "scale_factor",
    "pytorch-lightning_version",
    "__index_timestep_zero__",
];

/// Ends of such names: constants, counters, and the scale of a LoRA whose matrices are not there. Scales of activations are for products in
/// 8 bits, which are not computed here.
const ENDS: [&str; 7] =
    ["position_ids", "logit_scale", "num_batches_tracked", "attn_mask", ".alpha", ".scale_input", ".input_scale"];

/// What names of copies of a weight that training keeps contain: they are the weights' averages, beside the weights.
const COPIES: [&str; 3] = [".ema.", "ema_model.", "_ema."];

/// Whether a tensor may be left out without a word.
pub(crate) fn harmless(key: &str) -> bool {
    is_mark(key)
        || ALONE.contains(&key)
        || ENDS.iter().any(|end| key.ends_with(end))
        || LEFT_BEHIND.iter().any(|begin| key.starts_with(begin))
        || COPIES.iter().any(|part| key.contains(part))
}

/// Elements up to which a tensor is read to see whether it is zeros: more than any bias has.
const SMALL: usize = 1 << 16;

/// Whether a weight that nothing is done with could change a result: floating-point numbers, and, of a bias, which is added, not all zeros.
///
/// # Errors
/// When the tensor cannot be read.
pub(crate) fn is_effective(file: &Checkpoint, key: &str) -> Result<bool> {
    let info = file.info(key)?;
    let count = info.shape.checked_count()?;
    // Matrices and filters in quantised blocks are floating-point numbers too.
    if count == 0 || !(info.element.is_float() || info.dtype.is_float() || info.dtype.is_quantized()) {
        return Ok(false);
    }
    if !key.ends_with("bias") || count > SMALL {
        return Ok(true);
    }
    Ok(file.tensor(key)?.to_f32_vec().iter().any(|&value| value != 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_training_leaves_is_harmless_and_nothing_else() {
        for key in [
            "text_model.embeddings.position_ids",
            "model_ema.decay",
            "alphas_cumprod_prev",
            "sqrt_one_minus_alphas_cumprod",
            "denoiser.sigmas",
            "ztsnr",
            "mid_block.attentions.0.proj_in.alpha",
            "down_blocks.0.resnets.0.conv1.ema.weight",
            "mid_block.attentions.0.proj_in.input_scale",
        ] {
            assert!(harmless(key), "{key}");
        }
        for key in ["down_blocks.0.adapter.weight", "time_embedding.cond_proj.weight", "text_projection", "bett.betas"]
        {
            assert!(!harmless(key), "{key}");
        }
    }

    #[test]
    fn what_is_added_changes_nothing_as_zeros_and_numbers_of_no_network_never_do() {
        use pulid_checkpoint::{MemorySource, safetensors};
        use pulid_tensor::HostTensor;
        let (zeros, ones) = (HostTensor::zeros([3]), HostTensor::from_fn([3], |_| 1.0));
        let integers = HostTensor::from_u32([1], vec![7]).unwrap();
        let tensors = [
            ("a.bias", &zeros),
            ("b.bias", &ones),
            ("a.weight", &zeros),
            ("steps", &integers),
            ("none", &HostTensor::zeros([0])),
        ];
        let bytes = safetensors::to_bytes(tensors, &Default::default()).unwrap();
        let file = Checkpoint::from_source(std::sync::Arc::new(MemorySource::new("a", bytes))).unwrap();
        let effective: Vec<_> = file.keys().filter(|key| is_effective(&file, key).unwrap()).collect();
        // A gain of zeros is not nothing.
        assert_eq!(effective, ["a.weight", "b.bias"]);
    }

    #[test]
    fn a_note_counts_and_names_the_first() {
        let keys = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let unread = Unread { path: "x.safetensors".into(), network: Some("UNet"), keys };
        assert_eq!(
            unread.to_string(),
            "x.safetensors: 4 tensors of its UNet are not known and left out: `a`, `b`, `c`, ..."
        );
    }
}
