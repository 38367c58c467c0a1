// y[n, v, u, c] = x[n] at (sx, sy) = matrix[n] (u, v, 1), bilinear between pixel centres at whole coordinates, zero outside.
//   x: (N, H, W, C)      matrix: (N, 2, 3) f32      y: (N, OH, OW, C)      elements
// Each invocation computes one element of y.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read> matrix: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<elem>;

// Limits in f32, so that coordinates far outside never become integers.
fn pixel(image: u32, row: f32, column: f32, channel: u32) -> f32 {
    if row < 0.0 || column < 0.0 || row >= f32(params.height) || column >= f32(params.width) {
        return 0.0;
    }
    return f32(x[((image * params.height + u32(row)) * params.width + u32(column)) * params.channels + channel]);
}

@compute @workgroup_size(64)
fn affine_sample(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let channel = i % params.channels;
    let u = f32((i / params.channels) % params.out_width);
    let rows = i / (params.channels * params.out_width);
    let v = f32(rows % params.out_height);
    let image = rows / params.out_height;
    let m = image * 6u;
    let sx = matrix[m] * u + matrix[m + 1u] * v + matrix[m + 2u];
    let sy = matrix[m + 3u] * u + matrix[m + 4u] * v + matrix[m + 5u];
    let left = floor(sx);
    let top = floor(sy);
    let right = sx - left;
    let down = sy - top;
    let above = pixel(image, top, left, channel) * (1.0 - right) + pixel(image, top, left + 1.0, channel) * right;
    let below = pixel(image, top + 1.0, left, channel) * (1.0 - right) + pixel(image, top + 1.0, left + 1.0, channel) * right;
    y[i] = elem(above * (1.0 - down) + below * down);
}
