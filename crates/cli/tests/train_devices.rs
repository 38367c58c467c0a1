//! `pulid train --devices`: micro-batches on several devices of one process.

mod support;

use pulid_checkpoint::Checkpoint;
use pulid_tensor::HostTensor;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{program, repository};

/// Two steps of two micro-batches on the goldens' cache.
fn run(folder: &Path, out: &str, more: &[&str]) -> Command {
    let cache = repository("tests/goldens/training/cache").display().to_string();
    let base = ["train", "--data", &cache, "--resolution", "128", "--dtype", "f32", "--autotune", "off", "--json"];
    let settings = ["--out", out, "--steps", "2", "--accumulate", "2", "--drop-id", "0", "--drop-both", "0"];
    program(folder, &[&base[..], &settings, &["--export-steps", "2"], more].concat())
}

fn report(mut command: Command) -> serde_json::Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn device() -> String {
    std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into())
}

#[test]
fn a_device_that_stands_there_twice_gives_the_bits_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let branch = ["--stage", "3", "--branch-steps", "2", "--align-steps", "1"];
    let one_step = ["--stage", "2", "--id-from", "one-step"];
    for (kind, flags) in [("branch", &branch[..]), ("one-step", &one_step)] {
        let [one, two] = ["one", "two"].map(|run| format!("{kind}-{run}"));
        report(run(at, &one, &[flags, &["--device", &device()]].concat()));
        let said = report(run(at, &two, &[flags, &["--devices", &device(), &device()]].concat()));
        assert_eq!(said["further_devices"], serde_json::json!([said["device"]]));
        for name in
            ["adapter-2.safetensors", "state-2/optimizer.safetensors", "state-2/state.json", "steps/2.safetensors"]
        {
            let bytes = |run: &str| fs::read(at.join(run).join(name)).unwrap();
            assert!(bytes(&one) == bytes(&two), "{kind}: {name} differs");
        }
        // L_id looked at a face.
        let step = tensors(&at.join(&two).join("steps/2.safetensors"));
        assert!(step.keys().any(|key| key.starts_with("loss.id")), "{kind}");
    }
    // Each device needs a micro-batch.
    let output = run(at, "three", &["--devices", "a", "b", "c"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && message.contains("accumulate"), "{message}");
    assert!(!at.join("three").exists());
}

/// Drivers of Vulkan that compute on the CPU: Mesa's lavapipe and the SwiftShader that comes with Chromium.
fn drivers() -> Option<[PathBuf; 2]> {
    let lavapipe = fs::read_dir("/usr/share/vulkan/icd.d").ok()?.flatten().map(|entry| entry.path());
    let lavapipe = lavapipe.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("lvp_icd")));
    let swiftshader = Path::new("/usr/lib/chromium/vk_swiftshader_icd.json");
    swiftshader.is_file().then(|| Some([lavapipe.min()?, swiftshader.to_owned()]))?
}

fn tensors(path: &Path) -> BTreeMap<String, HostTensor> {
    let file = Checkpoint::open(path).unwrap();
    file.keys().map(|key| (key.to_owned(), file.tensor(key).unwrap())).collect()
}

/// Two kinds of devices differ by their rounding. lavapipe alone is up to 1e-3 of a gradient's root mean square from a sum in another order
/// (`an_exported_step_is_the_chain_of_the_networks_gradients` allows 2e-3), so that the same is allowed here.
#[test]
fn two_kinds_of_devices_agree_with_one() {
    let Some(drivers) = drivers() else {
        eprintln!("left out: it needs lavapipe (mesa-vulkan-drivers) and SwiftShader (chromium)");
        return;
    };
    let both = std::env::join_paths(drivers).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let start = |out: &str, more: &[&str]| {
        let mut command = run(at, out, more);
        command.env("VK_DRIVER_FILES", &both);
        report(command)
    };
    start("one", &["--device", "llvmpipe"]);
    let said = start("two", &["--devices", "llvmpipe", "SwiftShader"]);
    assert!(said["further_devices"][0].as_str().unwrap().contains("SwiftShader"), "{said}");
    for step in ["steps/1.safetensors", "steps/2.safetensors"] {
        let [one, two] = ["one", "two"].map(|run| tensors(&at.join(run).join(step)));
        let (mut gradients, mut differ) = (0, 0);
        for (name, one) in &one {
            let (one, two) = (one.to_f32_vec(), two[name].to_f32_vec());
            let mean_square = one.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / one.len() as f64;
            let off = one.iter().zip(&two).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
            let off = off / mean_square.sqrt().max(1e-20);
            match name.strip_prefix("d.") {
                Some(_) => {
                    gradients += 1;
                    differ += u32::from(off > 0.0);
                    assert!(off < 2e-3, "{step}: {name}: {off:e}");
                }
                None if name.starts_with("loss.") => assert!(off < 1e-5, "{step}: {name}: {off:e}"),
                None => {}
            }
        }
        // The other device did take part.
        assert!(gradients > 100 && differ > 50, "{gradients} {differ}");
    }
}
