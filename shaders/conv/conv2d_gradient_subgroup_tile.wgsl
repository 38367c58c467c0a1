// dx[p, c] = sum over taps t and output channels o of upstream[window(p, t), o] * weight[t, c, o], for the windows that have
// pixel p under tap t; p counts the pixels of all images; one group, I and O multiples of 4.
//   upstream: (N, OH, OW, O) as vec4 along O      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   dx: (N, H, W, I) as vec4 along I
// A workgroup is one subgroup of 8 lanes on a CPU device, see shared/subgroup_tile, and computes 8 or 16 (TALL) pixels x 32
// channels. Workgroups run along pixels in x, then z, so that neighbours read the same weights, and along I in y.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_gradient_tile::{extents, load, params, place, source, store};
import package::shared::subgroup_tile::{broadcast_products, no_sums, row_of};
import package::shared::weight::load_rows;

@if(f16) enable f16;

// 16 rows rather than 8: faster, and longer to compile.
override TALL: u32 = 0u;

// One invocation per lane of a subgroup of 8.
@compute @workgroup_size(8)
fn conv2d_gradient_subgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let c4 = group.y * 8u + lane;
    let p = (group.z * groups.x + group.x) * select(8u, 16u, TALL == 1u);
    // Layers of workgroups are full, so the last one may begin past the end.
    if p >= params.pixels {
        return;
    }
    let e = extents();
    // Channels past the end read the last ones again and are not stored.
    var row = 4u * min(c4, params.out_channels - 1u);
    let low = place(p + lane);
    let high = place(p + 8u + lane);
    var low_sums = no_sums();
    var high_sums = no_sums();
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let from_low = source(low, ky, kx);
            let from_high = source(high, ky, kx);
            for (var o4 = 0u; o4 < params.up_channels; o4++) {
                let weights = transpose(load_rows(0u, row, o4, e));
                low_sums = broadcast_products(low_sums, load(from_low, o4), weights);
                if TALL == 1u {
                    high_sums = broadcast_products(high_sums, load(from_high, o4), weights);
                }
            }
            row += 4u * params.out_channels;
        }
    }
    // One store in a loop instead of one for each row: it is compiled once. From zero the driver would unroll it.
    for (var pixel = p; pixel < min(p + select(8u, 16u, TALL == 1u), params.pixels); pixel++) {
        let r = pixel - p;
        var v = row_of(low_sums, r);
        if TALL == 1u {
            v = select(v, row_of(high_sums, r - 8u), r >= 8u);
        }
        store(pixel, c4, v);
    }
}
