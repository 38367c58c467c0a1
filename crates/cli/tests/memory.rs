//! Budgets of device memory: the same image with weights that stream, and an error before any work where nothing helps.

mod support;

use pulid_checkpoint::write_safetensors;
use pulid_models::golden::Golden;
use pulid_tensor::HostTensor;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use support::{program, repository, tree};

fn generate(folder: &Path, more: &[&str]) -> Output {
    let always = ["generate", "--prompt", "a photo of a person, in a garden", "--steps", "2", "--autotune", "off"];
    program(folder, &always).arg("--no-metadata").args(more).output().expect("the program starts")
}

#[test]
fn streaming_changes_nothing_but_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = |rate: f32| HostTensor::from_fn([1, 16, 256], |i| (i as f32 * rate).sin());
    let identity = [("id_embedding", tokens(0.9)), ("uncond_id_embedding", tokens(0.3))];
    let identity = identity.iter().map(|(name, tensor)| (*name, tensor));
    write_safetensors(folder.path().join("somebody.safetensors"), identity, &BTreeMap::new()).unwrap();
    let image = |name: &str, more: &[&str]| {
        let output =
            generate(folder.path(), &[&["--identity", "somebody.safetensors", "--output", name], more].concat());
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        (std::fs::read(folder.path().join(name)).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (whole, quiet) = image("whole.png", &[]);
    assert!(!quiet.contains("stream"), "{quiet}");
    // All of the mini UNet is 16 MiB: some of it, then nearly all of it streams.
    for budget in ["12MiB", "9MiB"] {
        let (streamed, log) = image("streamed.png", &["--memory", budget]);
        assert!(streamed == whole, "{budget}: the images differ");
        assert!(log.contains("unet: ") && log.contains(" MiB of weights stream"), "{budget}: {log}");
    }
    let (whole, _) = image("whole.png", &["--quantize", "q4", "--dtype", "f16"]);
    let (streamed, _) = image("streamed.png", &["--quantize", "q4", "--dtype", "f16", "--memory", "9MiB"]);
    assert!(streamed == whole, "q4: the images differ");
}

#[test]
fn the_plan_says_what_streams() {
    let folder = tempfile::tempdir().unwrap();
    let case = repository("tests/goldens/unet/even");
    let weights = Golden::read(&case).unwrap().options.weights;
    let run = |memory: &str| {
        program(folder.path(), &["run", "unet", "--weights"])
            .arg(&weights)
            .arg("--inputs")
            .arg(case.join("inputs.safetensors"))
            .args(["--outputs", "out.safetensors", "--dump-plan", "plan.txt", "--autotune", "off", "--memory", memory])
            .output()
            .unwrap()
    };
    assert!(run("1GiB").status.success());
    assert!(!std::fs::read_to_string(folder.path().join("plan.txt")).unwrap().contains("streams"));
    std::fs::remove_file(folder.path().join("plan.txt")).unwrap();
    std::fs::remove_file(folder.path().join("out.safetensors")).unwrap();
    let refused = run("10kB");
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("--memory") && message.contains("MiB"), "{message}");
    assert_eq!(tree(folder.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_budget_too_small_is_known_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let refused = generate(folder.path(), &["--memory", "300kB", "--output", "never.png", "--json"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("does not fit a budget"), "{message}");
    assert_eq!(tree(folder.path()), Vec::<std::path::PathBuf>::new());
    let nonsense = generate(folder.path(), &["--memory", "much"]);
    assert_eq!(nonsense.status.code(), Some(2));
}
