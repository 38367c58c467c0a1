//! onnx's own backend node tests on the device `PULID_TEST_DEVICE` (default: the best there is).

#[path = "../../models/tests/support/nodes.rs"]
mod nodes;

use pulid::runtime::Runtime;
use pulid_engine::{DeviceOptions, Silent};

/// Answers that are not finite, which a run on a device takes for an overflow.
const INFINITE: [(&str, &str); 7] = [
    ("test_mod_float_edge_cases_fmod_0_float32", "the answer holds NaN"),
    ("test_reduce_log_sum_empty_set", "the answer is infinite"),
    ("test_reduce_log_sum_empty_set_expanded", "the answer is infinite"),
    ("test_reduce_log_sum_exp_empty_set", "the answer is infinite"),
    ("test_reduce_log_sum_exp_empty_set_expanded", "the answer is infinite"),
    ("test_reduce_max_empty_set", "the answer is infinite"),
    ("test_reduce_min_empty_set", "the answer is infinite"),
];

#[test]
fn device_passes_onnx_node_tests() {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let runtime = pollster::block_on(Runtime::open(&selector, DeviceOptions::default())).unwrap();
    let outcomes: Vec<_> = nodes::cases()
        .iter()
        .map(|case| {
            let run = || {
                let (graph, inputs) = case.graph()?;
                pollster::block_on(runtime.run(&graph, &inputs, &Silent))
            };
            let outcome = run().map_err(|e| e.to_string()).and_then(|outputs| case.check(&outputs));
            (case.name.clone(), outcome)
        })
        .collect();
    nodes::assert_passing(&outcomes, &INFINITE);
}
