// dx[r, c] = y[r, c] * (upstream[r, c] - sum over k of upstream[r, k] * y[r, k]), y the softmax's result.
//   y, upstream, dx: (rows, width) in cells
// One workgroup takes one row: each invocation every 64th cell.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::reduce::workgroup_sum;
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

@compute @workgroup_size(64)
fn softmax_gradient_workgroup(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var products = real(0.0);
    for (var c = lane; c < params.width; c += 64u) {
        products += real(upstream[first + c]) * real(y[first + c]);
    }
    let sum = workgroup_sum(total(products), lane);
    for (var c = lane; c < params.width; c += 64u) {
        dx[first + c] = cell(real(y[first + c]) * (real(upstream[first + c]) - sum));
    }
}
