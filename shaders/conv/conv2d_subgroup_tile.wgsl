// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// A workgroup is one subgroup of 8 lanes on a CPU device, see shared/subgroup_tile, and computes 8 or 16 (TALL) pixels x 32
// channels. Workgroups run along pixels in x, then z, so that neighbours read the same weights, and along O in y.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_tile::{address, corner, extents, inside, params, store, x};
import package::shared::subgroup_tile::{broadcast_products, no_sums, row_of};
import package::shared::weight::load_rows;

@if(f16) enable f16;

// 16 rows rather than 8: a quarter faster, half as long again to compile.
override TALL: u32 = 0u;

// One invocation per lane of a subgroup of 8.
@compute @workgroup_size(8)
fn conv2d_subgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let o4 = group.y * 8u + lane;
    let p = (group.z * groups.x + group.x) * select(8u, 16u, TALL == 1u);
    // Layers of workgroups are full, so the last one may begin past the end.
    if p >= params.pixels {
        return;
    }
    // Channels past the end read the last ones again and are not stored.
    let w_column4 = min(o4, params.out_channels - 1u);
    let e = extents(4u * params.in_channels);
    var row = 0u;
    let low = corner(p + lane);
    let high = corner(p + 8u + lane);
    var low_sums = no_sums();
    var high_sums = no_sums();
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        let dy = ky * params.dilation_y;
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let dx = kx * params.dilation_x;
            let low_at = address(low, dy, dx);
            let low_in = inside(low, dy, dx);
            let high_at = address(high, dy, dx);
            let high_in = inside(high, dy, dx);
            for (var c = 0u; c < params.in_channels; c++) {
                let weights = load_rows(0u, row, w_column4, e);
                row += 4u;
                low_sums = broadcast_products(low_sums, select(vec4(0.0), vec4<f32>(x[low_at + c]), low_in), weights);
                if TALL == 1u {
                    let high_x = select(vec4(0.0), vec4<f32>(x[high_at + c]), high_in);
                    high_sums = broadcast_products(high_sums, high_x, weights);
                }
            }
        }
    }
    // One store in a loop instead of one for each row: it is compiled once. From zero the driver would unroll it.
    for (var pixel = p; pixel < min(p + select(8u, 16u, TALL == 1u), params.pixels); pixel++) {
        let r = pixel - p;
        var v = row_of(low_sums, r);
        if TALL == 1u {
            v = select(v, row_of(high_sums, r - 8u), r >= 8u);
        }
        store(pixel, o4, v);
    }
}
