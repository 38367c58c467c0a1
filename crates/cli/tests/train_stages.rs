//! `pulid train` by L_id and L_align, on the mini models and the cache of `tests/goldens/training`.

mod support;

use pulid_checkpoint::Checkpoint;
use pulid_tensor::HostTensor;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::{refuse, repository, succeed};

/// Flags of a run on the goldens' cache.
fn train(folder: &Path, more: &[&str]) -> String {
    let cache = repository("tests/goldens/training/cache").display().to_string();
    succeed(folder, &[&["train", "--data", &cache, "--resolution", "128", "--dtype", "f32"][..], more].concat())
}

fn tensors(path: &Path) -> BTreeMap<String, HostTensor> {
    let file = Checkpoint::open(path).unwrap();
    file.keys().map(|key| (key.to_owned(), file.tensor(key).unwrap())).collect()
}

fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Inputs that a device computes, not drawn or read: the largest difference that its rounding may make. Crops are in pixels.
const COMPUTED: [(&str, f64); 6] = [
    ("crop_matrix", 1e-2),
    ("photo_embedding", 1e-2),
    ("id.encoder_hidden_states", 1e-3),
    ("id.text_embeds", 1e-3),
    ("align.encoder_hidden_states", 1e-3),
    ("align.text_embeds", 1e-3),
];

/// An exported step against PyTorch's autograd in float64: the losses by parts, gradients by the root of their mean square. Four calls of
/// the UNet, decoder and recogniser lie in a row, so that PyTorch's own run in single precision is far off in single parameters (case.json).
fn hold_to_pytorch(stage: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let base = ["--out", "run", "--batch", "3", "--steps", "1", "--export-steps", "1", "--seed", "6", "--lr", "1e-4"];
    let drops = ["--drop-id", "0.4", "--drop-text", "0.3", "--drop-both", "0"];
    train(at, &[&base[..], &drops, flags].concat());
    let step = tensors(&at.join("run/steps/1.safetensors"));
    let goldens = repository("tests/goldens/training");

    let mut held = 0;
    for (name, wanted) in tensors(&goldens.join("inputs.safetensors")) {
        let Some(found) = step.get(&name) else {
            assert!(stage == "stage-2" && name.starts_with("align."), "{name} is missing");
            continue;
        };
        assert_eq!(found.shape(), wanted.shape(), "{name}");
        let limit = COMPUTED.iter().find(|(computed, _)| *computed == name).map_or(0.0, |(_, limit)| *limit);
        let pairs = found.to_f32_vec().into_iter().zip(wanted.to_f32_vec());
        let off = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(off <= limit, "{name} differs by {off:e}: another step than the golden's");
        held += 1;
    }
    assert!(held >= 19, "{held}");

    let (mut losses, mut gradients, mut worst) = (0, 0, 0.0f64);
    for (name, wanted) in tensors(&goldens.join(format!("{stage}.safetensors"))) {
        if name.starts_with("loss.") {
            let (found, wanted) = (step[&name].to_f32_vec()[0], wanted.to_f32_vec()[0]);
            assert!((found / wanted - 1.0).abs() < 1e-4, "{name}: {found} {wanted}");
            losses += 1;
        } else if let Some(parameter) = name.strip_prefix("norm.") {
            let found = step[&format!("d.{parameter}")].to_f32_vec();
            let norm = found.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let expected = f64::from(wanted.to_f32_vec()[0]);
            assert!((norm / expected - 1.0).abs() < 2e-3, "{name}: {norm} {expected}");
        } else {
            let found = step[&name].to_f32_vec();
            let mean_square = found.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / found.len() as f64;
            let wanted = wanted.to_f32_vec();
            for (i, wanted) in wanted.iter().enumerate() {
                let place = i * found.len() / wanted_places(found.len());
                let off = f64::from((found[place] - wanted).abs()) / mean_square.sqrt();
                assert!(off < 2e-2, "{name}[{place}]: {} {wanted}, {off:e}", found[place]);
                worst = worst.max(off);
            }
            gradients += 1;
        }
    }
    println!("{stage}: {losses} losses, {gradients} gradients, the worst {worst:.1e}");
    assert!(losses >= 2 && gradients > 100, "{losses} {gradients}");
    let logged = &metrics(&at.join("run"))[0];
    assert_eq!(logged["faces"], 1.0);
}

/// How many values of a gradient the goldens have, evenly spaced.
fn wanted_places(count: usize) -> usize {
    count.min(48)
}

#[test]
fn stage_2_has_the_gradients_of_pytorch() {
    hold_to_pytorch("stage-2", &["--stage", "2"]);
}

/// The values of the branch's last steps stay for their backward passes, or these steps run again.
#[test]
fn what_stays_and_what_runs_again_have_the_same_gradients() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let step = |checkpointing: &str| {
        let flags =
            ["--stage", "2", "--branch-steps", "3", "--backprop-steps", "2", "--steps", "1", "--export-steps", "1"];
        let more = ["--seed", "8", "--lr", "1e-4", "--checkpointing", checkpointing, "--out", checkpointing];
        train(at, &[&flags[..], &more].concat());
        tensors(&at.join(checkpointing).join("steps/1.safetensors"))
    };
    let (stays, again) = (step("off"), step("block"));
    assert!(stays.contains_key("loss.id") && stays == again);
}

#[test]
fn stage_3_has_the_gradients_of_pytorch() {
    let flags = ["--stage", "3", "--backprop-steps", "2", "--align-steps", "3", "--checkpointing", "block"];
    hold_to_pytorch("stage-3", &flags);
}

/// The first twenty steps of a run against a training in PyTorch (`tests/goldens/training/trajectory.py`): every step's losses, and before that
/// what was drawn, and which crops a face detector found, since PyTorch was given the ones of the run that it was made with. Where those
/// are others, L_id is: by up to 0.07 for each pixel (trajectory.py), which its limit allows besides the 1e-4 of all losses.
fn hold_a_run_to_pytorch(stage: &str) {
    let path = repository("tests/goldens/training").join(format!("trajectory-{stage}.json"));
    let golden: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut flags = vec!["--out".to_owned(), "run".to_owned()];
    for (name, value) in golden["flags"].as_object().unwrap() {
        flags.extend([format!("--{name}"), value.as_str().map_or_else(|| value.to_string(), str::to_owned)]);
    }
    train(at, &flags.iter().map(String::as_str).collect::<Vec<_>>());

    let logged = metrics(&at.join("run"));
    let wanted = golden["steps"].as_array().unwrap();
    assert_eq!((logged.len(), wanted.len()), (20, 20));
    let (mut held, mut worst) = (0, 0.0f64);
    for (i, (logged, wanted)) in logged.iter().zip(wanted).enumerate() {
        let inputs = tensors(&at.join(format!("run/steps/{}.safetensors", i + 1)));
        for (name, sum) in wanted["drawn"].as_object().unwrap() {
            let found: f64 = inputs[name].to_f32_vec().into_iter().map(f64::from).sum();
            let off = (found - sum.as_f64().unwrap()).abs();
            assert!(off < 1e-3, "step {}: the sum of {name} is {off:e} off: another step than the golden's", i + 1);
        }
        let mut moved = 0.0f64;
        if let Some(crop) = wanted["crop_matrix"].as_array() {
            for (found, wanted) in inputs["crop_matrix"].to_f32_vec().into_iter().zip(crop) {
                moved = moved.max((f64::from(found) - wanted.as_f64().unwrap()).abs());
            }
            assert!(moved < 5e-2, "step {}: another crop than the golden's by {moved:e}", i + 1);
        }
        let losses = wanted["losses"].as_object().unwrap();
        let found = logged.as_object().unwrap().keys().filter(|key| key.starts_with("loss_") && *key != "loss_scale");
        assert_eq!(found.count(), losses.len(), "step {}: {logged}", i + 1);
        for (name, wanted) in losses {
            let found = logged[&format!("loss_{name}")].as_f64().unwrap();
            let off = (found / wanted.as_f64().unwrap() - 1.0).abs();
            let limit = if name == "id" { 1e-4 + 0.07 * moved } else { 1e-4 };
            assert!(off < limit, "step {}, {name}: {found} {wanted}, {off:e}, {moved} pixels", i + 1);
            worst = worst.max(off);
            held += 1;
        }
    }
    println!("{stage}: {held} losses, the worst {worst:.1e}");
    assert!(held >= 20);
}

#[test]
fn twenty_steps_of_stage_1_have_the_losses_of_pytorch() {
    hold_a_run_to_pytorch("1");
}

#[test]
fn twenty_steps_of_stage_2_have_the_losses_of_pytorch() {
    hold_a_run_to_pytorch("2");
}

#[test]
fn twenty_steps_of_stage_3_have_the_losses_of_pytorch() {
    hold_a_run_to_pytorch("3");
}

#[test]
fn twenty_steps_on_one_step_estimates_have_the_losses_of_pytorch() {
    hold_a_run_to_pytorch("one-step");
}

#[test]
fn an_identity_loss_on_one_step_estimates_needs_no_branch() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let flags = ["--stage", "2", "--id-from", "one-step", "--steps", "1", "--seed", "3"];
    let said = train(at, &[&flags[..], &["--dry-run", "--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let parts = report["plan"]["memory"].to_string();
    assert!(parts.contains("L_id: VAE's") && !parts.contains("branch"), "{parts}");
    for (more, part) in [
        (&["--stage", "1", "--id-from", "one-step"][..], "there is no L_id"),
        (&["--stage", "2", "--id-from", "one-step", "--branch-steps", "4"], "no loss looks at it"),
        (&["--stage", "3", "--id-from", "one-step", "--backprop-steps", "1"], "no loss looks at it"),
    ] {
        let cache = repository("tests/goldens/training/cache").display().to_string();
        let base = ["train", "--data", &cache, "--resolution", "128", "--dtype", "f32", "--out", "run", "--steps", "1"];
        let message = refuse(at, &[&base[..], more].concat());
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn a_resumed_run_of_stage_3_equals_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let flags = ["--stage", "3", "--batch", "1", "--branch-steps", "2", "--align-steps", "1", "--accumulate", "2"];
    train(at, &[&flags[..], &["--out", "whole", "--steps", "3"]].concat());
    train(at, &[&flags[..], &["--out", "broken", "--steps", "2"]].concat());
    succeed(at, &["train", "--resume", "broken", "--steps", "3"]);
    let bytes = |run: &str, name: &str| fs::read(at.join(run).join(name)).unwrap();
    for name in ["adapter-3.safetensors", "state-3/optimizer.safetensors", "state-3/state.json"] {
        assert!(bytes("whole", name) == bytes("broken", name), "{name} differs");
    }
    let logged = |run: &str| -> Vec<_> {
        let names = ["loss", "loss_diff", "loss_id", "loss_align_sem", "loss_align_layout", "faces"];
        metrics(&at.join(run)).iter().map(|m| names.map(|name| m[name].clone())).collect()
    };
    assert_eq!(logged("whole"), logged("broken"));
    assert!(metrics(&at.join("whole")).iter().all(|m| m["loss_align_sem"].as_f64().unwrap() > 0.0));
}

#[test]
fn losses_are_mixed_by_their_weights_and_what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // Nothing but L_align's layout: a weight of 0 leaves a loss out, and its networks.
    let flags = ["--diff", "0", "--align-layout", "2", "--branch-steps", "2", "--branch-resolution", "64"];
    train(at, &[&flags[..], &["--out", "layout", "--steps", "1"]].concat());
    let logged = &metrics(&at.join("layout"))[0];
    assert!(logged.get("loss_diff").is_none() && logged.get("loss_id").is_none(), "{logged}");
    let [all, layout] = ["loss", "loss_align_layout"].map(|name| logged[name].as_f64().unwrap());
    assert!(layout > 0.0 && (all - 2.0 * layout).abs() < 1e-9, "{logged}");

    let before = support::tree(at);
    let said = train(at, &["--stage", "3", "--steps", "1", "--branch-steps", "1", "--dry-run", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let parts: Vec<&str> =
        report["plan"]["memory"].as_array().unwrap().iter().map(|p| p[0].as_str().unwrap()).collect();
    for part in ["L_id: values and gradients of steps", "L_id: VAE's", "L_align"] {
        assert!(parts.iter().any(|found| found.contains(part)), "{part}: {parts:?}");
    }
    assert_eq!(support::tree(at), before);

    let cache = repository("tests/goldens/training/cache").display().to_string();
    let detector = repository("models/mini/antelopev2/scrfd_10g_bnkps.onnx").display().to_string();
    for (more, part) in [
        (&["--diff", "0"][..], "no loss"),
        (&["--stage", "2", "--id", "-1"], "no weight"),
        (&["--branch-steps", "4"], "no loss looks at it"),
        (&["--stage", "2", "--align-steps", "1"], "no loss looks at it"),
        (&["--stage", "2", "--backprop-steps", "5"], "the branch's 4 steps"),
        (&["--stage", "2", "--branch-resolution", "100"], "not a multiple"),
        (&["--stage", "2", "--branch-model", "nowhere"], "nowhere"),
        (&["--stage", "2", "--recogniser", &detector], "face recogniser"),
    ] {
        let base = ["train", "--data", &cache, "--resolution", "128", "--dtype", "f32", "--out", "run", "--steps", "1"];
        let message = refuse(at, &[&base[..], more].concat());
        assert!(message.contains(part), "{part}: {message}");
        fs::remove_dir_all(at.join("run")).ok();
    }
}

#[test]
fn a_step_without_any_loss_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // L_id alone, of people who all lose their identity.
    let flags = ["--stage", "2", "--diff", "0", "--branch-steps", "1", "--drop-text", "0", "--drop-both", "0"];
    let run = ["--out", "run", "--steps", "2", "--drop-id", "1", "--lr", "1e-2", "--weight-decay", "1", "--json"];
    let said = train(at, &[&flags[..], &run].concat());
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let notes = report["notes"].as_array().unwrap();
    assert!(notes.iter().any(|n| n.as_str().unwrap().contains("step 2 was left out: no sample has a part")), "{said}");
    for logged in metrics(&at.join("run")) {
        assert!(logged["skipped"] == true && logged["loss"].is_null() && logged["gradient_norm"].is_null(), "{logged}");
    }
    let state: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(at.join("run/state-2/state.json")).unwrap()).unwrap();
    assert_eq!((&state["step"], &state["updates"]), (&2.into(), &0.into()));
    let before = tensors(&repository("models/mini/pulid_v1.1.safetensors"));
    for (name, after) in tensors(&at.join("run/adapter-2.safetensors")) {
        assert_eq!(after.to_f32_vec(), before[&name].to_f32_vec(), "{name}");
    }
}

/// A model that `pulid quantize` wrote holds the very blocks.
#[test]
fn frozen_weights_may_be_blocks_of_8_bits() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = repository("models/mini/sdxl").display().to_string();
    let made =
        support::program(at, &["quantize", "--model", &model, "--to", "q8", "--output", "small"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let run = |out: &str, more: &[&str]| {
        train(at, &[&["--out", out, "--steps", "1", "--export-steps", "1"][..], more].concat());
        tensors(&at.join(out).join("steps/1.safetensors"))
    };
    let (whole, blocks) = (run("whole", &[]), run("blocks", &["--quantize", "q8"]));
    let written = run("written", &["--model", "small", "--quantize", "q8"]);
    let (mut gradients, mut differ) = (0, 0);
    for (name, blocks) in blocks.iter().filter(|(name, _)| name.starts_with("d.")) {
        assert_eq!(blocks, &written[name], "{name}");
        let (a, b) = (blocks.to_f32_vec(), whole[name].to_f32_vec());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        // Weights of 8 bits are 0.4 % off; all of a gradient together points the same way.
        let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt().max(1e-30);
        assert!(cosine > 0.99 || dot(&b, &b) < 1e-16, "{name}: {cosine}");
        gradients += 1;
        differ += u32::from(a != b);
    }
    assert!(gradients > 100 && differ > 100, "{gradients} {differ}");
}
