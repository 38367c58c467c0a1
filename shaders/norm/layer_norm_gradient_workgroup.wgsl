// dx[r, c] = rate[r] * (w[r, c] - mean of w[r] - xh[r, c] * mean of w[r] * xh[r]), for w = upstream * gain[c] and the
// normalised xh = (x[r, c] - mean[r]) * rate[r], rate = 1 / sqrt(variance + eps).
//   x, upstream, dx: (rows, width)     gain: (width) f32     in cells
// One workgroup takes one row: each invocation every 64th cell.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::layer_norm_gradient::{dx, params, weighted, x};
import package::shared::reduce::workgroup_sum;
import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

@compute @workgroup_size(64)
fn layer_norm_gradient_workgroup(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var sum = real(0.0);
    for (var c = lane; c < params.width; c += 64u) {
        sum += real(x[first + c]);
    }
    let middle = workgroup_sum(total(sum), lane) / params.count;
    var squares = real(0.0);
    var weights = real(0.0);
    var products = real(0.0);
    for (var c = lane; c < params.width; c += 64u) {
        let d = real(x[first + c]) - middle;
        let w = weighted(first, c);
        squares += d * d;
        weights += w;
        products += w * d;
    }
    let rate = inverseSqrt(workgroup_sum(total(squares), lane) / params.count + params.eps);
    let mean = workgroup_sum(total(weights), lane) / params.count;
    // Of w times xh; once more times the rate, since it is multiplied by x around its mean.
    let mean_product = workgroup_sum(total(products), lane) / params.count * rate * rate;
    for (var c = lane; c < params.width; c += 64u) {
        let d = real(x[first + c]) - middle;
        dx[first + c] = cell(rate * (weighted(first, c) - mean - d * mean_product));
    }
}
