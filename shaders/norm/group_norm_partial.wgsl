// mean[n, k, c] and squares[n, k, c]: mean of x[n, t, c] over the rows t of chunk k, and the sum of squares around it.
//   x: (N, rows, width)     mean, squares: (N, chunks, width) f32     in cells along the channels
// Each invocation takes one cell of channels of one chunk, so that neighbours read neighbouring channels. Sums are
// taken around the chunk's first row: plain sums of squares lose the variance where the mean is large.
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
    // Where the results begin: behind those of the bands before this one.
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read_write> mean: array<real>;
@group(0) @binding(3) var<storage, read_write> squares: array<real>;

@compute @workgroup_size(64)
fn group_norm_partial(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let nk = i / params.width;
    let c = i - nk * params.width;
    let n = nk / params.chunks;
    let row = (nk - n * params.chunks) * params.chunk_rows;
    let rows = min(params.chunk_rows, params.rows - row);
    var at = (n * params.rows + row) * params.width + c;
    let around = real(x[at]);
    var sum = real(0.0);
    var square = real(0.0);
    for (var r = 1u; r < rows; r++) {
        at += params.width;
        let d = real(x[at]) - around;
        sum += d;
        square += d * d;
    }
    let shift = sum / f32(rows);
    mean[params.first + i] = around + shift;
    squares[params.first + i] = max(square - sum * shift, real(0.0));
}
