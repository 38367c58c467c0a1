// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, n, k] + bias[n]) + residual[g, m, n], K and N multiples of 4.
//   a: (G, M, K) as vec4 along K      b: (N, K) or (G, N, K) as vec4 along K, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// As matmul_subgroup_tile, with four rows of `b` transposed in registers.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, params, store};
import package::shared::subgroup_tile::{broadcast_products, no_sums, row_of};
import package::shared::weight::{Extents, load_rows};

@if(f16) enable f16;

// One invocation per lane of a subgroup of 8.
@compute @workgroup_size(8)
fn matmul_transposed_subgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let column4 = group.y * 8u + lane;
    let g = group.z;
    let row = group.x * 8u;
    // Rows and columns past the end read the last ones again and are not stored.
    let a_at = g * params.a_batch4 + min(row + lane, params.m - 1u) * params.k4;
    let b_row = 4u * min(column4, params.n4 - 1u);
    let e = Extents(4u * params.n4, params.k4);
    var sums = no_sums();
    for (var k = 0u; k < params.k4; k++) {
        let b = transpose(load_rows(g * params.b_batch4, b_row, k, e));
        sums = broadcast_products(sums, vec4<f32>(a[a_at + k]), b);
    }
    // One store in a loop instead of one for each row: it is compiled once. From zero the driver would unroll it.
    let end = min(row + 8u, params.m);
    for (var r = row; r < end; r++) {
        store(r, column4, g, row_of(sums, r - row));
    }
}
