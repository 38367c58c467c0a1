// y[g, m, n] = alpha * sum_k a[g, k, m] * b[g, k, n], M and N multiples of 4.
//   a: (G, K, M) as vec4 along M      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves
//   y: (G, M, N) as vec4 along N
// Each invocation computes 4 rows x 4 columns in registers from a vec4 of each operand a step. Invocations run along N, then M,
// then G, so that neighbours read neighbouring vec4 of `b` and the same of `a`.
// permutation: f16
// permutation: w16

import package::shared::grid::flat_index;
import package::shared::storage::elem;
import package::shared::weight::{Extents, load_row};

@if(f16) enable f16;

struct Params {
    m4: u32,
    n4: u32,
    k: u32,
    batch: u32,
    b_batch4: u32,
    alpha: f32,
}

// Invocations of a workgroup.
override LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<elem>>;

@compute @workgroup_size(LANES)
fn matmul_left_transposed_tile(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let i = flat_index(id, groups, LANES);
    if i >= params.batch * params.m4 * params.n4 {
        return;
    }
    let column4 = i % params.n4;
    let row4 = (i / params.n4) % params.m4;
    let g = i / (params.n4 * params.m4);
    let e = Extents(params.k, params.n4);
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    var at = g * params.k * params.m4 + row4;
    for (var k = 0u; k < params.k; k++) {
        let x = vec4<f32>(a[at]);
        let w = load_row(g * params.b_batch4, k, column4, e);
        s0 += x.x * w;
        s1 += x.y * w;
        s2 += x.z * w;
        s3 += x.w * w;
        at += params.m4;
    }
    let out = (g * params.m4 + row4) * 4u * params.n4 + column4;
    y[out] = vec4<elem>(s0 * params.alpha);
    y[out + params.n4] = vec4<elem>(s1 * params.alpha);
    y[out + 2u * params.n4] = vec4<elem>(s2 * params.alpha);
    y[out + 3u * params.n4] = vec4<elem>(s3 * params.alpha);
}
