// v[4 i + j, t, c] = (B^T d B)[i, j] for the patch d of tile t in channel c: the first step of Winograd's convolution.
//   x: (N, H, W, I) as vec4 along I      v: (16, T, I) f32 as vec4 along I
// One invocation transforms four channels of a patch; outside the image x is zero.

import package::shared::conv2d_tile::{params, x};
import package::shared::grid::flat_index;
import package::shared::winograd::{tile_at, tile_count};

@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;

// Four channels of a pixel.
fn pixel(n: u32, row: u32, column: u32, c: u32) -> vec4<f32> {
    let inside = row < params.height && column < params.width;
    let i = ((n * params.height + row) * params.width + column) * params.in_channels + c;
    return select(vec4(0.0), vec4<f32>(x[select(0u, i, inside)]), inside);
}

// A patch's row times B.
fn across(n: u32, row: u32, column: u32, c: u32) -> mat4x4<f32> {
    let d0 = pixel(n, row, column, c);
    let d1 = pixel(n, row, column + 1u, c);
    let d2 = pixel(n, row, column + 2u, c);
    let d3 = pixel(n, row, column + 3u, c);
    return mat4x4(d0 - d2, d1 + d2, d2 - d1, d1 - d3);
}

fn store_row(first: u32, stride: u32, row: mat4x4<f32>) {
    v[first] = row[0];
    v[first + stride] = row[1];
    v[first + 2u * stride] = row[2];
    v[first + 3u * stride] = row[3];
}

@compute @workgroup_size(64)
fn conv2d_winograd_input(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    let stride = tile_count() * params.in_channels;
    if i >= stride {
        return;
    }
    let c = i % params.in_channels;
    let tile = tile_at(i / params.in_channels);
    // Below zero by the padding, wrapped.
    let row = tile.x - params.pad_top;
    let column = tile.y - params.pad_left;
    let r0 = across(tile.z, row, column, c);
    let r1 = across(tile.z, row + 1u, column, c);
    let r2 = across(tile.z, row + 2u, column, c);
    let r3 = across(tile.z, row + 3u, column, c);
    store_row(i, stride, r0 - r2);
    store_row(i + 4u * stride, stride, r1 + r2);
    store_row(i + 8u * stride, stride, r2 - r1);
    store_row(i + 12u * stride, stride, r1 - r3);
}
