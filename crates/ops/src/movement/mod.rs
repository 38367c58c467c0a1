//! Operators that move elements without changing them.

mod concat;
mod expand;
mod gather;
mod pad;
mod permute;
mod slice;

pub use concat::Concat;
pub use expand::Expand;
pub use gather::Gather;
pub use pad::Pad;
pub use permute::Permute;
pub use slice::Slice;

use crate::strided::Walk;
use crate::*;
use pulid_tensor::{DType, TensorType};

params! {
    struct WalkParams {
        near: [u32; 4], far: [u32; 4],
        x_near: [u32; 4], x_far: [u32; 4],
        start: u32, count: u32,
    }
}

/// y = x walked from `start` by `strides` (outermost axis first), one dispatch of a shader with [`WalkParams`].
fn walk_variant(shader: &'static str, output: &TensorType, strides: &[usize], start: usize) -> Variant {
    let walk = Walk::new(&output.shape, &[strides]);
    let cells = walk.by_four(&[start]);
    let by_four = cells.is_some();
    let walk = cells.unwrap_or(walk);
    let (near, far) = walk.extent_vectors();
    let (x_near, x_far) = walk.stride_vectors(0);
    let start = if by_four { start / 4 } else { start };
    let count = walk.count();
    let params = WalkParams { near, far, x_near, x_far, start: start as u32, count: count as u32 };
    let dispatch = Dispatch::new(shader, params)
        .storage(output.dtype)
        .feature("vec4", by_four)
        .constant("RANK", walk.rank())
        .bind([Slot::Input(0), Slot::Output])
        .over(count);
    Variant::single(if by_four { "cells" } else { "elements" }, dispatch)
}

/// Cost of moving the result once.
fn moving_cost(output: &TensorType) -> Cost {
    Cost { flops: 0, bytes: 2 * output.bytes() as u64 }
}

/// What a reference returns: f32, except that indices stay indices.
fn as_reference(x: &pulid_tensor::HostTensor) -> pulid_tensor::HostTensor {
    if x.dtype() == DType::U32 { x.clone() } else { x.cast(DType::F32) }
}
