// y[n, t, c] = f(x[n, t, c] * scale[n, c] + shift[n, c]), f given by ACTIVATION.
//   x, y: (N, rows, width)     scale, shift: affine (2, N, width) f32     in cells along the channels
// Each invocation takes one cell of channels of one chunk of rows, so that neighbours touch neighbouring channels.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{activate_cell, cell, real};

@if(f16) enable f16;

struct Params {
    rows: u32,
    width: u32,
    chunks: u32,
    chunk_rows: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> affine: array<real>;
@group(0) @binding(3) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn group_norm_apply(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let nk = i / params.width;
    let c = i - nk * params.width;
    let n = nk / params.chunks;
    let row = (nk - n * params.chunks) * params.chunk_rows;
    let rows = min(params.chunk_rows, params.rows - row);
    let pictures = params.count / (params.chunks * params.width);
    let factor = affine[n * params.width + c];
    let add = affine[(pictures + n) * params.width + c];
    var at = (n * params.rows + row) * params.width + c;
    for (var r = 0u; r < rows; r++) {
        y[at] = cell(activate_cell(real(x[at]) * factor + add));
        at += params.width;
    }
}
