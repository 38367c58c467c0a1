// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// Each invocation computes 4 pixels, or 8 (TALL), x 4 channels in registers and reads straight from global memory: on a CPU device
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

// 8 pixels rather than 4: a quarter fewer loads for each product, longer to compile.
override TALL: u32 = 0u;

fn store_four(p: u32, o4: u32, sums: mat4x4<f32>) {
    store(p, o4, sums[0]);
    store(p + 1u, o4, sums[1]);
    store(p + 2u, o4, sums[2]);
    store(p + 3u, o4, sums[3]);
}

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
    let p = (group.z * groups.x + group.x) * select(4u, 8u, TALL == 1u);
    let p0 = corner(p);
    let p1 = corner(p + 1u);
    let p2 = corner(p + 2u);
    let p3 = corner(p + 3u);
    let p4 = corner(p + 4u);
    let p5 = corner(p + 5u);
    let p6 = corner(p + 6u);
    let p7 = corner(p + 7u);
    let e = extents(4u * params.in_channels);
    var low = mat4x4<f32>();
    var high = mat4x4<f32>();
    var row = 0u;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        let dy = ky * params.dilation_y;
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let dx = kx * params.dilation_x;
            let a0 = address(p0, dy, dx);
            let a1 = address(p1, dy, dx);
            let a2 = address(p2, dy, dx);
            let a3 = address(p3, dy, dx);
            let a4 = address(p4, dy, dx);
            let a5 = address(p5, dy, dx);
            let a6 = address(p6, dy, dx);
            let a7 = address(p7, dy, dx);
            let in0 = inside(p0, dy, dx);
            let in1 = inside(p1, dy, dx);
            let in2 = inside(p2, dy, dx);
            let in3 = inside(p3, dy, dx);
            let in4 = inside(p4, dy, dx);
            let in5 = inside(p5, dy, dx);
            let in6 = inside(p6, dy, dx);
            let in7 = inside(p7, dy, dx);
            for (var c = 0u; c < params.in_channels; c++) {
                let weights = load_rows(0u, row, o4, e);
                row += 4u;
                let x0 = select(vec4(0.0), vec4<f32>(x[a0 + c]), in0);
                let x1 = select(vec4(0.0), vec4<f32>(x[a1 + c]), in1);
                let x2 = select(vec4(0.0), vec4<f32>(x[a2 + c]), in2);
                let x3 = select(vec4(0.0), vec4<f32>(x[a3 + c]), in3);
                low = accumulate(low, x0, x1, x2, x3, weights);
                if TALL == 1u {
                    let x4 = select(vec4(0.0), vec4<f32>(x[a4 + c]), in4);
                    let x5 = select(vec4(0.0), vec4<f32>(x[a5 + c]), in5);
                    let x6 = select(vec4(0.0), vec4<f32>(x[a6 + c]), in6);
                    let x7 = select(vec4(0.0), vec4<f32>(x[a7 + c]), in7);
                    high = accumulate(high, x4, x5, x6, x7, weights);
                }
            }
        }
    }
    store_four(p, o4, low);
    if TALL == 1u {
        store_four(p + 4u, o4, high);
    }
}
