//! States that are updated step by step: an optimiser's stay in their own buffers, whatever the number of steps.

use pulid_engine::{Device, DeviceOptions, Session, Silent};
use pulid_graph::{FirstVariant, Graph, PlannedGraph, Rate, optimize, plan};
use pulid_ops::{AdamW, AdamWStep, Operator};
use pulid_tensor::{HostTensor, TensorType};

const COUNT: usize = 4099;

async fn device() -> Device {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    Device::open(&selector, DeviceOptions::default()).await.unwrap()
}

fn network(device: &Device, count: usize) -> PlannedGraph {
    let mut g = Graph::new("optimizer");
    let mut input = |name: &str, ty: TensorType| g.input(name, ty, Rate::Step).unwrap();
    let state = input("state", TensorType::f32([3, count]));
    let gradient = input("gradient", TensorType::f32([count]));
    let settings = input("settings", TensorType::f32([8]));
    let next = g.apply(AdamW, &[state, gradient, settings]).unwrap();
    g.output("state", next).unwrap();
    plan(&optimize(&g), device.capabilities(), &FirstVariant).unwrap()
}

fn gradient(step: u32) -> HostTensor {
    HostTensor::from_fn([COUNT], |i| ((i * 31 + step as usize * 7) % 17) as f32 * 0.25 - 2.0)
}

fn settings(step: u32) -> HostTensor {
    let step = AdamWStep { rate: 0.05, decay: 0.01, betas: [0.9, 0.999], epsilon: 1e-8, step, factor: 0.5 };
    step.settings()
}

#[test]
fn a_state_is_updated_where_it_is() {
    pollster::block_on(async {
        let device = device().await;
        let mut session = Session::new(&device, &network(&device, COUNT), &Silent).await.unwrap();
        // Parameters and moments of two matrices that share the session.
        let start = |seed: usize| HostTensor::from_fn([3, COUNT], |i| ((i + seed) % 23) as f32 * 0.125);
        let mut expected = [start(0), start(5)];
        let mut states = Vec::new();
        for state in &expected {
            // A tensor on the device: what a skipped step gives.
            session.write("state", state).unwrap();
            session.write("settings", &HostTensor::zeros([8])).unwrap();
            session.run(&Silent).await.unwrap();
            states.push(session.tensor("state").await.unwrap());
        }
        let held = device.memory().held();
        for step in 1..=4 {
            for (state, expected) in states.iter_mut().zip(&mut expected) {
                session.write_tensor("state", state).await.unwrap();
                session.write("gradient", &gradient(step)).unwrap();
                session.write("settings", &settings(step)).unwrap();
                session.run(&Silent).await.unwrap();
                session.read_into([("state", state)]).await.unwrap();
                *expected = AdamW.reference(&[expected, &gradient(step), &settings(step)]).unwrap();
            }
            assert_eq!(device.memory().held(), held, "step {step} takes more memory");
        }
        for (state, expected) in states.iter().zip(&expected) {
            let error = state.read().await.unwrap().deviation_from(expected);
            assert!(error < 1e-5, "the state is off by {error:.1e} deviations");
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    pollster::block_on(async {
        let device = device().await;
        let [mut session, mut other] = [COUNT, 8]
            .map(|count| pollster::block_on(Session::new(&device, &network(&device, count), &Silent)).unwrap());
        for session in [&mut session, &mut other] {
            session.run(&Silent).await.unwrap();
        }
        let mut small = other.tensor("state").await.unwrap();
        for (name, named) in [("state", "not f32"), ("next", "next")] {
            let error = session.read_into([(name, &mut small)]).await.unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(small.read().await.unwrap(), HostTensor::zeros([3, 8]));
    });
}
