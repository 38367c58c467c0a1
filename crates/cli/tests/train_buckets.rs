//! `pulid train --buckets`: images of different shapes, on the mini models.

mod support;

use image::imageops::replace;
use image::{Rgb, RgbImage};
use pulid_checkpoint::Checkpoint;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::{portrait, refuse, succeed};

/// Square, wide and high images of a person each.
fn data(folder: &Path) {
    let data = folder.join("data");
    fs::create_dir(&data).unwrap();
    for (name, [width, height]) in
        [("ada", [512, 512]), ("ben", [1024, 512]), ("cleo", [1024, 512]), ("dan", [512, 1024]), ("eva", [512, 1024])]
    {
        let face = image::open(portrait(&format!("{name}.jpg"))).unwrap().to_rgb8();
        let mut picture = RgbImage::from_pixel(width, height, Rgb([90, 120, 90]));
        // At the lower right, so that a cut around the middle would lose a part of it.
        replace(&mut picture, &face, i64::from(width - 512), i64::from(height - 512));
        picture.save(data.join(format!("{name}.png"))).unwrap();
    }
}

const PREPARE: [&str; 9] = ["train", "prepare", "--data", "data", "--resolution", "128", "--buckets", "--dtype", "f32"];

#[test]
fn images_keep_their_shapes_and_a_resumed_run_its_bits() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    data(at);
    let said = succeed(at, &[&PREPARE[..], &["--out", "cached"]].concat());
    assert!(said.contains("5 images, 5 of them new; 0 rejected"), "{said}");

    // As diffusers' training of SDXL has it: original height and width, top and left of the cut in the resized image, height and width of
    // the target. 1024 x 512 goes to 192 x 64, of 192 x 96; 512 x 1024 to 64 x 192, of 96 x 192.
    let items = fs::read_to_string(at.join("cached/items.jsonl")).unwrap();
    let mut sizes = BTreeMap::new();
    for line in items.lines() {
        let item: serde_json::Value = serde_json::from_str(line).unwrap();
        let ids: Vec<f64> = item["time_ids"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let &[height, width, top, left, to_height, to_width] = &ids[..] else { panic!("{ids:?}") };
        let expected = match [height, width] {
            [512.0, 512.0] => [128.0, 128.0],
            [512.0, 1024.0] => [64.0, 192.0],
            [1024.0, 512.0] => [192.0, 64.0],
            other => panic!("{other:?}"),
        };
        assert_eq!([to_height, to_width], expected, "{line}");
        let scale = (to_height / height).max(to_width / width);
        assert!(top + to_height <= (height * scale).round() && left + to_width <= (width * scale).round(), "{line}");
        let file = Checkpoint::open(at.join("cached/items").join(item["file"].as_str().unwrap())).unwrap();
        let latents = file.info("latent_mean").unwrap().shape.extents().to_vec();
        assert_eq!([8 * latents[1], 8 * latents[2]].map(|side| side as f64), expected);
        *sizes.entry([to_height as u32, to_width as u32]).or_insert(0) += 1;
    }
    assert_eq!(sizes, BTreeMap::from([([64, 192], 2), ([128, 128], 1), ([192, 64], 2)]));

    let train = ["train", "--data", "cached", "--resolution", "128", "--buckets", "--dtype", "f32", "--batch", "2"];
    let run =
        |out: &str, more: &[&str]| succeed(at, &[&train[..], &["--out", out, "--export-steps", "4"], more].concat());
    run("whole", &["--steps", "4"]);
    run("broken", &["--steps", "2"]);
    succeed(at, &["train", "--resume", "broken", "--steps", "4"]);
    for name in ["adapter-4.safetensors", "state-4/optimizer.safetensors", "steps/4.safetensors"] {
        let bytes = |run: &str| fs::read(at.join(run).join(name)).unwrap();
        assert!(bytes("whole") == bytes("broken"), "{name} differs");
    }
    // An epoch is three steps, a size each.
    let step = |number: u64| Checkpoint::open(at.join(format!("whole/steps/{number}.safetensors"))).unwrap();
    let seen = |number: u64| {
        let (step, batch) = (step(number), 2);
        let latents = step.info("sample").unwrap().shape.extents().to_vec();
        let ids = step.tensor("time_ids").unwrap().to_f32_vec();
        for ids in ids.chunks(6) {
            assert_eq!([ids[4], ids[5]], [8.0 * latents[2] as f32, 8.0 * latents[3] as f32]);
        }
        assert_eq!(ids.len(), 6 * batch);
        [latents[2], latents[3]]
    };
    let mut epoch: Vec<_> = (1..=3).map(seen).collect();
    epoch.sort_unstable();
    assert_eq!(epoch, [[8, 24], [16, 16], [24, 8]]);

    // What each size takes is told.
    let said = succeed(at, &[&train[..], &["--steps", "1", "--dry-run", "--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let parts: Vec<_> =
        report["plan"]["memory"].as_array().unwrap().iter().map(|part| part[0].as_str().unwrap()).collect();
    for size in ["192 x 64", "128 x 128", "64 x 192"] {
        assert!(parts.iter().any(|part| part.starts_with("UNet, values") && part.ends_with(size)), "{size}: {parts:?}");
    }
    assert_eq!(report["plan"]["sizes"], serde_json::json!([[[64, 192], 2], [[128, 128], 1], [[192, 64], 2]]));

    // One-step estimates have the size of their images: so have the networks that look for faces in them.
    let flags = ["--stage", "2", "--id-from", "one-step", "--steps", "1", "--dry-run", "--json"];
    let said = succeed(at, &[&train[..], &flags].concat());
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let plan = &report["plan"];
    let part = |name: &str| {
        let bytes = plan["memory"].as_array().unwrap().iter().find(|part| part[0] == name).map(|part| &part[1]);
        bytes.unwrap_or_else(|| panic!("{name}: {plan}")).as_u64().unwrap()
    };
    let of_size = ["192 x 64", "128 x 128", "64 x 192"].map(|size| {
        ["L_id: VAE's and recogniser's values and gradients", "UNet, values and their gradients"]
            .map(|name| part(&format!("{name} at {size}")))
            .iter()
            .sum::<u64>()
    });
    let all: u64 = plan["memory"].as_array().unwrap().iter().map(|part| part[1].as_u64().unwrap()).sum();
    let others = of_size.iter().sum::<u64>() - of_size.iter().max().unwrap();
    assert_eq!(plan["total"].as_u64().unwrap(), all - others, "{plan}");

    // Squares and buckets are not mixed.
    let squares = ["train", "--data", "cached", "--resolution", "128", "--out", "run", "--steps", "1"];
    assert!(refuse(at, &squares).contains("images of different sizes"));
    let again = ["train", "prepare", "--data", "data", "--resolution", "128", "--dtype", "f32", "--out", "cached"];
    assert!(refuse(at, &again).contains("buckets, not squares"));
    let odd = ["train", "prepare", "--data", "data", "--resolution", "96", "--buckets", "--out", "odd"];
    assert!(refuse(at, &odd).contains("multiple of 64"));
}
