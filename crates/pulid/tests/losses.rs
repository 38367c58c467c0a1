//! Training's losses and their gradients against PyTorch's autograd in float64 (`tests/goldens/losses`), on the device
//! `PULID_TEST_DEVICE` (default: the best there is).

#[path = "../../models/tests/support/losses.rs"]
mod losses;

use losses::{CASES, Case};
use pulid::runtime::Runtime;
use pulid_engine::{DeviceOptions, Silent};
use pulid_graph::{Checkpointing, Graph};
use pulid_tensor::HostTensor;
use std::collections::HashMap;

/// Standard deviations by which a gradient may be off in f32, and parts of a loss.
const LIMIT: f64 = 1e-4;

#[test]
fn losses_and_gradients_on_a_device_are_pytorch_s() {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let runtime = pollster::block_on(Runtime::open(&selector, DeviceOptions::default())).unwrap();
    assert!(matches!(runtime, Runtime::Gpu { .. }), "no device");
    let run =
        |graph: &Graph, inputs: &HashMap<String, HostTensor>| pollster::block_on(runtime.run(graph, inputs, &Silent));
    for name in CASES {
        let case = Case::open(name, Checkpointing::Off);
        case.check(name, &run(&case.graph, &case.inputs).unwrap(), LIMIT);
        case.check_reference(name, run, LIMIT);
    }
}
