// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, n, k] + bias[n]) + residual[g, m, n], K and N multiples of 4.
//   a: (G, M, K) as vec4 along K      b: (N, K) or (G, N, K) as vec4 along K, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup computes 64 x 64 elements, see shared/workgroup_tile_transposed. Workgroups run along N in x, along M in y, over
// G in z.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, params, store};
import package::shared::weight::{Extents, load_row};
import package::shared::workgroup_tile_transposed::multiply_transposed;

@if(f16) enable f16;

@compute @workgroup_size(16, 16)
fn matmul_transposed_workgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let g = group.z;
    // What this invocation copies: vec4 number index % 4 of a row's steps and of a column's.
    let row = group.y * 64u + index / 4u;
    let column = group.x * 64u + index / 4u;
    let e = Extents(4u * params.n4, params.k4);
    var sums = mat4x4<f32>();
    for (var step = 0u; step < params.k4; step += 4u) {
        let own = step + index % 4u;
        var x = vec4(0.0);
        if row < params.m && own < params.k4 {
            x = vec4<f32>(a[g * params.a_batch4 + row * params.k4 + own]);
        }
        var w = vec4(0.0);
        if column < 4u * params.n4 && own < params.k4 {
            w = load_row(g * params.b_batch4, column, own, e);
        }
        sums = multiply_transposed(sums, x, w, lane, index);
    }
    let first = group.y * 64u + lane.y * 4u;
    let column4 = group.x * 16u + lane.x;
    store(first, column4, g, sums[0]);
    store(first + 1u, column4, g, sums[1]);
    store(first + 2u, column4, g, sums[2]);
    store(first + 3u, column4, g, sums[3]);
}
