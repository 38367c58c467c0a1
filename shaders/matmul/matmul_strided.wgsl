// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], any sizes and strides.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then even.
//   a: elements at a_offset(g) + m * a_row + k * a_column      b: likewise, weights may be packed halves
//   bias: (N) f32                                              residual, y: (G, M, N) dense
// Each invocation computes one element of y. The plain variant: correct for every size, fast for none.
// permutation: f16
// permutation: w16

import package::shared::activation::activate;
import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    a_batch: u32,
    a_row: u32,
    a_column: u32,
    b_batch: u32,
    b_row: u32,
    b_column: u32,
    alpha: f32,
}

override BIAS: u32 = 0u;
override RESIDUAL: u32 = 0u;
// 1: b's second half of columns are gates of the first.
override GATED: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<elem>;
@if(w16) @group(0) @binding(2) var<storage, read> b: array<u32>;
@else @group(0) @binding(2) var<storage, read> b: array<elem>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;

@if(w16) fn load_b(i: u32) -> f32 { return unpack2x16float(b[i >> 1u])[i & 1u]; }
@else fn load_b(i: u32) -> f32 { return f32(b[i]); }

// The product with its bias in one column of b.
fn product(row: u32, column: u32, g: u32) -> f32 {
    var ai = g * params.a_batch + row * params.a_row;
    var bi = g * params.b_batch + column * params.b_column;
    var sum = 0.0;
    for (var k = 0u; k < params.k; k++) {
        sum += f32(a[ai]) * load_b(bi);
        ai += params.a_column;
        bi += params.b_row;
    }
    sum *= params.alpha;
    if BIAS == 1u {
        sum += bias[column];
    }
    return sum;
}

@compute @workgroup_size(64)
fn matmul_strided(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    // Columns of y.
    let width = params.n >> GATED;
    if i >= params.batch * params.m * width {
        return;
    }
    let column = i % width;
    let row = (i / width) % params.m;
    let g = i / (width * params.m);
    var sum = product(row, column, g);
    if GATED == 1u {
        sum *= activate(product(row, column + width, g));
    } else {
        sum = activate(sum);
    }
    if RESIDUAL == 1u {
        sum += f32(residual[i]);
    }
    y[i] = elem(sum);
}
