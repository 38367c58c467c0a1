// y[r, c] = x[r, c] / max(norm[r], eps), norm the root of the sum of squares.
//   x, y: (rows, width) in cells
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
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn l2_normalize_workgroup(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var squares = real(0.0);
    for (var c = lane; c < params.width; c += 64u) {
        let v = real(x[first + c]);
        squares += v * v;
    }
    let scale = 1.0 / max(sqrt(workgroup_sum(total(squares), lane)), params.eps);
    for (var c = lane; c < params.width; c += 64u) {
        y[first + c] = cell(real(x[first + c]) * scale);
    }
}
