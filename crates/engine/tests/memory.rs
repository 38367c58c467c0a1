//! What sessions share, and what a failure of one leaves to the others.

use pulid_engine::{Device, DeviceOptions, Observer, Session, Silent};
use pulid_graph::{FirstVariant, Graph, PlannedGraph, Rate, optimize, plan, residency};
use pulid_ops::{Activation, MatMul, Unary};
use pulid_tensor::{Error, HostTensor, Result, TensorType};
use std::sync::Mutex;

/// Bytes of each weight.
const WEIGHT: u64 = 128 * 128 * 4;

async fn device() -> Device {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    Device::open(&selector, DeviceOptions::default()).await.unwrap()
}

/// x [rows, 128] through `layers` matrices of 128 x 128; the first ones are the same in every network.
fn network(device: &Device, rows: usize, layers: usize) -> PlannedGraph {
    let mut g = Graph::new("network");
    let mut x = g.input("x", TensorType::f32([rows, 128]), Rate::Step).unwrap();
    for i in 0..layers {
        let w = g.constant(
            format!("w{i}"),
            HostTensor::from_fn([128, 128], |at| ((at * 7 + i) % 101) as f32 * 0.004 - 0.18),
        );
        x = g.apply(MatMul::default(), &[x, w]).unwrap();
        x = g.apply(Unary(Activation::Silu), &[x]).unwrap();
    }
    g.output("y", x).unwrap();
    plan(&optimize(&g), device.capabilities(), &FirstVariant).unwrap()
}

async fn run(session: &mut Session, rows: usize) -> HostTensor {
    session.write("x", &HostTensor::from_fn([rows, 128], |i| (i % 5) as f32 - 1.0)).unwrap();
    session.run(&Silent).await.unwrap();
    session.read("y").await.unwrap()
}

#[test]
fn a_weight_is_on_the_device_once_and_only_as_long_as_it_is_used() {
    pollster::block_on(async {
        let device = device().await;
        let mut first = Session::new(&device, &network(&device, 8, 3), &Silent).await.unwrap();
        let memory = device.memory();
        assert_eq!((memory.weight_bytes, memory.uploaded_bytes), (3 * WEIGHT, 3 * WEIGHT));
        assert!(memory.working_bytes >= 2 * 8 * 128 * 4 && memory.compiled_kernels > 0);

        // The same network at another size, and a longer one.
        let other_size = network(&device, 24, 3);
        let added = device.missing_bytes(&other_size);
        let mut second = Session::new(&device, &other_size, &Silent).await.unwrap();
        assert_eq!(device.memory().weight_bytes, 3 * WEIGHT);
        assert_eq!(device.memory().uploaded_bytes, 3 * WEIGHT, "nothing is uploaded again");
        let grown = device.memory().working_bytes - memory.working_bytes;
        assert_eq!(grown, added, "only what a size of its own needs");
        let longer = Session::new(&device, &network(&device, 8, 5), &Silent).await.unwrap();
        assert_eq!(device.memory().weight_bytes, 5 * WEIGHT);
        assert_eq!(device.memory().uploaded_bytes, 5 * WEIGHT);
        drop(longer);
        assert_eq!(device.memory().weight_bytes, 3 * WEIGHT);

        // Rows are independent: both give the same ones.
        let (a, b) = (run(&mut first, 8).await, run(&mut second, 24).await);
        for (a, b) in a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} {b}");
        }
        drop(first);
        assert_eq!(device.memory().weight_bytes, 3 * WEIGHT, "the second session still uses them");
        drop(second);
        assert_eq!(device.memory().held(), 0);
    });
}

#[test]
fn streamed_weights_are_shared_in_main_memory() {
    pollster::block_on(async {
        let device = device().await;
        let whole = network(&device, 8, 32).plan.summary();
        let fitted = || {
            let budget = (whole.weight_bytes + whole.working_bytes) as u64 - 8 * WEIGHT;
            residency::fit(network(&device, 8, 32), budget).unwrap()
        };
        let planned = fitted();
        assert!(planned.plan.summary().streamed_bytes > 0, "{}", planned.plan.dump());
        let mut streaming = Session::new(&device, &planned, &Silent).await.unwrap();
        let loaded = device.memory();
        assert_eq!(loaded.weight_bytes, planned.plan.summary().weight_bytes as u64, "slots count as weights");
        let streamed = planned.plan.summary().streamed_bytes as u64;
        let got = run(&mut streaming, 8).await;
        assert_eq!(device.memory().uploaded_bytes - loaded.uploaded_bytes, streamed, "once for each run");
        let mut resident = Session::new(&device, &network(&device, 8, 32), &Silent).await.unwrap();
        let values = got.to_f32_vec();
        assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0));
        assert!(run(&mut resident, 8).await == got);
    });
}

#[test]
fn outputs_become_inputs_without_leaving_the_device() {
    pollster::block_on(async {
        let device = device().await;
        let mut first = Session::new(&device, &network(&device, 8, 2), &Silent).await.unwrap();
        let mut second = Session::new(&device, &network(&device, 8, 3), &Silent).await.unwrap();
        let y = run(&mut first, 8).await;
        second.write("x", &y).unwrap();
        second.run(&Silent).await.unwrap();
        let expected = second.read("y").await.unwrap();

        let kept = first.tensor("y").await.unwrap();
        second.write("x", &HostTensor::zeros([8, 128])).unwrap();
        second.write_from("x", &first, "y").await.unwrap();
        second.run(&Silent).await.unwrap();
        assert_eq!(second.read("y").await.unwrap(), expected);

        // A tensor outlives what made it, and is what it was.
        first.write("x", &HostTensor::zeros([8, 128])).unwrap();
        first.run(&Silent).await.unwrap();
        drop(first);
        assert_eq!(kept.read().await.unwrap(), y);
        second.write_tensor("x", &kept).await.unwrap();
        second.run(&Silent).await.unwrap();
        assert_eq!(second.read("y").await.unwrap(), expected);

        let mut other_size = Session::new(&device, &network(&device, 9, 2), &Silent).await.unwrap();
        let message = other_size.write_tensor("x", &kept).await.unwrap_err().to_string();
        assert!(message.contains("[9, 128]") && message.contains("[8, 128]"), "{message}");
        let elsewhere = self::device().await;
        let mut elsewhere = Session::new(&elsewhere, &network(&elsewhere, 8, 2), &Silent).await.unwrap();
        let message = elsewhere.write_tensor("x", &kept).await.unwrap_err().to_string();
        assert!(message.contains("another device"), "{message}");
    });
}

#[test]
fn what_one_session_fails_at_leaves_the_device_to_the_others() {
    pollster::block_on(async {
        let device = device().await;
        let good = network(&device, 8, 2);
        let mut session = Session::new(&device, &good, &Silent).await.unwrap();
        let expected = run(&mut session, 8).await;
        drop(session);

        // More than any device's buffers hold, and a dispatch over more workgroups than there may be.
        let mut huge = good.clone();
        huge.plan.buffers.iter_mut().for_each(|b| b.bytes = 1 << 45);
        let error = Session::new(&device, &huge, &Silent).await.expect_err("no error");
        assert!(matches!(error, Error::Device(_) | Error::OutOfMemory(_)), "{error}");
        assert_eq!(device.memory().held(), 0, "what was made of it is gone");
        let mut wide = good.clone();
        wide.plan.steps[0].dispatches[0].grid = [u32::MAX, 1, 1];
        let mut refused = Session::new(&device, &wide, &Silent).await.unwrap();
        refused.write("x", &HostTensor::zeros([8, 128])).unwrap();
        let error = refused.run(&Silent).await.expect_err("no error");
        assert!(matches!(error, Error::Device(_)), "{error}");

        let mut session = Session::new(&device, &good, &Silent).await.unwrap();
        assert_eq!(run(&mut session, 8).await, expected);
    });
}

#[test]
fn a_weight_that_cannot_be_read_fails_its_session_alone() {
    pollster::block_on(async {
        let device = device().await;
        let mut g = Graph::new("broken");
        let x = g.input("x", TensorType::f32([8, 128]), Rate::Step).unwrap();
        let good = g.constant("good", HostTensor::from_fn([128, 128], |i| i as f32));
        let key = pulid_graph::WeightKey::new("nowhere", "same");
        let load = || -> Result<HostTensor> { Err(Error::file("nowhere", "is gone")) };
        let bad = g.weight(pulid_graph::Weight::new("bad", key, load), TensorType::f32([128, 128]));
        let x = g.apply(MatMul::default(), &[x, good]).unwrap();
        let y = g.apply(MatMul::default(), &[x, bad]).unwrap();
        g.output("y", y).unwrap();
        let planned = plan(&optimize(&g), device.capabilities(), &FirstVariant).unwrap();
        let error = Session::new(&device, &planned, &Silent).await.expect_err("no error").to_string();
        assert!(error.contains("is gone"), "{error}");
        assert_eq!(device.memory().held(), 0);
    });
}

/// Notes what is told, and cancels after some of it.
struct Recorder(Mutex<Vec<(u64, u64)>>, usize);

impl Observer for Recorder {
    fn cancelled(&self) -> bool {
        self.0.lock().unwrap().len() >= self.1
    }

    fn progress(&self, done: u64, total: u64) {
        self.0.lock().unwrap().push((done, total));
    }
}

#[test]
fn what_is_compiled_ahead_is_not_compiled_again() {
    pollster::block_on(async {
        let device = device().await;
        let planned = network(&device, 8, 3);
        let recorder = Recorder(Mutex::default(), usize::MAX);
        device.precompile(&planned.plan, &recorder).await.unwrap();
        let compiled = device.memory().compiled_kernels;
        let recorder = recorder.0.into_inner().unwrap();
        assert_eq!(recorder.last(), Some(&(compiled, compiled)));
        assert_eq!(device.memory().held(), 0);
        let mut session = Session::new(&device, &planned, &Silent).await.unwrap();
        run(&mut session, 8).await;
        assert_eq!(device.memory().compiled_kernels, compiled);
        device.precompile(&planned.plan, &Silent).await.unwrap();
        assert_eq!(device.memory().compiled_kernels, compiled);

        let other = self::device().await;
        let cancelled = other.precompile(&planned.plan, &Recorder(Mutex::default(), 0)).await;
        assert!(matches!(cancelled, Err(Error::Cancelled)));
        assert_eq!(other.memory().compiled_kernels, 0);
    });
}
