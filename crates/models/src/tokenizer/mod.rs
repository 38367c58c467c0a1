//! CLIP's byte-pair tokenizer from `vocab.json` and `merges.txt` or from `tokenizer.json`, with the ids that transformers'
//! `CLIPTokenizer` gives, the fast one's or the slow one's.

mod ftfy;
mod saved;
mod slow;

use self::slow::Slow;
use pulid_checkpoint::{files, json};
use pulid_tensor::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::str::FromStr;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, ModelWrapper, SplitDelimiterBehavior, Tokenizer};

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";
const WORD_END: &str = "</w>";

/// The merges of CLIP's vocabulary, the earliest first.
const CLIP_MERGES: &str = include_str!("../../data/clip_merges.txt");

/// What messages call CLIP's own vocabulary.
const BUILT_IN: &str = "the built-in CLIP vocabulary";

/// Positions of CLIP's text encoders, used where the tokenizer's files do not say.
const LENGTH: usize = 77;

/// Words as CLIP cuts them before the byte pairs are merged: special tokens, English contractions, runs of letters,
/// single digits, runs of anything else.
const WORD: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Pairs of tokens that become one, the earliest first.
type Merges = Vec<(String, String)>;

/// The texts of a `tokenizer/` folder.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerFiles<'a> {
    /// The folder, for messages.
    pub name: &'a str,
    /// `vocab.json`: token to id.
    pub vocab: &'a str,
    /// `merges.txt`: one merge a line, the earliest first.
    pub merges: &'a str,
    /// `tokenizer_config.json`: special tokens, length.
    pub config: Option<&'a str>,
    /// `special_tokens_map.json`: special tokens where the config names none.
    pub special_tokens_map: Option<&'a str>,
}

/// What fills a row after the text, in CLIP's own tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// The end of the text, as for OpenAI's encoder.
    EndOfText,
    /// `!`, id 0, as for OpenCLIP's.
    Exclamation,
}

/// Whose ids a tokenizer gives. They differ where the slow one mends a text: curly quotes, ligatures, wide letters, HTML entities,
/// characters in the wrong encoding, control characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerKind {
    /// transformers' fast tokenizer, the only one since its version 5.
    #[default]
    Fast,
    /// transformers' slow one with ftfy, which diffusers takes for SDXL in the official applications.
    Slow,
}

impl FromStr for TokenizerKind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "fast" => Ok(TokenizerKind::Fast),
            "slow" => Ok(TokenizerKind::Slow),
            other => {
                Err(Error::invalid("tokenizer", format!("`{other}` is no kind of tokenizer; there are fast and slow")))
            }
        }
    }
}

/// Turns a prompt into a row of token ids.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    /// Tokens that are taken out of a text whole.
    added: Vec<(AddedToken, u32)>,
    slow: Option<Slow>,
    unk: u32,
    name: String,
    bos: u32,
    eos: u32,
    pad: u32,
    length: usize,
}

impl ClipTokenizer {
    /// Reads a `tokenizer/` folder: `vocab.json` and `merges.txt`, or else `tokenizer.json`, which is all that transformers 5 saves.
    /// `padding` is what fills a row where the folder does not say: a `tokenizer.json` alone does not.
    ///
    /// # Errors
    /// When these are missing or malformed.
    pub fn open(folder: impl AsRef<Path>, padding: Padding) -> Result<Self> {
        let folder = folder.as_ref();
        let read = |file: &str| files::read_to_string(folder.join(file));
        let optional = |file: &str| if files::is_file(folder.join(file)) { read(file).map(Some) } else { Ok(None) };
        let (config, map) = (optional("tokenizer_config.json")?, optional("special_tokens_map.json")?);
        let name = folder.display().to_string();
        let pair = ["vocab.json", "merges.txt"].map(|file| files::is_file(folder.join(file)));
        if !pair.contains(&true) {
            let Some(text) = optional("tokenizer.json")? else {
                let detail = "has neither vocab.json and merges.txt nor tokenizer.json; a tokenizer needs either";
                return Err(Error::file(folder, detail));
            };
            return Self::from_json(&name, &text, config.as_deref(), map.as_deref(), padding);
        }
        let (vocab, merges) = (read("vocab.json")?, read("merges.txt")?);
        let (config, special_tokens_map) = (config.as_deref(), map.as_deref());
        let files = TokenizerFiles { name: &name, vocab: &vocab, merges: &merges, config, special_tokens_map };
        Self::new(files, padding)
    }

    /// A tokenizer from the text of a `tokenizer.json`, and of the files of [`TokenizerFiles`] that may lie beside it.
    ///
    /// # Errors
    /// When a file is malformed, is another kind of tokenizer, or a merge or special token is not in the vocabulary.
    pub fn from_json(
        name: &str,
        text: &str,
        config: Option<&str>,
        special_tokens_map: Option<&str>,
        padding: Padding,
    ) -> Result<Self> {
        let file = |part: &str| format!("{name}/{part}");
        let contents = saved::parse(text).map_err(|e| Error::file(file("tokenizer.json"), e))?;
        let mut config = parse_object(config).map_err(|e| Error::file(file("tokenizer_config.json"), e))?;
        let mut map = parse_object(special_tokens_map).map_err(|e| Error::file(file("special_tokens_map.json"), e))?;
        // What the file itself says counts last.
        for key in ["added_tokens_decoder", "bos_token", "eos_token", "pad_token"] {
            let known = |value: &Value| !value[key].is_null();
            if !known(&config) && !known(&map) && known(&contents.config) {
                let holder = if config.is_object() { &mut config } else { &mut map };
                if holder.is_null() {
                    *holder = Value::Object(serde_json::Map::new());
                }
                if let Some(entries) = holder.as_object_mut() {
                    entries.insert(key.to_owned(), contents.config[key].clone());
                }
            }
        }
        Self::build(name, ["tokenizer.json"; 2], contents.vocab, contents.merges, [&config, &map], padding)
    }

    /// A tokenizer from the texts of its files; `padding` is what fills a row where they do not say.
    ///
    /// # Errors
    /// When a file is malformed, or a merge or special token is not in the vocabulary.
    pub fn new(files: TokenizerFiles<'_>, padding: Padding) -> Result<Self> {
        let file = |name: &str| format!("{}/{name}", files.name);
        let vocab: HashMap<String, u32> = json::from_str(files.vocab)
            .map_err(|e| Error::file(file("vocab.json"), format!("is not a map from token to id: {e}")))?;
        let merges = parse_merges(files.merges).map_err(|e| Error::file(file("merges.txt"), e))?;
        let config = parse_object(files.config).map_err(|e| Error::file(file("tokenizer_config.json"), e))?;
        let map =
            parse_object(files.special_tokens_map).map_err(|e| Error::file(file("special_tokens_map.json"), e))?;
        Self::build(files.name, ["vocab.json", "merges.txt"], vocab, merges, [&config, &map], padding)
    }

    /// CLIP's own tokenizer, which every published SDXL has.
    ///
    /// # Errors
    /// Never with the vocabulary that is built in.
    pub fn published(padding: Padding) -> Result<Self> {
        let (vocab, merges, config) = published_parts(padding)?;
        Self::build(BUILT_IN, ["vocab.json", "merges.txt"], vocab, merges, [&config, &Value::Null], padding)
    }

    /// The files of CLIP's own tokenizer, by their names in a `tokenizer/` folder.
    ///
    /// # Errors
    /// As [`ClipTokenizer::published`].
    pub fn published_files(padding: Padding) -> Result<[(&'static str, String); 3]> {
        let (vocab, _, config) = published_parts(padding)?;
        // In order, so that the same file is written every time.
        let vocab = serde_json::to_string(&vocab.into_iter().collect::<BTreeMap<_, _>>());
        let vocab = vocab.map_err(|e| Error::invalid(BUILT_IN, e.to_string()))?;
        Ok([
            ("vocab.json", vocab),
            ("merges.txt", CLIP_MERGES.to_owned()),
            ("tokenizer_config.json", config.to_string()),
        ])
    }

    fn build(
        name: &str,
        [vocab_file, merges_file]: [&str; 2],
        mut vocab: HashMap<String, u32>,
        merges: Merges,
        [config, map]: [&Value; 2],
        padding: Padding,
    ) -> Result<Self> {
        let file = |part: &str| format!("{name}/{part}");
        for (token, id) in added_tokens(config).chain(added_tokens(map)) {
            vocab.entry(token.content.clone()).or_insert(id);
        }
        // The library takes it for granted that what is merged is no longer than the longest token.
        for (a, b) in &merges {
            let merged = format!("{a}{b}");
            if !vocab.contains_key(&merged) {
                let detail = format!("merges `{a}` and `{b}`, but `{merged}` is not in the vocabulary");
                return Err(Error::file(file(merges_file), detail));
            }
        }
        let special = |role: &str, default: &str| special_token(config, map, role, default);
        let tokens = [special("bos_token", BOS), special("eos_token", EOS), special("unk_token", EOS)];
        let usual = match padding {
            Padding::Exclamation if vocab.contains_key("!") => "!",
            Padding::Exclamation | Padding::EndOfText => EOS,
        };
        let pad = special("pad_token", usual);
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .unk_token(tokens[2].content.clone())
            .end_of_word_suffix(WORD_END.to_owned())
            .build()
            .map_err(|e| Error::file(file(merges_file), format!("does not fit the vocabulary: {e}")))?;

        let mut tokenizer = Tokenizer::new(bpe);
        // The patterns are ours, so an error here is a broken build and not a broken file.
        let broken = |e| Error::invalid("tokenizer", format!("{e}"));
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ").map_err(broken)?;
        let normalizers = Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
        tokenizer.with_normalizer(Some(normalizers)).map_err(broken)?;
        let words = SplitPattern::Regex(WORD.to_owned());
        let split = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(broken)?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![split.into(), bytes.into()])));

        let id = |token: &AddedToken| {
            tokenizer
                .token_to_id(&token.content)
                .ok_or_else(|| Error::file(file(vocab_file), format!("lacks the special token `{}`", token.content)))
        };
        let (bos, eos, pad_id) = (id(&tokens[0])?, id(&tokens[1])?, id(&pad)?);
        // An unknown token that is not there stands for nothing: transformers gives none either.
        let unk = tokenizer.token_to_id(&tokens[2].content).unwrap_or(eos);
        let mut added: Vec<AddedToken> = tokens.into_iter().chain([pad]).collect();
        let others = added_tokens(config).chain(added_tokens(map)).map(|(token, _)| token);
        added.extend(others.filter(|t| !t.content.is_empty()));
        tokenizer.add_special_tokens(added.clone()).map_err(broken)?;
        let mut by_content = HashMap::new();
        for token in added {
            if let Some(id) = tokenizer.token_to_id(&token.content) {
                by_content.entry(token.content.clone()).or_insert((token, id));
            }
        }
        let added = by_content.into_values().collect();
        // transformers writes 1e30 for "no limit".
        let length = config.get("model_max_length").and_then(Value::as_u64).map_or(LENGTH, |n| n as usize);
        if !(2..=4096).contains(&length) {
            let detail = format!("model_max_length is {length}; 2 to 4096 positions are accepted");
            return Err(Error::file(file("tokenizer_config.json"), detail));
        }
        Ok(ClipTokenizer { tokenizer, added, slow: None, unk, name: name.to_owned(), bos, eos, pad: pad_id, length })
    }

    /// The same tokenizer with the ids of transformers' slow or fast one; at first they are the fast one's.
    ///
    /// # Errors
    /// Never.
    pub fn with_kind(self, kind: TokenizerKind) -> Result<Self> {
        let slow = match kind {
            TokenizerKind::Fast => None,
            TokenizerKind::Slow => Some(Slow::new(self.added.clone())?),
        };
        Ok(ClipTokenizer { slow, ..self })
    }

    /// Number of ids in a row, 77 for CLIP.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Id of the token that ends a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The ids of a text alone, as many as it takes: no begin, end or padding. More than [`ClipTokenizer::length`] - 2
    /// of them do not fit a row.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let failed = |e: String| Error::invalid("prompt", format!("{} cannot take it: {e}", self.name));
        if let (Some(slow), ModelWrapper::BPE(bpe)) = (&self.slow, self.tokenizer.get_model()) {
            return slow.tokens(bpe, self.unk, text).map_err(failed);
        }
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| failed(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A text as a row of ids: begin, the text (cut where it is too long), end, padding.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.row(&self.tokens(text)?))
    }

    /// Tokens of a text as a row of ids: begin, as many tokens as fit, end, padding.
    pub fn row(&self, tokens: &[u32]) -> Vec<u32> {
        let mut row = vec![self.bos];
        row.extend(tokens.iter().take(self.length - 2));
        row.push(self.eos);
        row.resize(self.length, self.pad);
        row
    }

    /// The text that tokens stand for, as it was read: in lower case, words apart.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: HashMap<String, u8> = byte_symbols().into_iter().zip(byte_order()).collect();
        let mut text = Vec::new();
        for token in tokens.iter().filter_map(|&id| self.tokenizer.id_to_token(id)) {
            let (symbols, end) = token.strip_suffix(WORD_END).map_or((token.as_str(), ""), |word| (word, " "));
            for symbol in symbols.chars() {
                let mut buffer = [0; 4];
                let symbol: &str = symbol.encode_utf8(&mut buffer);
                match bytes.get(symbol) {
                    Some(&byte) => text.push(byte),
                    None => text.extend(symbol.bytes()),
                }
            }
            text.extend(end.bytes());
        }
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }
}

fn is_printable(byte: &u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The 256 bytes in the order of CLIP's vocabulary: first those that are printable themselves.
fn byte_order() -> impl Iterator<Item = u8> {
    (0..=255u8).filter(is_printable).chain((0..=255u8).filter(|byte| !is_printable(byte)))
}

/// Printable stand-ins for the bytes, in the same order.
fn byte_symbols() -> Vec<String> {
    let themselves = (0..=255u8).filter(is_printable).map(char::from);
    let others = (0..=255u8).filter(|byte| !is_printable(byte)).count() as u32;
    let stand_ins = (256..256 + others).filter_map(char::from_u32);
    themselves.chain(stand_ins).map(String::from).collect()
}

/// Vocabulary, merges and special tokens of CLIP's own tokenizer.
fn published_parts(padding: Padding) -> Result<(HashMap<String, u32>, Merges, Value)> {
    let merges = parse_merges(CLIP_MERGES).map_err(|e| Error::file(BUILT_IN, e))?;
    // As CLIP numbers them: bytes, bytes that end a word, what each merge gives, special tokens.
    let bytes = byte_symbols();
    let ends = bytes.iter().map(|symbol| format!("{symbol}{WORD_END}"));
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let specials = [BOS, EOS].map(str::to_owned);
    let tokens = bytes.iter().cloned().chain(ends).chain(merged).chain(specials);
    let vocab = tokens.zip(0..).collect();
    let plain = |token: &str| serde_json::json!({"content": token, "normalized": true});
    let mut config = serde_json::json!({"bos_token": plain(BOS), "eos_token": plain(EOS), "unk_token": plain(EOS)});
    config["pad_token"] = match padding {
        Padding::EndOfText => plain(EOS),
        Padding::Exclamation => serde_json::json!({"content": "!", "normalized": false}),
    };
    Ok((vocab, merges, config))
}

fn parse_merges(text: &str) -> std::result::Result<Merges, String> {
    // Other lines may begin with `#`: it is a token like any other.
    let lines =
        text.lines().enumerate().filter(|(i, line)| !(line.is_empty() || *i == 0 && line.starts_with("#version")));
    lines
        .map(|(i, line)| match line.split_once(' ') {
            Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok((a.to_owned(), b.to_owned())),
            _ => Err(format!("line {}: expected two tokens and a space between, found `{line}`", i + 1)),
        })
        .collect()
}

fn parse_object(text: Option<&str>) -> std::result::Result<Value, String> {
    match text {
        None => Ok(Value::Null),
        Some(text) => json::from_str(text).map_err(|e| format!("is not JSON: {e}")),
    }
}

/// The tokens that a config lists by their ids.
fn added_tokens(config: &Value) -> impl Iterator<Item = (AddedToken, u32)> {
    let listed = config["added_tokens_decoder"].as_object().into_iter().flatten();
    listed.filter_map(|(id, token)| {
        let flag = |name: &str| token[name].as_bool().unwrap_or(false);
        let added = AddedToken::from(token["content"].as_str()?, flag("special"))
            .normalized(flag("normalized"))
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip"));
        Some((added, id.parse().ok()?))
    })
}

/// The special token of a role: from the config (a string or an object), else from the map, else `default`. A role
/// given as a string takes its flags from the config's `added_tokens_decoder`.
fn special_token(config: &Value, map: &Value, role: &str, default: &str) -> AddedToken {
    let entry = [config, map].into_iter().map(|v| &v[role]).find(|v| v.is_string() || v["content"].is_string());
    let content = entry.and_then(|v| v.as_str().or(v["content"].as_str())).unwrap_or(default);
    let listed = config["added_tokens_decoder"].as_object().into_iter().flat_map(|tokens| tokens.values());
    let flags = listed.chain(entry).find(|v| v["content"].as_str() == Some(content)).unwrap_or(&Value::Null);
    let flag = |name: &str| flags[name].as_bool().unwrap_or(false);
    AddedToken::from(content, true)
        .normalized(flag("normalized"))
        .single_word(flag("single_word"))
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(vocab: &'static str, merges: &'static str) -> TokenizerFiles<'static> {
        TokenizerFiles { name: "tokenizer", vocab, merges, config: None, special_tokens_map: None }
    }

    const VOCAB: &str = r#"{"a":0,"b":1,"a</w>":2,"b</w>":3,"ab</w>":4,"<|startoftext|>":5,"<|endoftext|>":6}"#;

    #[test]
    fn merges_cuts_and_pads() {
        let tokenizer = ClipTokenizer::new(files(VOCAB, "#version: 0.2\na b</w>\n"), Padding::EndOfText).unwrap();
        assert_eq!(tokenizer.tokens("AB  a").unwrap(), [4, 2]);
        let row = tokenizer.encode("ab ".repeat(100).as_str()).unwrap();
        assert_eq!((row.len(), row[0], row[1], row[75], row[76]), (77, 5, 4, 4, 6));
        assert_eq!(tokenizer.encode("").unwrap()[..3], [5, 6, 6]);
    }

    #[test]
    fn malformed_files_are_named() {
        for (bad, file) in [
            (files("[1]", "a b"), "vocab.json"),
            (files(VOCAB, "a b c"), "merges.txt"),
            (files(VOCAB, "a c"), "merges.txt"),
            (files(r#"{"a":0}"#, ""), "vocab.json"),
        ] {
            let error = ClipTokenizer::new(bad, Padding::EndOfText).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
        let config = TokenizerFiles { config: Some(r#"{"model_max_length": 1}"#), ..files(VOCAB, "a b</w>") };
        assert!(ClipTokenizer::new(config, Padding::EndOfText).unwrap_err().to_string().contains("model_max_length"));
    }
}
