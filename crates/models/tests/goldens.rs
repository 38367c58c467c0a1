//! Every network against what other implementations answer (`tests/goldens`), executed by the CPU reference.

use pulid_checkpoint::Checkpoint;
use pulid_graph::{optimize, reference};
use pulid_models::run::{GraphRun, NETWORKS, Prepared, RunOptions, Tensors, prepare};
use pulid_tensor::{DType, HostTensor, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest accepted absolute difference over the expected tensor's standard deviation.
const LIMIT: f64 = 1e-3;

/// Cases whose weights are in a format that is not read yet. A case that begins to work must leave this list.
const UNREADABLE: [&str; 2] = ["bisenet/legacy-pickle", "bisenet/zip-pickle"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens")
}

/// The cases of a network: folders with a `golden.json` that names it.
fn cases(network: &str) -> Vec<(PathBuf, Value)> {
    let mut cases = Vec::new();
    for family in std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        for case in std::fs::read_dir(family).unwrap().map(|e| e.unwrap().path()) {
            if let Ok(text) = std::fs::read_to_string(case.join("golden.json")) {
                let golden: Value = serde_json::from_str(&text).unwrap();
                if golden["network"] == network {
                    cases.push((case, golden));
                }
            }
        }
    }
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!cases.is_empty(), "no golden of {network}");
    cases
}

fn tensors(path: &Path) -> Tensors {
    let file = Checkpoint::open(path).unwrap();
    file.keys().map(|key| (key.to_owned(), file.tensor(key).unwrap())).collect()
}

fn options(case: &Path, golden: &Value) -> RunOptions {
    let mut options = RunOptions::new(case.join(golden["weights"].as_str().unwrap()));
    options.adapter = golden["adapter"].as_str().map(|p| case.join(p));
    for (key, value) in golden["set"].as_object().unwrap() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        options.settings.insert(key.clone(), text);
    }
    options
}

fn execute(run: &GraphRun) -> Result<Tensors> {
    run.finish(reference::run(&optimize(&run.graph), &run.inputs, |_, _| Ok(()))?)
}

/// The worst difference over the standard deviation, infinite for another shape or values that are not finite.
fn difference(got: &HostTensor, want: &HostTensor) -> f64 {
    if got.shape() != want.shape() {
        return f64::INFINITY;
    }
    let (got, want) = (got.to_f32_vec(), want.to_f32_vec());
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / want.len() as f64;
    let variance = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / want.len() as f64;
    let worst = got.iter().zip(&want).map(|(&a, &b)| f64::from((a - b).abs()));
    // `f64::max` would drop NaN.
    worst.fold(0.0, |m: f64, d| if m.is_nan() || d <= m { m } else { d }) / variance.sqrt()
}

fn check(network: &str) {
    let mut failures = Vec::new();
    for (case, golden) in cases(network) {
        let name = case.strip_prefix(folder()).unwrap().display().to_string();
        let inputs = tensors(&case.join(golden["inputs"].as_str().unwrap()));
        let prepared = prepare(network, &options(&case, &golden), &inputs);
        let got = prepared.and_then(|p| match p {
            Prepared::Graph(run) => execute(&run),
            Prepared::Done(outputs) => Ok(outputs),
        });
        if UNREADABLE.contains(&name.as_str()) {
            if !matches!(&got, Err(error) if error.to_string().contains("pickle")) {
                failures.push(format!("{name}: is read now; take it off the list"));
            }
            continue;
        }
        let got = match got {
            Ok(got) => got,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let want = tensors(&case.join(golden["outputs"].as_str().unwrap()));
        if !got.keys().eq(want.keys()) {
            failures.push(format!("{name}: outputs {:?}, expected {:?}", got.keys(), want.keys()));
            continue;
        }
        for (key, want) in &want {
            let got = &got[key];
            if want.dtype() == DType::U32 {
                if got != want {
                    failures.push(format!("{name}: {key} is {:?}, expected {:?}", got.data(), want.data()));
                }
                continue;
            }
            let error = difference(got, want);
            println!("{name}: {key} {error:.2e}");
            if error.is_nan() || error > LIMIT {
                failures.push(format!("{name}: {key} differs by {error:.2e} standard deviations"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! networks {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            check($name);
        })*

        #[test]
        fn every_network_is_held_to_goldens() {
            let tested = [$($name),*];
            for network in NETWORKS {
                assert!(tested.contains(&network.name), "{} has no golden test", network.name);
            }
        }
    };
}

networks! {
    unet: "unet",
    vae_decoder: "vae-decoder",
    vae_encoder: "vae-encoder",
    text_encoder: "text-encoder",
    tokenizer: "tokenizer",
    eva_clip: "eva-clip",
    id_former: "id-former",
    id_encoder: "id-encoder",
    bisenet: "bisenet",
}

/// The measure itself must notice what it is there for.
#[test]
fn differences_are_noticed() {
    let want = HostTensor::from_f32([4], vec![0.0, 1.0, 2.0, 3.0]).unwrap();
    assert_eq!(difference(&want, &want), 0.0);
    let off = HostTensor::from_f32([4], vec![0.0, 1.01, 2.0, 3.0]).unwrap();
    assert!(difference(&off, &want) > LIMIT);
    let nan = HostTensor::from_f32([4], vec![f32::NAN, 1.0, 2.0, 3.0]).unwrap();
    let error = difference(&nan, &want);
    assert!(error.is_nan() || error > LIMIT);
    assert!(difference(&want.clone().reshape([2, 2]).unwrap(), &want).is_infinite());
}
