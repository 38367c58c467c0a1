//! `dtype` f16 on devices without `shader-f16`: weights are packed halves, values stay f32. Networks against what PyTorch and
//! onnxruntime answer, as on other devices.

use pulid::runtime::Runtime;
use pulid_engine::{DeviceOptions, Silent};
use pulid_models::golden::Golden;
use pulid_models::run::{Prepared, prepare};
use pulid_tensor::DType;
use std::path::Path;

/// Small networks that between them read packed weights by every kernel that does.
const CASES: [&str; 8] = [
    "unet/id-v2",
    "vae/decode-f2",
    "text-encoder/gelu-projected",
    "eva-clip/two-per-scale",
    "id-former/one-photo",
    "bisenet/odd",
    "retinaface/narrow-pyramid",
    "onnx/iresnet-like",
];

/// Deviations of the answer that a result may be off. Rounded weights alone do a third of half precision's harm: measured are 4.3e-3 (the
/// face parser); the other goldens' files hold halves already.
const LIMIT: f64 = 1e-2;

fn runtime() -> Runtime {
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let options = DeviceOptions { shader_f16: false, ..DeviceOptions::default() };
    pollster::block_on(Runtime::open(&device, options)).unwrap()
}

#[test]
fn networks_agree_where_only_weights_are_halves() {
    let runtime = runtime();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    for name in CASES {
        let golden = Golden::read(root.join(name)).unwrap();
        let (options, inputs) = (golden.options(runtime.precision(DType::F16, None)), golden.inputs().unwrap());
        let Prepared::Graph(run) = prepare(&golden.network, &options, &inputs).unwrap() else {
            panic!("{name} computes nothing");
        };

        let planned = pollster::block_on(runtime.plan(&run.graph, &Silent)).unwrap().unwrap();
        let dispatches = || planned.plan.prologue.iter().chain(&planned.plan.steps).flat_map(|s| &s.dispatches);
        assert!(dispatches().any(|d| d.features.contains(&"w16")), "{name} reads no packed weights");
        assert!(!dispatches().any(|d| d.features.contains(&"f16")), "{name} needs shader-f16");

        let outputs = pollster::block_on(runtime.run(&run.graph, &run.inputs, &Silent)).unwrap();
        let outputs = run.finish(outputs).unwrap();
        let mut worst = 0f64;
        for (key, want) in golden.outputs().unwrap() {
            let got = &outputs[&key];
            match want.dtype() {
                DType::U32 => assert_eq!(got.cast(DType::U32), want, "{name}: {key}"),
                _ => worst = worst.max(got.deviation_from(&want)),
            }
        }
        assert!(worst <= LIMIT, "{name} is {worst:.1e} standard deviations off");
    }
}

#[test]
fn only_weights_are_halves_without_shader_f16() {
    let precision = runtime().precision(DType::F16, None);
    assert_eq!((precision.activations, precision.weights), (DType::F32, Some(DType::F16)));
}
