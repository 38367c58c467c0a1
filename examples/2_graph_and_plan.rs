//! A graph, what the passes make of it, and the plan a device runs.
//!
//! ```text
//! cargo run -p pulid --example 2_graph_and_plan
//! ```
//!
//! prints the plan. Seven nodes become three dispatches: the keys depend on the text alone and move to the prologue, which
//! runs once; the activation becomes a tail of its matrix product; the node that nothing reads is gone.

use pulid_engine::{Device, DeviceOptions, Session, Silent};
use pulid_graph::{FirstVariant, Graph, Rate, optimize, plan};
use pulid_ops::{Activation, MatMul, Unary};
use pulid_tensor::{HostTensor, Result, TensorType};

fn graph() -> Result<Graph> {
    let mut g = Graph::new("scores");
    // `Run` inputs stay while stepping, `Step` inputs change with every call.
    let text = g.input("text", TensorType::f32([3, 8]), Rate::Run)?;
    let x = g.input("x", TensorType::f32([5, 8]), Rate::Step)?;
    let to_k = g.constant("to_k.weight", HostTensor::from_fn([8, 8], |i| (i % 5) as f32 * 0.1));
    let to_q = g.constant("to_q.weight", HostTensor::from_fn([8, 8], |i| (i % 7) as f32 * 0.1));
    let keys = g.scoped("to_k", |g| g.apply(MatMul::default(), &[text, to_k]))?;
    let queries = g.scoped("to_q", |g| g.apply(MatMul::default(), &[x, to_q]))?;
    let queries = g.apply(Unary(Activation::Silu), &[queries])?;
    let _unused = g.apply(Unary(Activation::Exp), &[queries])?;
    let scores = g.apply(MatMul { transpose_b: true, ..MatMul::default() }, &[queries, keys])?;
    g.output("scores", scores)?;
    Ok(g)
}

fn main() -> Result<()> {
    pollster::block_on(async {
        let device = Device::open("auto", DeviceOptions::default()).await?;
        let planned = plan(&optimize(&graph()?), device.capabilities(), &FirstVariant)?;
        println!("{}", planned.plan.dump());

        let mut session = Session::new(&device, &planned, &Silent).await?;
        session.write("text", &HostTensor::from_fn([3, 8], |i| i as f32 / 24.0))?;
        for step in 0..2 {
            session.write("x", &HostTensor::from_fn([5, 8], |i| (i + step) as f32 / 40.0))?;
            session.run(&Silent).await?;
            println!("step {step}: {:?}", &session.read("scores").await?.as_f32()?[..3]);
        }
        Ok(())
    })
}
