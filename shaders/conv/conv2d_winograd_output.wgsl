// y[p, o] = f((A^T m A)[p, o] + bias[o]) + residual[p, o] for the 2 x 2 pixels p of each tile: the last step of Winograd's convolution,
// where m are the 16 sums over channels.
//   m: (16, T, O) f32 as vec4 along O    bias: (O) f32    residual, y: (N, OH, OW, O) as vec4 along O
// One invocation computes four channels of a tile.

import package::shared::activation::activate4;
import package::shared::conv2d_tile::{BIAS, RESIDUAL, params, residual_at};
import package::shared::grid::flat_index;
import package::shared::winograd::{tile_at, tile_count};

@group(0) @binding(1) var<storage, read> m: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> residual: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

// A row of sums times A.
fn across(first: u32, stride: u32) -> mat2x4<f32> {
    let m1 = m[first + stride];
    let m2 = m[first + 2u * stride];
    return mat2x4(m[first] + m1 + m2, m1 - m2 - m[first + 3u * stride]);
}

fn store(tile: vec3<u32>, row: u32, column: u32, o4: u32, sum: vec4<f32>) {
    if row >= params.out_height || column >= params.out_width {
        return;
    }
    var v = sum;
    if BIAS == 1u {
        v += bias[o4];
    }
    v = activate4(v);
    let p = (tile.z * params.out_height + row) * params.out_width + column;
    if RESIDUAL > 0u {
        v += residual[residual_at(p, o4)];
    }
    y[p * params.out_channels + o4] = v;
}

@compute @workgroup_size(64)
fn conv2d_winograd_output(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    let stride = tile_count() * params.out_channels;
    if i >= stride {
        return;
    }
    let o4 = i % params.out_channels;
    let tile = tile_at(i / params.out_channels);
    let r0 = across(i, stride);
    let r1 = across(i + 4u * stride, stride);
    let r2 = across(i + 8u * stride, stride);
    let r3 = across(i + 12u * stride, stride);
    let upper = r0 + r1 + r2;
    let lower = r1 - r2 - r3;
    store(tile, tile.x, tile.y, o4, upper[0]);
    store(tile, tile.x, tile.y + 1u, o4, upper[1]);
    store(tile, tile.x + 1u, tile.y, o4, lower[0]);
    store(tile, tile.x + 1u, tile.y + 1u, o4, lower[1]);
}
