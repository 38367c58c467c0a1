//! Which files of a repository make an SDXL.

use crate::cache::within;
use crate::retry::broken;
use crate::{Client, Repo};
use pulid_tensor::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeSet;

/// Bytes of the longest listing that is read.
const LONGEST: u64 = 16 << 20;

/// Names of weights in the order of preference: halves first, which is what the official applications load.
const WEIGHTS: [&str; 4] = [
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
];

/// Small files beside them.
const SMALL: [&str; 6] =
    ["config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// What the hub says of a repository.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Its files.
    pub files: Vec<String>,
    /// Its licence, as its page names it.
    pub licence: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client<'_> {
    /// The files of a repository at `main`.
    ///
    /// # Errors
    /// As [`Client::fetch`].
    pub fn list(&self, repo: &Repo) -> Result<Listing> {
        let url = format!("{}/api/models/{repo}/revision/main", self.settings.endpoint);
        let text = self.persist(&url, || {
            let mut response = self.get(&url, 0)?;
            self.accept(&response, &url)?;
            response.body_mut().with_config().limit(LONGEST).read_to_vec().map_err(broken)
        })?;
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|e| Error::invalid(&url, format!("the answer is no listing ({e})")))?;
        let files = answer.siblings.into_iter().map(|s| s.rfilename).filter(|name| within(name)).collect();
        let licence = answer.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned);
        Ok(Listing { files, licence })
    }
}

/// The files of an SDXL in diffusers' layout; `with_unet` tells whether the UNet's weights are wanted too.
///
/// # Errors
/// Names the first part that the repository lacks.
pub fn diffusers_files(repo: &Repo, files: &[String], with_unet: bool) -> Result<Vec<String>> {
    let all: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    let mut wanted: Vec<String> = ["model_index.json", "scheduler/scheduler_config.json"].map(String::from).into();
    for part in ["tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae"] {
        wanted.extend(SMALL.map(|name| format!("{part}/{name}")));
        if part.starts_with("tokenizer") || (part == "unet" && !with_unet) {
            continue;
        }
        let Some(weights) = WEIGHTS.iter().map(|n| format!("{part}/{n}")).find(|n| all.contains(n.as_str())) else {
            let detail = format!(
                "has no `{part}/*.safetensors`: it is no SDXL in diffusers' layout. Where the repository holds one file with \
                 the whole model, download that file and name it (--base FILE here, --model FILE in `generate`)"
            );
            return Err(Error::invalid(repo.to_string(), detail));
        };
        wanted.push(weights);
    }
    wanted.retain(|name| all.contains(name.as_str()));
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_each_part_are_chosen_and_nothing_else() {
        let parts = [
            "unet/diffusion_pytorch_model",
            "vae/diffusion_pytorch_model",
            "text_encoder/model",
            "text_encoder_2/model",
        ];
        let mut files: Vec<String> = parts.iter().map(|part| format!("{part}.safetensors")).collect();
        files.extend(
            ["model_index.json", "README.md", "a.safetensors", "unet/config.json", "tokenizer/vocab.json"]
                .map(String::from),
        );
        files.push("unet/diffusion_pytorch_model.fp16.safetensors".into());
        let repo = Repo::known("a/b");
        let chosen = diffusers_files(&repo, &files, true).unwrap();
        let expected = [
            "model_index.json",
            "tokenizer/vocab.json",
            "text_encoder/model.safetensors",
            "text_encoder_2/model.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(chosen, expected);
        assert!(!diffusers_files(&repo, &files, false).unwrap().iter().any(|name| name.starts_with("unet/d")));
        files.retain(|name| !name.starts_with("vae/"));
        assert!(diffusers_files(&repo, &files, true).unwrap_err().to_string().contains("vae"));
    }
}
