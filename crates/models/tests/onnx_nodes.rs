//! onnx's own backend node tests on the CPU reference, and what the documentation says of operators.

#[path = "support/nodes.rs"]
mod nodes;

use pulid_graph::{optimize, reference};
use pulid_models::onnx::OnnxNetwork;

#[test]
fn reference_passes_onnx_node_tests() {
    let outcomes: Vec<_> = nodes::cases()
        .iter()
        .map(|case| {
            let run = || {
                let (graph, inputs) = case.graph()?;
                reference::run(&optimize(&graph), &inputs, |_, _| Ok(()))
            };
            let outcome = run().map_err(|e| e.to_string()).and_then(|outputs| case.check(&outputs));
            (case.name.clone(), outcome)
        })
        .collect();
    nodes::assert_passing(&outcomes, &[]);
}

#[test]
fn the_documentation_lists_the_operators() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/onnx.md")).unwrap();
    let list = text.split("<!-- operators -->").nth(1).unwrap();
    let listed: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
    assert_eq!(listed, OnnxNetwork::operators());
}
