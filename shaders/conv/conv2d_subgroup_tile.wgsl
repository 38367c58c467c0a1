// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all pictures; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// For CPU devices whose subgroups have 8 lanes, as matmul_subgroup_tile: a workgroup is one subgroup and computes 8 or
// 16 (TALL) pixels x 32 channels. Each lane reads a pixel or two and its own vec4 of the weight, and passes the pixels
// on by broadcast. Workgroups run along pixels in x, then z, so that neighbours read the same weights, and along O in y.
// Accumulators are named values: indexed arrays leave registers.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_tile::{address, corner, extents, inside, params, store, x};
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
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    var s4 = vec4(0.0);
    var s5 = vec4(0.0);
    var s6 = vec4(0.0);
    var s7 = vec4(0.0);
    var s8 = vec4(0.0);
    var s9 = vec4(0.0);
    var s10 = vec4(0.0);
    var s11 = vec4(0.0);
    var s12 = vec4(0.0);
    var s13 = vec4(0.0);
    var s14 = vec4(0.0);
    var s15 = vec4(0.0);
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        let dy = ky * params.dilation_y;
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let dx = kx * params.dilation_x;
            let low_at = address(low, dy, dx);
            let low_in = inside(low, dy, dx);
            let high_at = address(high, dy, dx);
            let high_in = inside(high, dy, dx);
            for (var c = 0u; c < params.in_channels; c++) {
                let rows = load_rows(0u, row, w_column4, e);
                let w0 = rows[0];
                let w1 = rows[1];
                let w2 = rows[2];
                let w3 = rows[3];
                row += 4u;
                let l = select(vec4(0.0), vec4<f32>(x[low_at + c]), low_in);
                let x0 = subgroupBroadcast(l, 0u);
                s0 += x0.x * w0 + x0.y * w1 + x0.z * w2 + x0.w * w3;
                let x1 = subgroupBroadcast(l, 1u);
                s1 += x1.x * w0 + x1.y * w1 + x1.z * w2 + x1.w * w3;
                let x2 = subgroupBroadcast(l, 2u);
                s2 += x2.x * w0 + x2.y * w1 + x2.z * w2 + x2.w * w3;
                let x3 = subgroupBroadcast(l, 3u);
                s3 += x3.x * w0 + x3.y * w1 + x3.z * w2 + x3.w * w3;
                let x4 = subgroupBroadcast(l, 4u);
                s4 += x4.x * w0 + x4.y * w1 + x4.z * w2 + x4.w * w3;
                let x5 = subgroupBroadcast(l, 5u);
                s5 += x5.x * w0 + x5.y * w1 + x5.z * w2 + x5.w * w3;
                let x6 = subgroupBroadcast(l, 6u);
                s6 += x6.x * w0 + x6.y * w1 + x6.z * w2 + x6.w * w3;
                let x7 = subgroupBroadcast(l, 7u);
                s7 += x7.x * w0 + x7.y * w1 + x7.z * w2 + x7.w * w3;
                if TALL == 1u {
                    let h = select(vec4(0.0), vec4<f32>(x[high_at + c]), high_in);
                    let x8 = subgroupBroadcast(h, 0u);
                    s8 += x8.x * w0 + x8.y * w1 + x8.z * w2 + x8.w * w3;
                    let x9 = subgroupBroadcast(h, 1u);
                    s9 += x9.x * w0 + x9.y * w1 + x9.z * w2 + x9.w * w3;
                    let x10 = subgroupBroadcast(h, 2u);
                    s10 += x10.x * w0 + x10.y * w1 + x10.z * w2 + x10.w * w3;
                    let x11 = subgroupBroadcast(h, 3u);
                    s11 += x11.x * w0 + x11.y * w1 + x11.z * w2 + x11.w * w3;
                    let x12 = subgroupBroadcast(h, 4u);
                    s12 += x12.x * w0 + x12.y * w1 + x12.z * w2 + x12.w * w3;
                    let x13 = subgroupBroadcast(h, 5u);
                    s13 += x13.x * w0 + x13.y * w1 + x13.z * w2 + x13.w * w3;
                    let x14 = subgroupBroadcast(h, 6u);
                    s14 += x14.x * w0 + x14.y * w1 + x14.z * w2 + x14.w * w3;
                    let x15 = subgroupBroadcast(h, 7u);
                    s15 += x15.x * w0 + x15.y * w1 + x15.z * w2 + x15.w * w3;
                }
            }
        }
    }
    // One store in a loop instead of one for each row: it is compiled once. From zero the driver would unroll it.
    for (var pixel = p; pixel < min(p + select(8u, 16u, TALL == 1u), params.pixels); pixel++) {
        let r = pixel - p;
        var v = s0;
        v = select(v, s1, r == 1u);
        v = select(v, s2, r == 2u);
        v = select(v, s3, r == 3u);
        v = select(v, s4, r == 4u);
        v = select(v, s5, r == 5u);
        v = select(v, s6, r == 6u);
        v = select(v, s7, r == 7u);
        if TALL == 1u {
            v = select(v, s8, r == 8u);
            v = select(v, s9, r == 9u);
            v = select(v, s10, r == 10u);
            v = select(v, s11, r == 11u);
            v = select(v, s12, r == 12u);
            v = select(v, s13, r == 13u);
            v = select(v, s14, r == 14u);
            v = select(v, s15, r == 15u);
        }
        store(pixel, o4, v);
    }
}
