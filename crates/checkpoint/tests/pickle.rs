//! PyTorch's files: what torch.save writes in both formats, and files that are broken on purpose.

use proptest::prelude::*;
use pulid_checkpoint::{Checkpoint, MemorySource, View};
use pulid_tensor::HostTensor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/checkpoint").join(name)
}

/// Every PyTorch file in a folder, by its name.
fn files(name: &str) -> Vec<(String, PathBuf)> {
    let mut found: Vec<_> = std::fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "pth" || e == "pkl"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

fn open(bytes: impl Into<Vec<u8>>) -> Result<Checkpoint, String> {
    Checkpoint::from_source(Arc::new(MemorySource::new("w.pth", bytes.into()))).map_err(|e| e.to_string())
}

#[test]
fn both_formats_hold_what_torch_put_in() {
    let files = files("");
    assert_eq!(files.len(), 21);
    for (name, path) in files {
        let want = Checkpoint::open(folder(name.split('.').next().unwrap()).with_extension("safetensors")).unwrap();
        let got = Checkpoint::open(&path).unwrap();
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{name}");
        for key in want.keys() {
            assert_eq!(got.info(key).unwrap(), want.info(key).unwrap(), "{name}: {key}");
            assert_eq!(got.bytes(key).unwrap(), want.bytes(key).unwrap(), "{name}: {key}");
        }
    }
}

#[test]
fn what_is_said_beside_the_weights_is_metadata() {
    for (file, want) in [
        ("marked.pth", &[("epoch", "3"), ("title", "a network")][..]),
        ("marked.legacy.pth", &[("epoch", "3"), ("title", "a network")]),
        ("marked-module.pth", &[("ema", "true")]),
        ("state-dict.pth", &[]),
    ] {
        let found = Checkpoint::open(folder(file)).unwrap();
        let said: Vec<_> = found.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(said, want, "{file}");
    }
}

#[test]
fn rows_and_parts_of_scattered_tensors_are_read() {
    for file in ["strided.pth", "strided.legacy.pth"] {
        let c = Checkpoint::open(folder(file)).unwrap();
        for key in c.keys().filter(|k| c.info(k).unwrap().shape.rank() == 2) {
            let whole = c.tensor(key).unwrap();
            let width = whole.shape()[1];
            let values = whole.to_f32_vec();
            let rows = c.rows(key, &[1, 0]).unwrap().to_f32_vec();
            assert_eq!(rows, [&values[width..2 * width], &values[..width]].concat(), "{file}: {key}");
            let bytes = c.bytes(key).unwrap();
            assert_eq!(c.bytes_range(key, 2..6).unwrap(), bytes[2..6], "{file}: {key}");
            assert!(c.bytes_range(key, 0..bytes.len() as u64 + 1).is_err());
        }
    }
}

#[test]
fn tensors_are_seen_otherwise_wherever_they_lie() {
    for file in ["strided.pth", "strided.legacy.pth", "strided.safetensors"] {
        let c = Checkpoint::open(folder(file)).unwrap();
        let mut seen = 0;
        for key in c.keys().filter(|k| c.info(k).unwrap().shape.rank() == 2) {
            let whole = c.tensor(key).unwrap();
            let [n, k] = [whole.shape()[0], whole.shape()[1]];
            let views = c
                .remap(|other, _| {
                    let view = |name: &str, view| (name.to_owned(), view);
                    match other == key {
                        true => vec![
                            view("transposed", View::Transposed),
                            view("matrix", View::Matrix),
                            view("none", View::Rows(n..n)),
                            view("first", View::Rows(0..1)),
                            view("rest", View::Rows(1..n)),
                        ],
                        false => Vec::new(),
                    }
                })
                .unwrap();
            assert_eq!(views.tensor("matrix").unwrap(), whole);
            assert_eq!(views.tensor("transposed").unwrap(), whole.permute(&[1, 0]).unwrap(), "{file}: {key}");
            assert_eq!(views.tensor("none").unwrap().shape().extents(), [0, k]);
            let parts = ["first", "rest"].map(|part| views.tensor(part).unwrap().to_f32_vec());
            assert_eq!(parts.concat(), whole.to_f32_vec(), "{file}: {key}");
            // What is seen can be seen otherwise again.
            let back = views.remap(|name, _| match name {
                "transposed" => vec![("back".to_owned(), View::Transposed), ("column".to_owned(), View::Rows(0..1))],
                _ => Vec::new(),
            });
            let back = back.unwrap();
            assert_eq!(back.tensor("back").unwrap(), whole, "{file}: {key}");
            let column: Vec<f32> = whole.to_f32_vec().into_iter().step_by(k).collect();
            assert_eq!(back.tensor("column").unwrap().to_f32_vec(), column, "{file}: {key}");
            seen += 1;
        }
        assert_eq!(seen, 8, "{file}");
        let wrong = |view: View| c.remap(|_, _| vec![("x".into(), view.clone())]).unwrap_err().to_string();
        assert!(wrong(View::Matrix).contains("expected a matrix"));
        assert!(wrong(View::Rows(3..9)).contains("rows 3 to 9"));
    }
}

#[test]
fn weights_are_not_copied() {
    let bytes: pulid_checkpoint::Bytes = std::fs::read(folder("types.pth")).unwrap().into();
    let file = bytes.as_ptr_range();
    let c = Checkpoint::from_source(Arc::new(MemorySource::new("w", bytes.clone()))).unwrap();
    assert!(file.contains(&c.bytes("float32").unwrap().as_ptr()));
}

#[test]
fn folders_with_pickles_open_after_safetensors() {
    let folder_ = tempfile::tempdir().unwrap();
    let put = |from: &str, to: &str| std::fs::copy(folder(from), folder_.path().join(to)).unwrap();
    put("module.pth", "diffusion_pytorch_model.bin");
    assert!(Checkpoint::open(folder_.path()).unwrap().contains("0.weight"));
    put("types.legacy.pth", "pytorch_model.bin");
    assert!(Checkpoint::open(folder_.path()).unwrap().contains("float16"));
    put("nested.safetensors", "anything.safetensors");
    assert!(Checkpoint::open(folder_.path()).unwrap().contains("id_adapter.latents"));
}

/// What the message about each file must say.
fn expected(name: &str) -> &'static str {
    match name.split('.').next().unwrap() {
        "whole-module" => "`torch.nn.modules.linear.Linear`",
        "single-tensor" => "single tensor",
        "no-tensors" => "without tensors",
        "sparse" => "`torch._utils._rebuild_sparse_tensor`",
        "program" => "print`",
        "plain-pickle" => "not one that PyTorch wrote",
        "compressed" => "is compressed",
        "holds-itself" | "doubles" | "deep" => "nested too deeply or hold themselves",
        "long-text" | "long-bytes" | "long-integer" => "truncated",
        "unknown-memo" => "recalls value 4294967294",
        "marks" | "below-mark" | "empty-stack" => "more values than there are",
        "odd-items" => "a key without a value",
        "append-to-none" => "no list",
        "instance" => "instruction 0x69 (`i`)",
        "extension" => "instruction 0x82",
        "protocol-9" => "protocol 9",
        "calls-text" => "no function",
        "calls-nothing" => "too few arguments",
        "builds-text" => "sets attributes",
        "system" => "`os.system`",
        "stacked-name" => "`posix.system`",
        "foreign-storage" => "no storage of a tensor",
        "absent-storage" => "`",
        "negative-size" => "no numbers",
        "huge-size" => "larger than any file",
        "huge-stride" | "huge-offset" => "larger than any file",
        "repeats" => "repeats its elements",
        "too-long" | "past-the-end" | "past-the-view" => "needs ",
        "short-storage" => "which should have 4000 and has 64",
        "strides-missing" => "another number of strides",
        "many-axes" => "100 axes",
        "same-key" => "two tensors `a.b`",
        "strange-key" => "neither texts nor numbers",
        "complex" => "`torch.ComplexFloatStorage`",
        "two-values" => "ends too early",
        "zip-no-pickle" => "without `data.pkl`",
        "zip-no-folder" => "",
        "zip-big-endian" => "big-endian",
        "zip-far-entry" | "zip-large-entry" => "fetch",
        _ => "zip archive",
    }
}

#[test]
fn other_pickles_and_broken_ones_are_refused_by_name() {
    // The last two announce more entries and a longer directory than there are, which nobody needs to believe.
    let good = ["good.pth", "good.legacy.pth", "zip-many-entries.pth", "zip-large-directory.pth"];
    let mut wrong = Vec::new();
    for (name, path) in files("refused").into_iter().chain(files("malformed")) {
        let result = Checkpoint::open(&path);
        if good.contains(&name.as_str()) {
            let expected: Vec<u8> = (0..64).collect();
            assert_eq!(result.unwrap().bytes("w").unwrap(), expected);
            continue;
        }
        if name == "view.legacy.pth" {
            let expected: Vec<u8> = (24..48).collect();
            assert_eq!(result.unwrap().bytes("w").unwrap(), expected);
            continue;
        }
        let message =
            result.map_or_else(|e| e.to_string(), |c| format!("{name} opens: {:?}", c.keys().collect::<Vec<_>>()));
        if !message.contains(expected(&name)) || !message.contains(&name) {
            wrong.push(message);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn safetensors_with_a_header_that_looks_like_a_pickle_are_still_safetensors() {
    // A header of 640 bytes begins like a pickle: 0x80 0x02.
    let tensor = HostTensor::zeros([1]);
    let pad = |n: usize| std::collections::BTreeMap::from([("pad".to_owned(), "x".repeat(n))]);
    let bytes = (0..640)
        .map(|n| pulid_checkpoint::safetensors::to_bytes([("w", &tensor)], &pad(n)).unwrap())
        .find(|bytes| bytes[..2] == [0x80, 2])
        .unwrap();
    assert!(open(bytes).unwrap().contains("w"));
}

/// Everything a file can be asked for.
fn use_all(bytes: Vec<u8>) {
    let length = bytes.len() as u64;
    if let Ok(c) = open(bytes) {
        for key in c.keys() {
            assert!(c.bytes(key).unwrap().len() as u64 <= length, "a tensor is larger than its file");
            let _ = c.tensor(key);
            let _ = c.rows(key, &[0]);
        }
    }
}

static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    ["", "refused", "malformed"].iter().flat_map(|f| files(f)).map(|(_, path)| std::fs::read(path).unwrap()).collect()
});

#[test]
fn every_cut_of_the_corpus_is_an_error() {
    for bytes in &*CORPUS {
        for end in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
            assert!(open(&bytes[..end]).is_err());
        }
    }
}

/// A pickle's instructions with arguments that are nearly right.
fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let names: [&[u8]; 9] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"ctorch\nSize\n",
        b"X\x07\0\0\0storage",
        b"X\x01\0\0\x000",
        b"X\x01\0\0\0w",
    ];
    prop_oneof![
        3 => proptest::sample::select(names.to_vec()).prop_map(<[u8]>::to_vec),
        4 => proptest::sample::select(b"(.012N)t]lae}dsuRbQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94".to_vec())
            .prop_map(|op| vec![op]),
        3 => (0u8..6).prop_map(|n| vec![b'K', n]),
        1 => any::<i32>().prop_map(|n| [&[b'J'][..], &n.to_le_bytes()].concat()),
        1 => any::<[u8; 8]>().prop_map(|n| [&[0x8a, 8][..], &n].concat()),
        2 => (0u8..4).prop_map(|n| vec![b'q', n]),
        2 => (0u8..4).prop_map(|n| vec![b'h', n]),
        1 => any::<Vec<u8>>(),
    ]
}

/// A file of the older format around an object's pickle.
fn legacy(program: &[u8]) -> Vec<u8> {
    let good = std::fs::read(folder("malformed/good.legacy.pth")).unwrap();
    let start = good.windows(2).enumerate().filter(|(_, w)| *w == [0x80, 2]).nth(3).unwrap().0 + 2;
    let end = good.windows(4).rposition(|w| w == [b'.', 0x80, 2, b']']).unwrap();
    [&good[..start], program, &good[end..]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_program_is_a_checkpoint_or_an_error(program in proptest::collection::vec(instruction(), 0..60)) {
        use_all(legacy(&program.concat()));
    }

    #[test]
    fn a_changed_file_never_panics(file in any::<prop::sample::Index>(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = file.get(&CORPUS).clone();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        use_all(bytes);
    }

    #[test]
    fn any_bytes_after_a_beginning_are_an_error(zip in any::<bool>(), rest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let start: &[u8] = if zip { b"PK\x03\x04" } else { b"\x80\x02" };
        prop_assert!(open([start, &rest].concat()).is_err());
    }
}
