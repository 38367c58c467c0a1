// u[4 i + j, c, o] = (G g G^T)[i, j] for the taps g of channels c and o: the second step of Winograd's convolution.
//   weight: (3, 3, I, O) as vec4 along O, may be packed halves      u: (16, I, O) f32 as vec4 along O
// One invocation transforms the taps of one channel to four.
// permutation: w16

import package::shared::conv2d_tile::{extents, params};
import package::shared::grid::flat_index;
import package::shared::weight::load_row;

@group(0) @binding(1) var<storage, read_write> u: array<vec4<f32>>;

// A row of taps times G^T; `row` is that of its first tap's channel.
fn across(row: u32, channels: u32, o4: u32) -> mat4x4<f32> {
    let e = extents(channels);
    let g0 = load_row(0u, row, o4, e);
    let g1 = load_row(0u, row + channels, o4, e);
    let g2 = load_row(0u, row + 2u * channels, o4, e);
    let outer = 0.5 * (g0 + g2);
    let inner = 0.5 * g1;
    return mat4x4(g0, outer + inner, outer - inner, g2);
}

fn store_row(first: u32, stride: u32, row: mat4x4<f32>) {
    u[first] = row[0];
    u[first + stride] = row[1];
    u[first + 2u * stride] = row[2];
    u[first + 3u * stride] = row[3];
}

@compute @workgroup_size(64)
fn conv2d_winograd_weight(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    let channels = 4u * params.in_channels;
    let stride = channels * params.out_channels;
    if i >= stride {
        return;
    }
    let o4 = i % params.out_channels;
    let c = i / params.out_channels;
    let r0 = across(c, channels, o4);
    let r1 = across(c + 3u * channels, channels, o4);
    let r2 = across(c + 6u * channels, channels, o4);
    let outer = 0.5 * (r0 + r2);
    let inner = 0.5 * r1;
    store_row(i, stride, r0);
    store_row(i + 4u * stride, stride, outer + inner);
    store_row(i + 8u * stride, stride, outer - inner);
    store_row(i + 12u * stride, stride, r2);
}
