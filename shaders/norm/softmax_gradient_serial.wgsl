// dx[r, c] = y[r, c] * (upstream[r, c] - sum over k of upstream[r, k] * y[r, k]), y the softmax's result.
//   y, upstream, dx: (rows, width) in cells
// Each invocation takes one row; for devices on which barriers cost more than uncoalesced reads.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

struct Params {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> y: array<cell>;
@group(0) @binding(2) var<storage, read> upstream: array<cell>;
@group(0) @binding(3) var<storage, read_write> dx: array<cell>;

@compute @workgroup_size(8)
fn softmax_gradient_serial(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = flat_index(id, groups, 8u);
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var products = real(0.0);
    for (var c = 0u; c < params.width; c++) {
        products += real(upstream[first + c]) * real(y[first + c]);
    }
    let sum = total(products);
    for (var c = 0u; c < params.width; c++) {
        dx[first + c] = cell(real(y[first + c]) * (real(upstream[first + c]) - sum));
    }
}
