// y[g, m, n] = alpha * sum_k a[g, k, m] * b[g, k, n], M and N multiples of 4.
//   a: (G, K, M) along M              b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves
//   y: (G, M, N) as vec4 along N
// As matmul_subgroup_tile, with each lane reading its row of the transposed left operand one step at a time.
// permutation: f16
// permutation: w16

import package::shared::storage::elem;
import package::shared::subgroup_tile::{broadcast_products, no_sums, row_of};
import package::shared::weight::{Extents, load_row, load_rows};

@if(f16) enable f16;

struct Params {
    m4: u32,
    n4: u32,
    k: u32,
    batch: u32,
    b_batch4: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<elem>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<elem>>;

// One invocation per lane of a subgroup of 8.
@compute @workgroup_size(8)
fn matmul_left_transposed_subgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let m = 4u * params.m4;
    let row = group.x * 8u;
    let column4 = group.y * 8u + lane;
    let g = group.z;
    // Rows and columns past the end read the last ones again and are not stored.
    let b_from = g * params.b_batch4;
    let b_column4 = min(column4, params.n4 - 1u);
    let e = Extents(params.k, params.n4);
    var at = g * params.k * m + min(row + lane, m - 1u);
    var sums = no_sums();
    var k = 0u;
    for (; k + 4u <= params.k; k += 4u) {
        let own = vec4<f32>(vec4(a[at], a[at + m], a[at + 2u * m], a[at + 3u * m]));
        sums = broadcast_products(sums, own, load_rows(b_from, k, b_column4, e));
        at += 4u * m;
    }
    let zero = vec4(0.0);
    for (; k < params.k; k++) {
        let own = vec4(f32(a[at]), 0.0, 0.0, 0.0);
        sums = broadcast_products(sums, own, mat4x4(load_row(b_from, k, b_column4, e), zero, zero, zero));
        at += m;
    }
    if column4 >= params.n4 {
        return;
    }
    // One store in a loop instead of one for each row: it is compiled once. From zero the driver would unroll it.
    let end = min(row + 8u, m);
    for (var r = row; r < end; r++) {
        y[(g * m + r) * params.n4 + column4] = vec4<elem>(row_of(sums, r - row) * params.alpha);
    }
}
