// products[b, k, c] = sum over the rows t of chunk k of h[b, t, c] * i[b, t, c]; squares: of h[b, t, c] * h[b, t, c].
//   h, i: (B, rows, width)     products, squares: (B, chunks, width) f32     in cells along the channels
// Each invocation takes one cell of channels of one chunk, so that neighbours read neighbouring channels.
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

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> h: array<cell>;
@group(0) @binding(2) var<storage, read> i: array<cell>;
@group(0) @binding(3) var<storage, read_write> products: array<real>;
@group(0) @binding(4) var<storage, read_write> squares: array<real>;

@compute @workgroup_size(64)
fn identity_sums(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
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
    for (var t = row; t < end; t++) {
        let at = (b * params.rows + t) * params.width + c;
        let v = real(h[at]);
        product += v * real(i[at]);
        square += v * v;
    }
    products[out] = product;
    squares[out] = square;
}
