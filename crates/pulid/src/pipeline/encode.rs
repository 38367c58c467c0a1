//! The prompt, as the UNet takes it.

use super::rows::{join_last_axis, split_rows};
use super::{Pipeline, take};
use crate::runtime::Reporter;
use pulid_models::sdxl::TextEncoder;
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::HashMap;

/// Tokens that the text encoders take at once, beginning and end included.
pub(super) const CHUNK: usize = 77;

/// What both text encoders make of one prompt.
#[derive(Clone, Debug)]
pub struct TextConditioning {
    /// [1, 77, D] of each chunk of the prompt: the encoders' hidden states side by side. The UNet reads chunk after chunk.
    pub chunks: Vec<HostTensor>,
    /// [1, P], the second encoder's pooled output for the first chunk.
    pub pooled: HostTensor,
}

impl Pipeline {
    /// What the text encoders make of each prompt; all run as one batch. A prompt is one chunk: what exceeds it is cut.
    ///
    /// # Errors
    /// Unreadable tokenizers or weights, a lost device, cancellation, NaN.
    pub async fn encode(&self, prompts: &[&str], reporter: &dyn Reporter) -> Result<Vec<TextConditioning>> {
        reporter.stage("reading the prompt");
        // The unconditional prompt's rows come first wherever both are a batch.
        let rows: Vec<&str> = prompts.iter().rev().copied().collect();
        let mut hidden = Vec::new();
        let mut pooled = None;
        for which in TextEncoder::BOTH {
            let tokenizer = self.model().tokenizer(which)?;
            let encoder = self.model().text_encoder(which, self.precision)?;
            let mut ids = Vec::new();
            for text in &rows {
                ids.extend(tokenizer.encode(text)?);
            }
            let ids = HostTensor::from_u32([rows.len(), ids.len() / rows.len().max(1)], ids)?;
            let inputs: HashMap<_, _> = encoder.inputs(&ids)?.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
            let graph = encoder.graph(rows.len(), ids.shape()[1])?;
            let mut outputs = self.runtime().run(&graph, &inputs, reporter).await?;
            hidden.push(take(&mut outputs, "hidden_states")?);
            pooled = Some(take(&mut outputs, "pooled")?);
        }
        let pooled = pooled.ok_or_else(|| Error::invalid("text encoders", "there are none"))?;
        let both = split_rows(&join_last_axis(&hidden)?)?.into_iter().zip(split_rows(&pooled)?);
        Ok(both.rev().map(|(hidden, pooled)| TextConditioning { chunks: vec![hidden], pooled }).collect())
    }
}
