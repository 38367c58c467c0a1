//! `tokenizer.json`, in which transformers 5 saves a tokenizer whole.

use super::Merges;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What a file holds of CLIP's tokenizer.
pub(super) struct Contents {
    pub vocab: HashMap<String, u32>,
    pub merges: Merges,
    /// Special tokens, as `tokenizer_config.json` has them.
    pub config: Value,
}

/// From the file's text; what is wrong with it otherwise.
pub(super) fn parse(text: &str) -> Result<Contents, String> {
    let file: Value = pulid_checkpoint::json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
    let model = &file["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" || !model["vocab"].is_object() {
        return Err(format!(
            "holds a tokenizer of the kind {kind}; CLIP's has byte pairs (BPE), a `vocab` and `merges`"
        ));
    }
    if let Some(suffix) = model["end_of_word_suffix"].as_str().filter(|suffix| *suffix != super::WORD_END) {
        return Err(format!("ends words with `{suffix}`; CLIP's tokenizer ends them with `{}`", super::WORD_END));
    }
    let vocab = HashMap::<String, u32>::deserialize(&model["vocab"])
        .map_err(|e| format!("`vocab` is not a map from token to id: {e}"))?;
    let listed = model["merges"].as_array().ok_or("has no list of `merges`")?;
    let merges = listed
        .iter()
        .enumerate()
        .map(|(i, merge)| pair(merge).ok_or_else(|| format!("merge {i}: expected two tokens, found {merge}")));
    Ok(Contents { vocab, merges: merges.collect::<Result<_, _>>()?, config: special_tokens(&file) })
}

/// `"a b"` or `["a", "b"]`.
fn pair(merge: &Value) -> Option<(String, String)> {
    let (a, b) = match merge {
        Value::String(text) => text.split_once(' ')?,
        Value::Array(both) => match both.as_slice() {
            [Value::String(a), Value::String(b)] => (a.as_str(), b.as_str()),
            _ => return None,
        },
        _ => return None,
    };
    let whole = |token: &str| !token.is_empty() && !token.contains(' ');
    (whole(a) && whole(b)).then(|| (a.to_owned(), b.to_owned()))
}

/// Added tokens by id, and the roles that the file's other parts tell: what stands around a text, and what fills a row.
fn special_tokens(file: &Value) -> Value {
    let mut added = Map::new();
    for token in file["added_tokens"].as_array().into_iter().flatten() {
        if let Some(id) = token["id"].as_u64() {
            added.insert(id.to_string(), token.clone());
        }
    }
    json!({
        "added_tokens_decoder": added,
        "bos_token": file["post_processor"]["cls"][0],
        "eos_token": file["post_processor"]["sep"][0],
        "pad_token": file["padding"]["pad_token"],
    })
}
