//! ftfy's `fix_text` with its default settings: what transformers' slow `CLIPTokenizer` does to a prompt first where ftfy is installed.
//!
//! Curly quotes become straight, ligatures and wide letters plain, `&amp;` an ampersand, `Ã©` an é again, control characters and
//! terminal colours go, and what is left is put into Unicode's NFC. Source: ftfy 6.3.1 (Apache-2.0), whose tables lie in
//! `data/ftfy.json`, as `tests/goldens/tokenizer/ftfy_tables.py` wrote them. Left out is what cannot be in Rust's text: lone surrogates.

use fancy_regex::Regex;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;
use unicode_normalization::UnicodeNormalization;

/// Characters that are looked at together at most where there are no line breaks.
const SEGMENT: usize = 1_000_000;

/// Mojibake within mojibake that is looked for at most; each level has been encoded wrongly once more.
const DEPTH: usize = 32;

/// The bytes that U+FFFD is written as in the lossy encodings.
const REPLACEMENT: &str = "\u{ef}\u{bf}\u{bd}";

#[derive(Deserialize)]
struct Tables {
    encodings: Vec<(String, String)>,
    entities: HashMap<String, String>,
    charrefs: HashMap<u32, String>,
    no_charrefs: Vec<u32>,
    ligatures: HashMap<char, String>,
    widths: HashMap<char, String>,
    controls: String,
    single_quotes: String,
    double_quotes: String,
    entity: String,
    terminal: String,
    badness: String,
    utf8: String,
    altered_utf8: String,
    a_grave: String,
    lossy_utf8: String,
}

/// A way in which bytes were taken for characters.
struct Encoding {
    name: String,
    bytes: HashMap<char, u8>,
}

impl Encoding {
    /// The text's bytes, each as the character of its number; `None` where it cannot be in this encoding.
    fn encode(&self, text: &str) -> Option<String> {
        text.chars().map(|c| self.bytes.get(&c).map(|&byte| char::from(byte))).collect()
    }
}

struct Ftfy {
    tables: Tables,
    encodings: Vec<Encoding>,
    windows_1252: Vec<char>,
    single_quotes: Regex,
    double_quotes: Regex,
    entity: Regex,
    terminal: Regex,
    badness: Regex,
    utf8: Regex,
    altered_utf8: Regex,
    a_grave: Regex,
    lossy_utf8: Regex,
}

/// The tables are built in, and a test reads them; without them texts stay as they are.
static FTFY: LazyLock<Option<Ftfy>> = LazyLock::new(|| Ftfy::read(include_str!("../../data/ftfy.json")));

/// `ftfy.fix_text(text)`.
pub(crate) fn fix_text(text: &str) -> String {
    let Some(ftfy) = FTFY.as_ref() else { return text.to_owned() };
    let mut fixed = String::with_capacity(text.len());
    // Text with a `<` may be HTML, whose entities are meant; and so may all after it.
    let mut entities = true;
    let mut rest = text;
    while !rest.is_empty() {
        let line = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let most = rest.char_indices().nth(SEGMENT).map_or(rest.len(), |(at, _)| at);
        let (segment, after) = rest.split_at(line.min(most));
        entities &= !segment.contains('<');
        fixed += &ftfy.fix_segment(segment, entities);
        rest = after;
    }
    fixed
}

impl Ftfy {
    fn read(text: &str) -> Option<Ftfy> {
        let tables: Tables = serde_json::from_str(text).ok()?;
        let encoding = |(name, characters): &(String, String)| Encoding {
            name: name.clone(),
            bytes: characters.chars().zip(0..=255).collect(),
        };
        let pattern = |text: &String| Regex::new(text).ok();
        Some(Ftfy {
            encodings: tables.encodings.iter().map(encoding).collect(),
            windows_1252: tables.encodings.iter().find(|(name, _)| name.ends_with("1252"))?.1.chars().collect(),
            single_quotes: pattern(&tables.single_quotes)?,
            double_quotes: pattern(&tables.double_quotes)?,
            entity: pattern(&tables.entity)?,
            terminal: pattern(&tables.terminal)?,
            badness: pattern(&tables.badness)?,
            utf8: pattern(&tables.utf8)?,
            altered_utf8: pattern(&tables.altered_utf8)?,
            a_grave: pattern(&tables.a_grave)?,
            lossy_utf8: pattern(&tables.lossy_utf8)?,
            tables,
        })
    }

    /// Every fix, again and again until none has an effect.
    fn fix_segment(&self, text: &str, entities: bool) -> String {
        let mut text = text.to_owned();
        loop {
            let mut fixed = if entities { self.unescape_html(&text) } else { text.clone() };
            fixed = self.fix_encoding(fixed, 0);
            fixed = self.fix_c1_controls(&fixed);
            fixed = translate(&fixed, &self.tables.ligatures);
            fixed = translate(&fixed, &self.tables.widths);
            fixed = replace(&self.double_quotes, &fixed, |_| "\"".into());
            fixed = replace(&self.single_quotes, &fixed, |_| "'".into());
            fixed = fixed.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
            fixed = replace(&self.terminal, &fixed, |_| String::new());
            fixed.retain(|c| !self.tables.controls.contains(c));
            fixed = fixed.nfc().collect();
            if fixed == text {
                return text;
            }
            text = fixed;
        }
    }

    fn unescape_html(&self, text: &str) -> String {
        if !text.contains('&') {
            return text.to_owned();
        }
        replace(&self.entity, text, |entity| match self.tables.entities.get(entity) {
            Some(character) => character.clone(),
            // What would leave a semicolon was decoded in part.
            None => self.character_reference(entity).filter(|c| !c.contains(';')).unwrap_or_else(|| entity.to_owned()),
        })
    }

    /// What `&#233;` or `&#xe9;` stands for in HTML 5.
    fn character_reference(&self, entity: &str) -> Option<String> {
        let number = entity.strip_prefix("&#")?.strip_suffix(';')?;
        let (digits, radix) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16),
            None => (number, 10),
        };
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        // Whatever is too large for a number is too large for a character.
        let code = u32::from_str_radix(digits, radix).unwrap_or(u32::MAX);
        Some(match self.tables.charrefs.get(&code) {
            Some(character) => character.clone(),
            None => match char::from_u32(code) {
                None => "\u{fffd}".to_owned(),
                Some(_) if self.tables.no_charrefs.contains(&code) => String::new(),
                Some(character) => character.to_string(),
            },
        })
    }

    fn is_bad(&self, text: &str) -> bool {
        self.badness.is_match(text).unwrap_or(false)
    }

    /// Undoes mojibake, as many times over as it was made.
    fn fix_encoding(&self, text: String, depth: usize) -> String {
        let mut text = text;
        for _ in depth..DEPTH {
            let fixed = self.fix_encoding_once(&text, depth);
            if fixed == text {
                break;
            }
            text = fixed.into_owned();
        }
        text
    }

    fn fix_encoding_once<'a>(&self, text: &'a str, depth: usize) -> Cow<'a, str> {
        if text.is_ascii() || !self.is_bad(text) {
            return text.into();
        }
        for encoding in &self.encodings {
            let Some(mut bytes) = encoding.encode(text) else { continue };
            // A space stands where a no-break space was taken for one; in Mac Roman that would be a dash.
            if encoding.name != "macroman" && self.altered_utf8.is_match(&bytes).unwrap_or(false) {
                bytes = replace(&self.a_grave, &bytes, |_| "\u{c3}\u{a0} ".into());
                bytes = replace(&self.altered_utf8, &bytes, |found| found.replace(' ', "\u{a0}"));
            }
            if encoding.name.starts_with("sloppy") {
                bytes = replace(&self.lossy_utf8, &bytes, |_| REPLACEMENT.into());
            }
            if let Some(decoded) = decode_utf8(&bytes) {
                return decoded.into();
            }
        }
        let found = replace(&self.utf8, text, |part| match part.len() < text.len() && self.is_bad(part) {
            true => self.fix_encoding(part.to_owned(), depth + 1),
            false => part.to_owned(),
        });
        if found != text {
            return found.into();
        }
        // ftfy reads Latin-1 as Windows-1252 here where that has all of its characters, which is how these differ.
        self.fix_c1_controls(text).into()
    }

    /// Control characters that nobody uses, as the characters that Windows-1252 has in their places.
    fn fix_c1_controls(&self, text: &str) -> String {
        let fix = |c: char| match c {
            '\u{80}'..='\u{9f}' => self.windows_1252.get(c as usize).copied().unwrap_or(c),
            other => other,
        };
        text.chars().map(fix).collect()
    }
}

/// Every match replaced. A text on which the pattern gives up stays as it is.
fn replace(pattern: &Regex, text: &str, with: impl Fn(&str) -> String) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut at = 0;
    for found in pattern.find_iter(text) {
        let Ok(found) = found else { return text.to_owned() };
        replaced += &text[at..found.start()];
        replaced += &with(found.as_str());
        at = found.end();
    }
    replaced + &text[at..]
}

fn translate(text: &str, table: &HashMap<char, String>) -> String {
    let mut translated = String::with_capacity(text.len());
    for c in text.chars() {
        match table.get(&c) {
            Some(other) => translated += other,
            None => translated.push(c),
        }
    }
    translated
}

/// Bytes, each the character of its number, as UTF-8 or one of its variants: CESU-8, in which a character beyond U+FFFF is two surrogates,
/// and Java's, in which U+0000 takes two bytes.
fn decode_utf8(bytes: &str) -> Option<String> {
    let bytes: Vec<u8> = bytes.chars().map(|c| u8::try_from(u32::from(c))).collect::<Result<_, _>>().ok()?;
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes.as_slice();
    while let Some((&first, after)) = rest.split_first() {
        rest = match *rest {
            [0xc0, 0x80, ref after @ ..] => {
                plain.push(0);
                after
            }
            [0xed, a @ 0xa0..=0xaf, b @ 0x80..=0xbf, 0xed, c @ 0xb0..=0xbf, d @ 0x80..=0xbf, ref after @ ..] => {
                let bits = |byte: u8, mask: u8| u32::from(byte & mask);
                let code = (bits(a, 0x0f) << 16) + (bits(b, 0x3f) << 10) + (bits(c, 0x0f) << 6) + bits(d, 0x3f);
                let mut buffer = [0; 4];
                plain.extend(char::from_u32(code + 0x10000)?.encode_utf8(&mut buffer).bytes());
                after
            }
            _ => {
                plain.push(first);
                after
            }
        };
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples in ftfy's own documentation.
    #[test]
    fn texts_are_fixed_as_ftfy_says() {
        for (text, fixed) in [
            ("âœ” No problems", "✔ No problems"),
            ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
            ("Broken text&hellip; it&#x2019;s ﬂubberiﬁc!", "Broken text… it's flubberific!"),
            ("ＬＯＵＤ　ＮＯＩＳＥＳ", "LOUD NOISES"),
            ("\u{201c}here\u{2019}s a test\u{201d}", "\"here's a test\""),
            ("P&EACUTE;REZ &nTILDE; &lt", "PÉREZ &nTILDE; &lt"),
            ("<p>&amp;\n&amp;", "<p>&amp;\n&amp;"),
            ("&amp;\n<p>", "&\n<p>"),
            ("\u{1b}[36;44mI'm blue\u{1b}[0m", "I'm blue"),
            ("&#59; &#x0; &#99999999999999999999; &#12ab;", "&#59; \u{fffd} \u{fffd} &#12ab;"),
            ("voilÃ le travail", "voilà le travail"),
            ("here comes a null!\u{0}", "here comes a null!"),
            ("", ""),
        ] {
            assert_eq!(fix_text(text), fixed, "{text:?}");
        }
    }

    #[test]
    fn variants_of_utf_8_are_read() {
        let text = |bytes: &[u8]| decode_utf8(&bytes.iter().copied().map(char::from).collect::<String>());
        assert_eq!(text(b"\xed\xa0\xbd\xed\xb8\x8d").as_deref(), Some("😍"));
        assert_eq!(text(b"a\xc0\x80").as_deref(), Some("a\0"));
        assert_eq!(text(b"\xed\xa0\xbd"), None);
        assert_eq!(text(b"\xe1\xc0\x80"), None);
    }
}
