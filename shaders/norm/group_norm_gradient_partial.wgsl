// Sums over the rows t of chunk k, for xh = x * rate[n, c] + shift[n, c] (the normalised x) and w[n, t, c] = gain[c] *
// upstream[n, t, c] * f'(xh * gain[c] + bias[c]), f given by ACTIVATION:
// sums[0, n, k, c] of w, sums[1, n, k, c] of w * xh.
//   x, upstream: (N, rows, width)     rate, shift: affine (2, N, width) f32     gain, bias: (width) f32
//   sums: (2, N, chunks, width) f32     in cells along the channels
// Each invocation takes one cell of channels of one chunk, so that neighbours read neighbouring channels.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::group_norm_gradient::{channels_at, params, weighted, x};
import package::shared::vector::real;

@if(f16) enable f16;

@group(0) @binding(6) var<storage, read_write> sums: array<real>;

@compute @workgroup_size(64)
fn group_norm_gradient_partial(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let at = channels_at(i);
    var sum = real(0.0);
    var product = real(0.0);
    var j = at.first;
    for (var r = 0u; r < at.rows; r++) {
        let xh = real(x[j]) * at.rate + at.shift;
        let w = weighted(at, j, xh);
        sum += w;
        product += w * xh;
        j += params.width;
    }
    sums[i] = sum;
    sums[params.count + i] = product;
}
