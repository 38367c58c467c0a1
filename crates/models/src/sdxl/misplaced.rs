//! Networks of SDXL in each other's place, and of other models in theirs.

use super::{Part, TextEncoder, names};
use crate::family::{VAE_CHANNELS, channels_of_vae};
use pulid_checkpoint::Checkpoint;
use pulid_tensor::{Error, Result};
use std::path::Path;

/// Width of SDXL's first text encoder, CLIP-L.
const FIRST_WIDTH: usize = 768;

/// Width of its second, OpenCLIP-bigG.
const SECOND_WIDTH: usize = 1280;

/// Where a text encoder's tensors may lie.
const WITHIN: [&str; 2] = ["", "text_model."];

/// Which text encoder of SDXL a file alone or a part of a file seems to be; `None` where nothing tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signs {
    /// Width of a token's embedding.
    width: Option<usize>,
    /// Whether it projects its pooled output, as the second does.
    projects: bool,
}

impl Signs {
    fn of(weights: &Checkpoint) -> Signs {
        let tables = ["embeddings.token_embedding.weight", "token_embedding.weight"];
        let table = |prefix: &str| tables.iter().map(move |key| format!("{prefix}{key}")).collect::<Vec<_>>();
        let keys = WITHIN.into_iter().flat_map(table);
        let width = keys.into_iter().find_map(|key| weights.info(&key).ok()?.shape.get(1).copied());
        let projections = ["text_projection.weight", "text_projection"];
        let projects =
            WITHIN.iter().any(|prefix| projections.iter().any(|key| weights.contains(&format!("{prefix}{key}"))));
        Signs { width, projects }
    }

    /// The encoder that this is by itself: CLIP-L is published with a projection too, so that its width tells it.
    fn alone(self) -> Option<TextEncoder> {
        match self.width {
            Some(FIRST_WIDTH) => Some(TextEncoder::First),
            Some(SECOND_WIDTH) => Some(TextEncoder::Second),
            _ => None,
        }
    }
}

/// A text encoder alone in its file or folder, or a whole file's part, without what its names begin with.
fn bare(which: TextEncoder, file: &Checkpoint) -> Checkpoint {
    names::find(file, names::text_encoder(which), names::is_text_encoder).unwrap_or_else(|| file.clone())
}

/// Refuses one text encoder in the place of the other. `weights` is the file in the place of `which` and `other` gives the one in the other's
/// place, which is looked at where the first is not what it should be; `place` says where each lies.
///
/// # Errors
/// Says which of the two each is, and what to exchange.
pub(super) fn refuse_swapped(
    which: TextEncoder,
    weights: &Checkpoint,
    other: impl FnOnce() -> Result<Checkpoint>,
    place: impl Fn(TextEncoder) -> String,
) -> Result<()> {
    let second = which.other();
    let signs = Signs::of(&bare(which, weights));
    let odd = match signs.alone() {
        Some(found) => found != which,
        // Of other sizes the projection alone tells, and only beside an encoder without one.
        None => signs.projects == (which == TextEncoder::First),
    };
    if !odd {
        return Ok(());
    }
    let others = other().ok().map(|file| Signs::of(&bare(second, &file))).filter(|signs| signs.width.is_some());
    let exchanged = others.is_some_and(|others| match (signs.alone(), others.alone()) {
        (Some(_), Some(found)) => found == which,
        _ => others.projects == (which == TextEncoder::Second) && others.projects != signs.projects,
    });
    let what = |which| match which {
        TextEncoder::First => "the first text encoder (CLIP-L, `CLIPTextModel`)",
        TextEncoder::Second => "the second text encoder (OpenCLIP-bigG, `CLIPTextModelWithProjection`)",
    };
    let here = place(which);
    if exchanged {
        let detail = format!(
            "SDXL's two text encoders are swapped: in {here} lies {}, in {} {}; exchange the two, each with its config.json where it has one",
            what(second),
            place(second),
            what(which)
        );
        return Err(Error::file(weights.name(), detail));
    }
    if signs.alone().is_none() {
        // What is missing is said by whoever reads it.
        return Ok(());
    }
    let detail = format!("in {here} lies {} of SDXL, where {} belongs", what(second), what(which));
    Err(Error::file(weights.name(), detail))
}

/// Refuses the VAE of another model, by diffusers' names.
///
/// # Errors
/// Says whose it seems to be.
pub(super) fn refuse_other_vae(path: &Path, weights: &Checkpoint) -> Result<()> {
    match weights.info("decoder.conv_in.weight").ok().and_then(|info| info.shape.get(1).copied()) {
        Some(channels) if channels != VAE_CHANNELS => {
            let detail =
                format!("its {} has {}; take a model with SDXL's own", Part::Vae.name(), channels_of_vae(channels));
            Err(Error::file(path, detail))
        }
        _ => Ok(()),
    }
}
