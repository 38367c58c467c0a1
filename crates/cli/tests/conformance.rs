//! `pulid conformance` as a person would use it: some checks, their report, its summary.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{program, repository};

/// What the program says on both streams, and whether it was content.
fn run(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = program(folder, &[&["conformance"], arguments].concat()).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

fn read(folder: &Path, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

#[test]
fn kernels_and_graphs_make_a_report_and_a_column() {
    let folder = tempfile::tempdir().unwrap();
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let goldens = repository("tests/goldens");
    let mut arguments = vec!["--device", &device, "--goldens", goldens.to_str().unwrap(), "--report", "report.json"];
    for filter in ["*concat:dtype=f32*every_class", "network/unet_step", "node:test_abs"] {
        arguments.extend(["--filter", filter]);
    }
    arguments.extend(["--filter", "node:test_training_dropout_default"]);
    let (content, text) = run(folder.path(), &arguments);
    assert!(content, "{text}");
    let report = read(folder.path(), "report.json");
    let outcome = |id: &str| {
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|c| c["id"] == id).unwrap_or_else(|| panic!("{id} was not run: {report}"));
        check["outcome"].as_str().unwrap().to_owned()
    };
    assert_eq!(outcome("network/unet_step:dtype=f16"), "pass");
    assert_eq!(outcome("onnx/node:test_abs"), "pass");
    assert_eq!(outcome("onnx/node:test_training_dropout_default"), "expected_fail");
    assert!(text.contains("expected onnx/node:test_training_dropout_default: the training mode"), "{text}");

    let (content, text) = run(folder.path(), &["--summarise", "report.json", "--output", "column.json"]);
    assert!(content, "{text}");
    let column = read(folder.path(), "column.json");
    assert_eq!(column["operators"]["network/unet_step"]["f32"]["pass"], 1);
    assert!(column["operators"]["movement/concat"]["f32"]["pass"].as_u64().unwrap() >= 2);
    assert_eq!(column["date"].as_str().unwrap().len(), "2026-01-31".len());
    let (content, text) = run(folder.path(), &["--summarise", "column.json", "--output", "again.json"]);
    assert!(!content && text.contains("column.json"), "{text}");
    assert!(!folder.path().join("again.json").exists());
}

#[test]
fn goldens_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (content, text) = run(folder.path(), &["--goldens", "nowhere", "--filter", "network/"]);
    assert!(!content && text.contains("nowhere"), "{text}");
    let (content, text) = run(folder.path(), &["--device", "reference"]);
    assert!(!content && text.contains("--device"), "{text}");
}

#[test]
fn exported_checks_leave_out_what_fills_a_binding() {
    let folder = tempfile::tempdir().unwrap();
    let (content, text) = run(folder.path(), &["--export", "checks", "--filter", "*slice:dtype=f32*"]);
    assert!(content, "{text}");
    let suite = read(&folder.path().join("checks"), "cases.json");
    let ids: Vec<&str> = suite["checks"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert!(ids.len() > 5 && !ids.iter().any(|id| id.ends_with("whole_binding")), "{ids:?}");
    assert!(suite["expected"].as_array().unwrap().iter().any(|e| e["adapter"] == "SwiftShader"));
    assert!(std::fs::metadata(folder.path().join("checks/data.bin")).unwrap().len() < 1 << 20);
}
