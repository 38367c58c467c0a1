//! A VAE in bands of rows gives the image that it gives in one piece, on a device and on the reference.

use pulid::runtime::Runtime;
use pulid_engine::{DeviceOptions, Silent};
use pulid_graph::{Graph, fit_bindings};
use pulid_models::Precision;
use pulid_models::sdxl::Vae;
use pulid_tensor::{HostTensor, Result};
use std::collections::HashMap;
use std::path::Path;

fn vae() -> Vae {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/vae/weights/f8");
    Vae::open(folder, Precision::F32).unwrap()
}

fn run(runtime: &Runtime, graph: &Graph, input: &str, value: &HostTensor) -> HashMap<String, HostTensor> {
    let inputs = HashMap::from([(input.to_owned(), value.clone())]);
    pollster::block_on(runtime.run(graph, &inputs, &Silent)).unwrap()
}

/// Nodes of the graph whose values take the most bytes.
fn largest(graph: &Graph) -> usize {
    let is_value = |n: &&pulid_graph::Node| !matches!(n.kind, pulid_graph::NodeKind::Weight(_));
    graph.nodes().iter().filter(is_value).map(|n| n.ty.bytes()).max().unwrap()
}

/// Every output of the banded graph equals the whole one's to a level far below 1 of 255.
fn agree(input: &str, value: &HostTensor, limits: &[usize], build: impl Fn() -> Result<Graph>) {
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let gpu = pollster::block_on(Runtime::open(&device, DeviceOptions::default())).unwrap();
    let whole = build().unwrap();
    for runtime in [&gpu, &Runtime::Reference] {
        let want = run(runtime, &whole, input, value);
        for &limit in limits {
            let graph = fit_bindings(&whole, limit).unwrap();
            assert!(graph.nodes().len() > whole.nodes().len() + 20, "limit {limit} makes no bands");
            assert!(largest(&graph) <= limit, "{} bytes under a limit of {limit}", largest(&graph));
            let got = run(runtime, &graph, input, value);
            for (name, want) in &want {
                let pairs = got[name].as_f32().unwrap().iter().zip(want.as_f32().unwrap());
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let size = want.as_f32().unwrap().iter().map(|v| v.abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-5 * size.max(1.0), "{}: {name} under {limit} is off by {worst}", runtime.name());
            }
        }
    }
}

#[test]
fn decoding_in_bands_has_no_seam() {
    let latent = HostTensor::from_fn([1, 9, 7, 4], |i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 2.0);
    // The image itself, an output, takes 48 KB. The last level is 72 x 56 x 16 f32: 258 KB. Odd heights meet the upsampling in mid-pixel.
    agree("latent", &latent, &[100_000, 61_000, 49_000], || vae().decoder(1, 9, 7));
}

#[test]
fn a_batch_in_bands_is_decoded_image_by_image() {
    let latent = HostTensor::from_fn([2, 5, 4, 4], |i| (i * 53 % 97) as f32 / 40.0 - 1.2);
    agree("latent", &latent, &[40_000], || vae().decoder(2, 5, 4));
}

#[test]
fn encoding_in_bands_has_no_seam() {
    let sample = HostTensor::from_fn([1, 88, 72, 3], |i| (i * 71 % 211) as f32 / 105.0 - 1.0);
    agree("sample", &sample, &[130_000, 77_000], || vae().encoder(1, 88, 72));
}
