//! One operator on a device, held to its reference.
//!
//! ```text
//! cargo run -p pulid --example 1_hello_operator
//! ```
//!
//! prints the device, the ways this operator can run there, and how far each is from the reference:
//!
//! ```text
//! llvmpipe (LLVM 15.0.6, 256 bits), vulkan
//! strided          [7, 9] result, largest difference 1.2e-7
//! ```

use pulid_engine::{Device, DeviceOptions, run_single};
use pulid_ops::{Activation, LowerContext, MatMul, Operator};
use pulid_tensor::{HostTensor, Result};

fn main() -> Result<()> {
    pollster::block_on(async {
        let device = Device::open("auto", DeviceOptions::default()).await?;
        println!("{}, {}", device.summary().name, device.summary().backend);

        // silu(a b): the activation is part of the kernel, not another pass over memory.
        let operator = MatMul { activation: Activation::Silu, ..MatMul::default() };
        let a = HostTensor::from_fn([7, 16], |i| (i as f32 * 0.37).sin());
        let b = HostTensor::from_fn([16, 9], |i| (i as f32 * 0.21).cos());
        let operands = [a, b];

        let types: Vec<_> = operands.iter().map(HostTensor::tensor_type).collect();
        let output = operator.infer(&types)?;
        let context = LowerContext { capabilities: device.capabilities(), inputs: &types, output: &output };
        let expected = operator.reference(&operands.iter().collect::<Vec<_>>())?;
        for variant in operator.lower(&context)? {
            let run = run_single(&device, &variant, &operands, &output, 0).await?;
            let pairs = run.output.as_f32()?.iter().zip(expected.as_f32()?);
            let worst = pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
            println!("{:<16} {} result, largest difference {worst:.1e}", variant.name, output.shape);
        }
        Ok(())
    })
}
