// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// For CPU devices whose subgroups have 8 lanes: there a load is eight scalar loads, each checked and branched around,
// whether the lanes read one address or eight, so that no lane may read what another has read. A workgroup is one
// subgroup and computes 8 rows x 32 columns. Each lane reads one row of `a` and its own vec4 of `b`, and passes the row
// on by broadcast, which is a permutation of one register. Workgroups run along M in x, so that neighbours read the
// same columns of `b`, along N in y, over G in z. Accumulators are named values: indexed arrays leave registers. Gates
// are a second product, after that of their values: lanes that take half of the columns each read `b` in pieces of half
// the length, which took a sixth longer.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, extents, GATED, params, store, store_gated, width4};
import package::shared::weight::load_rows;

@if(f16) enable f16;

// The sums of a lane's columns in eight rows.
struct Sums {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
}

// Eight rows in four columns of b. Rows and columns past the end read the last ones again and are not stored.
fn product(row: u32, column4: u32, g: u32, lane: u32) -> Sums {
    let last = params.m - 1u;
    let b_from = g * params.b_batch4;
    let e = extents();
    let a_at = g * params.a_batch4 + min(row + lane, last) * params.k4;
    let b_column4 = min(column4, params.n4 - 1u);
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    var s4 = vec4(0.0);
    var s5 = vec4(0.0);
    var s6 = vec4(0.0);
    var s7 = vec4(0.0);
    for (var k = 0u; k < params.k4; k++) {
        let rows = load_rows(b_from, 4u * k, b_column4, e);
        let b0 = rows[0];
        let b1 = rows[1];
        let b2 = rows[2];
        let b3 = rows[3];
        let l = vec4<f32>(a[a_at + k]);
        let x0 = subgroupBroadcast(l, 0u);
        s0 += x0.x * b0 + x0.y * b1 + x0.z * b2 + x0.w * b3;
        let x1 = subgroupBroadcast(l, 1u);
        s1 += x1.x * b0 + x1.y * b1 + x1.z * b2 + x1.w * b3;
        let x2 = subgroupBroadcast(l, 2u);
        s2 += x2.x * b0 + x2.y * b1 + x2.z * b2 + x2.w * b3;
        let x3 = subgroupBroadcast(l, 3u);
        s3 += x3.x * b0 + x3.y * b1 + x3.z * b2 + x3.w * b3;
        let x4 = subgroupBroadcast(l, 4u);
        s4 += x4.x * b0 + x4.y * b1 + x4.z * b2 + x4.w * b3;
        let x5 = subgroupBroadcast(l, 5u);
        s5 += x5.x * b0 + x5.y * b1 + x5.z * b2 + x5.w * b3;
        let x6 = subgroupBroadcast(l, 6u);
        s6 += x6.x * b0 + x6.y * b1 + x6.z * b2 + x6.w * b3;
        let x7 = subgroupBroadcast(l, 7u);
        s7 += x7.x * b0 + x7.y * b1 + x7.z * b2 + x7.w * b3;
    }
    return Sums(s0, s1, s2, s3, s4, s5, s6, s7);
}

fn row_of(s: Sums, r: u32) -> vec4<f32> {
    var v = s.s0;
    v = select(v, s.s1, r == 1u);
    v = select(v, s.s2, r == 2u);
    v = select(v, s.s3, r == 3u);
    v = select(v, s.s4, r == 4u);
    v = select(v, s.s5, r == 5u);
    v = select(v, s.s6, r == 6u);
    v = select(v, s.s7, r == 7u);
    return v;
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
