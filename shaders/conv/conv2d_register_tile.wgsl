// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// Each invocation computes up to 8 pixels x 8 channels in registers, two vec4 of a pixel 8 vec4 apart, and reads straight from
// global memory: on a CPU device the lanes of a workgroup share their pixels (uniform loads) and read consecutive vec4 of the weight.
// There a load costs several products, so that each shall feed many. Workgroups run along pixels in x, then z, so that neighbours
// read the same weights, and along O in y.
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

// Four pixels under a tap: where they begin and whether they are inside the image.
struct Taps {
    at: vec4<u32>,
    inside: vec4<bool>,
}

fn taps(p0: vec3<u32>, p1: vec3<u32>, p2: vec3<u32>, p3: vec3<u32>, dy: u32, dx: u32) -> Taps {
    return Taps(
        vec4(address(p0, dy, dx), address(p1, dy, dx), address(p2, dy, dx), address(p3, dy, dx)),
        vec4(inside(p0, dy, dx), inside(p1, dy, dx), inside(p2, dy, dx), inside(p3, dy, dx)),
    );
}

// Four channels of four pixels: one pixel a column.
fn pixels(t: Taps, c: u32) -> mat4x4<f32> {
    return mat4x4(
        select(vec4(0.0), vec4<f32>(x[t.at.x + c]), t.inside.x),
        select(vec4(0.0), vec4<f32>(x[t.at.y + c]), t.inside.y),
        select(vec4(0.0), vec4<f32>(x[t.at.z + c]), t.inside.z),
        select(vec4(0.0), vec4<f32>(x[t.at.w + c]), t.inside.w),
    );
}

fn store_pixels(p: u32, o4: u32, sums: mat4x4<f32>) {
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
    let first4 = group.y * 16u;
    let o4 = first4 + lane.x;
    if o4 >= params.out_channels {
        return;
    }
    let p = (group.z * groups.x + group.x) * 8u;
    // Halves of the tile past the end are left out by all lanes alike.
    let wide = first4 + 8u < params.out_channels;
    let tall = p + 4u < params.pixels;
    let right4 = min(o4 + 8u, params.out_channels - 1u);
    let p0 = corner(p);
    let p1 = corner(p + 1u);
    let p2 = corner(p + 2u);
    let p3 = corner(p + 3u);
    let p4 = corner(p + 4u);
    let p5 = corner(p + 5u);
    let p6 = corner(p + 6u);
    let p7 = corner(p + 7u);
    let e = extents(4u * params.in_channels);
    var top_left = mat4x4<f32>();
    var top_right = mat4x4<f32>();
    var bottom_left = mat4x4<f32>();
    var bottom_right = mat4x4<f32>();
    var row = 0u;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        let dy = ky * params.dilation_y;
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let dx = kx * params.dilation_x;
            let upper = taps(p0, p1, p2, p3, dy, dx);
            let lower = taps(p4, p5, p6, p7, dy, dx);
            for (var c = 0u; c < params.in_channels; c++) {
                let a = pixels(upper, c);
                let left = load_rows(0u, row, o4, e);
                top_left = accumulate(top_left, a[0], a[1], a[2], a[3], left);
                var right = left;
                if wide {
                    right = load_rows(0u, row, right4, e);
                    top_right = accumulate(top_right, a[0], a[1], a[2], a[3], right);
                }
                if tall {
                    let b = pixels(lower, c);
                    bottom_left = accumulate(bottom_left, b[0], b[1], b[2], b[3], left);
                    if wide {
                        bottom_right = accumulate(bottom_right, b[0], b[1], b[2], b[3], right);
                    }
                }
                row += 4u;
            }
        }
    }
    store_pixels(p, o4, top_left);
    store_pixels(p + 4u, o4, bottom_left);
    if wide {
        store_pixels(p, o4 + 8u, top_right);
        store_pixels(p + 4u, o4 + 8u, bottom_right);
    }
}
