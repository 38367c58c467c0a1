//! CLIP's tokenizer against transformers' two, and against itself from each of the files it is saved in.

use pulid_models::run::{Prepared, RunOptions, Tensors, prepare};
use pulid_models::{ClipTokenizer, Padding, TokenizerKind};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(path)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// `tests/goldens/tokenizer/slow.json`: a key that is missing there is the first one's.
#[test]
fn both_kinds_give_transformers_ids() {
    let cases = json_of(&golden("tokenizer/slow.json"));
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 500);
    let mut wrong = Vec::new();
    let mut differ = 0;
    for (padding, pad) in [(Padding::EndOfText, "end_of_text"), (Padding::Exclamation, "exclamation")] {
        for (kind, name) in [(TokenizerKind::Slow, "slow"), (TokenizerKind::Fast, "fast")] {
            let tokenizer = ClipTokenizer::published(padding).unwrap().with_kind(kind).unwrap();
            for case in cases {
                let text = case["text"].as_str().unwrap();
                let own = &case[format!("{name}_{pad}")];
                differ += usize::from(!own.is_null() && name == "fast");
                let expected = ids(if own.is_null() { &case["slow_end_of_text"] } else { own });
                let found = tokenizer.tokens(text).unwrap();
                if found != expected {
                    let (found, expected) = (tokenizer.decode(&found), tokenizer.decode(&expected));
                    wrong.push(format!("{name} {pad}: {text:?} is {found:?}, expected {expected:?}"));
                }
            }
        }
    }
    assert!(differ > 200, "the kinds differ: {differ}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Which of the two a person gets: the fast one from `pulid run`, as its goldens have it, unless they say otherwise.
#[test]
fn run_takes_either_kind() {
    let row = |text: &str, kind: Option<&str>| -> Result<Tensors, String> {
        let mut options = RunOptions::new(golden("tokenizer/weights/clip-l"));
        options.settings.insert("text".into(), text.into());
        options.settings.extend(kind.map(|kind| ("tokenizer".to_owned(), kind.to_owned())));
        match prepare("tokenizer", &options, &Tensors::new()).map_err(|e| e.to_string())? {
            Prepared::Done(ids) => Ok(ids),
            Prepared::Graph(_) => Err("a graph".into()),
        }
    };
    let curly = "it\u{2019}s a man";
    assert_eq!(row(curly, Some("slow")), row("it's a man", None));
    assert_eq!(row(curly, Some("fast")), row(curly, None));
    assert_ne!(row(curly, Some("fast")), row(curly, Some("slow")));
    let message = row(curly, Some("quick")).unwrap_err();
    assert!(message.contains("--set tokenizer") && message.contains("fast and slow"), "{message}");
}

/// A `tokenizer.json` of the published vocabulary, as transformers 5 and 4 write it.
fn whole(pad: &str, pairs: bool) -> Value {
    let files = ClipTokenizer::published_files(Padding::EndOfText).unwrap();
    let vocab: Value = serde_json::from_str(&files[0].1).unwrap();
    let merges = files[1].1.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    let merges: Vec<Value> =
        merges.map(|line| if pairs { json!(line.split(' ').collect::<Vec<_>>()) } else { json!(line) }).collect();
    let token = |content: &str, normalized: bool| {
        json!({"id": vocab[content], "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": true})
    };
    let mut added = vec![token("<|startoftext|>", true), token("<|endoftext|>", true)];
    if pad == "!" {
        added.insert(0, token("!", false));
    }
    json!({"version": "1.0", "truncation": null, "padding": {"pad_id": vocab[pad], "pad_token": pad}, "added_tokens": added,
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", 49407], "cls": ["<|startoftext|>", 49406]},
        "model": {"type": "BPE", "unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges}})
}

#[test]
fn a_whole_tokenizer_in_one_file_gives_the_same_ids() {
    let folder = tempfile::tempdir().unwrap();
    for (padding, pad) in [(Padding::EndOfText, "<|endoftext|>"), (Padding::Exclamation, "!")] {
        let published = ClipTokenizer::published(padding).unwrap();
        for pairs in [false, true] {
            let mut file = whole(pad, pairs);
            // The roles come from the config, or where there is none from the file itself.
            for config in
                [None, Some(json!({"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad}))]
            {
                std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
                let path = folder.path().join("tokenizer_config.json");
                match &config {
                    Some(config) => {
                        file["padding"] = Value::Null;
                        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
                        std::fs::write(path, config.to_string()).unwrap();
                    }
                    None => drop(std::fs::remove_file(path)),
                }
                for kind in [TokenizerKind::Fast, TokenizerKind::Slow] {
                    let own = ClipTokenizer::open(folder.path(), Padding::EndOfText).unwrap().with_kind(kind).unwrap();
                    let published = published.clone().with_kind(kind).unwrap();
                    for text in ["", "A caf\u{e9}, it\u{2019}s  nice!", "a <|endoftext|> b", "\u{6771}\u{4eac} 1999"] {
                        assert_eq!(own.encode(text).unwrap(), published.encode(text).unwrap(), "{pad} {pairs} {text}");
                    }
                }
            }
        }
    }
    // What fills a row is said nowhere: the row is the published one of the encoder it is for.
    for (padding, pad) in [(Padding::EndOfText, "<|endoftext|>"), (Padding::Exclamation, "!")] {
        let mut file = whole(pad, true);
        file["padding"] = Value::Null;
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        drop(std::fs::remove_file(folder.path().join("tokenizer_config.json")));
        let (own, published) =
            (ClipTokenizer::open(folder.path(), padding).unwrap(), ClipTokenizer::published(padding).unwrap());
        for text in ["", "A caf\u{e9}, nice!", "!!! wow"] {
            assert_eq!(own.encode(text).unwrap(), published.encode(text).unwrap(), "{pad} {text}");
        }
    }
    // As transformers 5 saved the small one, which is held to its answers with the config that lies beside.
    let saved = golden("tokenizer/weights/saved-bigg");
    std::fs::copy(saved.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let [whole, alone] =
        [saved.as_path(), folder.path()].map(|path| ClipTokenizer::open(path, Padding::Exclamation).unwrap());
    assert_eq!(alone.encode("wow!").unwrap(), whole.encode("wow!").unwrap());
    assert_eq!(alone.encode("wow!").unwrap().last(), Some(&0));
    // Both files where they are: as before.
    for (name, text) in ClipTokenizer::published_files(Padding::EndOfText).unwrap() {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer.json"), "no JSON").unwrap();
    assert!(ClipTokenizer::open(folder.path(), Padding::EndOfText).is_ok());
}

#[test]
fn files_that_are_no_tokenizer_of_clip_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = || ClipTokenizer::open(folder.path(), Padding::EndOfText).unwrap_err().to_string();
    assert!(refusal().contains("has neither vocab.json and merges.txt nor tokenizer.json"), "{}", refusal());
    let with = |pointer: &str, value: Value| {
        let mut file = json!({"added_tokens": [], "model": {"type": "BPE", "end_of_word_suffix": "</w>",
            "vocab": {"a": 0, "b": 1, "ab</w>": 2, "b</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}, "merges": [["a", "b</w>"]]}});
        *file.pointer_mut(pointer).unwrap() = value;
        file.to_string()
    };
    std::fs::write(folder.path().join("tokenizer.json"), with("/added_tokens", json!([]))).unwrap();
    assert_eq!(ClipTokenizer::open(folder.path(), Padding::EndOfText).unwrap().tokens("AB").unwrap(), [2]);
    for (text, part) in [
        ("{".to_owned(), "is not JSON"),
        ("[]".to_owned(), "byte pairs"),
        (with("/model/type", json!("Unigram")), "of the kind Unigram"),
        (with("/model/end_of_word_suffix", json!("@@")), "ends words with `@@`"),
        (with("/model/vocab", json!({"a": "b"})), "not a map from token to id"),
        (with("/model/merges", json!("a b")), "no list of `merges`"),
        (with("/model/merges", json!(["a b c"])), "merge 0"),
        (with("/model/merges", json!([["a"]])), "merge 0"),
        (with("/model/merges", json!([["a", "c"]])), "`ac` is not in the vocabulary"),
        (with("/model/vocab", json!({"a": 0})), "tokenizer.json"),
    ] {
        std::fs::write(folder.path().join("tokenizer.json"), &text).unwrap();
        assert!(refusal().contains(part) && refusal().contains("tokenizer.json"), "{part}: {}", refusal());
    }
    // Half of the older pair is a mistake, not a reason to look elsewhere.
    std::fs::write(folder.path().join("vocab.json"), "{}").unwrap();
    assert!(refusal().contains("merges.txt"), "{}", refusal());
}
