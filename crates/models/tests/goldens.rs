//! Every network against what other implementations answer (`tests/goldens`), executed by the CPU reference.

use pulid_graph::{optimize, reference};
use pulid_models::Precision;
use pulid_models::golden::{Golden, limit};
use pulid_models::run::{GraphRun, NETWORKS, Prepared, RunOptions, Tensors, prepare};
use pulid_tensor::{DType, HostTensor, Result};
use std::path::{Path, PathBuf};

/// Largest accepted [`HostTensor::deviation_from`] the expected tensor; measured are 8.7e-6 at most (a VAE's decoder).
const LIMIT: f64 = 3e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens")
}

/// The cases of a network.
fn cases(network: &str) -> Vec<Golden> {
    let mut cases = Golden::all(&folder()).unwrap();
    // Gradients have a test and a limit of their own, `gradients.rs`.
    cases.retain(|golden| golden.network == network && golden.options.gradient.is_none());
    assert!(!cases.is_empty(), "no golden of {network}");
    cases
}

fn execute(run: &GraphRun) -> Result<Tensors> {
    run.finish(reference::run(&optimize(&run.graph), &run.inputs, |_, _| Ok(()))?)
}

fn check(network: &str) {
    check_in(network, Precision::F32, LIMIT);
    // The reference rounds weights and casts only, so this is no measure of f16 kernels: it shows that the graphs are built in half
    // precision and read every weight in it. Measured are 1.1e-2 at most.
    check_in(network, Precision::F16, limit(DType::F16));
}

fn check_in(network: &str, precision: Precision, limit: f64) {
    let mut failures = Vec::new();
    for golden in cases(network) {
        let name = golden.name();
        let prepared = prepare(network, &golden.options(precision), &golden.inputs().unwrap());
        let got = prepared.and_then(|p| match p {
            Prepared::Graph(run) => execute(&run),
            Prepared::Done(outputs) => Ok(outputs),
        });
        let got = match got {
            Ok(got) => got,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let want = golden.outputs().unwrap();
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
            let error = got.deviation_from(want);
            println!("{name} {}: {key} {error:.2e}", precision.activations);
            if error > limit {
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
    clip_vision: "clip-vision",
    id_former: "id-former",
    id_encoder: "id-encoder",
    bisenet: "bisenet",
    retinaface: "retinaface",
    onnx: "onnx",
}

fn case(network: &str, name: &str) -> (RunOptions, Tensors) {
    let golden = cases(network).into_iter().find(|golden| golden.folder.ends_with(name)).unwrap();
    let inputs = golden.inputs().unwrap();
    (golden.options, inputs)
}

fn graph_run(network: &str, options: &RunOptions, inputs: &Tensors) -> Result<GraphRun> {
    match prepare(network, options, inputs)? {
        Prepared::Graph(run) => Ok(run),
        Prepared::Done(_) => panic!("{network} has a graph"),
    }
}

/// A scale of 0 must give the very image without identity, so it must give the very graph.
#[test]
fn identity_of_scale_0_is_no_identity() {
    let (with, mut inputs) = case("unet", "id-zero-scale");
    let zero = graph_run("unet", &with, &inputs).unwrap();
    inputs.remove("id_embedding");
    let none = graph_run("unet", &RunOptions::new(&with.weights), &inputs).unwrap();
    assert_eq!(format!("{:?}", zero.graph.nodes()), format!("{:?}", none.graph.nodes()));
    assert_eq!(zero.inputs, none.inputs);
    assert_eq!(execute(&zero).unwrap(), execute(&none).unwrap());
}

/// What a person can get wrong is answered with what is wrong.
#[test]
fn mistakes_are_explained() {
    let (options, inputs) = case("unet", "id-v2");
    let refusal = |network: &str, options: &RunOptions, inputs: &Tensors| match prepare(network, options, inputs) {
        Ok(_) => panic!("{network} accepts it"),
        Err(error) => error.to_string(),
    };
    let with = |change: fn(&mut RunOptions)| {
        let mut options = options.clone();
        change(&mut options);
        refusal("unet", &options, &inputs)
    };
    let set = |o: &mut RunOptions, key: &str, value: &str| drop(o.settings.insert(key.into(), value.into()));
    assert!(refusal("nat", &options, &inputs).contains("vae-decoder"));
    assert!(refusal("vae-decoder", &options, &inputs).contains("id_scale"));
    assert!(with(|o| o.adapter = None).contains("--adapter"));
    assert!(with(|o| o.adapter = Some("missing.safetensors".into())).contains("missing.safetensors"));
    assert!(with(|o| o.weights = "missing".into()).contains("missing"));
    let mut bad = options.clone();
    for (key, value, named) in [
        ("ortho", "v3", "v1, v2"),
        ("id_scale", "NaN", "finite"),
        ("id_scale", "x", "id_scale"),
        ("num_zero", "-1", "-1"),
    ] {
        bad.settings = options.settings.clone();
        set(&mut bad, key, value);
        let message = refusal("unet", &bad, &inputs);
        assert!(message.contains(named), "{message}");
    }
    bad.settings = options.settings.clone();
    set(&mut bad, "id_scael", "1");
    assert!(refusal("unet", &bad, &inputs).contains("id_scale"));

    for (name, value, named) in [
        ("sample", HostTensor::zeros([2, 3, 9, 8]), "sample"),
        ("sample", HostTensor::zeros([2, 9, 8]), "4 axes"),
        ("timestep", HostTensor::zeros([3]), "timestep"),
        ("encoder_hidden_states", HostTensor::zeros([2, 77, 31]), "encoder_hidden_states"),
        ("id_embedding", HostTensor::zeros([1, 32, 32]), "id_embedding"),
        ("time_ids", HostTensor::zeros([2, 5]), "time_ids"),
    ] {
        let mut changed = inputs.clone();
        changed.insert(name.into(), value);
        let message = refusal("unet", &options, &changed);
        assert!(message.contains(named), "{message}");
    }
    let mut fewer = inputs.clone();
    fewer.remove("text_embeds");
    assert!(refusal("unet", &options, &fewer).contains("text_embeds"));

    // An adapter of another UNet: its weights have other widths.
    let (other, _) = case("unet", "id-v1-strong");
    bad = RunOptions { adapter: other.adapter, ..options.clone() };
    let message = refusal("unet", &bad, &inputs);
    assert!(message.contains("id_adapter_attn_layers.") && message.contains("expected"), "{message}");

    let (text, mut ids) = case("text-encoder", "quick-gelu");
    ids.insert("input_ids".into(), HostTensor::from_u32([1, 77], vec![4096; 77]).unwrap());
    assert!(refusal("text-encoder", &text, &ids).contains("vocabulary"));
    assert!(refusal("tokenizer", &RunOptions::new("."), &ids).contains("--set text"));
}
