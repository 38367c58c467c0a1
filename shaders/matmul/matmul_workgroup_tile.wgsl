// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup computes 64 x 64 elements, see shared/workgroup_tile. Workgroups run along N in x, along M in y, over G in z.
// With gates, 8 columns of invocations take 32 columns of values and the other 8 their gates, which they hand over in the
// tiles' memory in the end.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, extents, GATED, params, store, store_gated, width4};
import package::shared::weight::load_row;
import package::shared::workgroup_tile::{a_tile, b_tile, multiply};

@if(f16) enable f16;

@compute @workgroup_size(16, 16)
fn matmul_workgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let g = group.z;
    // What this invocation copies: vec4 number a_column of row a_row, and vec4 number lane.x of step lane.y.
    let a_row = index / 4u;
    let a_column = index % 4u;
    let a_from = g * params.a_batch4 + (group.y * 64u + a_row) * params.k4;
    let a_valid = group.y * 64u + a_row < params.m;
    var column4 = group.x * 16u + lane.x;
    if GATED == 1u {
        column4 = group.x * 8u + lane.x % 8u + lane.x / 8u * width4();
    }
    let e = extents();
    var sums = mat4x4<f32>();
    for (var step = 0u; step < params.k4; step += 4u) {
        var x = vec4(0.0);
        if a_valid && step + a_column < params.k4 {
            x = vec4<f32>(a[a_from + step + a_column]);
        }
        var w = vec4(0.0);
        if column4 < params.n4 && step * 4u + lane.y < params.k4 * 4u {
            w = load_row(g * params.b_batch4, step * 4u + lane.y, column4, e);
        }
        sums = multiply(sums, x, w, lane, index);
    }
    let first = group.y * 64u + lane.y * 4u;
    if GATED == 1u {
        // The same for both halves of a pair.
        let pair = lane.y * 8u + lane.x % 8u;
        if lane.x >= 8u {
            a_tile[pair] = sums[0];
            a_tile[pair + 128u] = sums[1];
            b_tile[pair] = sums[2];
            b_tile[pair + 128u] = sums[3];
        }
        workgroupBarrier();
        if lane.x < 8u {
            store_gated(first, column4, g, sums[0], a_tile[pair]);
            store_gated(first + 1u, column4, g, sums[1], a_tile[pair + 128u]);
            store_gated(first + 2u, column4, g, sums[2], b_tile[pair]);
            store_gated(first + 3u, column4, g, sums[3], b_tile[pair + 128u]);
        }
        return;
    }
    store(first, column4, g, sums[0]);
    store(first + 1u, column4, g, sums[1]);
    store(first + 2u, column4, g, sums[2]);
    store(first + 3u, column4, g, sums[3]);
}
