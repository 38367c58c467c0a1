//! The cases of `tests/goldens/losses`, whoever executes the graphs.

use pulid_checkpoint::Checkpoint;
use pulid_graph::{Checkpointing, Graph};
use pulid_models::Precision;
use pulid_models::onnx::OnnxNetwork;
use pulid_models::pulid::IdentitySettings;
use pulid_models::sdxl::{Predicts, Unet, UnetSize, Vae};
use pulid_models::training::{IdentityLossSize, alignment_graph, diffusion_graph, identity_graph, with_gradients};
use pulid_tensor::{HostTensor, Result};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Every case.
#[allow(dead_code, reason = "tests of single cases name them")]
pub const CASES: [&str; 5] =
    ["diffusion-noise", "diffusion-velocity", "alignment-rms", "alignment-relative", "identity"];

/// A loss with its gradients, and what PyTorch gives.
pub struct Case {
    /// The graph; gradients are among its outputs.
    pub graph: Graph,
    /// Inputs, channels last.
    pub inputs: HashMap<String, HostTensor>,
    /// Answers, channels last.
    pub answers: BTreeMap<String, HostTensor>,
    /// The UNet without identity that gives a case's `reference.q.N`, and what it is given.
    pub reference: Option<Graph>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/losses").join(name)
}

fn tensors(path: PathBuf) -> BTreeMap<String, HostTensor> {
    let file = Checkpoint::open(path).unwrap();
    let value = |key: &str| {
        let value = file.tensor(key).unwrap();
        if value.shape().rank() == 4 { value.nchw_to_nhwc().unwrap() } else { value }
    };
    file.keys().map(|key| (key.to_owned(), value(key))).collect()
}

impl Case {
    /// A case of [`CASES`], its values computed again in the backward pass or not.
    pub fn open(name: &str, checkpointing: Checkpointing) -> Case {
        let folder = folder(name);
        let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
        let text = |key: &str| json[key].as_str().unwrap();
        let inputs: HashMap<_, _> = tensors(folder.join("inputs.safetensors")).into_iter().collect();
        let answers = tensors(folder.join("outputs.safetensors"));
        let mut reference = None;
        let graph = if text("kind") == "identity" {
            let vae = Vae::open(folder.join(text("vae")), Precision::F32).unwrap();
            let recogniser = OnnxNetwork::open(folder.join(text("recogniser"))).unwrap();
            let &[batch, height, width, _] = inputs["latent"].shape().extents() else { panic!("no latent") };
            let size = IdentityLossSize { batch, height, width };
            identity_graph(&vae, &recogniser, size, Precision::F32).unwrap()
        } else {
            let unet = Unet::open(folder.join(text("unet")), Precision::F32).unwrap();
            let settings = IdentitySettings {
                id_scale: json["id_scale"].as_f64().unwrap() as f32,
                num_zero: json["num_zero"].as_u64().unwrap() as usize,
                ortho: text("ortho").parse().unwrap(),
            };
            let &[batch, height, width, _] = inputs["sample"].shape().extents() else { panic!("no sample") };
            let text_tokens = inputs["encoder_hidden_states"].shape()[1];
            let identity = Some(settings.inputs(json["tokens"].as_u64().unwrap() as usize));
            let size = UnetSize { batch, height, width, text_tokens, identity };
            if text("kind") == "alignment" {
                reference = Some(unet.graph_with_queries(UnetSize { identity: None, ..size }).unwrap());
                alignment_graph(&unet, size, text("norm").parse().unwrap()).unwrap()
            } else {
                let velocity = json["velocity"].as_bool().unwrap();
                diffusion_graph(&unet, size, if velocity { Predicts::Velocity } else { Predicts::Noise }).unwrap()
            }
        };
        let losses: Vec<_> = answers.keys().filter(|key| !key.starts_with("d.")).collect();
        // All targets, also those that a loss does not depend on.
        let is_target = |name: &&str| *name == "latent" || name.starts_with("k.") || name.starts_with("v.");
        let targets: Vec<_> = graph.inputs().map(|(name, _)| name).filter(is_target).collect();
        let graph = with_gradients(&graph, &losses, &targets, checkpointing).unwrap();
        Case { graph, inputs, answers, reference }
    }

    /// Holds outputs to the answers: none missing, no gradient that PyTorch does not give, none further away than so many standard
    /// deviations.
    pub fn check(&self, name: &str, outputs: &HashMap<String, HostTensor>, limit: f64) {
        for key in outputs.keys().filter(|key| key.starts_with("d.")) {
            assert!(self.answers.contains_key(key), "{name}: PyTorch gives no {key}");
        }
        let mut worst = (0.0, "");
        for (key, want) in &self.answers {
            let got = outputs.get(key).unwrap_or_else(|| panic!("{name}: no {key}"));
            // Of a handful of numbers that resemble each other the deviation says nothing.
            let error = if key.starts_with("d.") { got.deviation_from(want) } else { relative(got, want) };
            if error > worst.0 {
                worst = (error, key);
            }
            assert!(error <= limit, "{name}: {key} differs by {error:.2e}");
        }
        println!("{name}: {} answers, the worst {} by {:.2e}", self.answers.len(), worst.1, worst.0);
    }

    /// Runs the UNet without identity, where the case has one, and holds its queries to PyTorch's.
    pub fn check_reference(
        &self,
        name: &str,
        run: impl FnOnce(&Graph, &HashMap<String, HostTensor>) -> Result<HashMap<String, HostTensor>>,
        limit: f64,
    ) {
        let Some(graph) = &self.reference else { return };
        let wanted = graph.inputs().map(|(name, _)| (name.to_owned(), self.inputs[name].clone())).collect();
        let outputs = run(graph, &wanted).unwrap();
        let mut compared = 0;
        for (key, want) in &self.inputs {
            let Some(query) = key.strip_prefix("reference.") else { continue };
            let error = outputs[query].deviation_from(want);
            assert!(error <= limit, "{name}: {query} without identity differs by {error:.2e}");
            compared += 1;
        }
        assert!(compared > 5, "{name} holds {compared} queries");
    }
}

fn relative(got: &HostTensor, want: &HostTensor) -> f64 {
    let (got, want) = (got.to_f32_vec(), want.to_f32_vec());
    assert_eq!(got.len(), want.len());
    got.iter().zip(&want).map(|(g, w)| f64::from((g - w).abs() / w.abs())).fold(0.0, f64::max)
}
