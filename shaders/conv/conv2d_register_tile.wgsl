// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// Each invocation computes 4 pixels x 4 channels in registers and reads straight from global memory: on a CPU device
// the lanes of a workgroup share their pixels (uniform loads) and read consecutive vec4 of the weight. Workgroups run
// along pixels in x, then z, so that neighbours read the same weights, and along O in y.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::conv2d_tile::{address, corner, extents, inside, params, store, x};
import package::shared::product::accumulate;
import package::shared::weight::load_rows;

@if(f16) enable f16;

@compute @workgroup_size(8)
fn conv2d_register_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let o4 = group.y * 8u + lane.x;
    if o4 >= params.out_channels {
        return;
    }
    let p = (group.z * groups.x + group.x) * 4u;
    let p0 = corner(p);
    let p1 = corner(p + 1u);
    let p2 = corner(p + 2u);
    let p3 = corner(p + 3u);
    let e = extents(4u * params.in_channels);
    var sums = mat4x4<f32>();
    var row = 0u;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        let dy = ky * params.dilation_y;
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let dx = kx * params.dilation_x;
            let a0 = address(p0, dy, dx);
            let a1 = address(p1, dy, dx);
            let a2 = address(p2, dy, dx);
            let a3 = address(p3, dy, dx);
            let in0 = inside(p0, dy, dx);
            let in1 = inside(p1, dy, dx);
            let in2 = inside(p2, dy, dx);
            let in3 = inside(p3, dy, dx);
            for (var c = 0u; c < params.in_channels; c++) {
                let x0 = select(vec4(0.0), vec4<f32>(x[a0 + c]), in0);
                let x1 = select(vec4(0.0), vec4<f32>(x[a1 + c]), in1);
                let x2 = select(vec4(0.0), vec4<f32>(x[a2 + c]), in2);
                let x3 = select(vec4(0.0), vec4<f32>(x[a3 + c]), in3);
                sums = accumulate(sums, x0, x1, x2, x3, load_rows(0u, row, o4, e));
                row += 4u;
            }
        }
    }
    store(p, o4, sums[0]);
    store(p + 1u, o4, sums[1]);
    store(p + 2u, o4, sums[2]);
    store(p + 3u, o4, sums[3]);
}
