//! Register tiles of products with a transposed operand, which gradients are made of: weights lie as the forward pass has them.

use super::matmul::{Sizes, TileParams};
use crate::*;

params! {
    struct LeftParams { m4: u32, n4: u32, k: u32, batch: u32, b_batch4: u32, alpha: f32 }
}

/// Variants of a product with rows of b along K by tiles in registers, best first; K and N are multiples of 4. `finish` binds operands
/// and sets what ends the product.
pub(super) fn right(
    limits: &Capabilities,
    s: &Sizes,
    params: TileParams,
    finish: impl Fn(Dispatch) -> Dispatch,
) -> Vec<Variant> {
    let tile = |name, shader, rows: usize| {
        // They run along M first: all rows meet the same rows of b while those are cached.
        let (x, y) = (s.m.div_ceil(rows), s.n.div_ceil(32));
        let fits = x.max(y).max(s.batch) <= limits.max_workgroups as usize;
        fits.then(|| Variant::single(name, finish(Dispatch::new(shader, params)).grid(x, y, s.batch)))
    };
    let lanes = limits.kind == DeviceKind::Cpu && limits.subgroup_lanes == 8;
    let subgroup = tile("subgroup_tile", "matmul_transposed_subgroup_tile", 8).filter(|_| lanes);
    let register = tile("register_tile", "matmul_transposed_register_tile", 4);
    subgroup.into_iter().chain(register).collect()
}

/// Variants of a product with columns of a along K and nothing after it by tiles in registers, best first; M and N are multiples of 4.
pub(super) fn left(cx: &LowerContext<'_>, s: &Sizes, alpha: f32) -> Vec<Variant> {
    let limits = cx.capabilities;
    let params = LeftParams {
        m4: (s.m / 4) as u32,
        n4: (s.n / 4) as u32,
        k: s.k as u32,
        batch: s.batch as u32,
        b_batch4: if s.b_is_shared { 0 } else { (s.k * s.n / 4) as u32 },
        alpha,
    };
    let kernel = |shader| {
        Dispatch::new(shader, params).weight_storage(cx.inputs[0].dtype, cx.inputs[1].dtype).bind([
            Slot::Input(0),
            Slot::Input(1),
            Slot::Output,
        ])
    };
    // One SIMD width of a CPU device.
    let lanes: u32 = if limits.kind == DeviceKind::Cpu { 8 } else { 64 };
    let groups = (s.batch * s.m / 4 * (s.n / 4)).div_ceil(lanes as usize);
    let tile = kernel("matmul_left_transposed_tile").constant("LANES", lanes).groups(groups);
    let [x, y, z] = [s.m.div_ceil(8), s.n.div_ceil(32), s.batch];
    let lanes = limits.kind == DeviceKind::Cpu && limits.subgroup_lanes == 8;
    let fits = lanes && x.max(y).max(z) <= limits.max_workgroups as usize;
    let subgroup =
        fits.then(|| Variant::single("subgroup_tile", kernel("matmul_left_transposed_subgroup_tile").grid(x, y, z)));
    subgroup.into_iter().chain([Variant::single("tile", tile)]).collect()
}
