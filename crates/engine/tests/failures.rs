//! Devices that go away, and what does not fit them: an error, soon, and no panic. A device without memory is not provoked here: the software driver takes
//! memory when it is first touched, and never refuses.

use pulid_engine::{Device, DeviceOptions, Session, Silent, run_single};
use pulid_graph::{FirstVariant, Graph, PlannedGraph, Rate, optimize, plan};
use pulid_ops::{Activation, LARGEST_BINDING, LowerContext, MatMul, Operator, Unary};
use pulid_tensor::{Error, HostTensor, Result, TensorType};
use std::sync::mpsc::channel;
use std::time::Duration;

async fn device() -> Device {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    Device::open(&selector, DeviceOptions::default()).await.unwrap()
}

/// `n` x `n` matrices, one after the other.
fn chain(device: &Device, n: usize) -> PlannedGraph {
    let mut g = Graph::new("chain");
    let mut x = g.input("x", TensorType::f32([n, n]), Rate::Step).unwrap();
    for i in 0..3 {
        let w = g.constant(format!("w{i}"), HostTensor::from_fn([n, n], |i| (i % 7) as f32));
        x = g.apply(MatMul::default(), &[x, w]).unwrap();
        x = g.apply(Unary(Activation::Silu), &[x]).unwrap();
    }
    g.output("y", x).unwrap();
    plan(&optimize(&g), device.capabilities(), &FirstVariant).unwrap()
}

/// What a test does, unless it takes so long that it must be waiting for nothing.
fn within_a_minute(test: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = sender.send(());
    });
    let answered = receiver.recv_timeout(Duration::from_secs(60));
    assert!(answered.is_ok() || thread.is_finished(), "it waits for a device that is gone");
    thread.join().unwrap();
}

fn device_error<T>(result: Result<T>) -> String {
    match result {
        Err(Error::Device(text)) => text,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn a_lost_device_is_an_error_wherever_it_is_noticed() {
    within_a_minute(|| {
        pollster::block_on(async {
            let device = device().await;
            let planned = chain(&device, 32);
            let mut session = Session::new(&device, &planned, &Silent).await.unwrap();
            let x = HostTensor::from_fn([32, 32], |i| i as f32 * 1e-3);
            session.write("x", &x).unwrap();
            session.run(&Silent).await.unwrap();
            let before = session.read("y").await.unwrap();
            device.destroy();
            let message = device_error(session.run(&Silent).await);
            assert!(message.contains("lost") && message.contains("start again"), "{message}");
            device_error(session.read("y").await);
            device_error(Session::new(&device, &planned, &Silent).await);
            drop((session, device));

            // Another device goes on where it stopped.
            let device = self::device().await;
            let mut session = Session::new(&device, &planned, &Silent).await.unwrap();
            session.write("x", &x).unwrap();
            session.run(&Silent).await.unwrap();
            assert_eq!(session.read("y").await.unwrap(), before);
        });
    });
}

#[test]
fn no_plan_binds_more_than_the_device_was_opened_for() {
    pollster::block_on(async {
        assert!(device().await.capabilities().max_binding_bytes <= LARGEST_BINDING as u64);
        let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
        let most = 1 << 20;
        let options = DeviceOptions { max_binding_bytes: most, ..DeviceOptions::default() };
        let device = Device::open(&selector, options).await.unwrap();
        assert_eq!(device.capabilities().max_binding_bytes, most);
        let fits = TensorType::f32([1 << 17]);
        let large = TensorType::f32([1 << 19]);
        let planned = |ty: &TensorType| {
            let mut g = Graph::new("one");
            let x = g.input("x", ty.clone(), Rate::Step).unwrap();
            let y = g.apply(Unary(Activation::Silu), &[x]).unwrap();
            g.output("y", y).unwrap();
            plan(&g, device.capabilities(), &FirstVariant)
        };
        assert!(planned(&fits).is_ok());
        let message = device_error(planned(&large));
        assert!(message.contains(&most.to_string()), "{message}");
        // What is bound without a plan the device refuses itself.
        let operator = Unary(Activation::Silu);
        for (ty, may) in [(&fits, true), (&large, false)] {
            let types = [ty.clone()];
            let cx = LowerContext { capabilities: device.capabilities(), inputs: &types, output: ty };
            let variant = operator.lower(&cx).unwrap().remove(0);
            let run = run_single(&device, &variant, &[HostTensor::zeros(ty.shape.clone())], ty, 0).await;
            assert_eq!(run.is_ok(), may, "{ty}: {run:?}");
        }
    });
}
