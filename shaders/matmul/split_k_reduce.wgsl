// y[m, n] = f(alpha * sum_p partial[p, m, n] + bias[n]) + residual[m, n]: the end of a product or a convolution whose inner axis
// was split into parts. With GATED, the first half of the columns of a row of partial are values, the second half their gates.
//   partial: (P, M, N) f32 as vec4 along N     bias: (N) f32     residual, y: (M, N) or (M, N / 2) as vec4 along N
// One invocation computes a vec4 of y.
// permutation: f16

import package::shared::activation::activate4;
import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    // In vec4s: elements of y, columns of partial.
    count4: u32,
    n4: u32,
    // From one part to the next.
    part4: u32,
    parts: u32,
    alpha: f32,
    // Rows of y that share a row of a residual of their own.
    image: u32,
}

override BIAS: u32 = 0u;
// 1: a residual of y's shape; 2: a row for each `image` rows.
override RESIDUAL: u32 = 0u;
override GATED: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partial: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> residual: array<vec4<elem>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<elem>>;

// The product in four columns of a row.
fn biased(row: u32, column4: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var p = 0u; p < params.parts; p++) {
        sum += partial[p * params.part4 + row * params.n4 + column4];
    }
    var v = sum * params.alpha;
    if BIAS == 1u {
        v += bias[column4];
    }
    return v;
}

@compute @workgroup_size(64)
fn split_k_reduce(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count4 {
        return;
    }
    let width4 = params.n4 >> GATED;
    let row = i / width4;
    let column4 = i % width4;
    var v = biased(row, column4);
    if GATED == 1u {
        v *= activate4(biased(row, column4 + width4));
    } else {
        v = activate4(v);
    }
    if RESIDUAL == 1u {
        v += vec4<f32>(residual[i]);
    }
    if RESIDUAL == 2u {
        v += vec4<f32>(residual[row / params.image * width4 + column4]);
    }
    y[i] = vec4<elem>(v);
}
