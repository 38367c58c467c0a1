//! `dtype` f16 on devices without `shader-f16`: weights are packed halves, values stay f32. Networks against what PyTorch and
//! onnxruntime answer, as on other devices.

use pulid::runtime::Runtime;
use pulid_checkpoint::Checkpoint;
use pulid_engine::{DeviceOptions, Silent};
use pulid_models::run::{Prepared, RunOptions, prepare};
use pulid_tensor::DType;
use serde_json::Value;
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

/// Deviations of the answer that a result may be off. Rounded weights alone do a third of half precision's harm.
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
        let case = root.join(name);
        let golden: Value = serde_json::from_slice(&std::fs::read(case.join("golden.json")).unwrap()).unwrap();
        let path = |key: &str| golden[key].as_str().map(|path| case.join(path));
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let settings = golden["set"].as_object().into_iter().flatten();
        let options = RunOptions {
            adapter: path("adapter"),
            settings: settings.map(|(key, value)| (key.clone(), text(value))).collect(),
            precision: runtime.precision(DType::F16, None),
            ..RunOptions::new(path("weights").unwrap())
        };
        let file = Checkpoint::open(case.join("inputs.safetensors")).unwrap();
        let inputs = file.keys().map(|key| (key.to_owned(), file.tensor(key).unwrap())).collect();
        let Prepared::Graph(run) = prepare(golden["network"].as_str().unwrap(), &options, &inputs).unwrap() else {
            panic!("{name} computes nothing");
        };

        let planned = pollster::block_on(runtime.plan(&run.graph, &Silent)).unwrap().unwrap();
        let dispatches = || planned.plan.prologue.iter().chain(&planned.plan.steps).flat_map(|s| &s.dispatches);
        assert!(dispatches().any(|d| d.features.contains(&"w16")), "{name} reads no packed weights");
        assert!(!dispatches().any(|d| d.features.contains(&"f16")), "{name} needs shader-f16");

        let outputs = pollster::block_on(runtime.run(&run.graph, &run.inputs, &Silent)).unwrap();
        let outputs = run.finish(outputs).unwrap();
        let want = Checkpoint::open(case.join("outputs.safetensors")).unwrap();
        let mut worst = 0f64;
        for key in want.keys() {
            let (got, want) = (&outputs[key], want.tensor(key).unwrap());
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
