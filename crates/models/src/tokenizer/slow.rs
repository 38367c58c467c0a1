//! A prompt's tokens as transformers' slow `CLIPTokenizer` makes them where ftfy is installed, as in the official applications.
//!
//! The fast tokenizer and the slow one agree on plain text. The slow one mends the text first ([`fix_text`]), takes special tokens out of
//! it before that, and leaves letters as lower case makes them. Source: transformers 4.57, `tokenization_clip.py` and
//! `tokenization_utils.py`.

use super::ftfy::fix_text;
use super::{BOS, EOS, WORD, byte_order, byte_symbols};
use fancy_regex::Regex;
use pulid_tensor::{Error, Result};
use std::collections::HashMap;
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Model};

/// What the slow tokenizer knows besides the byte pairs.
#[derive(Clone, Debug)]
pub(super) struct Slow {
    words: Regex,
    /// Tokens that stand for themselves wherever they are in a text.
    added: Vec<(AddedToken, u32)>,
    /// The printable stand-in of every byte.
    symbols: HashMap<u8, String>,
}

/// Text between special tokens, or one of them.
#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Added(usize),
}

impl Slow {
    pub(super) fn new(added: Vec<(AddedToken, u32)>) -> Result<Slow> {
        // The pattern is ours, so an error here is a broken build.
        let words = Regex::new(&format!("(?i){WORD}")).map_err(|e| Error::invalid("tokenizer", e.to_string()))?;
        Ok(Slow { words, added, symbols: byte_order().zip(byte_symbols()).collect() })
    }

    /// The ids of a text, without begin, end or padding; `unknown` stands for what the vocabulary lacks.
    pub(super) fn tokens(&self, bpe: &BPE, unknown: u32, text: &str) -> std::result::Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        for piece in self.pieces(text) {
            let text = match piece {
                Piece::Added(token) => {
                    ids.push(self.added[token].1);
                    continue;
                }
                Piece::Text(text) => fix_text(&text),
            };
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
            for word in self.words.find_iter(&text) {
                let word = word.map_err(|e| e.to_string())?.as_str();
                // Only these by name: other special tokens are text by now.
                let special = [BOS, EOS].contains(&word).then(|| bpe.token_to_id(word)).flatten();
                match special {
                    Some(id) => ids.push(id),
                    None => {
                        let symbols: String =
                            word.bytes().filter_map(|b| self.symbols.get(&b)).map(String::as_str).collect();
                        let tokens = bpe.tokenize(&symbols).map_err(|e| e.to_string())?;
                        ids.extend(tokens.iter().map(|token| bpe.token_to_id(&token.value).unwrap_or(unknown)));
                    }
                }
            }
        }
        Ok(ids)
    }

    /// The text cut at special tokens, the longest where several begin at one place, and the spaces beside them that they swallow.
    fn pieces(&self, text: &str) -> Vec<Piece> {
        let mut pieces = vec![Piece::Text(String::new())];
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let found = (0..self.added.len()).filter(|&i| {
                let content = &self.added[i].0.content;
                !content.is_empty() && rest.starts_with(content.as_str())
            });
            match (found.max_by_key(|&i| self.added[i].0.content.len()), pieces.last_mut()) {
                (Some(token), _) => {
                    rest = &rest[self.added[token].0.content.len()..];
                    pieces.extend([Piece::Added(token), Piece::Text(String::new())]);
                }
                (None, Some(Piece::Text(text))) => {
                    text.push(first);
                    rest = &rest[first.len_utf8()..];
                }
                (None, _) => break,
            }
        }
        // Texts lie at even places.
        for at in (1..pieces.len()).step_by(2) {
            let Piece::Added(token) = pieces[at] else { continue };
            let token = &self.added[token].0;
            if token.rstrip
                && let Piece::Text(right) = &mut pieces[at + 1]
            {
                *right = right.trim_start().to_owned();
            }
            if token.lstrip
                && let Piece::Text(left) = &mut pieces[at - 1]
            {
                *left = left.trim_end().to_owned();
            }
            if token.single_word {
                let ends = |piece: &Piece, last: bool| match piece {
                    Piece::Text(text) if last => text.chars().last().is_some_and(|c| c != ' '),
                    Piece::Text(text) => text.chars().next().is_some_and(|c| c != ' '),
                    Piece::Added(_) => false,
                };
                // A part of a word is no word.
                if ends(&pieces[at - 1], true) {
                    if let Piece::Text(left) = &mut pieces[at - 1] {
                        left.push_str(&token.content);
                    }
                    pieces[at] = Piece::Text(String::new());
                } else if ends(&pieces[at + 1], false) {
                    if let Piece::Text(right) = &mut pieces[at + 1] {
                        right.insert_str(0, &token.content);
                    }
                    pieces[at] = Piece::Text(String::new());
                }
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str, change: impl Fn(AddedToken) -> AddedToken) -> Vec<Piece> {
        let token = |content: &str| change(AddedToken::from(content, true));
        let slow = Slow::new(vec![(token("<a>"), 7), (token("<a>b"), 8)]).unwrap();
        slow.pieces(text).into_iter().filter(|p| *p != Piece::Text(String::new())).collect()
    }

    #[test]
    fn special_tokens_are_cut_out_as_their_flags_say() {
        let text = |text: &str| Piece::Text(text.to_owned());
        let plain = |t| t;
        assert_eq!(pieces("x <a> y<a>b", plain), [text("x "), Piece::Added(0), text(" y"), Piece::Added(1)]);
        let strips = |t: AddedToken| t.lstrip(true).rstrip(true);
        assert_eq!(pieces("x <a> y", strips), [text("x"), Piece::Added(0), text("y")]);
        let single = |t: AddedToken| t.single_word(true);
        assert_eq!(pieces("x<a> y <a>", single), [text("x<a>"), text(" y "), Piece::Added(0)]);
    }
}
