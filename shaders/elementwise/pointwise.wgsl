// y = f(x), f given by FUNCTION and its two constants: functions that no kernel takes as an epilogue.
//   x: (count) elements     y: (count) elements
// Each invocation computes four consecutive elements; the last one fewer. Codes match `Function` in crates/ops.
// permutation: f16

import package::shared::activation::{erf4, sigmoid4, tanh4};
import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

override FUNCTION: u32 = 0u;
override ALPHA: f32 = 0.0;
override BETA: f32 = 0.0;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

// exp(x) - 1 without the cancellation around 0.
fn expm1(x: vec4<f32>) -> vec4<f32> {
    let series = x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * 0.008333334))));
    return select(exp(x) - 1.0, series, abs(x) < vec4(0.1));
}

// log(1 + exp(x)) for any x; where exp is small, 1 + exp would round it away.
fn softplus(x: vec4<f32>) -> vec4<f32> {
    let e = exp(-abs(x));
    let series = e * (1.0 - e * (0.5 - e * (0.33333334 - e * 0.25)));
    return max(x, vec4(0.0)) + select(log(1.0 + e), series, e < vec4(0.03));
}

// x·tanh(log(1 + exp(x))): with u = exp(x) the tanh is u(u + 2) / (u(u + 2) + 2), which nothing cancels in. From 20 on it
// is 1 in f32, and u must not overflow.
fn mish(x: vec4<f32>) -> vec4<f32> {
    let u = exp(min(x, vec4(20.0)));
    let n = u * (u + 2.0);
    return x * (n / (n + 2.0));
}

fn hard_sigmoid(x: vec4<f32>, alpha: f32, beta: f32) -> vec4<f32> {
    return clamp(alpha * x + beta, vec4(0.0), vec4(1.0));
}

fn pointwise4(x: vec4<f32>) -> vec4<f32> {
    switch FUNCTION {
        case 0u: { return erf4(x); }
        case 1u: { return log(x); }
        case 2u: { return floor(x); }
        case 3u: { return ceil(x); }
        case 4u: { return round(x); }
        case 5u: { return sign(x); }
        case 6u: { return sin(x); }
        case 7u: { return cos(x); }
        case 8u: { return softplus(x); }
        case 9u: { return x / (1.0 + abs(x)); }
        case 10u: { return mish(x); }
        case 11u: { return 0.5 * x * (1.0 + tanh4(0.7978845608 * (x + 0.044715 * x * x * x))); }
        case 12u: { return hard_sigmoid(x, ALPHA, BETA); }
        case 13u: { return x * hard_sigmoid(x, 0.16666667, 0.5); }
        case 14u: { return BETA * select(x, ALPHA * expm1(min(x, vec4(0.0))), x < vec4(0.0)); }
        case 15u: { return max(x, vec4(0.0)) + ALPHA * expm1(min(x, vec4(0.0)) / ALPHA); }
        case 16u: { return x * sigmoid4(ALPHA * x); }
        case 17u: { return select(vec4(0.0), x, x > vec4(ALPHA)); }
        case 18u: { return select(vec4(0.0), x - sign(x) * BETA, abs(x) > vec4(ALPHA)); }
        default: { return x; }
    }
}

@compute @workgroup_size(64)
fn pointwise(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let first = flat_index(id, groups, 64u) * 4u;
    if first + 3u < params.count {
        let v = pointwise4(vec4(f32(x[first]), f32(x[first + 1u]), f32(x[first + 2u]), f32(x[first + 3u])));
        y[first] = elem(v.x);
        y[first + 1u] = elem(v.y);
        y[first + 2u] = elem(v.z);
        y[first + 3u] = elem(v.w);
        return;
    }
    for (var i = first; i < params.count; i++) {
        y[i] = elem(pointwise4(vec4(f32(x[i]))).x);
    }
}
