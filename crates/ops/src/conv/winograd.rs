//! Winograd's F(2 x 2, 3 x 3): 16 products for each tile of four pixels in place of 36, for what they cost to get there.

use super::implicit::TileParams;
use crate::matmul::product_on_cpu;
use crate::{Conv2d, DeviceKind, Dispatch, LowerContext, Slot, Variant};
use pulid_tensor::DType;

/// The most bytes that one of the three transformed tensors may take: beyond, the memory they take and the time it takes to go through it weigh
/// more than the products saved.
const LARGEST: usize = 64 << 20;

/// Fewest tiles and channels with which there are products to save. The weight is transformed anew each time.
const FEWEST: usize = 16;

/// The variant, on CPU devices, for filters of 3 x 3 without stride, dilation and groups. `params` count channels in vec4s; `finish` says what
/// ends a result.
pub(super) fn winograd(
    op: &Conv2d,
    cx: &LowerContext<'_>,
    params: TileParams,
    finish: impl Fn(Dispatch) -> Dispatch,
    [bias, residual]: [Slot; 2],
) -> Option<Variant> {
    let (x, weight, y) = (&cx.inputs[0], &cx.inputs[1], cx.output);
    let (inputs, outputs) = (weight.shape[2], weight.shape[3]);
    let tiles = y.shape[0] * y.shape[1].div_ceil(2) * y.shape[2].div_ceil(2);
    let suits = cx.capabilities.kind == DeviceKind::Cpu
        && x.dtype == DType::F32
        && !weight.dtype.is_quantized()
        && weight.shape[..2] == [3, 3]
        && [op.stride, op.dilation] == [[1; 2]; 2]
        && op.groups == 1
        && inputs.is_multiple_of(4)
        && outputs.is_multiple_of(4)
        && tiles.min(inputs).min(outputs) >= FEWEST;
    let scratch = [tiles * inputs, inputs * outputs, tiles * outputs].map(|count| 16 * 4 * count);
    let largest = LARGEST.min(cx.capabilities.max_binding_bytes as usize);
    if !suits || scratch.iter().any(|&bytes| bytes > largest) {
        return None;
    }
    let [v, u, m] = [0, 1, 2].map(Slot::Scratch);
    let dispatches = vec![
        Dispatch::new("conv2d_winograd_input", params).bind([Slot::Input(0), v]).over(tiles * inputs / 4),
        Dispatch::new("conv2d_winograd_weight", params)
            .weight_storage(x.dtype, weight.dtype)
            .bind([u, Slot::Input(1)])
            .over(inputs * outputs / 4),
        product_on_cpu(cx.capabilities, 16, [tiles, inputs, outputs])?.bind([v, u, Slot::Unused, Slot::Unused, m]),
        finish(Dispatch::new("conv2d_winograd_output", params))
            .bind([m, bias, residual, Slot::Output])
            .over(tiles * outputs / 4),
    ];
    Some(Variant { name: "winograd", dispatches, scratch: scratch.to_vec() })
}
