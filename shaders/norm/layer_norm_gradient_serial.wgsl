// dx[r, c] = rate[r] * (w[r, c] - mean of w[r] - xh[r, c] * mean of w[r] * xh[r]), for w = upstream * gain[c] and the
// normalised xh = (x[r, c] - mean[r]) * rate[r], rate = 1 / sqrt(variance + eps).
//   x, upstream, dx: (rows, width)     gain: (width) f32     in cells
// Each invocation takes one row; for devices on which barriers cost more than uncoalesced reads, and many rows.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::layer_norm_gradient::{dx, params, weighted, x};
import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

@compute @workgroup_size(8)
fn layer_norm_gradient_serial(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let row = flat_index(id, groups, 8u);
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var sum = real(0.0);
    for (var c = 0u; c < params.width; c++) {
        sum += real(x[first + c]);
    }
    let middle = total(sum) / params.count;
    var squares = real(0.0);
    var weights = real(0.0);
    var products = real(0.0);
    for (var c = 0u; c < params.width; c++) {
        let d = real(x[first + c]) - middle;
        let w = weighted(first, c);
        squares += d * d;
        weights += w;
        products += w * d;
    }
    let rate = inverseSqrt(total(squares) / params.count + params.eps);
    let mean = total(weights) / params.count;
    // Of w times xh; once more times the rate, since it is multiplied by x around its mean.
    let mean_product = total(products) / params.count * rate * rate;
    for (var c = 0u; c < params.width; c++) {
        let d = real(x[first + c]) - middle;
        dx[first + c] = cell(rate * (weighted(first, c) - mean - d * mean_product));
    }
}
