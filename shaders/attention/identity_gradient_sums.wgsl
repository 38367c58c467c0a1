// sums[b, k, 0, c] = sum over the rows t of chunk k of h[b, t, c] * i[b, t, c]; sums[b, k, 1, c]: of h[b, t, c] * h[b, t, c];
// sums[b, k, 2, c]: of (a[b, t] - 1) * g[b, t, c] * h[b, t, c].
//   g, h, i: (B, rows, width)     sums: (B, chunks, 3, width) f32     in cells along the channels     a: (B, rows) f32
// MODE 1 takes a as 0, 2 reads it. Each invocation takes one cell of channels of one chunk, so that neighbours read
// neighbouring channels.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, real};

@if(f16) enable f16;

struct Params {
    rows: u32,
    width: u32,
    chunks: u32,
    chunk_rows: u32,
    count: u32,
}

override MODE: u32 = 1u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<cell>;
@group(0) @binding(2) var<storage, read> h: array<cell>;
@group(0) @binding(3) var<storage, read> i: array<cell>;
@group(0) @binding(4) var<storage, read> a: array<f32>;
@group(0) @binding(5) var<storage, read_write> sums: array<real>;

@compute @workgroup_size(64)
fn identity_gradient_sums(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let out = flat_index(id, groups, 64u);
    if out >= params.count {
        return;
    }
    let chunk = out / params.width;
    let c = out - chunk * params.width;
    let b = chunk / params.chunks;
    let row = (chunk - b * params.chunks) * params.chunk_rows;
    let end = min(row + params.chunk_rows, params.rows);
    var product = real(0.0);
    var square = real(0.0);
    var along = real(0.0);
    for (var t = row; t < end; t++) {
        let at = b * params.rows + t;
        let v = real(h[at * params.width + c]);
        var weight = -1.0;
        if MODE == 2u {
            weight += a[at];
        }
        product += v * real(i[at * params.width + c]);
        square += v * v;
        along += weight * real(g[at * params.width + c]) * v;
    }
    let first = chunk * 3u * params.width + c;
    sums[first] = product;
    sums[first + params.width] = square;
    sums[first + 2u * params.width] = along;
}
