//! Tensors of a model's files that no network reads.

use super::{Part, SdxlModel, TextEncoder, UnetSize, single_file};
use crate::Precision;
use crate::unread::{Unread, harmless};
use pulid_tensor::Result;

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
            found.push(Unread { path: self.path().to_owned(), network: None, keys });
        }
        for part in Part::ALL {
            let path = match (part, self.other_unet()) {
                (Part::Unet, Some(path)) => path.to_owned(),
                _ if self.whole_file().is_some() => self.path().to_owned(),
                _ => self.path().join(part.folder()),
            };
            let keys = self.unread(part)?.into_iter().filter(|key| !harmless(key)).collect();
            found.push(Unread { path, network: Some(part.name()), keys });
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
