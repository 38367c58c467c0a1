//! Tensors of a model's files that no network reads.

use super::{Part, SdxlModel, TextEncoder, UnetSize, single_file};
use crate::Precision;
use crate::unread::{Unread, harmless, is_effective};
use pulid_checkpoint::Checkpoint;
use pulid_tensor::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Names of a message.
const NAMED: usize = 3;

impl SdxlModel {
    /// Looks at a model before anything runs: whether every network is one that is built here and whole, and which tensors have no
    /// use. Headers are read, and small tensors that may be zeros.
    ///
    /// # Errors
    /// A network of another kind, tensors that are missing or of another shape, weights within a network that it is not built with
    /// here, files that cannot be read.
    pub fn examine(&self) -> Result<Vec<Unread>> {
        let mut found = Vec::new();
        if let Some(file) = self.whole_file() {
            let keys: Vec<_> =
                single_file::outside_of_parts(file).filter(|key| !harmless(key)).map(str::to_owned).collect();
            found.push(Unread { path: self.path().to_owned(), network: None, keys });
        }
        for part in Part::ALL {
            let path = match (part, self.other_unet()) {
                (Part::Unet, Some(path)) => path.to_owned(),
                _ if self.whole_file().is_some() => self.path().to_owned(),
                _ => self.path().join(part.folder()),
            };
            let (weights, unread) = self.unread(part)?;
            refuse_within(part, &path, &weights, &unread)?;
            let keys = unread.into_iter().filter(|key| !harmless(key)).collect();
            found.push(Unread { path, network: Some(part.name()), keys });
        }
        found.retain(|unread| !unread.keys.is_empty());
        Ok(found)
    }

    /// A network's tensors, and which of them its graph, for the smallest of images, does not read.
    fn unread(&self, part: Part) -> Result<(Checkpoint, Vec<String>)> {
        let weights = self.part(part)?.weights;
        let unread = match part {
            Part::Unet => {
                let unet = self.unet(Precision::F32)?;
                let side = 1 << unet.config().block_out_channels.len().min(8);
                unet.graph(UnetSize { batch: 1, height: side, width: side, text_tokens: 77, identity: None })?;
                unet.unread()
            }
            Part::Vae => {
                let vae = self.vae(Precision::F32)?;
                vae.decoder(1, 8, 8)?;
                // The way in is not used, as yet, and every file has it.
                let encoder = |key: &String| ["encoder.", "quant_conv."].iter().any(|begin| key.starts_with(begin));
                vae.unread().into_iter().filter(|key| !encoder(key)).collect()
            }
            Part::TextEncoder(which) => {
                let encoder = self.text_encoder(which, Precision::F32)?;
                encoder.graph(1, encoder.config().max_position_embeddings.min(77))?;
                let table = |key: &String| key.ends_with("embeddings.token_embedding.weight");
                // Only the second encoder's pooled output is part of SDXL.
                let pooled = |key: &String| which == TextEncoder::First && key == "text_projection.weight";
                encoder.unread().into_iter().filter(|key| !table(key) && !pooled(key)).collect()
            }
        };
        Ok((weights, unread))
    }
}

/// What the names of a network's modules begin with in Stability's and open_clip's files; a tensor within one that is not known keeps its name.
const fn original_modules(part: Part) -> &'static [&'static str] {
    match part {
        Part::Unet => &["input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"],
        Part::Vae => &["decoder"],
        Part::TextEncoder(_) => &["text_model", "transformer", "ln_final"],
    }
}

/// Refuses weights that lie within a module of the network but that the network is not built with: whoever trained them runs it with them,
/// and without them the image is another one. A tensor beside all modules is nothing that the network could be known to read.
fn refuse_within(part: Part, path: &Path, weights: &Checkpoint, unread: &[String]) -> Result<()> {
    let module = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
    let strangers: BTreeSet<&str> = unread.iter().map(String::as_str).collect();
    let mut modules: BTreeSet<_> = weights.keys().filter(|key| !strangers.contains(key)).map(module).collect();
    modules.extend(original_modules(part).iter().map(|name| (*name).to_owned()));
    let mut within = Vec::new();
    for key in unread.iter().filter(|key| key.contains('.') && modules.contains(&module(key))) {
        if !harmless(key) && is_effective(weights, key)? {
            within.push(format!("`{key}`"));
        }
    }
    if within.is_empty() {
        return Ok(());
    }
    let (count, network) = (within.len(), part.name());
    let what = if count == 1 { "weight within it that is" } else { "weights within it that are" };
    let more = if count > NAMED { ", ..." } else { "" };
    let named = within.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    let detail = format!(
        "its {network} has {count} {what} no part of SDXL's: {named}{more}. Left out, they would make another image of it than it was \
         trained for, so nothing is run: take a model without such weights, or, where they are known to change nothing, a copy of the \
         file without them"
    );
    Err(Error::file(path, detail))
}
