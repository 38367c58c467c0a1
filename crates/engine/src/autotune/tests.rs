//! Autotune on a device whose kernels are wrong where a test wants them to be.

use super::*;
use crate::single::edited;
use crate::{DeviceOptions, Silent};
use pulid_graph::{Rate, optimize};
use pulid_ops::{LayerNorm, LowerContext, MatMul};
use pulid_tensor::HostTensor;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

fn device() -> Device {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    pollster::block_on(Device::open(&selector, DeviceOptions::default())).unwrap()
}

/// Operand types of a product.
fn product(m: usize, k: usize, n: usize) -> [TensorType; 2] {
    [TensorType::f32([m, k]), TensorType::f32([k, n])]
}

/// Name and shader of each variant of a product, best first.
fn variants(device: &Device, inputs: &[TensorType]) -> Vec<(&'static str, &'static str)> {
    let output = MatMul::default().infer(inputs).unwrap();
    let cx = LowerContext { capabilities: device.capabilities(), inputs, output: &output };
    let variants = MatMul::default().lower(&cx).unwrap();
    variants.iter().map(|v| (v.name, v.dispatches[0].shader)).collect()
}

/// What is chosen for a product where each of these shaders has a fault, which its text must have room for; and the shaders that
/// were run.
fn choice(
    device: &Device,
    inputs: &[TensorType],
    wrong: &[&str],
    fault: (&str, &str),
) -> (Option<String>, BTreeSet<&'static str>) {
    let used = RefCell::new(BTreeSet::new());
    let kernel_of = |key: crate::kernel::KernelKey| {
        used.borrow_mut().insert(key.shader);
        let change = |shader: &str, text: &str| match wrong.contains(&shader) {
            true => {
                let changed = text.replace(fault.0, fault.1);
                assert_ne!(changed, text, "{shader} has no `{}`", fault.0);
                changed
            }
            false => text.to_owned(),
        };
        edited(device, &key, &change)
    };
    let output = MatMul::default().infer(inputs).unwrap();
    let mut tuned = Autotune::for_device(device);
    let trial = Trial::new(device, &kernel_of);
    pollster::block_on(tuned.measure_by(&trial, &MatMul::default(), inputs, &output)).unwrap();
    (tuned.choices.into_values().next(), used.into_inner())
}

const ONE_PERCENT_MORE: (&str, &str) = ("params.alpha", "params.alpha * 1.01");

#[test]
fn a_wrong_candidate_is_never_chosen() {
    let device = device();
    // The reference computes the first itself, and a smaller piece of the second.
    for inputs in [product(96, 64, 128), product(448, 384, 320)] {
        let all = variants(&device, &inputs);
        assert!(all.len() > 2, "{all:?}");
        let (right, _) = choice(&device, &inputs, &[], ONE_PERCENT_MORE);
        assert!(all.iter().any(|(name, _)| Some(*name) == right.as_deref()), "{right:?}");
        for wrong in 1..all.len() {
            // The first ones fail; then that only the next one, if there is one, is right.
            let shaders: Vec<_> = all[..wrong].iter().map(|v| v.1).collect();
            let (chosen, used) = choice(&device, &inputs, &shaders, ONE_PERCENT_MORE);
            let chosen = chosen.unwrap_or_else(|| panic!("nothing is right beside {shaders:?}"));
            let rest: Vec<_> = all[wrong..].iter().map(|v| v.0).collect();
            assert!(rest.contains(&chosen.as_str()), "{chosen} is wrong");
            assert!(shaders.iter().all(|s| used.contains(s)), "{shaders:?} were not tried: {used:?}");
        }
        let every: Vec<_> = all.iter().map(|v| v.1).collect();
        assert_eq!(choice(&device, &inputs, &every, ONE_PERCENT_MORE).0, None, "all are wrong");
    }
}

/// Two that are wrong in the same way agree with each other.
#[test]
fn variants_are_held_to_the_reference_and_not_to_each_other() {
    let device = device();
    let inputs = product(448, 384, 320);
    let all = variants(&device, &inputs);
    let (last, fast) = all.split_last().unwrap();
    let fast: Vec<_> = fast.iter().map(|v| v.1).collect();
    assert_eq!(choice(&device, &inputs, &fast, ONE_PERCENT_MORE).0.as_deref(), Some(last.0));
}

/// A fault that a smaller piece of the work does not show.
#[test]
fn the_plainest_decides_where_variants_disagree_at_full_size() {
    let device = device();
    let inputs = product(448, 384, 320);
    let all = variants(&device, &inputs);
    let (first, judge) = (all[0], all[all.len() - 1]);
    let text = pulid_ops::shader(first.1, &[]).unwrap().wgsl;
    let end = text.find("params.alpha").unwrap() + "params".len();
    let start = text[..end].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap() + 1;
    let params = &text[start..end];
    let fault = format!("params.alpha * select(1.0, 1.01, {params}.m > 200u)");
    let (chosen, used) = choice(&device, &inputs, &[first.1], ("params.alpha", &fault));
    assert!(chosen.is_some() && chosen.as_deref() != Some(first.0), "{chosen:?}");
    assert!(used.contains(judge.1), "{used:?}");
}

/// Four layers of work enough to be measured on any kind of device.
fn graph() -> Graph {
    let mut g = Graph::new("layers");
    let n = 520;
    let mut x = g.input("x", TensorType::f32([n, n]), Rate::Step).unwrap();
    for i in 0..4 {
        let w = g.constant(format!("w{i}"), HostTensor::zeros([n, n]));
        x = g.apply(MatMul::default(), &[x, w]).unwrap();
    }
    // One variant, or little work: nothing to measure on a CPU device.
    x = g.apply(LayerNorm { eps: 1e-5, gain: false, bias: false }, &[x]).unwrap();
    g.output("y", x).unwrap();
    optimize(&g)
}

#[test]
fn what_was_measured_once_is_known() {
    let device = device();
    let kernels = Cell::new(0);
    let kernel_of = |key| {
        kernels.set(kernels.get() + 1);
        device.kernel(key)
    };
    let trial = Trial::new(&device, &kernel_of);
    let graph = graph();
    let tuned = |mut choices: Autotune| {
        let before = kernels.get();
        let mut budget = TuneBudget { seconds: 1e9 };
        pollster::block_on(tune_by(&trial, &graph, &mut choices, &mut budget, &Silent)).unwrap();
        (choices, kernels.get() - before)
    };
    let (choices, ran) = tuned(Autotune::for_device(&device));
    assert!(ran > 0 && !choices.choices.is_empty(), "{choices:?}");
    // As a file keeps it.
    let text = serde_json::to_string(&choices).unwrap();
    let kept: Autotune = serde_json::from_str(&text).unwrap();
    assert!(kept.fits(&device));
    let (again, ran) = tuned(kept);
    assert_eq!((again, ran), (choices, 0));
}

#[test]
fn no_operator_is_begun_without_time_for_it() {
    let device = device();
    let mut choices = Autotune::for_device(&device);
    let mut budget = TuneBudget { seconds: 0.0 };
    pollster::block_on(tune(&device, &graph(), &mut choices, &mut budget, &Silent)).unwrap();
    assert!(choices.choices.is_empty());
}

#[test]
fn choices_belong_to_a_device_and_to_kernels() {
    let device = device();
    let own = Autotune::for_device(&device);
    assert!(own.fits(&device));
    assert!(!Autotune { device: "another".into(), ..own.clone() }.fits(&device));
    assert!(!Autotune { kernels: kernels_key(["fn other() {}"]), ..own.clone() }.fits(&device));
    assert_eq!(own.kernels, kernels_key(shaders().iter().map(|s| s.wgsl)));
    let mut texts: Vec<&str> = shaders().iter().map(|s| s.wgsl).collect();
    let changed = texts[3].replacen("fn ", "fn  ", 1);
    texts[3] = &changed;
    assert_ne!(own.kernels, kernels_key(texts), "one text differs by a space");
    assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
    // FNV-1a's published test vectors for no byte, and for the byte that ends an empty text.
    assert_eq!(hash([]), 0xCBF2_9CE4_8422_2325);
}

#[test]
fn each_device_has_a_file_of_its_own() {
    let name = Autotune::file_name(&device());
    assert!(name.ends_with(".json") && name.len() < 64, "{name}");
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.'), "{name}");
    let names = ["NVIDIA H100", "NVIDIA H100 | 1", "", "??", "ÄÖ"].map(|n| file_name(n, n));
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    assert!(names[0].starts_with("nvidia-h100-") && !names[2].starts_with('-'), "{names:?}");
    assert_ne!(file_name("one", "one | driver 1 | vulkan"), file_name("one", "one | driver 2 | vulkan"));
}
