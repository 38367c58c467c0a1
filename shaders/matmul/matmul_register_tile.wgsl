// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// Each invocation computes 4 rows, or 8 (TALL), x 4 columns in registers and reads straight from global memory: on a CPU device the
// lanes of a workgroup share their rows of `a` (a uniform load) and read consecutive vec4 of `b`. Workgroups run along
// M in x, so that neighbours read the same columns of `b`, along N in y, over G in z. Gates are a second product, after that of their values.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, extents, GATED, params, store, store_gated, width4};
import package::shared::product::accumulate;
import package::shared::weight::load_rows;

@if(f16) enable f16;

// 8 rows rather than 4: a quarter fewer loads for each product, longer to compile.
override TALL: u32 = 0u;

struct Sums {
    low: mat4x4<f32>,
    high: mat4x4<f32>,
}

// Where a row of `a` begins. Rows past the end read the last row again and are not stored.
fn row_at(g: u32, row: u32) -> u32 {
    return g * params.a_batch4 + min(row, params.m - 1u) * params.k4;
}

// Rows row .. row + 3, or + 7, in four columns of b: one row a column of the result.
fn product(row: u32, column4: u32, g: u32) -> Sums {
    let a0 = row_at(g, row);
    let a1 = row_at(g, row + 1u);
    let a2 = row_at(g, row + 2u);
    let a3 = row_at(g, row + 3u);
    let a4 = row_at(g, row + 4u);
    let a5 = row_at(g, row + 5u);
    let a6 = row_at(g, row + 6u);
    let a7 = row_at(g, row + 7u);
    let b_from = g * params.b_batch4;
    let e = extents();
    var low = mat4x4<f32>();
    var high = mat4x4<f32>();
    for (var k = 0u; k < params.k4; k++) {
        let b = load_rows(b_from, 4u * k, column4, e);
        let x0 = vec4<f32>(a[a0 + k]);
        let x1 = vec4<f32>(a[a1 + k]);
        let x2 = vec4<f32>(a[a2 + k]);
        let x3 = vec4<f32>(a[a3 + k]);
        low = accumulate(low, x0, x1, x2, x3, b);
        if TALL == 1u {
            let x4 = vec4<f32>(a[a4 + k]);
            let x5 = vec4<f32>(a[a5 + k]);
            let x6 = vec4<f32>(a[a6 + k]);
            let x7 = vec4<f32>(a[a7 + k]);
            high = accumulate(high, x4, x5, x6, x7, b);
        }
    }
    return Sums(low, high);
}

fn store_four(row: u32, column4: u32, g: u32, sums: mat4x4<f32>, gates: mat4x4<f32>) {
    if GATED == 1u {
        store_gated(row, column4, g, sums[0], gates[0]);
        store_gated(row + 1u, column4, g, sums[1], gates[1]);
        store_gated(row + 2u, column4, g, sums[2], gates[2]);
        store_gated(row + 3u, column4, g, sums[3], gates[3]);
    } else {
        store(row, column4, g, sums[0]);
        store(row + 1u, column4, g, sums[1]);
        store(row + 2u, column4, g, sums[2]);
        store(row + 3u, column4, g, sums[3]);
    }
}

@compute @workgroup_size(8)
fn matmul_register_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let column4 = group.y * 8u + lane.x;
    if column4 >= width4() {
        return;
    }
    let g = group.z;
    let row = group.x * select(4u, 8u, TALL == 1u);
    let sums = product(row, column4, g);
    var gates: Sums;
    if GATED == 1u {
        gates = product(row, column4 + width4(), g);
    }
    store_four(row, column4, g, sums.low, gates.low);
    if TALL == 1u {
        store_four(row + 4u, column4, g, sums.high, gates.high);
    }
}
