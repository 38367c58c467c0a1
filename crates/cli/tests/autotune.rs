//! Measured kernel choices from one start of the program to the next: kept by device, used where they fit, ignored where they do
//! not or where the plan is to be the same every time.

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::program;

/// A kernel with two variants that is timed in no time.
const KERNEL: &str = "layer_norm/x=2x1024x1280";

/// What `pulid bench` says of the kernel's variants: names in the operator's own order, and which one networks run.
fn bench(folder: &Path, autotune: &str) -> (Vec<String>, String) {
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let command = ["bench", "--filter", KERNEL, "--variants", "all", "--repeats", "1", "--json", "--device", &device];
    let output = program(folder, &command).args(["--autotune", autotune]).output().unwrap();
    let (text, complaints) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let rows = report["kernels"].as_array().unwrap();
    let name = |row: &Value| row["variant"].as_str().unwrap().to_owned();
    let chosen: Vec<_> = rows.iter().filter(|row| row["chosen"] == true).map(name).collect();
    assert_eq!((rows.len(), chosen.len()), (2, 1), "{text}");
    (rows.iter().map(name).collect(), chosen[0].clone())
}

/// The files of choices below `folder`, by name.
fn kept(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder.join("cache/autotune")) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Changes the file, and chooses for its one operator what was not chosen; gives that.
fn rewrite(path: &Path, variants: &[String], change: impl FnOnce(&mut Value)) -> String {
    let mut file = read(path);
    let choices = file["choices"].as_object_mut().unwrap();
    assert_eq!(choices.len(), 1, "{choices:?}");
    let chosen = choices.values_mut().next().unwrap();
    let other = variants.iter().find(|name| chosen != name.as_str()).unwrap().clone();
    *chosen = json!(other);
    change(&mut file);
    std::fs::write(path, file.to_string()).unwrap();
    other
}

#[test]
fn choices_are_kept_and_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let (variants, first) = bench(folder.path(), "on");
    let files = kept(folder.path());
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let written = std::fs::read(file).unwrap();
    assert_eq!(bench(folder.path(), "on"), (variants.clone(), first.clone()));
    assert_eq!(std::fs::read(file).unwrap(), written);

    // What the file says is what runs, whatever a measurement would give.
    let other = rewrite(file, &variants, |_| {});
    assert_ne!(other, first);
    let written = std::fs::read(file).unwrap();
    assert_eq!(bench(folder.path(), "on").1, other);
    assert_eq!(std::fs::read(file).unwrap(), written, "it was measured again");
}

#[test]
fn without_tuning_the_file_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (variants, own) = bench(folder.path(), "off");
    assert_eq!(own, variants[0], "the operator's own first choice");
    assert!(kept(folder.path()).is_empty(), "something was measured");
    bench(folder.path(), "on");
    let file = kept(folder.path()).remove(0);
    for choice in &variants {
        let mut choices = read(&file);
        choices["choices"].as_object_mut().unwrap().values_mut().for_each(|chosen| *chosen = json!(choice));
        std::fs::write(&file, choices.to_string()).unwrap();
        let written = std::fs::read(&file).unwrap();
        assert_eq!(bench(folder.path(), "on").1, *choice);
        assert_eq!(bench(folder.path(), "off").1, own);
        assert_eq!(std::fs::read(&file).unwrap(), written);
    }
}

#[test]
fn what_does_not_fit_is_ignored_and_measured_again() {
    let folder = tempfile::tempdir().unwrap();
    let (variants, _) = bench(folder.path(), "on");
    let file = kept(folder.path()).remove(0);
    let good = std::fs::read(&file).unwrap();
    let renewed = |what: &str| {
        bench(folder.path(), "on");
        let (found, good) = (read(&file), serde_json::from_slice::<Value>(&good).unwrap());
        assert_eq!((&found["device"], &found["kernels"]), (&good["device"], &good["kernels"]), "{what}");
        let keys: Vec<_> = found["choices"].as_object().unwrap().keys().collect();
        assert_eq!(keys, good["choices"].as_object().unwrap().keys().collect::<Vec<_>>(), "{what}");
        assert_eq!(kept(folder.path()).len(), 1, "{what}");
    };
    // One more choice shows whether the others were taken over.
    for (key, value) in [("device", "another device"), ("kernels", "0.1.0 0123456789abcdef")] {
        rewrite(&file, &variants, |all| {
            all[key] = json!(value);
            all["choices"]["another operator"] = json!("serial");
        });
        renewed(key);
    }
    // Of a version that kept no hash of its kernels.
    rewrite(&file, &variants, |all| drop(all.as_object_mut().unwrap().remove("kernels")));
    renewed("no kernels");
    for broken in [&b""[..], b"{", b"\xFF\xFE", b"[1, 2]", b"{\"device\": 1}", &good[..good.len() / 2]] {
        std::fs::write(&file, broken).unwrap();
        renewed(&String::from_utf8_lossy(broken));
    }
}

#[test]
fn other_devices_keep_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache/autotune");
    std::fs::create_dir_all(&cache).unwrap();
    let other = cache.join("another-device-0123456789abcdef.json");
    let text = r#"{"device": "another", "kernels": "x", "choices": {"a": "b"}}"#;
    std::fs::write(&other, text).unwrap();
    bench(folder.path(), "on");
    assert_eq!(kept(folder.path()).len(), 2);
    assert_eq!(std::fs::read_to_string(&other).unwrap(), text);
}

#[test]
fn a_cache_that_cannot_be_written_costs_no_result() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cache"), "a file where the folder should be").unwrap();
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let command = ["bench", "--filter", KERNEL, "--repeats", "1", "--device", &device];
    let output = program(folder.path(), &command).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaints.contains("kernel choices were not kept"), "{complaints}");
}

#[test]
fn what_the_driver_compiled_is_kept_where_it_offers_that() {
    let folder = tempfile::tempdir().unwrap();
    let pipelines = folder.path().join("cache/pipelines");
    let files = || -> Vec<PathBuf> {
        std::fs::read_dir(&pipelines)
            .map_or_else(|_| Vec::new(), |entries| entries.map(|e| e.unwrap().path()).collect())
    };
    let first = bench(folder.path(), "off");
    let [file] = &files()[..] else {
        // Only Vulkan offers it.
        let backend = std::env::var("WGPU_BACKEND").unwrap_or_else(|_| "vulkan".into());
        assert_ne!((backend.as_str(), cfg!(target_os = "linux")), ("vulkan", true), "nothing was kept");
        return;
    };
    let kept = std::fs::read(file).unwrap();
    assert_eq!(bench(folder.path(), "off"), first);
    // Broken files cost nothing but time.
    std::fs::write(file, &kept[..kept.len() / 2]).unwrap();
    assert_eq!(bench(folder.path(), "off"), first);
    assert_eq!(std::fs::read(file).unwrap().len(), kept.len());
}
