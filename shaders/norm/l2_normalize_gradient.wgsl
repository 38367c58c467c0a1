// dx[r, c] = (upstream[r, c] - x[r, c] * (sum over k of upstream[r, k] * x[r, k]) / norm[r]^2) / norm[r], norm the root of the sum
// of squares; upstream / eps where that is less than eps.
//   x, upstream, dx: (rows, width) in cells
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
@group(0) @binding(2) var<storage, read> upstream: array<cell>;
@group(0) @binding(3) var<storage, read_write> dx: array<cell>;

@compute @workgroup_size(64)
fn l2_normalize_gradient(
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
    var products = real(0.0);
    for (var c = lane; c < params.width; c += 64u) {
        let v = real(x[first + c]);
        squares += v * v;
        products += v * real(upstream[first + c]);
    }
    let norm = sqrt(workgroup_sum(total(squares), lane));
    let product = workgroup_sum(total(products), lane);
    let scale = 1.0 / max(norm, params.eps);
    // A divisor that is constant changes nothing.
    let share = select(0.0, product * scale * scale, norm >= params.eps);
    for (var c = lane; c < params.width; c += 64u) {
        dx[first + c] = cell((real(upstream[first + c]) - real(x[first + c]) * share) * scale);
    }
}
