//! Each image of a batch can be made again alone, from what its file says.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{program, refuse};

const GENERATE: [&str; 9] =
    ["generate", "--prompt", "a person, in a garden", "--steps", "2", "--seed", "5", "--autotune", "off"];

/// Runs what must succeed on the reference, where the size of a batch does not change how a sum is rounded.
fn make(folder: &Path, flags: &[&str]) -> Value {
    let arguments = [&GENERATE[..], &["--json", "--device", "reference"], flags].concat();
    let output = program(folder, &arguments).output().unwrap();
    assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn pixels(folder: &Path, name: &str) -> Vec<u8> {
    image::open(folder.join(name)).unwrap().to_rgb8().into_raw()
}

/// The `parameters` chunk of a PNG file.
fn parameters(folder: &Path, name: &str) -> String {
    let bytes = std::fs::read(folder.join(name)).unwrap();
    let at = bytes.windows(11).position(|w| w == b"parameters\0").unwrap();
    let length = u32::from_be_bytes(bytes[at - 8..at - 4].try_into().unwrap()) as usize;
    String::from_utf8(bytes[at + 11..at + length].to_vec()).unwrap()
}

#[test]
fn an_image_of_a_batch_is_made_again_alone() {
    let folder = tempfile::tempdir().unwrap();
    // 3 x 3 latents: PyTorch draws the last numbers of such a batch a second time.
    for (sampler, size) in [("euler", "32"), ("dpmpp_sde", "32"), ("dpmpp_sde", "24")] {
        let common = ["--sampler", sampler, "--width", size, "--height", size];
        let report = make(folder.path(), &[&common[..], &["--batch", "3", "--output", "all.png"]].concat());
        let mut texts = Vec::new();
        for index in 0..3 {
            let (name, position) = (format!("all-{index}.png"), index.to_string());
            let text = parameters(folder.path(), &name);
            assert!(text.contains("Seed: 5, "), "{text}");
            assert!(text.contains(&format!("Batch size: 3, Batch pos: {index}")), "{text}");
            assert_eq!(report["images"][index]["parameters"], text);
            assert_eq!(report["images"][index]["file"], name);
            let alone = ["--batch", "3", "--batch-index", &position, "--output", "one.png"];
            let one = make(folder.path(), &[&common[..], &alone].concat());
            assert_eq!(one["files"], serde_json::json!(["one.png"]));
            assert_eq!(parameters(folder.path(), "one.png"), text);
            assert!(pixels(folder.path(), "one.png") == pixels(folder.path(), &name), "{sampler} {size}: {index}");
            texts.push(text);
        }
        assert_eq!(report["parameters"], texts[0]);
        // Without the batch's size it is one that ends there.
        make(folder.path(), &[&common[..], &["--batch-index", "2", "--output", "last.png"]].concat());
        assert!(pixels(folder.path(), "last.png") == pixels(folder.path(), "all-2.png"));
        assert!(pixels(folder.path(), "all-0.png") != pixels(folder.path(), "all-2.png"));
        make(folder.path(), &[&common[..], &["--batch-index", "0", "--output", "first.png"]].concat());
        make(folder.path(), &[&common[..], &["--output", "single.png"]].concat());
        assert!(pixels(folder.path(), "first.png") == pixels(folder.path(), "single.png"));
        assert!(!parameters(folder.path(), "single.png").contains("Batch"));
    }
}

#[test]
fn a_position_that_a_batch_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, part) in [
        (
            &["--batch", "3", "--batch-index", "3"][..],
            "--batch-index: 3 is no image of the `--batch`, which are counted from 0 to 2",
        ),
        (&["--batch-index", "64"], "a whole number from 0 to 63"),
        (&["--batch-index", "-1"], "a whole number from 0 to 63"),
    ] {
        let generate = ["generate", "--prompt", "x", "--output", "x.png"];
        let message = refuse(folder.path(), &[&generate[..], flags].concat());
        assert!(message.contains(part), "{message}");
    }
}
