//! `pulid train` as a person starts it, on the mini models.

mod support;

use pulid_checkpoint::Checkpoint;
use pulid_tensor::HostTensor;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{portrait, program, pulid, refuse, repository, succeed};

/// A folder of two people with captions, a broken image and one without a face.
fn data(folder: &Path) -> PathBuf {
    let data = folder.join("data");
    for (person, names) in [("one", &["1", "2"]), ("two", &["3", "4"])] {
        fs::create_dir_all(data.join(person)).unwrap();
        for (name, source) in names.iter().zip(faces().into_iter().skip(if person == "one" { 0 } else { 2 })) {
            fs::copy(portrait(&source), data.join(person).join(format!("{name}.jpg"))).unwrap();
            fs::write(data.join(person).join(format!("{name}.txt")), "a person").unwrap();
        }
    }
    fs::write(data.join("broken.jpg"), b"no image").unwrap();
    data
}

/// Portraits of `examples/faces`, in order.
fn faces() -> Vec<String> {
    let entries = fs::read_dir(repository("examples/faces")).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> =
        entries.map(|n| n.to_string_lossy().into_owned()).filter(|n| n.ends_with(".jpg")).collect();
    names.sort();
    names
}

fn cache(folder: &Path) -> String {
    let data = data(folder).display().to_string();
    let said = succeed(
        folder,
        &["train", "prepare", "--data", &data, "--out", "cached", "--resolution", "64", "--dtype", "f32"],
    );
    assert!(said.contains("4 images, 4 of them new; 1 rejected"), "{said}");
    "cached".to_owned()
}

/// Flags of a small run.
fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let base = ["train", "--data", "cached", "--resolution", "64", "--dtype", "f32", "--batch", "2", "--lr", "1e-3"];
    base.iter().copied().chain(more.iter().copied()).collect()
}

fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_cache_is_made_once_and_a_killed_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cache(at);
    let rejected = fs::read_to_string(at.join("cached/rejected.jsonl")).unwrap();
    assert!(rejected.contains("broken.jpg") && rejected.lines().count() == 1, "{rejected}");
    // Nothing is left to do.
    let data = at.join("data").display().to_string();
    let again = ["train", "prepare", "--data", &data, "--out", "cached", "--resolution", "64", "--dtype", "f32"];
    assert!(succeed(at, &again).contains("4 images, 0 of them new; 1 rejected"));
    let other = ["train", "prepare", "--data", &data, "--out", "cached", "--resolution", "96", "--dtype", "f32"];
    assert!(refuse(at, &other).contains("resolution 64, not 96"));

    succeed(at, &flags(&["--out", "whole", "--steps", "4", "--save-every", "2", "--pair", "mix"]));
    for name in ["run.toml", "adapter-2.safetensors", "adapter-4.safetensors", "state-4/state.json"] {
        assert!(at.join("whole").join(name).exists(), "{name}");
    }
    // Killed after its second step's checkpoint, in the middle of what comes next.
    let arguments = flags(&["--out", "killed", "--steps", "4", "--save-every", "2", "--pair", "mix"]);
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let mut child = program(at, &arguments)
        .args(["--device", &device, "--autotune", "off"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !at.join("killed/state-2/state.json").exists() && begun.elapsed() < Duration::from_secs(300) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!at.join("killed/state-4").exists(), "killed too late to tell anything");
    succeed(at, &["train", "--resume", "killed"]);
    let bytes = |run: &str, name: &str| fs::read(at.join(run).join(name)).unwrap();
    for name in ["adapter-4.safetensors", "state-4/optimizer.safetensors", "state-4/state.json"] {
        assert!(bytes("whole", name) == bytes("killed", name), "{name} differs");
    }
    assert_ne!(bytes("whole", "adapter-2.safetensors"), bytes("whole", "adapter-4.safetensors"));
    let steps: Vec<u64> = metrics(&at.join("killed")).iter().map(|m| m["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    let message = refuse(at, &["train", "--resume", "killed"]);
    assert!(message.contains("is done") && message.contains("--steps"), "{message}");
    let message = refuse(at, &flags(&["--out", "killed", "--steps", "4"]));
    assert!(message.contains("--resume"), "{message}");
    // What came out is an adapter like any other.
    let face = portrait(&faces()[0]);
    let made = ["generate", "--id", &face, "--prompt", "a person", "--adapter", "whole/adapter-4.safetensors"];
    succeed(at, &[&made[..], &["--steps", "1", "--width", "64", "--height", "64", "--output", "made.png"]].concat());
}

fn tensors(path: &Path) -> BTreeMap<String, HostTensor> {
    let file = Checkpoint::open(path).unwrap();
    file.keys().map(|key| (key.to_owned(), file.tensor(key).unwrap())).collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, HostTensor>) {
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    pulid_checkpoint::write_safetensors(path, named, &BTreeMap::new()).unwrap();
}

/// The largest difference by the deviation of what is expected.
fn difference(found: &HostTensor, expected: &HostTensor) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let (a, b) = (found.to_f32_vec(), expected.to_f32_vec());
    let deviation = (b.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / b.len() as f64).sqrt();
    let worst = a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    worst / deviation.max(1e-20)
}

#[test]
fn an_exported_step_is_the_chain_of_the_networks_gradients() {
    exported_step_is_the_chain("0");
}

#[test]
fn a_step_by_min_snr_weights_is_that_chain_too() {
    exported_step_is_the_chain("0.05");
}

/// The share of clean latents in a timestep's variance, for SDXL's schedule (`scaled_linear` from 0.00085 to 0.012).
fn signal(timestep: f32) -> f64 {
    let beta = |i: usize| {
        let [first, last] = [0.00085_f64, 0.012].map(f64::sqrt);
        (first + (last - first) * i as f64 / 999.0).powi(2)
    };
    (0..=timestep as usize).map(|i| 1.0 - beta(i)).product()
}

/// `pulid run --gradient`, which goldens hold to PyTorch, gives the same gradients network by network: prediction, upstream of the mean
/// square, the UNet's gradients in its projections and tokens, the encoder's in its parameters. The update is AdamW's, computed here in f64.
fn exported_step_is_the_chain(gamma: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cache(at);
    let run = ["--out", "run", "--steps", "1", "--export-steps", "1", "--snr-gamma", gamma];
    succeed(at, &flags(&[&run[..], &["--clip", "0.001", "--checkpointing", "block"]].concat()));
    let step = tensors(&at.join("run/steps/1.safetensors"));
    let mini = repository("models/mini");
    let adapter = mini.join("pulid_v1.1.safetensors").display().to_string();
    let unet = mini.join("sdxl/unet").display().to_string();
    let pick = |names: &[&str]| -> BTreeMap<String, HostTensor> {
        names.iter().map(|name| ((*name).to_owned(), step[*name].clone())).collect()
    };
    let hidden = ["hidden_0", "hidden_1", "hidden_2", "hidden_3", "hidden_4"];
    let mut encoder = pick(&hidden);
    let &[batch, width] = step["id_cond"].shape().extents() else { panic!() };
    encoder.insert("id_cond".into(), step["id_cond"].clone().reshape([batch, 1, width]).unwrap());
    write(&at.join("encoder.safetensors"), &encoder);
    let run = |network: &str, weights: &str, input: &str, output: &str, more: &[&str]| {
        let base = ["run", network, "--weights", weights, "--inputs", input, "--outputs", output, "--dtype", "f32"];
        succeed(at, &[&base[..], more].concat());
        tensors(&at.join(output))
    };
    let identity = run("id-former", &adapter, "encoder.safetensors", "identity.safetensors", &[]);
    let mut inputs = pick(&["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]);
    inputs.insert("id_embedding".into(), identity["id_embedding"].clone());
    write(&at.join("unet.safetensors"), &inputs);
    let more = ["--adapter", &adapter, "--set", "id_scale=1", "--set", "num_zero=20", "--set", "ortho=v2"];
    let predicted = run("unet", &unet, "unet.safetensors", "predicted.safetensors", &more)["sample"].clone();
    let (found, wanted) = (predicted.to_f32_vec(), step["target"].to_f32_vec());
    let count = found.len() as f64;
    let lack = |i: usize| f64::from(found[i]) - f64::from(wanted[i]);
    // As diffusers' `train_text_to_image_sdxl.py` weighs samples for `--snr_gamma`.
    let gamma: f64 = gamma.parse().unwrap();
    let of_sample = |timestep: &f32| {
        let ratio = signal(*timestep) / (1.0 - signal(*timestep));
        if gamma > 0.0 { ratio.min(gamma) / ratio } else { 1.0 }
    };
    let weights: Vec<f64> = step["timestep"].to_f32_vec().iter().map(of_sample).collect();
    assert!(gamma == 0.0 || weights.iter().any(|weight| *weight < 0.9), "{weights:?}");
    let weight = |i: usize| weights[i * batch / found.len()];
    let loss = (0..found.len()).map(|i| weight(i) * lack(i).powi(2)).sum::<f64>() / count;
    let exported = f64::from(step["loss.diff"].to_f32_vec()[0]);
    assert!((exported - loss).abs() < 1e-4 * loss, "{exported} {loss}");
    let upstream = HostTensor::from_fn(predicted.shape().clone(), |i| (2.0 * weight(i) * lack(i) / count) as f32);
    inputs.insert("upstream.sample".into(), upstream);
    write(&at.join("unet.safetensors"), &inputs);
    let of_unet = run("unet", &unet, "unet.safetensors", "unet-d.safetensors", &[&more[..], &["--gradient"]].concat());
    encoder.insert("upstream.id_embedding".into(), of_unet["d.id_embedding"].clone());
    write(&at.join("encoder.safetensors"), &encoder);
    let of_encoder = run("id-former", &adapter, "encoder.safetensors", "encoder-d.safetensors", &["--gradient"]);

    let parameters: Vec<&str> = step.keys().filter_map(|name| name.strip_prefix("before.")).collect();
    assert!(parameters.len() > 100, "{}", parameters.len());
    let mut squares = 0.0;
    for name in &parameters {
        let key = format!("d.{name}");
        let expected = of_unet.get(&key).or_else(|| of_encoder.get(&key)).unwrap_or_else(|| panic!("{key}"));
        // Two orders of the same sums in f32, through the whole UNet.
        let difference = difference(&step[&key], expected);
        assert!(difference < 2e-3, "{key}: {difference:e}");
        squares += step[&key].to_f32_vec().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    }
    let norm = squares.sqrt();
    let logged = &metrics(&at.join("run"))[0];
    assert!((logged["gradient_norm"].as_f64().unwrap() / norm - 1.0).abs() < 1e-4, "{logged} {norm}");
    let clipped = (0.001 / (norm + 1e-6)).min(1.0);
    assert!(clipped < 1.0, "the test is to clip: {norm}");
    let lr = f64::from(step["lr"].to_f32_vec()[0]);
    assert!((lr - 1e-3).abs() < 1e-9);
    for name in &parameters {
        let [before, after, gradient] =
            ["before", "after", "d"].map(|part| step[&format!("{part}.{name}")].to_f32_vec());
        for i in 0..before.len() {
            let (p, g) = (f64::from(before[i]), clipped * f64::from(gradient[i]));
            // The first step's moments, corrected, are the gradient and its square.
            let expected = p * (1.0 - lr * 0.01) - lr * g / (g.abs() + 1e-8);
            let off = (f64::from(after[i]) - expected).abs();
            assert!(off < 1e-6 * p.abs().max(1.0) + 2e-5 * lr, "{name}[{i}]: {} {expected}", after[i]);
        }
    }
}

#[test]
fn the_loss_falls_on_a_few_images_and_steps_may_be_accumulated() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cache(at);
    let base = ["--steps", "16", "--warmup", "2", "--schedule", "cosine", "--from", "none", "--save-every", "0"];
    let kept = ["--drop-id", "0", "--drop-text", "0", "--drop-both", "0"];
    let losses = |out: &str, more: &[&str]| -> Vec<serde_json::Value> {
        succeed(
            at,
            &[
                &["train", "--data", "cached", "--resolution", "64", "--dtype", "f32"][..],
                &base,
                &kept,
                &["--out", out],
                more,
            ]
            .concat(),
        );
        metrics(&at.join(out))
    };
    // The loss depends on the timesteps most of all: a run that learns nothing draws the same ones.
    let still = losses("still", &["--lr", "1e-9", "--accumulate", "1", "--batch", "4"]);
    let run = losses("run", &["--lr", "2e-3", "--accumulate", "2", "--batch", "2"]);
    let loss = |m: &serde_json::Value| m["loss_diff"].as_f64().unwrap();
    let sum = |all: &[serde_json::Value]| all[8..].iter().map(loss).sum::<f64>();
    assert!(sum(&run) < 0.985 * sum(&still), "{} {}", sum(&run), sum(&still));
    // The first step's samples are the same four, together or in two micro-batches.
    let norm = |m: &serde_json::Value| m["gradient_norm"].as_f64().unwrap();
    assert!((loss(&run[0]) / loss(&still[0]) - 1.0).abs() < 1e-5);
    assert!((norm(&run[0]) / norm(&still[0]) - 1.0).abs() < 1e-4, "{} {}", norm(&run[0]), norm(&still[0]));
    // TensorBoard's file holds a record a step and the version.
    let names = fs::read_dir(at.join("run")).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.starts_with("events.out.tfevents.")).count(), 1);
}

/// Muon's own arithmetic is held to PyTorch in `tests/goldens/optimizers`: here it is who is changed by it, at which rate, and that averages
/// follow.
#[test]
fn matrices_may_be_trained_by_muon_and_averages_follow() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cache(at);
    let settings = ["--optimizer", "muon", "--ema", "0.3", "--clip", "0", "--save-every", "1", "--keep", "1"];
    succeed(at, &flags(&[&settings[..], &["--out", "whole", "--steps", "3", "--export-steps", "3"]].concat()));
    let steps: Vec<_> = (1..=3).map(|step| tensors(&at.join(format!("whole/steps/{step}.safetensors")))).collect();
    let averages = tensors(&at.join("whole/adapter-3-ema.safetensors"));
    let [mut matrices, mut others] = [0; 2];
    for name in steps[0].keys().filter_map(|name| name.strip_prefix("before.")) {
        let value = |step: usize, part: &str| steps[step][&format!("{part}.{name}")].to_f32_vec();
        let (before, after, gradient) = (value(0, "before"), value(0, "after"), value(0, "d"));
        let shape = steps[0][&format!("d.{name}")].shape().clone();
        let change = |i: usize| (f64::from(before[i]) * (1.0 - 1e-3 * 0.01) - f64::from(after[i])) / 1e-3;
        if shape.rank() == 2 {
            let [longer, shorter] = [shape[0].max(shape[1]), shape[0].min(shape[1])].map(|v| v as f64);
            let squares: f64 = (0..before.len()).map(|i| (change(i) / (0.2 * longer.sqrt())).powi(2)).sum();
            // Singular values near one, as many as the gradient has: two samples give some matrices two.
            assert!(squares < 1.6 * shorter && squares > 0.3, "{name}: {squares} of {shorter}");
            matrices += 1;
        } else {
            for (i, gradient) in gradient.iter().map(|g| f64::from(*g)).enumerate() {
                let expected = gradient / (gradient.abs() + 1e-8);
                assert!((change(i) - expected).abs() < 2e-3 * f64::from(before[i].abs()).max(1.0), "{name}[{i}]");
            }
            others += 1;
        }
        // Decays 0, 2 / 11 and 1 / 4.
        let after: Vec<_> = (0..3).map(|step| value(step, "after")).collect();
        for (i, average) in averages[name].to_f32_vec().into_iter().enumerate() {
            let [a, b, c] = [0, 1, 2].map(|step| f64::from(after[step][i]));
            let second = 2.0 / 11.0 * a + 9.0 / 11.0 * b;
            let expected = 0.25 * second + 0.75 * c;
            assert!((f64::from(average) - expected).abs() < 1e-6 * expected.abs().max(1.0), "{name}[{i}]: {average}");
        }
    }
    assert!(matrices > 30 && others > 30, "{matrices} {others}");
    assert!(!at.join("whole/adapter-2-ema.safetensors").exists(), "of a checkpoint that is not kept");
    succeed(at, &flags(&[&settings[..], &["--out", "broken", "--steps", "2"]].concat()));
    succeed(at, &["train", "--resume", "broken", "--steps", "3"]);
    for name in ["adapter-3.safetensors", "adapter-3-ema.safetensors", "state-3/optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(at.join(run).join(name)).unwrap();
        assert!(bytes("whole") == bytes("broken"), "{name} differs");
    }
}

#[test]
fn a_run_may_begin_with_the_settings_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cache(at);
    succeed(at, &flags(&["--out", "run", "--steps", "1", "--seed", "9", "--keep", "7"]));
    fs::copy(at.join("run/run.toml"), at.join("mine.toml")).unwrap();
    succeed(at, &["train", "--config", "mine.toml", "--out", "again", "--steps", "2"]);
    let settings = |run: &str| fs::read_to_string(at.join(run).join("run.toml")).unwrap();
    assert_eq!(settings("again"), settings("run").replace("\nsteps = 1\n", "\nsteps = 2\n"));
    let norms = ["run", "again"].map(|run| metrics(&at.join(run))[0]["gradient_norm"].clone());
    assert_eq!(norms[0], norms[1]);
    let both = ["train", "--config", "mine.toml", "--out", "third", "--lr", "1"];
    assert!(refuse(at, &both).contains("--lr"));
    fs::write(at.join("mine.toml"), settings("run").replace("keep = 7", "keeps = 7")).unwrap();
    assert!(refuse(at, &["train", "--config", "mine.toml", "--out", "third"]).contains("keeps"));
}

#[test]
fn what_cannot_be_trained_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (more, part) in [
        (&["--optimizer", "sgd"][..], "muon"),
        (&["--ema", "1"], "no decay"),
        (&["--steps", "0"], "1 or more"),
        (&["--drop-text", "2"], "no share"),
        (&[], "no such file or folder"),
    ] {
        let steps: &[&str] = if more.contains(&"--steps") { &[] } else { &["--steps", "1"] };
        let message = refuse(at, &[&flags(&["--out", "run"])[..], steps, more].concat());
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = refuse(at, &["train", "--resume", "nowhere"]);
    // A run goes on with its own settings.
    for flag in ["--lr", "--ema", "--batch", "--models-dir"] {
        let message = refuse(at, &["train", "--resume", "run", flag, "1"]);
        assert!(message.contains(flag) && message.contains("--resume"), "{message}");
    }
    assert!(message.contains("no run.toml"), "{message}");
    // A broken adapter.
    cache(at);
    let mut broken = tensors(&repository("models/mini/pulid_v1.1.safetensors"));
    let shape = broken["id_adapter.latents"].shape().clone();
    broken.insert("id_adapter.latents".into(), HostTensor::from_fn(shape, |i| if i == 3 { f32::NAN } else { 0.1 }));
    write(&at.join("nan.safetensors"), &broken);
    let output = pulid(at, &flags(&["--out", "run", "--steps", "1", "--from", "nan.safetensors"]));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("id_adapter.latents") && message.contains("NaN") && message.contains("--resume run"),
        "{message}"
    );
}

#[test]
fn a_dry_run_tells_the_plan_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    cache(at);
    let before = support::tree(at);
    let said = succeed(at, &flags(&["--steps", "1", "--dry-run", "--json"]));
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["plan"]["images"], 4);
    let file = Checkpoint::open(repository("models/mini/pulid_v1.1.safetensors")).unwrap();
    let numbers: usize = file.keys().map(|key| file.info(key).unwrap().shape.count()).sum();
    assert_eq!(report["plan"]["parameters"].as_u64().unwrap() as usize, numbers);
    assert!(report["seconds_a_step"].as_f64().unwrap() > 0.0);
    assert_eq!(support::tree(at), before);
}

#[test]
fn a_plan_needs_neither_data_nor_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let plan = |more: &[&str]| -> serde_json::Value {
        // No device is opened: there is none of that name.
        let base = ["train", "--plan", "--json", "--device", "nowhere", "--resolution", "128"];
        let output = support::program(at, &[&base[..], more].concat()).output().unwrap();
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["plan"].clone()
    };
    let bytes = |plan: &serde_json::Value, part: &str| -> u64 {
        let all = plan["memory"].as_array().unwrap().iter();
        all.filter(|p| p[0].as_str().unwrap().starts_with(part)).map(|p| p[1].as_u64().unwrap()).sum()
    };
    let first = plan(&["--dtype", "f32"]);
    let numbers = first["parameters"].as_u64().unwrap();
    assert_eq!(bytes(&first, "the optimiser's moments"), 8 * numbers);
    assert_eq!(first["total"].as_u64().unwrap(), bytes(&first, ""));
    // The adapter holds the only copy of the parameters, and little beside them. Gradients lie where other networks have their values.
    let adapter = bytes(&first, "adapter: parameters");
    assert!((4 * numbers..7 * numbers).contains(&adapter), "{adapter} bytes for {numbers} numbers");
    let values = bytes(&first, "values between operators");
    assert!(values > 4 * numbers, "{values} bytes for {numbers} numbers");
    let summed = plan(&["--dtype", "f32", "--accumulate", "2"]);
    assert_eq!(bytes(&summed, "adapter: parameters"), adapter + 4 * numbers);
    let unet = Checkpoint::open(repository("models/mini/sdxl/unet")).unwrap();
    let of_unet: usize = unet.keys().map(|key| unet.info(key).unwrap().shape.count()).sum();
    let weights = bytes(&first, "UNet, weights");
    // The file holds halves, which stay as they are.
    assert!((2 * of_unet..3 * of_unet).contains(&(weights as usize)), "{weights} bytes for {of_unet} numbers");

    // The branch of the same base has its weights already; another optimiser and smaller weights take less.
    let third = plan(&["--dtype", "f32", "--stage", "3"]);
    assert_eq!((bytes(&third, "UNet, weights"), bytes(&third, "branch: UNet, weights")), (weights, 0));
    for part in ["branch, L_id: values and gradients of steps", "branch, L_id: VAE's", "branch, L_align: a step's"] {
        assert!(bytes(&third, part) > 0, "{part}: {third}");
    }
    let small = plan(&["--quantize", "q8", "--optimizer", "muon"]);
    assert!(4 * bytes(&small, "UNet, weights") < 3 * weights, "{small}");
    assert!(bytes(&small, "the optimiser's moments") < 7 * numbers);
    // Where memory is short, the branch's steps run again, and where it still is, blocks are computed again, of as many parts as it takes.
    let within = |bytes: u64| plan(&["--dtype", "f32", "--stage", "3", "--memory", &bytes.to_string()]);
    let total = |plan: &serde_json::Value| plan["total"].as_u64().unwrap();
    let short = within(total(&third) - 1);
    assert!(third["recomputed"] == false && short["recomputed"] == false && total(&short) < total(&third), "{short}");
    let shorter = within(total(&short) - 1);
    assert!(shorter["recomputed"] == true && total(&shorter) < total(&short), "{shorter}");
    assert_eq!(support::tree(at), Vec::<PathBuf>::new());
}
