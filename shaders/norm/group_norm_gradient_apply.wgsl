// dx[n, t, c] = rate[n, c] * (w - means[0, n, c] - xh * means[1, n, c]), w and xh as in group_norm_gradient_partial.
//   x, upstream, dx: (N, rows, width)     rate, shift: affine (2, N, width) f32     gain, bias: (width) f32
//   means: (2, N, width) f32, see group_norm_gradient_combine     in cells along the channels
// Each invocation takes one cell of channels of one chunk of rows, so that neighbours touch neighbouring channels.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::group_norm_gradient::{channels_at, channels_of_all, params, weighted, x};
import package::shared::vector::{cell, real};

@if(f16) enable f16;

@group(0) @binding(6) var<storage, read> means: array<real>;
@group(0) @binding(7) var<storage, read_write> dx: array<cell>;

@compute @workgroup_size(64)
fn group_norm_gradient_apply(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let at = channels_at(i);
    let mean = means[at.channel];
    let mean_product = means[channels_of_all() + at.channel];
    var j = at.first;
    for (var r = 0u; r < at.rows; r++) {
        let xh = real(x[j]) * at.rate + at.shift;
        dx[j] = cell(at.rate * (weighted(at, j, xh) - mean - xh * mean_product));
        j += params.width;
    }
}
