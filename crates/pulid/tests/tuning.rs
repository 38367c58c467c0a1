//! Plans with and without measured kernel choices.

use pulid::runtime::Runtime;
use pulid_engine::{Autotune, DeviceOptions, Silent, signature};
use pulid_graph::{FirstVariant, Graph, NodeKind, Rate, optimize, plan};
use pulid_ops::{LayerNorm, LowerContext, MatMul, Softmax};
use pulid_tensor::{HostTensor, TensorType};

fn runtime() -> Runtime {
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    pollster::block_on(Runtime::open(&device, DeviceOptions::default())).unwrap()
}

fn graph() -> Graph {
    let mut g = Graph::new("small");
    let mut x = g.input("x", TensorType::f32([12, 64]), Rate::Step).unwrap();
    let w = g.constant("w", HostTensor::zeros([64, 36]));
    x = g.apply(MatMul::default(), &[x, w]).unwrap();
    x = g.apply(LayerNorm { eps: 1e-5, gain: false, bias: false }, &[x]).unwrap();
    x = g.apply(Softmax, &[x]).unwrap();
    g.output("y", x).unwrap();
    g
}

fn dump(runtime: &Runtime) -> String {
    pollster::block_on(runtime.plan(&graph(), &Silent)).unwrap().unwrap().plan.dump()
}

/// For every operator of the graph the variant that is the operator's own last choice.
fn last_variants(runtime: &Runtime) -> Autotune {
    let Runtime::Gpu { device, .. } = runtime else { panic!("no device") };
    let graph = optimize(&graph());
    let mut choices = Autotune::for_device(device);
    for node in graph.nodes() {
        let NodeKind::Apply { operator, inputs } = &node.kind else { continue };
        let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i).clone()).collect();
        let cx = LowerContext { capabilities: device.capabilities(), inputs: &types, output: &node.ty };
        let variants = operator.lower(&cx).unwrap();
        assert!(variants.len() > 1, "{}", node.label);
        let last = variants[variants.len() - 1].name.to_owned();
        choices.choices.insert(signature(operator.as_ref(), &types), last);
    }
    choices
}

#[test]
fn without_tuning_a_plan_depends_on_the_device_alone() {
    let runtime = runtime();
    let Runtime::Gpu { device, .. } = &runtime else { panic!("no device") };
    let own = plan(&optimize(&graph()), device.capabilities(), &FirstVariant).unwrap().plan.dump();
    assert_eq!(dump(&runtime), own);
    assert!(runtime.choices().is_none(), "there is nothing to keep");

    // With it, what was measured decides.
    let known = last_variants(&runtime);
    let tuned = self::runtime().with_tuning(Some(known.clone()));
    assert_ne!(dump(&tuned), own);
    assert_eq!(tuned.choices(), Some(known), "nothing was measured again");
}

#[test]
fn choices_of_others_are_ignored() {
    let known = last_variants(&runtime());
    let others = [
        Autotune { device: "another device".into(), ..known.clone() },
        Autotune { kernels: "0.1.0 0123456789abcdef".into(), ..known.clone() },
    ];
    for other in others {
        let tuned = runtime().with_tuning(Some(other));
        let choices = tuned.choices().unwrap();
        assert!(choices.choices.is_empty(), "{choices:?}");
        assert_eq!((choices.device, choices.kernels), (known.device.clone(), known.kernels.clone()));
    }
}
