//! Submissions under way at a time: their results, their progress, and how they are stopped.

use pulid_engine::{Device, DeviceOptions, Observer, Session, Silent};
use pulid_graph::{FirstVariant, Graph, PlannedGraph, Rate, optimize, plan, residency};
use pulid_ops::{Activation, MatMul, Unary};
use pulid_tensor::{Error, HostTensor, TensorType};
use std::sync::Mutex;

const LAYERS: usize = 32;

/// A device whose submissions hold one step each, or as many as usual.
async fn device(one_step: bool) -> Device {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let submission_flops = one_step.then_some(1);
    Device::open(&selector, DeviceOptions { submission_flops, ..DeviceOptions::default() }).await.unwrap()
}

/// Matrices one after the other, the first of them in the prologue.
fn network(device: &Device) -> PlannedGraph {
    let mut g = Graph::new("network");
    let x = g.input("x", TensorType::f32([8, 128]), Rate::Step).unwrap();
    let mut y = g.input("key", TensorType::f32([8, 128]), Rate::Run).unwrap();
    for i in 0..LAYERS {
        let of = |at: usize| ((at * 7 + i) % 101) as f32 * 0.004 - 0.18;
        let w = g.constant(format!("w{i}"), HostTensor::from_fn([128, 128], of));
        y = g.apply(MatMul::default(), &[y, w]).unwrap();
        y = g.apply(Unary(Activation::Silu), &[y]).unwrap();
        if i == 3 {
            y = g.apply(pulid_ops::Binary::add(), &[x, y]).unwrap();
        }
    }
    g.output("y", y).unwrap();
    plan(&optimize(&g), device.capabilities(), &FirstVariant).unwrap()
}

/// The same with weights that stream.
fn streaming(device: &Device) -> PlannedGraph {
    let whole = network(device);
    let summary = whole.plan.summary();
    let budget = (summary.weight_bytes + summary.working_bytes - 8 * 128 * 128 * 4) as u64;
    let fitted = residency::fit(whole, budget).unwrap();
    assert!(fitted.plan.summary().streamed_bytes > 0, "{}", fitted.plan.dump());
    fitted
}

fn write(session: &mut Session, salt: usize) {
    for name in ["x", "key"] {
        session.write(name, &HostTensor::from_fn([8, 128], |i| ((i + salt) % 5) as f32 - 1.0)).unwrap();
    }
}

/// Notes progress, and cancels after some of it.
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
fn portions_change_no_result() {
    pollster::block_on(async {
        let (whole, cut) = (device(false).await, device(true).await);
        for make in [network, streaming] {
            let mut expected = Session::new(&whole, &make(&whole), &Silent).await.unwrap();
            let mut session = Session::new(&cut, &make(&cut), &Silent).await.unwrap();
            for salt in 0..3 {
                write(&mut expected, salt);
                write(&mut session, salt);
                expected.run(&Silent).await.unwrap();
                let recorder = Recorder(Mutex::default(), usize::MAX);
                session.run(&recorder).await.unwrap();
                assert_eq!(session.read("y").await.unwrap(), expected.read("y").await.unwrap());
                let progress = recorder.0.into_inner().unwrap();
                assert!(progress.len() >= LAYERS, "{progress:?}");
                assert!(progress.windows(2).all(|p| p[0].0 <= p[1].0), "{progress:?}");
                assert!(progress.last().is_some_and(|(done, total)| done == total), "{progress:?}");
            }
        }
    });
}

#[test]
fn work_is_stopped_between_submissions() {
    pollster::block_on(async {
        let device = device(true).await;
        for make in [network, streaming] {
            let mut session = Session::new(&device, &make(&device), &Silent).await.unwrap();
            write(&mut session, 1);
            session.run(&Silent).await.unwrap();
            let expected = session.read("y").await.unwrap();
            for after in [0, 1, 5] {
                write(&mut session, 1);
                let recorder = Recorder(Mutex::default(), after);
                let stopped = session.run(&recorder).await;
                assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
                // Waiting for a stage's turn may tell of two before anybody asks.
                assert!(recorder.0.into_inner().unwrap().len() <= after + 1);
                session.run(&Silent).await.unwrap();
                assert_eq!(session.read("y").await.unwrap(), expected, "the session stays usable");
            }
        }
    });
}

#[test]
fn a_refused_submission_is_an_error_of_its_run() {
    pollster::block_on(async {
        let device = device(true).await;
        let mut wide = network(&device);
        wide.plan.steps[LAYERS / 2].dispatches[0].grid = [u32::MAX, 1, 1];
        let mut refused = Session::new(&device, &wide, &Silent).await.unwrap();
        write(&mut refused, 0);
        let recorder = Recorder(Mutex::default(), usize::MAX);
        let error = refused.run(&recorder).await.expect_err("no error");
        assert!(matches!(error, Error::Device(_)), "{error}");
        assert!(!recorder.0.into_inner().unwrap().is_empty(), "what went before was waited for");
        let mut session = Session::new(&device, &network(&device), &Silent).await.unwrap();
        write(&mut session, 0);
        session.run(&Silent).await.unwrap();
    });
}

#[test]
fn threads_share_a_device() {
    let device = pollster::block_on(device(true));
    let runs = |salt: usize| {
        pollster::block_on(async {
            let mut session = Session::new(&device, &network(&device), &Silent).await.unwrap();
            let mut results = Vec::new();
            for _ in 0..4 {
                write(&mut session, salt);
                session.run(&Silent).await.unwrap();
                results.push(session.read("y").await.unwrap());
            }
            assert!(results.iter().all(|r| *r == results[0]));
            results.swap_remove(0)
        })
    };
    let alone = [0, 1].map(runs);
    let together = std::thread::scope(|scope| {
        let threads = [0, 1].map(|salt| scope.spawn(move || runs(salt)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(together, alone);
}
