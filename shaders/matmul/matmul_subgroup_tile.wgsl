// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup is one subgroup of 8 lanes on a CPU device and computes 8 rows x 32 columns, see shared/subgroup_tile. Workgroups
// run along M in x, so that neighbours read the same columns of `b`, along N in y, over G in z. Gates are a second product,
// after that of their values: lanes that take half of the columns each read `b` in pieces of half the length, which took a
// sixth longer.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, extents, GATED, params, store, store_gated, width4};
import package::shared::subgroup_tile::{broadcast_products, no_sums, row_of, Sums};
import package::shared::weight::load_rows;

@if(f16) enable f16;

// Eight rows in four columns of b. Rows and columns past the end read the last ones again and are not stored.
fn product(row: u32, column4: u32, g: u32, lane: u32) -> Sums {
    let last = params.m - 1u;
    let b_from = g * params.b_batch4;
    let e = extents();
    let a_at = g * params.a_batch4 + min(row + lane, last) * params.k4;
    let b_column4 = min(column4, params.n4 - 1u);
    var sums = no_sums();
    for (var k = 0u; k < params.k4; k++) {
        sums = broadcast_products(sums, vec4<f32>(a[a_at + k]), load_rows(b_from, 4u * k, b_column4, e));
    }
    return sums;
}

// One invocation per lane of a subgroup of 8.
@compute @workgroup_size(8)
fn matmul_subgroup_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let column4 = group.y * 8u + lane;
    let g = group.z;
    let row = group.x * 8u;
    let sums = product(row, column4, g, lane);
    // One store in a loop instead of one for each row: it is compiled once. From zero the driver would unroll it.
    let end = min(row + 8u, params.m);
    if GATED == 1u {
        let gates = product(row, column4 + width4(), g, lane);
        for (var r = row; r < end; r++) {
            store_gated(r, column4, g, row_of(sums, r - row), row_of(gates, r - row));
        }
    } else {
        for (var r = row; r < end; r++) {
            store(r, column4, g, row_of(sums, r - row));
        }
    }
}
