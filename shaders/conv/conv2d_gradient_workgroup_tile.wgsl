// dx[p, c] = sum over taps t and output channels o of upstream[window(p, t), o] * weight[t, c, o], for the windows that have
// pixel p under tap t; p counts the pixels of all images; one group, I and O multiples of 4.
//   upstream: (N, OH, OW, O) as vec4 along O      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   dx: (N, H, W, I) as vec4 along I
// A workgroup computes 64 pixels x 64 channels, see shared/workgroup_tile_transposed. Taps and output channels form one inner
// axis of KH * KW * O steps. Workgroups run along I in x and along pixels in y, then z.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_gradient_tile::{extents, load, params, place, source, store};
import package::shared::weight::load_row;
import package::shared::workgroup_tile_transposed::multiply_transposed;

@if(f16) enable f16;

@compute @workgroup_size(16, 16)
fn conv2d_gradient_workgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first = (group.z * groups.y + group.y) * 64u;
    // What this invocation copies: vec4 number index % 4 of a pixel's steps and of a channel's.
    let pixel = place(first + index / 4u);
    let channel = group.x * 64u + index / 4u;
    let taps = params.kernel_height * params.kernel_width;
    let e = extents();
    var sums = mat4x4<f32>();
    for (var step4 = 0u; step4 < taps * params.up_channels; step4 += 4u) {
        let own = step4 + index % 4u;
        let tap = own / params.up_channels;
        let o4 = own - tap * params.up_channels;
        var x = vec4(0.0);
        var w = vec4(0.0);
        if tap < taps {
            let ky = tap / params.kernel_width;
            x = load(source(pixel, ky, tap - ky * params.kernel_width), o4);
            if channel < 4u * params.out_channels {
                w = load_row(0u, tap * 4u * params.out_channels + channel, o4, e);
            }
        }
        sums = multiply_transposed(sums, x, w, lane, index);
    }
    let p = first + lane.y * 4u;
    let c4 = group.x * 16u + lane.x;
    store(p, c4, sums[0]);
    store(p + 1u, c4, sums[1]);
    store(p + 2u, c4, sums[2]);
    store(p + 3u, c4, sums[3]);
}
