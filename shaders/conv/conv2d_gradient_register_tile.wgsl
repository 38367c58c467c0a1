// dx[p, c] = sum over taps t and output channels o of upstream[window(p, t), o] * weight[t, c, o], for the windows that have
// pixel p under tap t; p counts the pixels of all images; one group, I and O multiples of 4.
//   upstream: (N, OH, OW, O) as vec4 along O      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   dx: (N, H, W, I) as vec4 along I
// Each invocation computes 4 pixels x 4 channels in registers and reads straight from global memory. Workgroups run along
// pixels in x, then z, so that neighbours read the same weights, and along I in y.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_gradient_tile::{extents, load, params, place, source, store};
import package::shared::product::accumulate;
import package::shared::weight::load_rows;

@if(f16) enable f16;

@compute @workgroup_size(8)
fn conv2d_gradient_register_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let c4 = group.y * 8u + lane.x;
    if c4 >= params.out_channels {
        return;
    }
    let p = (group.z * groups.x + group.x) * 4u;
    let p0 = place(p);
    let p1 = place(p + 1u);
    let p2 = place(p + 2u);
    let p3 = place(p + 3u);
    let e = extents();
    var sums = mat4x4<f32>();
    var row = 4u * c4;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let s0 = source(p0, ky, kx);
            let s1 = source(p1, ky, kx);
            let s2 = source(p2, ky, kx);
            let s3 = source(p3, ky, kx);
            // Of a strided convolution most taps meet no window.
            if s0.inside || s1.inside || s2.inside || s3.inside {
                for (var o4 = 0u; o4 < params.up_channels; o4++) {
                    let weights = transpose(load_rows(0u, row, o4, e));
                    sums = accumulate(sums, load(s0, o4), load(s1, o4), load(s2, o4), load(s3, o4), weights);
                }
            }
            row += 4u * params.out_channels;
        }
    }
    store(p, c4, sums[0]);
    store(p + 1u, c4, sums[1]);
    store(p + 2u, c4, sums[2]);
    store(p + 3u, c4, sums[3]);
}
