//! Tensors that no network reads: what people should hear of, and what is of no use to anybody.

use crate::sdxl::is_mark;
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
const ALONE: [&str; 10] = [
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

/// Ends of such names.
const ENDS: [&str; 4] = ["position_ids", "logit_scale", "num_batches_tracked", "attn_mask"];

/// Whether a tensor may be left out without a word.
pub(crate) fn harmless(key: &str) -> bool {
    is_mark(key)
        || ALONE.contains(&key)
        || ENDS.iter().any(|end| key.ends_with(end))
        || LEFT_BEHIND.iter().any(|begin| key.starts_with(begin))
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
        ] {
            assert!(harmless(key), "{key}");
        }
        for key in ["down_blocks.0.adapter.weight", "time_embedding.cond_proj.weight", "text_projection", "bett.betas"]
        {
            assert!(!harmless(key), "{key}");
        }
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
