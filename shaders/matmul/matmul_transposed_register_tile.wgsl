// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, n, k] + bias[n]) + residual[g, m, n], K and N multiples of 4.
//   a: (G, M, K) as vec4 along K      b: (N, K) or (G, N, K) as vec4 along K, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// As matmul_register_tile, with four rows of `b` transposed in registers.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, params, store};
import package::shared::product::accumulate;
import package::shared::weight::{Extents, load_rows};

@if(f16) enable f16;

@compute @workgroup_size(8)
fn matmul_transposed_register_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let column4 = group.y * 8u + lane.x;
    if column4 >= params.n4 {
        return;
    }
    let g = group.z;
    let row = group.x * 4u;
    // Rows past the end read the last row again and are not stored.
    let last = params.m - 1u;
    let a0 = g * params.a_batch4 + row * params.k4;
    let a1 = g * params.a_batch4 + min(row + 1u, last) * params.k4;
    let a2 = g * params.a_batch4 + min(row + 2u, last) * params.k4;
    let a3 = g * params.a_batch4 + min(row + 3u, last) * params.k4;
    let e = Extents(4u * params.n4, params.k4);
    var sums = mat4x4<f32>();
    for (var k = 0u; k < params.k4; k++) {
        let b = transpose(load_rows(g * params.b_batch4, 4u * column4, k, e));
        sums = accumulate(
            sums,
            vec4<f32>(a[a0 + k]),
            vec4<f32>(a[a1 + k]),
            vec4<f32>(a[a2 + k]),
            vec4<f32>(a[a3 + k]),
            b,
        );
    }
    store(row, column4, g, sums[0]);
    store(row + 1u, column4, g, sums[1]);
    store(row + 2u, column4, g, sums[2]);
    store(row + 3u, column4, g, sums[3]);
}
