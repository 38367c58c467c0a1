//! Tensors of a model's files that no network reads: what people should hear of, and what is of no use to anybody.

use super::prediction::is_mark;
use super::{Part, SdxlModel, TextEncoder, UnetSize, single_file};
use crate::Precision;
use pulid_tensor::Result;
use std::path::PathBuf;

/// Tensors of a file that nothing is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// The file or folder.
    pub path: PathBuf,
    /// The network they are in; none where they are in no network.
    pub part: Option<Part>,
    /// Their names, those of a network without its prefix.
    pub keys: Vec<String>,
}

/// Names a note lists.
const NAMED: usize = 3;

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match self.part {
            Some(part) => format!(" of its {}", part.name()),
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
fn harmless(key: &str) -> bool {
    is_mark(key)
        || ALONE.contains(&key)
        || ENDS.iter().any(|end| key.ends_with(end))
        || LEFT_BEHIND.iter().any(|begin| key.starts_with(begin))
}

impl SdxlModel {
    /// Looks at a model before anything runs: whether every network is one that is built here and whole, and which tensors have no
    /// use. Only headers are read.
    ///
    /// # Errors
    /// A network of another kind, tensors that are missing or of another shape, files that cannot be read.
    pub fn examine(&self) -> Result<Vec<Unread>> {
        let mut found = Vec::new();
        if let Some(file) = self.whole_file() {
            let keys: Vec<_> =
                single_file::outside_of_parts(file).filter(|key| !harmless(key)).map(str::to_owned).collect();
            found.push(Unread { path: self.path().to_owned(), part: None, keys });
        }
        for part in Part::ALL {
            let path = match (part, self.other_unet()) {
                (Part::Unet, Some(path)) => path.to_owned(),
                _ if self.whole_file().is_some() => self.path().to_owned(),
                _ => self.path().join(part.folder()),
            };
            let keys = self.unread(part)?.into_iter().filter(|key| !harmless(key)).collect();
            found.push(Unread { path, part: Some(part), keys });
        }
        found.retain(|unread| !unread.keys.is_empty());
        Ok(found)
    }

    /// The tensors of a network that its graph, for the smallest of images, does not read.
    fn unread(&self, part: Part) -> Result<Vec<String>> {
        match part {
            Part::Unet => {
                let unet = self.unet(Precision::F32)?;
                let side = 1 << unet.config().block_out_channels.len().min(8);
                unet.graph(UnetSize { batch: 1, height: side, width: side, text_tokens: 77, identity: None })?;
                Ok(unet.unread())
            }
            Part::Vae => {
                let vae = self.vae(Precision::F32)?;
                vae.decoder(1, 8, 8)?;
                // The way in is not used, as yet, and every file has it.
                let encoder = |key: &String| ["encoder.", "quant_conv."].iter().any(|begin| key.starts_with(begin));
                Ok(vae.unread().into_iter().filter(|key| !encoder(key)).collect())
            }
            Part::TextEncoder(which) => {
                let encoder = self.text_encoder(which, Precision::F32)?;
                encoder.graph(1, encoder.config().max_position_embeddings.min(77))?;
                let table = |key: &String| key.ends_with("embeddings.token_embedding.weight");
                // Only the second encoder's pooled output is part of SDXL.
                let pooled = |key: &String| which == TextEncoder::First && key == "text_projection.weight";
                Ok(encoder.unread().into_iter().filter(|key| !table(key) && !pooled(key)).collect())
            }
        }
    }
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
        let unread = Unread { path: "x.safetensors".into(), part: Some(Part::Unet), keys };
        assert_eq!(
            unread.to_string(),
            "x.safetensors: 4 tensors of its UNet are not known and left out: `a`, `b`, `c`, ..."
        );
    }
}
