// y[r, c] = exp(x[r, c] - max[r]) / sum[r].
//   x, y: (rows, width) in cells
// Each invocation takes one row; for devices on which barriers cost more than uncoalesced reads.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, largest, real, total};

@if(f16) enable f16;

struct Params {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(8)
fn softmax_serial(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = flat_index(id, groups, 8u);
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var high = real(-3.4e38);
    for (var c = 0u; c < params.width; c++) {
        high = max(high, real(x[first + c]));
    }
    let top = largest(high);
    var sum = real(0.0);
    for (var c = 0u; c < params.width; c++) {
        sum += exp(real(x[first + c]) - top);
    }
    let scale = 1.0 / total(sum);
    for (var c = 0u; c < params.width; c++) {
        y[first + c] = cell(exp(real(x[first + c]) - top) * scale);
    }
}
