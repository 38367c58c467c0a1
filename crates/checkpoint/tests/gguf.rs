//! GGUF: files of the `gguf` package, files put together here, and ones that are broken on purpose.

mod support;

use proptest::prelude::*;
use pulid_checkpoint::{BlockType, Checkpoint, ElementType, Format, MemorySource, View};
use pulid_tensor::Shape;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::gguf::{Gguf, number, text};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/gguf").join(name)
}

/// The name says nothing: a file is known by what it begins with.
fn open(bytes: impl Into<Vec<u8>>) -> Result<Checkpoint, String> {
    Checkpoint::from_source(Arc::new(MemorySource::new("w.bin", bytes.into()))).map_err(|e| e.to_string())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_type_is_what_the_package_makes_of_it() {
    for name in ["blocks", "other"] {
        let got = Checkpoint::open(golden(&format!("{name}.gguf"))).unwrap();
        let want = Checkpoint::open(golden(&format!("{name}.values.safetensors"))).unwrap();
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
        for key in want.keys() {
            let (tensor, want) = (got.tensor(key).unwrap(), want.tensor(key).unwrap());
            let info = got.info(key).unwrap();
            assert_eq!((tensor.shape(), tensor.dtype()), (want.shape(), info.dtype), "{key}");
            assert_eq!(bits(&tensor.to_f32_vec()), bits(&want.to_f32_vec()), "{key}");
        }
    }
    let blocks = Checkpoint::open(golden("blocks.gguf")).unwrap();
    for block in BlockType::ALL {
        let info = blocks.info(&format!("{}.weight", block.name().to_lowercase())).unwrap();
        assert_eq!(info.element, ElementType::Ggml(block));
        assert_eq!(info.shape.extents(), [3, 2 * block.elements()], "rows of the matrix come first");
    }
}

#[test]
fn metadata_is_text_and_long_lists_are_cut() {
    let c = Checkpoint::open(golden("other.gguf")).unwrap();
    let values = [
        ("general.architecture", "sdxl"),
        ("general.alignment", "64"),
        ("k.u8", "200"),
        ("k.i8", "-3"),
        ("k.u16", "60000"),
        ("k.i16", "-300"),
        ("k.u32", "4000000000"),
        ("k.i32", "-70000"),
        ("k.f32", "0.5"),
        ("k.bool", "true"),
        ("k.string", "näme"),
        ("k.u64", "1099511627776"),
        ("k.i64", "-1099511627776"),
        ("k.f64", "0.25"),
        ("k.numbers", "[1, -2, 3]"),
    ];
    for (key, value) in values {
        assert_eq!(c.metadata()[key], value, "{key}");
    }
    assert!(c.metadata()["k.texts"].ends_with("t14, t15, ... 40 in all]"), "{}", c.metadata()["k.texts"]);
    assert!(c.metadata()["k.floats"].ends_with("0.5, ... 40 in all]"), "{}", c.metadata()["k.floats"]);
    // What has told a shape is of no more use.
    assert!(c.metadata().keys().all(|key| !key.contains("orig_shape")));
    assert_eq!(c.info("filters.weight").unwrap().shape.extents(), [8, 4, 3, 3]);
}

/// Two rows of two blocks of Q8_0, whose values are a scale of 0.5 times these numbers.
fn q8_0() -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for block in 0..4i32 {
        bytes.extend(0x3800u16.to_le_bytes());
        for i in 0..32 {
            let code = (block * 32 + i - 64) as i8;
            bytes.push(code as u8);
            values.push(f32::from(code) * 0.5);
        }
    }
    (bytes, values)
}

#[test]
fn versions_2_and_3_are_read_and_others_refused() {
    let (bytes, values) = q8_0();
    let file = |version| Gguf { version, ..Gguf::default() }.tensor("w", &[64, 2], 8, &bytes).bytes();
    for version in [2, 3] {
        let c = open(file(version)).unwrap();
        assert_eq!(c.info("w").unwrap().shape.extents(), [2, 64]);
        assert_eq!(c.tensor("w").unwrap().as_f32().unwrap(), values);
    }
    assert!(open(file(1)).unwrap_err().contains("version 1"));
    assert!(open(file(4)).unwrap_err().contains("version 4"));
    assert!(open(file(3u32.swap_bytes())).unwrap_err().contains("big-endian"));
    let folder = tempfile::tempdir().unwrap();
    // A folder's only weights may be one, whatever it is called.
    std::fs::write(folder.path().join("clip_l-q8_0.gguf"), file(3)).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().len(), 1);
    assert_eq!(Format::of(&MemorySource::new("w", file(3))).unwrap().to_string(), "GGUF");
}

#[test]
fn blocks_are_seen_by_rows_and_turned() {
    let (bytes, values) = q8_0();
    let c = open(Gguf::default().tensor("w", &[64, 2], 8, &bytes).bytes()).unwrap();
    assert_eq!(c.rows("w", &[1, 0]).unwrap().as_f32().unwrap(), [&values[64..], &values[..64]].concat());
    let views = [("rows", View::Rows(1..2)), ("turned", View::Transposed)];
    let views = c.remap(|_, _| views.clone().map(|(name, view)| (name.to_owned(), view)).into()).unwrap();
    assert_eq!(views.tensor("rows").unwrap().as_f32().unwrap(), &values[64..]);
    let turned = views.tensor("turned").unwrap();
    assert_eq!(turned.shape().extents(), [64, 2]);
    let want: Vec<f32> = (0..64).flat_map(|k| [values[k], values[64 + k]]).collect();
    assert_eq!(turned.as_f32().unwrap(), want);
    assert_eq!(views.rows("turned", &[3]).unwrap().as_f32().unwrap(), [values[3], values[67]]);
    assert!(views.bytes("turned").unwrap_err().to_string().contains("Q8_0"));
    assert!(c.integers("w").unwrap_err().to_string().contains("integers"));

    // A first shape whose rows end within blocks: nothing of it can be seen alone, but all of it can be read.
    let shape: Vec<u8> = [4i32, 4, 2].iter().flat_map(|n| n.to_le_bytes()).collect();
    let shape = [&5u32.to_le_bytes()[..], &3u64.to_le_bytes(), &shape].concat();
    let file = Gguf::default().value("comfy.gguf.orig_shape.w", 9, &shape).tensor("w", &[32], 8, &bytes[..34]);
    let c = open(file.bytes()).unwrap();
    assert_eq!(c.info("w").unwrap().shape, Shape::from([4, 4, 2]));
    assert_eq!(c.rows("w", &[2]).unwrap().as_f32().unwrap(), &values[16..24]);
    assert!(c.remap(|_, _| vec![("r".into(), View::Rows(0..2))]).is_err());
}

#[test]
fn types_that_are_not_read_are_named() {
    for (number, name) in [(20, "IQ4_NL"), (9, "Q8_1"), (39, "MXFP4"), (35, "TQ2_0"), (1000, "number 1000")] {
        let message = open(Gguf::default().tensor("a.weight", &[256], number, &[0; 256]).bytes()).unwrap_err();
        assert!(message.contains(name) && message.contains("a.weight") && message.contains("Q4_K"), "{message}");
    }
}

#[test]
fn broken_files_are_refused_in_words() {
    let (bytes, _) = q8_0();
    let base = || Gguf::default().tensor("w", &[64, 2], 8, &bytes);
    let aligned =
        |n: u32| Gguf::default().value("general.alignment", 4, &n.to_le_bytes()).tensor("w", &[1], 0, &[0; 4]);
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes(), &[0; 64]].concat();
    let deep = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(20);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGUF".to_vec(), "truncated"),
        (base().bytes()[..20].to_vec(), "truncated"),
        (base().bytes()[..70].to_vec(), "truncated"),
        (
            {
                let b = base().bytes();
                b[..b.len() - 40].to_vec()
            },
            "past the end",
        ),
        (Gguf { tensors_said: Some(u64::MAX), ..base() }.bytes(), "announces 18446744073709551615 tensors"),
        (Gguf { values_said: Some(1 << 60), ..base() }.bytes(), "values of metadata"),
        (base().tensor("w", &[1], 0, &[0; 4]).bytes(), "two tensors `w`"),
        (base().tensor("v", &[33], 8, &[0; 68]).bytes(), "no whole blocks"),
        (base().tensor("v", &[16, 2], 8, &[0; 34]).bytes(), "no whole blocks"),
        (base().tensor("v", &[u64::MAX, u64::MAX], 0, &[]).bytes(), "no whole blocks"),
        (base().tensor_at("v", &[4], 0, 8).bytes(), "no multiple of 32"),
        (base().tensor_at("v", &[4], 0, 0).bytes(), "overlap"),
        (base().tensor_at("v", &[4], 0, u64::MAX - 31).bytes(), "past the end"),
        (base().tensor_at("v", &[1; 9], 0, 0).bytes(), "9 axes"),
        (aligned(3).bytes(), "power of two"),
        (aligned(0).bytes(), "power of two"),
        (base().value("k", 13, &[0; 8]).bytes(), "unknown type 13"),
        (base().value("k", 9, &array(4, 1 << 61)).bytes(), "values of an array"),
        (base().value("k", 9, &array(8, 1 << 40)).bytes(), "values of an array"),
        (base().value("k", 9, &[&deep[..], &array(0, 1)].concat()).bytes(), "nested too deeply"),
        (base().value("k", 8, &(1u64 << 62).to_le_bytes()).bytes(), "truncated"),
        (base().value("k", 4, &number(1)).value("k", 4, &number(2)).bytes(), "twice"),
        (base().value("comfy.gguf.orig_shape.w", 9, &array(4, 16)).bytes(), "original shape"),
        (base().value("comfy.gguf.orig_shape.w", 8, &text("x")).bytes(), "original shape"),
    ];
    for (bytes, expected) in cases {
        let message = open(bytes).unwrap_err();
        assert!(message.contains(expected) && message.contains("w.bin"), "{expected}: {message}");
    }
}

#[test]
fn odd_files_that_break_no_rule_are_read() {
    let empty = open(Gguf::default().bytes()).unwrap();
    assert!(empty.is_empty());
    let c =
        open(Gguf::default().tensor("scalar", &[], 0, &2.5f32.to_le_bytes()).tensor("none", &[0, 3], 0, &[]).bytes());
    let c = c.unwrap();
    assert_eq!(c.tensor("scalar").unwrap().as_f32().unwrap(), [2.5]);
    assert_eq!(c.tensor("none").unwrap().shape().extents(), [3, 0]);
    let long = "x".repeat(200_000);
    let c = open(Gguf::default().value("k", 8, &text(&long)).tensor("w", &[1], 0, &[0; 4]).bytes()).unwrap();
    assert!(c.contains("w") && c.metadata()["k"].len() < 70_000);
}

proptest! {
    #[test]
    fn any_change_of_a_file_is_read_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = std::fs::read(golden("other.gguf")).unwrap();
        for (at, to) in changes {
            let at = at.index(bytes.len().min(1200));
            bytes[at] = to;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let length = bytes.len() as u64;
        if let Ok(c) = open(bytes) {
            for key in c.keys() {
                let info = c.info(key).unwrap();
                prop_assert!(info.element.bytes(&info.shape).unwrap() <= length);
                let _ = c.tensor(key);
                let _ = c.rows(key, &[0]);
            }
        }
    }
}
