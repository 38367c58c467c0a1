//! Whether an identity belongs to an adapter, and photos to one person.

use super::encoder::Encoder;
use crate::pipeline::IdentityTokens;
use pulid_checkpoint::{Checkpoint, sha256_file};
use pulid_models::pulid::{IdentityAdapter, IdentityLayer, content_sha256, unread_tensors};
use pulid_models::{Precision, Unread};
use pulid_tensor::{Error, HostTensor, Result};
use std::path::Path;

/// Characters of a hash that a message shows.
const SHOWN: usize = 12;

/// A cosine of two raw ArcFace embeddings below which they are called two people's, as in insightface's own demonstration
/// (`web-demos/src_recognition/main.py`).
pub const SAME_PERSON: f64 = 0.2;

/// Compares an identity's file with the adapter it is to be used with, and gives a note where another one made it: the tokens of one
/// encoder mean nothing to the attention of another.
///
/// # Errors
/// When the tokens are of a width that the adapter cannot take, or there are of them as many as its encoder never gives; an adapter
/// that cannot be read.
pub fn check_adapter(identity: &Path, tokens: &IdentityTokens, adapter: &Path) -> Result<Option<String>> {
    let file = Checkpoint::open(adapter)?;
    let width = IdentityAdapter::new(&file, Precision::F32)?.id_dim()?;
    let &[_, count, own] = tokens.id_embedding.shape().extents() else { return Ok(None) };
    let metadata = Checkpoint::open(identity)?.metadata().clone();
    let made_with = metadata.get("adapter_sha256");
    let name = metadata.get("adapter").map_or("another adapter", String::as_str);
    let hash = |sha256: &str| sha256.chars().take(SHOWN).collect::<String>();
    let maker = made_with.map_or(String::new(), |sha256| format!(" of {name} (SHA-256 {} ...)", hash(sha256)));
    let advice = "make it again from the photos with this one, or name the other one as `adapter`";
    if own != width {
        let detail = format!(
            "holds tokens{maker} {own} wide, the adapter {} takes tokens {width} wide; {advice}",
            adapter.display()
        );
        return Err(Error::file(identity, detail));
    }
    if let Ok(encoder) = Encoder::open(adapter, Precision::F32)
        && !encoder.gives(count)
    {
        let detail =
            format!("holds {count} tokens{maker}, which the adapter {} never gives; {advice}", adapter.display());
        return Err(Error::file(identity, detail));
    }
    // The same adapter may be saved anew, in another format or under other names; older identities hold the hash of its file alone.
    if let Some(content) = metadata.get("adapter_content_sha256")
        && *content == content_sha256(&file)?
    {
        return Ok(None);
    }
    let Some(made_with) = made_with else { return Ok(None) };
    let sha256 = sha256_file(adapter)?;
    if *made_with == sha256 {
        return Ok(None);
    }
    Ok(Some(format!(
        "{} was made with {name} (SHA-256 {} ...), not with {} (SHA-256 {} ...), to which its tokens may mean nothing; {advice}",
        identity.display(),
        hash(made_with),
        adapter.display(),
        hash(&sha256)
    )))
}

/// The tensors of a PuLID file that have no use; `layers` are those of the UNet that reads the identity, where it is known.
///
/// # Errors
/// When the file cannot be read, or has a tensor under two names.
pub fn unread_of_adapter(adapter: &Path, layers: Option<&[IdentityLayer]>) -> Result<Option<Unread>> {
    let keys = unread_tensors(&Checkpoint::open(adapter)?, layers)?;
    Ok((!keys.is_empty()).then(|| Unread { path: adapter.to_owned(), network: None, keys }))
}

/// A note where photos are of people that the recogniser tells apart; embeddings [1, 512] as it gives them.
pub(super) fn strangers(names: &[&str], embeddings: &[HostTensor]) -> Result<Option<String>> {
    let mut pairs = Vec::new();
    for (second, b) in embeddings.iter().enumerate() {
        for (first, a) in embeddings[..second].iter().enumerate() {
            let cosine = cosine(a.as_f32()?, b.as_f32()?);
            if cosine < SAME_PERSON {
                pairs.push(format!("{} and {} (cosine {cosine:.2})", names[first], names[second]));
            }
        }
    }
    Ok((!pairs.is_empty()).then(|| {
        format!(
            "these photos seem to show different people: {}; a cosine below {SAME_PERSON} is none of one person. Photos of several \
             people are mixed on purpose with `id_mix`",
            pairs.join(", ")
        )
    }))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn photos_of_different_people_are_named_with_their_cosine() {
        let embedding = |x: f32, y: f32| HostTensor::from_f32([1, 2], vec![x, y]).unwrap();
        let (ada, twin, ben) = (embedding(3.0, 0.0), embedding(2.0, 1.0), embedding(0.5, 5.0));
        assert_eq!(strangers(&["a"], std::slice::from_ref(&ada)).unwrap(), None);
        assert_eq!(strangers(&["a", "b"], &[ada.clone(), twin.clone()]).unwrap(), None);
        let note = strangers(&["ada.jpg", "twin.jpg", "ben.jpg"], &[ada, twin, ben]).unwrap().unwrap();
        assert!(note.contains("ada.jpg and ben.jpg (cosine 0.10)") && !note.contains("twin.jpg and"), "{note}");
        assert!(note.contains("`id_mix`"), "{note}");
    }
}
