//! What prompts, negative prompts and guidance do to an image, as a person meets them; the numbers are held to diffusers' by
//! `tests/goldens/prompts`.

mod support;

use std::path::Path;
use support::{portrait, pulid, refuse, repository, succeed};

const GENERATE: [&str; 9] = ["generate", "--steps", "2", "--width", "64", "--height", "64", "--seed", "3"];

/// A picture's pixels, and what the program said meanwhile.
fn make(folder: &Path, flags: &[&str]) -> (Vec<u8>, String) {
    let output = pulid(folder, &[&GENERATE[..], &["--output", "x.png"], flags].concat());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{flags:?}: {log}");
    (image::open(folder.join("x.png")).unwrap().to_rgb8().into_raw(), log)
}

fn pixels(folder: &Path, flags: &[&str]) -> Vec<u8> {
    make(folder, flags).0
}

/// As many words as tokens.
fn words(count: usize) -> String {
    "a person in the garden ".repeat(count.div_ceil(5)).split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

#[test]
fn guidance_up_to_one_is_none_and_loses_no_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let at = |guidance: &str, prompt: &str| pixels(folder.path(), &["--prompt", prompt, "--guidance", guidance]);
    let none = at("1", "a person at the beach");
    for guidance in ["0", "0.5", "0.999"] {
        assert!(at(guidance, "a person at the beach") == none, "{guidance}");
    }
    assert!(at("0", "an oil painting") != none, "the prompt counts");
    assert!(at("1.01", "a person at the beach") != none);
}

#[test]
fn numbers_that_make_gray_pictures_are_refused_with_words() {
    let folder = tempfile::tempdir().unwrap();
    for (flag, values, range) in [
        ("--guidance", &["1e30", "-1", "100.5", "inf", "nan"][..], "a number from 0 to 100"),
        ("--id-scale", &["1e9", "-6", "inf"], "a number from -5 to 5"),
        ("--steps", &["0", "1000000", "99999999999999999999999"], "steps"),
        ("--num-zero", &["1000000"], "a whole number from 0 to 4096"),
    ] {
        for value in values {
            let flags = ["generate", "--prompt", "x", "--output", "x.png", flag, value];
            let message = refuse(folder.path(), &flags);
            assert!(message.contains(range), "{flag} {value}: {message}");
        }
    }
}

/// The mini model without its defaults, which name an empty negative prompt; `index` is its `model_index.json`.
fn bare_model(folder: &Path, index: Option<&str>) {
    let model = folder.join("bare");
    std::fs::create_dir_all(&model).unwrap();
    for part in ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"] {
        let to = model.join(part);
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(repository("models/mini/sdxl").join(part)).unwrap() {
            let from = entry.unwrap().path();
            let to = to.join(from.file_name().unwrap());
            if !to.exists() {
                std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop)).unwrap();
            }
        }
    }
    let path = model.join("model_index.json");
    match index {
        Some(text) => std::fs::write(path, text).unwrap(),
        None => drop(std::fs::remove_file(path)),
    }
}

#[test]
fn no_negative_prompt_is_zeros_where_the_model_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let bare = ["--model", "bare", "--prompt", "a person at the beach", "--guidance", "4"];
    let mut images = Vec::new();
    for index in [
        Some(r#"{"force_zeros_for_empty_prompt": true}"#),
        Some("{}"),
        None,
        Some(r#"{"force_zeros_for_empty_prompt": false}"#),
        Some(r#"{"force_zeros_for_empty_prompt": null}"#),
    ] {
        bare_model(folder.path(), index);
        images.push(pixels(folder.path(), &bare));
        let empty = pixels(folder.path(), &[&bare[..], &["--negative-prompt", ""]].concat());
        assert_eq!(empty == images[images.len() - 1], images.len() > 3, "{index:?}");
    }
    assert!(images[0] == images[1] && images[0] == images[2] && images[3] == images[4] && images[0] != images[3]);

    // PuLID's pipelines encode an empty one, unless no identity enters after all.
    bare_model(folder.path(), None);
    let tokens = repository("tests/goldens/identity/one-photo/outputs.safetensors").to_string_lossy().into_owned();
    let person = [&bare[..], &["--identity", &tokens]].concat();
    let with = pixels(folder.path(), &person);
    assert!(with == pixels(folder.path(), &[&person[..], &["--negative-prompt", ""]].concat()));
    assert!(pixels(folder.path(), &[&person[..], &["--id-scale", "0"]].concat()) == images[0]);

    bare_model(folder.path(), Some(r#"{"force_zeros_for_empty_prompt": "yes"}"#));
    let message = refuse(folder.path(), &[&GENERATE[..], &bare, &["--output", "y.png"]].concat());
    assert!(message.contains("model_index.json") && message.contains("true or false"), "{message}");
}

#[test]
fn words_beyond_the_first_chunk_count() {
    let folder = tempfile::tempdir().unwrap();
    let long = words(75) + " oil painting at night";
    let (image, log) = make(folder.path(), &["--prompt", &long]);
    assert!(!log.contains("tokens are read"), "{log}");
    assert!(image != pixels(folder.path(), &["--prompt", &words(75)]));
    assert!(image != pixels(folder.path(), &["--prompt", &(words(75) + " sketch in the snow")]));
    // A longer negative prompt makes chunks of both.
    let negative = pixels(folder.path(), &["--prompt", "a man", "--negative-prompt", &long]);
    assert!(negative != pixels(folder.path(), &["--prompt", "a man", "--negative-prompt", &words(75)]));
    // With a person, and where memory is counted ahead.
    let person = ["--prompt", &long, "--id", &portrait("ada.jpg"), "--memory", "2GiB"];
    assert!(pixels(folder.path(), &person) != image);
}

#[test]
fn what_is_cut_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let long = words(75) + " Oil painting, at night";
    let cut = ["--prompt", &long, "--long-prompt", "cut"];
    let (image, log) = make(folder.path(), &cut);
    assert!(log.contains("prompt: only its first 75 tokens are read, without \"oil painting , at night\""), "{log}");
    assert!(image == pixels(folder.path(), &["--prompt", &words(75)]));
    let (_, log) = make(folder.path(), &["--prompt", "a man", "--negative-prompt", &long, "--long-prompt", "cut"]);
    assert!(log.contains("negative prompt: only its first 75 tokens"), "{log}");
    // The official applications cut; a person may still ask for all.
    let size = ["--width", "64", "--height", "64", "--steps", "1", "--preset", "v1.1-base", "--prompt", &long];
    for (own, said) in [(&[][..], true), (&["--long-prompt", "chunks"], false)] {
        let output = pulid(folder.path(), &[&["generate"], &size[..], own].concat());
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && log.contains("tokens are read") == said, "{own:?}: {log}");
    }
    let (_, log) = make(folder.path(), &["--prompt", &words(75), "--long-prompt", "cut"]);
    assert!(!log.contains("tokens are read"), "{log}");
}

#[test]
fn more_chunks_than_any_picture_follows_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for flag in ["--prompt", "--negative-prompt"] {
        let long = words(64 * 75 + 1);
        let mut flags = [&GENERATE[..], &["--output", "x.png", flag, &long]].concat();
        if flag != "--prompt" {
            flags.extend(["--prompt", "a man"]);
        }
        let message = refuse(folder.path(), &flags);
        let said = "takes 4801 tokens, which are 65 chunks of 75; at most 64 chunks are read. Shorten it, or let `--long-prompt` be cut";
        assert!(message.contains(said), "{message}");
        assert!(message.contains(flag), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let printed = succeed(
        folder.path(),
        &[&GENERATE[..], &["--output", "x.png", "--long-prompt", "cut", "--prompt", &words(5000)]].concat(),
    );
    assert_eq!(printed, "x.png\n");
}
