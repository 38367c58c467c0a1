// dx[n, py, px, c] = sum over (u, v) of upstream[n, v, u, c] * hat(sx - px) * hat(sy - py), (sx, sy) = matrix[n] (u, v, 1) and
// hat(t) = max(1 - |t|, 0): what affine_sample read of each pixel.
//   upstream: (N, OH, OW, C)      matrix: (N, 2, 3) f32      dx: (N, H, W, C)      elements
// Each invocation computes one element of dx: a gather over the box that holds all (u, v) within one pixel of it.
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
@group(0) @binding(1) var<storage, read> upstream: array<elem>;
@group(0) @binding(2) var<storage, read> matrix: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<elem>;

// First and last index of a box around `centre`, cut to an extent; all of it where the matrix has no inverse.
fn range(centre: f32, half: f32, extent: u32, invertible: bool) -> vec2<i32> {
    let last = f32(extent) - 1.0;
    if !invertible {
        return vec2(0, i32(last));
    }
    // A box that is a little too large costs little: there hats are zero.
    return vec2(i32(clamp(ceil(centre - half - 0.01), 0.0, last + 1.0)), i32(clamp(floor(centre + half + 0.01), -1.0, last)));
}

@compute @workgroup_size(64)
fn affine_sample_gradient(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let channel = i % params.channels;
    let px = f32((i / params.channels) % params.width);
    let rows = i / (params.channels * params.width);
    let py = f32(rows % params.height);
    let image = rows / params.height;
    let m = image * 6u;
    let a = matrix[m];
    let b = matrix[m + 1u];
    let c = matrix[m + 3u];
    let d = matrix[m + 4u];
    let determinant = a * d - b * c;
    let invertible = abs(determinant) > 1e-12;
    let scale = 1.0 / select(1.0, determinant, invertible);
    let x = px - matrix[m + 2u];
    let y = py - matrix[m + 5u];
    let columns = range((d * x - b * y) * scale, (abs(d) + abs(b)) * abs(scale), params.out_width, invertible);
    let lines = range((a * y - c * x) * scale, (abs(c) + abs(a)) * abs(scale), params.out_height, invertible);
    var sum = 0.0;
    for (var v = lines.x; v <= lines.y; v++) {
        let row = (image * params.out_height + u32(v)) * params.out_width;
        for (var u = columns.x; u <= columns.y; u++) {
            let sx = a * f32(u) + b * f32(v) - x;
            let sy = c * f32(u) + d * f32(v) - y;
            let weight = max(1.0 - abs(sx), 0.0) * max(1.0 - abs(sy), 0.0);
            sum += weight * f32(upstream[(row + u32(u)) * params.channels + channel]);
        }
    }
    dx[i] = elem(sum);
}
