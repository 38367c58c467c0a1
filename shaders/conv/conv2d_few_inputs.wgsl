// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, any I, O a multiple of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) elements      weight: (KH, KW, I, O) as vec4 along O, may be packed halves
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// Each invocation computes 4 pixels x 4 channels in registers: first layers, whose few input channels do not fill a
// vec4. Lanes run along O, so inputs are uniform loads. Workgroups run along pixels in x, then z, so that neighbours
// read the same weights, and along O in y.
// permutation: f16
// permutation: w16

import package::shared::conv2d_tile::{address, corner, extents, inside, params, store};
import package::shared::weight::load_row;
import package::shared::storage::elem;

@if(f16) enable f16;

@group(0) @binding(1) var<storage, read> x: array<elem>;

@compute @workgroup_size(8)
fn conv2d_few_inputs(
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
    let e = extents(params.in_channels);
    var c0 = vec4(0.0);
    var c1 = vec4(0.0);
    var c2 = vec4(0.0);
    var c3 = vec4(0.0);
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
                let w = load_row(0u, row, o4, e);
                row += 1u;
                c0 += select(0.0, f32(x[a0 + c]), in0) * w;
                c1 += select(0.0, f32(x[a1 + c]), in1) * w;
                c2 += select(0.0, f32(x[a2 + c]), in2) * w;
                c3 += select(0.0, f32(x[a3 + c]), in3) * w;
            }
        }
    }
    store(p, o4, c0);
    store(p + 1u, o4, c1);
    store(p + 2u, o4, c2);
    store(p + 3u, o4, c3);
}
