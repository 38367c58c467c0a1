// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup of 16 x 16 invocations computes 64 x 64 elements, each invocation 4 rows x 4 columns in registers. 16
// steps of K at a time, the workgroup copies 64 rows of `a` and 64 columns of `b` to workgroup memory, one vec4 of
// each per invocation. Workgroups run along N in x, along M in y, over G in z. Accumulators are named values: indexed
// arrays leave registers. The first barrier of a step waits until the tiles are written, the second until all have
// read them. With gates, 8 columns of invocations take 32 columns of values and the other 8 their gates, which they
// hand over in the tiles' memory in the end.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4

import package::shared::matmul_tile::{a, extents, GATED, params, store, store_gated, width4};
import package::shared::weight::load_row;

@if(f16) enable f16;

// One vec4 of padding per row spreads the rows over the banks.
const A_STRIDE: u32 = 5u;
var<workgroup> a_tile: array<vec4<f32>, 320>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

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
    let row = lane.y * 4u;
    let e = extents();
    var c0 = vec4(0.0);
    var c1 = vec4(0.0);
    var c2 = vec4(0.0);
    var c3 = vec4(0.0);
    for (var step = 0u; step < params.k4; step += 4u) {
        var x = vec4(0.0);
        if a_valid && step + a_column < params.k4 {
            x = vec4<f32>(a[a_from + step + a_column]);
        }
        a_tile[a_row * A_STRIDE + a_column] = x;
        var w = vec4(0.0);
        if column4 < params.n4 && step * 4u + lane.y < params.k4 * 4u {
            w = load_row(g * params.b_batch4, step * 4u + lane.y, column4, e);
        }
        b_tile[lane.y * 16u + lane.x] = w;
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let x0 = a_tile[row * A_STRIDE + k];
            let x1 = a_tile[(row + 1u) * A_STRIDE + k];
            let x2 = a_tile[(row + 2u) * A_STRIDE + k];
            let x3 = a_tile[(row + 3u) * A_STRIDE + k];
            let b0 = b_tile[k * 64u + lane.x];
            let b1 = b_tile[k * 64u + 16u + lane.x];
            let b2 = b_tile[k * 64u + 32u + lane.x];
            let b3 = b_tile[k * 64u + 48u + lane.x];
            c0 += x0.x * b0 + x0.y * b1 + x0.z * b2 + x0.w * b3;
            c1 += x1.x * b0 + x1.y * b1 + x1.z * b2 + x1.w * b3;
            c2 += x2.x * b0 + x2.y * b1 + x2.z * b2 + x2.w * b3;
            c3 += x3.x * b0 + x3.y * b1 + x3.z * b2 + x3.w * b3;
        }
        workgroupBarrier();
    }
    let first = group.y * 64u + row;
    if GATED == 1u {
        // The same for both halves of a pair.
        let pair = lane.y * 8u + lane.x % 8u;
        if lane.x >= 8u {
            a_tile[pair] = c0;
            a_tile[pair + 128u] = c1;
            b_tile[pair] = c2;
            b_tile[pair + 128u] = c3;
        }
        workgroupBarrier();
        if lane.x < 8u {
            store_gated(first, column4, g, c0, a_tile[pair]);
            store_gated(first + 1u, column4, g, c1, a_tile[pair + 128u]);
            store_gated(first + 2u, column4, g, c2, b_tile[pair]);
            store_gated(first + 3u, column4, g, c3, b_tile[pair + 128u]);
        }
        return;
    }
    store(first, column4, g, c0);
    store(first + 1u, column4, g, c1);
    store(first + 2u, column4, g, c2);
    store(first + 3u, column4, g, c3);
}
