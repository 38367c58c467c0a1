// y[r, c] = exp(x[r, c] - max[r]) / sum[r].
//   x, y: (rows, width) in cells
// One workgroup takes one row: each invocation every 64th cell. All statistics in f32.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::reduce::{workgroup_max, workgroup_sum};
import package::shared::vector::{cell, largest, real, total};

@if(f16) enable f16;

struct Params {
    rows: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn softmax_workgroup(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var high = real(-3.4e38);
    for (var c = lane; c < params.width; c += 64u) {
        high = max(high, real(x[first + c]));
    }
    let top = workgroup_max(largest(high), lane);
    var sum = real(0.0);
    for (var c = lane; c < params.width; c += 64u) {
        sum += exp(real(x[first + c]) - top);
    }
    let scale = 1.0 / workgroup_sum(total(sum), lane);
    for (var c = lane; c < params.width; c += 64u) {
        y[first + c] = cell(exp(real(x[first + c]) - top) * scale);
    }
}
