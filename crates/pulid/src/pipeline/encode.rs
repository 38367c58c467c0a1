//! The prompt, as the UNet takes it.

use super::rows::{join_last_axis, split_rows};
use super::{GenerateOptions, LongPrompt, Pipeline, take};
use crate::runtime::Reporter;
use pulid_models::sdxl::{SdxlModel, TextEncoder};
use pulid_models::{ClipTokenizer, TokenizerKind};
use pulid_tensor::{Error, HostTensor, Result};

/// Chunks of a prompt up to which an image is made: some 2,000 words, far beyond what a picture follows, at 64 times the cost of the
/// UNet's reading.
pub(super) const MOST_CHUNKS: usize = 64;

/// What both text encoders make of one prompt.
#[derive(Clone, Debug)]
pub struct TextConditioning {
    /// [1, 77, D] of each chunk of the prompt: the encoders' hidden states side by side. The UNet reads chunk after chunk.
    pub chunks: Vec<HostTensor>,
    /// [1, P], the second encoder's pooled output for the first chunk.
    pub pooled: HostTensor,
}

impl TextConditioning {
    /// Zeros in the place of this.
    pub fn zeros(&self) -> TextConditioning {
        let zeros = |t: &HostTensor| HostTensor::zeros(t.shape().clone());
        TextConditioning { chunks: self.chunks.iter().map(zeros).collect(), pooled: zeros(&self.pooled) }
    }
}

/// A text to encode, and what messages call it.
pub(super) type Named<'a> = (&'static str, &'a str);

/// The texts that are encoded for an image: the prompt, and what the unconditional pass reads where that is not zeros.
pub(super) fn texts<'a>(model: &SdxlModel, options: &'a GenerateOptions) -> Result<Vec<Named<'a>>> {
    let mut texts = vec![("prompt", options.prompt.as_str())];
    if options.is_guided() {
        match &options.negative_prompt {
            Some(text) => texts.push(("negative_prompt", text)),
            // PuLID's own pipelines encode an empty one.
            None if options.entering().is_some() || !model.zeros_for_no_prompt()? => {
                texts.push(("negative_prompt", ""))
            }
            None => {}
        }
    }
    Ok(texts)
}

/// The model's tokenizers.
///
/// # Errors
/// When their files are malformed, or they give rows of different lengths.
pub(super) fn tokenizers(model: &SdxlModel) -> Result<[ClipTokenizer; 2]> {
    // As the official applications read a prompt.
    let [first, second] = TextEncoder::BOTH.map(|which| model.tokenizer(which)?.with_kind(TokenizerKind::Slow));
    let (first, second) = (first?, second?);
    if first.length() != second.length() {
        let detail =
            format!("give rows of {} and {} tokens; the UNet reads them side by side", first.length(), second.length());
        return Err(Error::file(model.path(), format!("its tokenizers {detail}")));
    }
    Ok([first, second])
}

/// Texts as rows of ids.
pub(super) struct Tokenized {
    /// The rows of each tokenizer, for each text its chunks, of which all texts have equally many.
    rows: [Vec<Vec<Vec<u32>>>; 2],
    /// Chunks of each text.
    pub chunks: usize,
    /// Ids in a row.
    pub length: usize,
    /// What was cut of each text that was, with the text's name.
    cut: Vec<(&'static str, String)>,
}

/// Cuts texts into rows.
///
/// # Errors
/// A text that takes more than [`MOST_CHUNKS`].
pub(super) fn tokenize(tokenizers: &[ClipTokenizer; 2], texts: &[Named<'_>], long: LongPrompt) -> Result<Tokenized> {
    let length = tokenizers[0].length();
    let fits = length - 2;
    let mut cut: Vec<(&'static str, String)> = Vec::new();
    let mut chunks = 1;
    let mut tokens = [Vec::new(), Vec::new()];
    for (tokenizer, tokens) in tokenizers.iter().zip(&mut tokens) {
        for &(name, text) in texts {
            let found = tokenizer.tokens(text)?;
            let takes = found.len().div_ceil(fits);
            match long {
                LongPrompt::Cut if takes > 1 && cut.iter().all(|(seen, _)| *seen != name) => {
                    cut.push((name, tokenizer.decode(&found[fits..])));
                }
                LongPrompt::Cut => {}
                LongPrompt::Chunks if takes > MOST_CHUNKS => {
                    let detail = format!(
                        "takes {} tokens, which are {takes} chunks of {fits}; at most {MOST_CHUNKS} chunks are read. Shorten it, or let \
                         `long_prompt` be cut",
                        found.len()
                    );
                    return Err(Error::invalid(name, detail));
                }
                LongPrompt::Chunks => chunks = chunks.max(takes),
            }
            tokens.push(found);
        }
    }
    let mut rows = [Vec::new(), Vec::new()];
    for ((tokenizer, tokens), rows) in tokenizers.iter().zip(&tokens).zip(&mut rows) {
        for tokens in tokens {
            let chunk = |i: usize| tokenizer.row(tokens.get(i * fits..).unwrap_or_default());
            rows.push((0..chunks).map(chunk).collect());
        }
    }
    Ok(Tokenized { rows, chunks, length, cut })
}

impl Pipeline {
    /// What the text encoders make of each prompt, in chunks ([`LongPrompt::Chunks`]); all have as many as the longest. Those of one place
    /// run as one batch.
    ///
    /// # Errors
    /// A prompt of more than 64 chunks, unreadable tokenizers or weights, a lost device, cancellation, NaN.
    pub async fn encode(&self, prompts: &[&str], reporter: &dyn Reporter) -> Result<Vec<TextConditioning>> {
        let texts: Vec<Named> = prompts.iter().map(|text| ("prompt", *text)).collect();
        self.encode_texts(&texts, LongPrompt::Chunks, reporter).await
    }

    /// The texts of an image; a note for each that is cut.
    pub(super) async fn encode_texts(
        &self,
        texts: &[Named<'_>],
        long: LongPrompt,
        reporter: &dyn Reporter,
    ) -> Result<Vec<TextConditioning>> {
        reporter.stage("reading the prompt");
        let Tokenized { rows, chunks, length, cut } = tokenize(self.tokenizers()?, texts, long)?;
        for (name, text) in cut {
            reporter.note(&note(name, length - 2, &text));
        }
        // [encoder][chunk]: hidden states [texts, 77, D] side by side in the end.
        let mut hidden = Vec::new();
        let mut pooled = None;
        for (which, rows) in TextEncoder::BOTH.into_iter().zip(&rows) {
            let encoder = self.model().text_encoder(which, self.precision)?;
            let mut loaded = self.runtime().load(&encoder.graph(texts.len(), length)?, reporter).await?;
            let mut states = Vec::new();
            for chunk in 0..chunks {
                // The unconditional prompt's rows come first wherever both are a batch.
                let ids: Vec<u32> = rows.iter().rev().flat_map(|chunks| &chunks[chunk]).copied().collect();
                for (name, tensor) in encoder.inputs(&HostTensor::from_u32([texts.len(), length], ids)?)? {
                    loaded.write(name, &tensor)?;
                }
                let mut outputs = loaded.run(reporter).await?;
                states.push(take(&mut outputs, "hidden_states")?);
                if chunk == 0 {
                    pooled = Some(take(&mut outputs, "pooled")?);
                }
            }
            hidden.push(states);
        }
        let pooled = pooled.ok_or_else(|| Error::invalid("text encoders", "there are none"))?;
        let mut made: Vec<_> =
            split_rows(&pooled)?.into_iter().map(|pooled| TextConditioning { chunks: Vec::new(), pooled }).collect();
        for chunk in 0..chunks {
            let both: Vec<_> = hidden.iter().map(|states| states[chunk].clone()).collect();
            for (text, hidden) in made.iter_mut().zip(split_rows(&join_last_axis(&both)?)?) {
                text.chunks.push(hidden);
            }
        }
        made.reverse();
        Ok(made)
    }
}

/// What is said of a text that was cut: all of what was cut, or its beginning.
fn note(name: &str, fits: usize, cut: &str) -> String {
    const SHOWN: usize = 300;
    let shown: String = cut.chars().take(SHOWN).collect();
    let more = if shown.len() < cut.len() { " ..." } else { "" };
    format!("{}: only its first {fits} tokens are read, without \"{shown}{more}\"", name.replace('_', " "))
}
