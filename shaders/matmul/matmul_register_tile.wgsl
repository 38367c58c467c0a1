// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// Each invocation computes up to 8 rows x 8 columns in registers, two vec4 of a row 8 vec4 apart, and reads straight from global
// memory: on a CPU device the lanes of a workgroup share their rows of `a` (a uniform load) and read consecutive vec4 of `b`.
// There a load costs several products, so that each shall feed many. Workgroups run along M in x, so that neighbours read the same
// columns of `b`, along N in y, over G in z. Gates are a second product, after that of their values.
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

// Rows row .. row + 7 in the four columns of column4, and in those of column4 + 8: one row a column of the matrices.
struct Sums {
    top_left: mat4x4<f32>,
    top_right: mat4x4<f32>,
    bottom_left: mat4x4<f32>,
    bottom_right: mat4x4<f32>,
}

// `end4` is where the columns end in vec4s: halves of the tile past it, or past the last row, are left out by all lanes alike.
fn product(row: u32, column4: u32, wide: bool, end4: u32, g: u32) -> Sums {
    // Rows past the end read the last row again and are not stored, nor are columns.
    let last = params.m - 1u;
    let tall = row + 4u < params.m;
    let right4 = min(column4 + 8u, end4 - 1u);
    let origin = g * params.a_batch4;
    let a0 = origin + row * params.k4;
    let a1 = origin + min(row + 1u, last) * params.k4;
    let a2 = origin + min(row + 2u, last) * params.k4;
    let a3 = origin + min(row + 3u, last) * params.k4;
    let a4 = origin + min(row + 4u, last) * params.k4;
    let a5 = origin + min(row + 5u, last) * params.k4;
    let a6 = origin + min(row + 6u, last) * params.k4;
    let a7 = origin + min(row + 7u, last) * params.k4;
    let b_from = g * params.b_batch4;
    let e = extents();
    var s = Sums();
    for (var k = 0u; k < params.k4; k++) {
        let x0 = vec4<f32>(a[a0 + k]);
        let x1 = vec4<f32>(a[a1 + k]);
        let x2 = vec4<f32>(a[a2 + k]);
        let x3 = vec4<f32>(a[a3 + k]);
        let left = load_rows(b_from, 4u * k, column4, e);
        s.top_left = accumulate(s.top_left, x0, x1, x2, x3, left);
        var right = left;
        if wide {
            right = load_rows(b_from, 4u * k, right4, e);
            s.top_right = accumulate(s.top_right, x0, x1, x2, x3, right);
        }
        if tall {
            let x4 = vec4<f32>(a[a4 + k]);
            let x5 = vec4<f32>(a[a5 + k]);
            let x6 = vec4<f32>(a[a6 + k]);
            let x7 = vec4<f32>(a[a7 + k]);
            s.bottom_left = accumulate(s.bottom_left, x4, x5, x6, x7, left);
            if wide {
                s.bottom_right = accumulate(s.bottom_right, x4, x5, x6, x7, right);
            }
        }
    }
    return s;
}

fn store_rows(row: u32, column4: u32, g: u32, sums: mat4x4<f32>) {
    store(row, column4, g, sums[0]);
    store(row + 1u, column4, g, sums[1]);
    store(row + 2u, column4, g, sums[2]);
    store(row + 3u, column4, g, sums[3]);
}

fn store_gated_rows(row: u32, column4: u32, g: u32, sums: mat4x4<f32>, gates: mat4x4<f32>) {
    store_gated(row, column4, g, sums[0], gates[0]);
    store_gated(row + 1u, column4, g, sums[1], gates[1]);
    store_gated(row + 2u, column4, g, sums[2], gates[2]);
    store_gated(row + 3u, column4, g, sums[3], gates[3]);
}

@compute @workgroup_size(8)
fn matmul_register_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let first4 = group.y * 16u;
    let column4 = first4 + lane.x;
    if column4 >= width4() {
        return;
    }
    let wide = first4 + 8u < width4();
    let g = group.z;
    let row = group.x * 8u;
    let s = product(row, column4, wide, width4(), g);
    if GATED == 1u {
        let gates = product(row, column4 + width4(), wide, 2u * width4(), g);
        store_gated_rows(row, column4, g, s.top_left, gates.top_left);
        store_gated_rows(row + 4u, column4, g, s.bottom_left, gates.bottom_left);
        if wide {
            store_gated_rows(row, column4 + 8u, g, s.top_right, gates.top_right);
            store_gated_rows(row + 4u, column4 + 8u, g, s.bottom_right, gates.bottom_right);
        }
    } else {
        store_rows(row, column4, g, s.top_left);
        store_rows(row + 4u, column4, g, s.bottom_left);
        if wide {
            store_rows(row, column4 + 8u, g, s.top_right);
            store_rows(row + 4u, column4 + 8u, g, s.bottom_right);
        }
    }
}
