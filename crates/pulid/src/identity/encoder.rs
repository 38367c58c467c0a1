//! The identity encoders of both PuLIDs, told apart by the file.

use super::condition::{PhotoFeatures, encoder_inputs, join_tokens};
use crate::pipeline::{IdentityTokens, take};
use crate::runtime::{Loaded, Reporter, Runtime};
use pulid_checkpoint::Checkpoint;
use pulid_models::Precision;
use pulid_models::pulid::{IdEncoder, IdFormer, IdentityAdapter, PulidVersion};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::HashMap;
use std::path::Path;

/// What a file that is no PuLID file is, where it is known.
fn not_pulid(file: &Checkpoint) -> Option<Error> {
    IdentityAdapter::new(file, Precision::F32).err().filter(|error| matches!(error, Error::File { .. }))
}

/// Tokens that an auxiliary photo adds in PuLID v1: those of the whole face, without those of the tower's scales.
const AUXILIARY_TOKENS: usize = 5;

/// An identity encoder.
pub(super) enum Encoder {
    /// PuLID v1's: one photo at a time.
    V1(IdEncoder),
    /// PuLID v1.1's: all photos together.
    V1_1(IdFormer),
}

impl Encoder {
    /// The encoder in a PuLID file.
    ///
    /// # Errors
    /// When the file holds none or a broken one.
    pub fn open(adapter: &Path, precision: Precision) -> Result<Encoder> {
        let checkpoint = Checkpoint::open(adapter)?;
        match PulidVersion::of(&checkpoint) {
            Some(PulidVersion::V1) => Ok(Encoder::V1(IdEncoder::new(&checkpoint, precision)?)),
            Some(PulidVersion::V1_1) => Ok(Encoder::V1_1(IdFormer::new(&checkpoint, precision)?)),
            None => Err(not_pulid(&checkpoint).unwrap_or_else(|| {
                Error::file(
                    adapter,
                    "holds no identity encoder: neither PuLID v1's (`id_adapter.body.0.weight`) nor v1.1's \
                 (`id_adapter.latents`); give a PuLID file for SDXL",
                )
            })),
        }
    }

    /// Dimension of the identity condition of a photo.
    pub fn condition_dim(&self) -> usize {
        match self {
            Encoder::V1(encoder) => encoder.condition_dim(),
            Encoder::V1_1(former) => former.condition_dim(),
        }
    }

    /// Tokens of a person in one photo, and their width.
    pub fn output_shape(&self) -> [usize; 2] {
        match self {
            Encoder::V1(encoder) => encoder.output_shape(),
            Encoder::V1_1(former) => former.output_shape(),
        }
    }

    /// Whether so many tokens can be those of a person: v1 adds some for each further photo.
    pub fn gives(&self, count: usize) -> bool {
        let [tokens, _] = self.output_shape();
        match self {
            Encoder::V1(_) => {
                count >= tokens && ((count - tokens).is_multiple_of(AUXILIARY_TOKENS) || count.is_multiple_of(tokens))
            }
            Encoder::V1_1(_) => count == tokens,
        }
    }

    /// Refuses the mix of identities where it means nothing.
    pub fn check_mix(&self, id_mix: bool) -> Result<()> {
        match self {
            Encoder::V1_1(_) if id_mix => {
                let detail = "belongs to PuLID v1; v1.1 reads all photos of a person together, so leave it out";
                Err(Error::invalid("identity mix", detail))
            }
            _ => Ok(()),
        }
    }

    /// Tokens of the person, and unconditional ones: the encoder's answer to zeros.
    ///
    /// As in the official applications. v1: the tokens of the first photo, then of each further one the first five, or all
    /// with `id_mix`; as many unconditional ones. v1.1: one answer to all photos; the unconditional one to a single photo, however
    /// many there are of the person.
    pub async fn tokens(
        &self,
        runtime: &Runtime,
        photos: &[PhotoFeatures],
        id_mix: bool,
        reporter: &dyn Reporter,
    ) -> Result<IdentityTokens> {
        let first = encoder_inputs(photos.get(..1).unwrap_or_default())?;
        let states = first.get("hidden_0").map_or(0, |h| h.shape()[1]);
        match self {
            Encoder::V1(encoder) => {
                let mut network = runtime.load(&encoder.graph(1, states)?, reporter).await?;
                let flat = |inputs| flat_condition(inputs, encoder.condition_dim());
                let uncond = answer(&mut network, &flat(zeros(&first))?, reporter).await?;
                let mut conds = Vec::with_capacity(photos.len());
                for photo in photos {
                    let inputs = flat(encoder_inputs(std::slice::from_ref(photo))?)?;
                    conds.push(answer(&mut network, &inputs, reporter).await?);
                }
                let unconds = vec![uncond; photos.len()];
                let [id_embedding, uncond_id_embedding] = [conds, unconds].map(|each| append_auxiliary(each, id_mix));
                Ok(IdentityTokens { id_embedding: id_embedding?, uncond_id_embedding: uncond_id_embedding? })
            }
            Encoder::V1_1(former) => {
                let inputs = encoder_inputs(photos)?;
                let mut network =
                    runtime.load(&former.graph(1, photos.len(), states * photos.len())?, reporter).await?;
                let id_embedding = answer(&mut network, &inputs, reporter).await?;
                if photos.len() > 1 {
                    network = runtime.load(&former.graph(1, 1, states)?, reporter).await?;
                }
                let uncond_id_embedding = answer(&mut network, &zeros(&first), reporter).await?;
                Ok(IdentityTokens { id_embedding, uncond_id_embedding })
            }
        }
    }
}

type Inputs = HashMap<String, HostTensor>;

fn zeros(inputs: &Inputs) -> Inputs {
    inputs.iter().map(|(name, t)| (name.clone(), HostTensor::zeros(t.shape().clone()))).collect()
}

/// IDEncoder takes one photo's condition as [1, C].
fn flat_condition(mut inputs: Inputs, width: usize) -> Result<Inputs> {
    let condition = take(&mut inputs, "id_cond")?.reshape([1, width])?;
    inputs.insert("id_cond".into(), condition);
    Ok(inputs)
}

async fn answer(network: &mut Loaded, inputs: &Inputs, reporter: &dyn Reporter) -> Result<HostTensor> {
    for (name, value) in inputs {
        network.write(name, value)?;
    }
    take(&mut network.run(reporter).await?, "id_embedding")
}

/// All tokens of the first photo, then those that each further one adds.
fn append_auxiliary(photos: Vec<HostTensor>, id_mix: bool) -> Result<HostTensor> {
    let mut parts = Vec::with_capacity(photos.len());
    for (i, tokens) in photos.into_iter().enumerate() {
        parts.push(if i == 0 || id_mix { tokens } else { leading_tokens(&tokens, AUXILIARY_TOKENS)? });
    }
    join_tokens(&parts.iter().collect::<Vec<_>>())
}

/// The first `count` of the tokens [1, N, E].
fn leading_tokens(tokens: &HostTensor, count: usize) -> Result<HostTensor> {
    let &[1, n, width] = tokens.shape().extents() else {
        return Err(Error::invalid("identity encoder", format!("gave {}, expected [1, N, E]", tokens.shape())));
    };
    let count = count.min(n);
    HostTensor::from_f32([1, count, width], tokens.as_f32()?[..count * width].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_photos_add_five_tokens_or_all() {
        let photo = |start: f32| HostTensor::from_fn([1, 10, 2], move |i| start + (i / 2) as f32);
        let photos = || vec![photo(0.0), photo(100.0), photo(200.0)];
        let firsts = |t: HostTensor| t.as_f32().unwrap().chunks(2).map(|token| token[0]).collect::<Vec<_>>();
        let run = |from: f32, n: usize| (0..n).map(move |i| from + i as f32);
        let expected: Vec<f32> = run(0.0, 10).chain(run(100.0, 5)).chain(run(200.0, 5)).collect();
        assert_eq!(firsts(append_auxiliary(photos(), false).unwrap()), expected);
        let expected: Vec<f32> = run(0.0, 10).chain(run(100.0, 10)).chain(run(200.0, 10)).collect();
        assert_eq!(firsts(append_auxiliary(photos(), true).unwrap()), expected);
        assert_eq!(append_auxiliary(vec![photo(3.0)], false).unwrap(), photo(3.0));
    }
}
