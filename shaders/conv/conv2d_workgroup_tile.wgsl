// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all pictures; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// A workgroup of 16 x 16 invocations computes 64 pixels x 64 channels, each invocation 4 pixels x 4 channels in
// registers. Taps and input channels form one inner axis of KH * KW * I steps. 16 steps at a time, the workgroup
// copies the inputs of 64 pixels and the weights of 64 channels to workgroup memory, one vec4 of each per invocation.
// Workgroups run along O in x and along pixels in y, then z. Accumulators are named values: indexed arrays leave
// registers. The first barrier of a step waits until the tiles are written, the second until all have read them.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_tile::{corner, extents, params, store, x};
import package::shared::weight::load_row;

@if(f16) enable f16;

// The input vec4 at step `s4` of the inner axis of the window at c; zero outside the picture or past the axis.
fn load_input(c: vec3<u32>, s4: u32) -> vec4<f32> {
    let tap = s4 / params.in_channels;
    let iy = c.x + tap / params.kernel_width * params.dilation_y;
    let ix = c.y + tap % params.kernel_width * params.dilation_x;
    if tap < params.kernel_height * params.kernel_width && iy < params.height && ix < params.width {
        let pixel = (c.z * params.height + iy) * params.width + ix;
        return vec4<f32>(x[pixel * params.in_channels + s4 % params.in_channels]);
    }
    return vec4(0.0);
}

// One vec4 of padding per row spreads the rows over the banks.
const A_STRIDE: u32 = 5u;
var<workgroup> a_tile: array<vec4<f32>, 320>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

@compute @workgroup_size(16, 16)
fn conv2d_workgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first = (group.z * groups.y + group.y) * 64u;
    // What this invocation copies: vec4 number a_column of pixel a_row, and vec4 number lane.x of step lane.y.
    let a_row = index / 4u;
    let a_column = index % 4u;
    let from_corner = corner(first + a_row);
    let steps4 = params.kernel_height * params.kernel_width * params.in_channels;
    let o4 = group.x * 16u + lane.x;
    let row = lane.y * 4u;
    let e = extents(4u * params.in_channels);
    var c0 = vec4(0.0);
    var c1 = vec4(0.0);
    var c2 = vec4(0.0);
    var c3 = vec4(0.0);
    for (var step = 0u; step < steps4; step += 4u) {
        a_tile[a_row * A_STRIDE + a_column] = load_input(from_corner, step + a_column);
        var w = vec4(0.0);
        if o4 < params.out_channels && step * 4u + lane.y < steps4 * 4u {
            w = load_row(0u, step * 4u + lane.y, o4, e);
        }
        b_tile[lane.y * 16u + lane.x] = w;
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let x0 = a_tile[row * A_STRIDE + k];
            let x1 = a_tile[(row + 1u) * A_STRIDE + k];
            let x2 = a_tile[(row + 2u) * A_STRIDE + k];
            let x3 = a_tile[(row + 3u) * A_STRIDE + k];
            let b0 = b_tile[k * 64u + lane.x];
            let b1 = b_tile[k * 64u + 16u + lane.x];
            let b2 = b_tile[k * 64u + 32u + lane.x];
            let b3 = b_tile[k * 64u + 48u + lane.x];
            c0 += x0.x * b0 + x0.y * b1 + x0.z * b2 + x0.w * b3;
            c1 += x1.x * b0 + x1.y * b1 + x1.z * b2 + x1.w * b3;
            c2 += x2.x * b0 + x2.y * b1 + x2.z * b2 + x2.w * b3;
            c3 += x3.x * b0 + x3.y * b1 + x3.z * b2 + x3.w * b3;
        }
        workgroupBarrier();
    }
    let p = first + row;
    store(p, o4, c0);
    store(p + 1u, o4, c1);
    store(p + 2u, o4, c2);
    store(p + 3u, o4, c3);
}
