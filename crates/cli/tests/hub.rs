//! `pulid pull` and `pulid doctor` as a person meets them without a network.

mod support;

use std::path::Path;
use std::process::Output;

fn pulid(home: &Path, arguments: &[&str]) -> Output {
    support::program(home, arguments).output().expect("the program starts")
}

#[test]
fn a_licence_without_commercial_use_asks_for_consent_and_names_the_other_way() {
    let home = tempfile::tempdir().unwrap();
    let output = pulid(home.path(), &["pull", "v1.1", "--base", "juggernaut"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("--accept-licence") && message.contains("auraface"), "{message}");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    for file in ["pulid_v1.1.safetensors", "EVA02_CLIP_L_336_psz14_s6B.pt", "glintr100.onnx", "parsing_bisenet.pth"] {
        assert!(listed.contains(file), "{file} and its licence are not listed: {listed}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "something was written");
}

#[test]
fn offline_says_what_is_missing_and_asks_nobody() {
    let home = tempfile::tempdir().unwrap();
    let output = pulid(home.path(), &["pull", "v1", "--faces", "auraface", "--offline"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("offline"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    let unknown = pulid(home.path(), &["generate", "--model", "juggernaut", "--prompt", "a lake"]);
    let message = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(2), "{message}");
    assert!(message.contains("pulid pull v1.1 --base juggernaut"), "{message}");
}

#[test]
fn doctor_lists_devices_and_models() {
    let home = tempfile::tempdir().unwrap();
    let output = pulid(home.path(), &["doctor", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let devices = report["devices"].as_array().unwrap();
    assert!(!devices.is_empty(), "{report}");
    assert!(devices.iter().all(|d| d["cooperative_matrices"].is_array() && d["cooperative_size"].is_u64()), "{report}");
    let text = pulid(home.path(), &["doctor"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let has_matrices = text.contains("cooperative matrices");
    assert!(has_matrices, "it does not say what subgroups multiply: {text}");
    assert!(text.contains("pulid pull"), "it does not say how to get what is missing: {text}");
}
