// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// A workgroup computes 64 pixels x 64 channels, see shared/workgroup_tile. Taps and input channels form one inner axis of
// KH * KW * I steps. Workgroups run along O in x and along pixels in y, then z.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_tile::{corner, extents, params, store, x};
import package::shared::weight::load_row;
import package::shared::workgroup_tile::multiply;

@if(f16) enable f16;

// The input vec4 at step `s4` of the inner axis of the window at c; zero outside the image or past the axis.
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
    let e = extents(4u * params.in_channels);
    var sums = mat4x4<f32>();
    for (var step = 0u; step < steps4; step += 4u) {
        let x = load_input(from_corner, step + a_column);
        var w = vec4(0.0);
        if o4 < params.out_channels && step * 4u + lane.y < steps4 * 4u {
            w = load_row(0u, step * 4u + lane.y, o4, e);
        }
        sums = multiply(sums, x, w, lane, index);
    }
    let p = first + lane.y * 4u;
    store(p, o4, sums[0]);
    store(p + 1u, o4, sums[1]);
    store(p + 2u, o4, sums[2]);
    store(p + 3u, o4, sums[3]);
}
