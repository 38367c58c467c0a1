//! Networks that use the same memory for the values between their operators, one after another, and numbers that go from one to another.

use pulid_engine::{Device, DeviceOptions, DeviceTensor, Scratch, Session, Silent};
use pulid_graph::{Arenas, FirstVariant, Graph, PlannedGraph, Rate, largest_arena, plan, plan_sharing};
use pulid_ops::{Activation, Binary, Unary};
use pulid_tensor::{HostTensor, TensorType};

async fn device() -> Device {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    Device::open(&selector, DeviceOptions::default()).await.unwrap()
}

/// y = silu(silu(x) x) silu(x), whose values between lie in several places; not optimised, so that none are fused away. `first`, silu(x), is
/// there until the next run.
fn network(device: &Device, count: usize, shares: bool) -> PlannedGraph {
    let mut g = Graph::new("network");
    let x = g.input("x", TensorType::f32([count]), Rate::Step).unwrap();
    let first = g.apply(Unary(Activation::Silu), &[x]).unwrap();
    let second = g.apply(Binary::mul(), &[first, x]).unwrap();
    let third = g.apply(Unary(Activation::Silu), &[second]).unwrap();
    let y = g.apply(Binary::mul(), &[third, first]).unwrap();
    g.output("y", y).unwrap();
    g.transient_output("first", first).unwrap();
    let plan = if shares { plan_sharing } else { plan };
    plan(&g, device.capabilities(), &FirstVariant).unwrap()
}

fn values(count: usize, round: usize) -> HostTensor {
    HostTensor::from_fn([count], |i| ((i * 7 + round * 3) % 23) as f32 * 0.25 - 2.0)
}

#[test]
fn networks_that_share_memory_by_turns_compute_what_they_compute_alone() {
    pollster::block_on(async {
        let device = device().await;
        let counts = [4099, 260, 9000];
        let plans = counts.map(|count| network(&device, count, true));
        let values_of = plans.each_ref().map(|planned| planned.plan.scratch());
        let arenas = Arenas::for_all(&values_of, largest_arena(device.capabilities().max_buffer_bytes));
        assert!(arenas.each().len() > 1 && arenas.bytes() < plans.iter().map(|p| p.plan.scratch_bytes()).sum());

        let before = device.memory().held();
        let scratch = Scratch::default();
        scratch.reserve(&device, &arenas).await.unwrap();
        let reserved = device.memory().held();
        assert_eq!(reserved - before, arenas.bytes() as u64);
        assert_eq!(scratch.present(&plans[0].plan, &device), plans[0].plan.scratch_bytes() as u64);
        let (mut alone, mut sharing) = (Vec::new(), Vec::new());
        for planned in &plans {
            sharing.push(Session::sharing(&device, planned, &scratch, &Silent).await.unwrap());
        }
        let ports: usize = counts.iter().map(|count| 2 * (count * 4usize).next_multiple_of(16)).sum();
        assert_eq!(device.memory().held() - reserved, ports as u64, "more than inputs and outputs");
        for count in counts {
            alone.push(Session::new(&device, &network(&device, count, false), &Silent).await.unwrap());
        }
        for round in 0..3 {
            for (place, count) in counts.into_iter().enumerate() {
                for session in [&mut alone[place], &mut sharing[place]] {
                    session.write("x", &values(count, round)).unwrap();
                    session.run(&Silent).await.unwrap();
                }
                for output in ["y", "first"] {
                    let [alone, sharing] = [&alone[place], &sharing[place]].map(|session| session.read(output));
                    assert_eq!(alone.await.unwrap(), sharing.await.unwrap(), "{output} of {count} in round {round}");
                }
            }
        }
        // A network larger than all that was reserved finds room of its own.
        let mut large = Session::sharing(&device, &network(&device, 50_000, true), &scratch, &Silent).await.unwrap();
        assert!(device.memory().held() - reserved > ports as u64 + 2 * 200_000);
        large.write("x", &values(50_000, 0)).unwrap();
        large.run(&Silent).await.unwrap();
        let x = values(50_000, 0).to_f32_vec();
        let first = large.read("first").await.unwrap().to_f32_vec();
        assert!(first.iter().zip(&x).all(|(first, x)| (first - x / (1.0 + (-x).exp())).abs() < 1e-5));
        drop(large);
        drop((sharing, alone, scratch));
        assert_eq!(device.memory().held(), before);
    });
}

#[test]
fn numbers_go_where_they_are_wanted_and_nowhere_else() {
    pollster::block_on(async {
        let device = device().await;
        let mut session = Session::new(&device, &network(&device, 12, false), &Silent).await.unwrap();
        session.write("x", &values(12, 0)).unwrap();
        session.run(&Silent).await.unwrap();
        let y = session.read("y").await.unwrap().to_f32_vec();
        let tensor = DeviceTensor::new(&device, "tensor", &values(9, 1)).await.unwrap();
        let part = session.output("y").unwrap().part(3..8).unwrap();
        part.copy_to(&tensor.region().unwrap().part(1..6).unwrap()).await.unwrap();
        let mut expected = values(9, 1).to_f32_vec();
        expected[1..6].copy_from_slice(&y[3..8]);
        assert_eq!(tensor.read().await.unwrap().to_f32_vec(), expected);
        assert_eq!(part.part(1..3).unwrap().read().await.unwrap().to_f32_vec(), y[4..6]);
        tensor
            .region()
            .unwrap()
            .part(0..2)
            .unwrap()
            .copy_to(&session.input_mut("x").unwrap().part(10..12).unwrap())
            .await
            .unwrap();
        let mut x = values(12, 0).to_f32_vec();
        x[10..].copy_from_slice(&expected[..2]);
        assert_eq!(session.input("x").unwrap().read().await.unwrap().to_f32_vec(), x);

        assert!(part.part(3..6).unwrap_err().to_string().contains("not among 5"));
        let other = tensor.region().unwrap();
        assert!(part.copy_to(&other).await.unwrap_err().to_string().contains("5 numbers"));
        assert!(other.copy_to(&other).await.is_err());
        assert!(session.output("z").is_err() && session.input_mut("y").is_err());
    });
}

#[test]
fn what_is_kept_until_the_next_run_is_an_error_afterwards() {
    pollster::block_on(async {
        let device = device().await;
        let scratch = Scratch::default();
        let planned = [12, 300].map(|count| network(&device, count, true));
        let mut one = Session::sharing(&device, &planned[0], &scratch, &Silent).await.unwrap();
        let mut other = Session::sharing(&device, &planned[1], &scratch, &Silent).await.unwrap();
        assert!(one.read("first").await.is_err(), "it never ran");
        one.write("x", &values(12, 0)).unwrap();
        one.run(&Silent).await.unwrap();
        let first = one.output("first").unwrap();
        let before = first.read().await.unwrap();
        assert_eq!(one.tensor("first").await.unwrap().read().await.unwrap(), before);
        let mut tensor = DeviceTensor::new(&device, "tensor", &values(12, 1)).await.unwrap();
        let copy = tensor.region().unwrap();
        first.copy_to(&copy).await.unwrap();
        other.run(&Silent).await.unwrap();
        let mut failed = vec![one.read("first").await.unwrap_err(), one.output("first").unwrap_err()];
        failed.extend([first.read().await.unwrap_err(), first.copy_to(&copy).await.unwrap_err()]);
        failed.push(one.tensor("first").await.unwrap_err());
        failed.push(one.read_into([("first", &mut tensor)]).await.unwrap_err());
        for error in failed {
            assert!(error.to_string().starts_with("first: is not there"), "{error}");
        }
        assert_eq!(tensor.read().await.unwrap(), before, "what was copied in time");
        one.read("y").await.unwrap();
        one.run(&Silent).await.unwrap();
        assert!(first.read().await.is_err() && one.read("first").await.unwrap() == before);
    });
}

/// first = silu(silu(x)) and last = silu(first silu(x) - z): a value between operators is read on both sides of the first output.
fn two_stages(device: &Device) -> PlannedGraph {
    let mut g = Graph::new("stages");
    let [x, z] = ["x", "z"].map(|name| g.input(name, TensorType::f32([8]), Rate::Step).unwrap());
    let hidden = g.apply(Unary(Activation::Silu), &[x]).unwrap();
    let first = g.apply(Unary(Activation::Silu), &[hidden]).unwrap();
    g.output("first", first).unwrap();
    let product = g.apply(Binary::mul(), &[first, hidden]).unwrap();
    let difference = g.apply(Binary::sub(), &[product, z]).unwrap();
    let last = g.apply(Unary(Activation::Silu), &[difference]).unwrap();
    g.output("last", last).unwrap();
    plan_sharing(&g, device.capabilities(), &FirstVariant).unwrap()
}

/// A run goes as far as it is asked, and on from there unless what it was made of is no more: then it is made again.
#[test]
fn a_run_stops_where_it_is_asked_and_goes_on_there() {
    pollster::block_on(async {
        let device = device().await;
        let scratch = Scratch::default();
        let planned = two_stages(&device);
        let mut session = Session::sharing(&device, &planned, &scratch, &Silent).await.unwrap();
        let mut other = Session::sharing(&device, &network(&device, 64, true), &scratch, &Silent).await.unwrap();
        let mut whole = Session::new(&device, &planned, &Silent).await.unwrap();
        let read = async |session: &Session, name: &str| session.read(name).await.unwrap().to_f32_vec();
        for (round, interrupted) in [(0, false), (1, true), (2, false)] {
            for session in [&mut session, &mut whole] {
                session.write("x", &values(8, round)).unwrap();
            }
            session.write("z", &values(8, 7)).unwrap();
            let before = read(&session, "last").await;
            session.run_to(&["first"], &Silent).await.unwrap();
            assert_eq!(read(&session, "last").await, before, "ran too far");
            if interrupted {
                other.write("x", &values(64, round)).unwrap();
                other.run(&Silent).await.unwrap();
            }
            for session in [&mut session, &mut whole] {
                session.write("z", &values(8, round + 3)).unwrap();
            }
            device.start_profile();
            session.continue_to(&["last"], &Silent).await.unwrap();
            let made = device.finish_profile().len();
            assert_eq!(made, if interrupted { 5 } else { 3 });
            whole.run(&Silent).await.unwrap();
            for name in ["first", "last"] {
                assert_eq!(read(&session, name).await, read(&whole, name).await, "{name} in round {round}");
            }
        }
        // What was read already is another now.
        session.run_to(&["first"], &Silent).await.unwrap();
        for session in [&mut session, &mut whole] {
            session.write("x", &values(8, 9)).unwrap();
        }
        session.continue_to(&["last"], &Silent).await.unwrap();
        whole.run(&Silent).await.unwrap();
        assert_eq!(read(&session, "last").await, read(&whole, "last").await);
        assert!(session.run_to(&["middle"], &Silent).await.unwrap_err().to_string().contains("middle"));
    });
}
