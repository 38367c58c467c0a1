// [dk, dv] along the last axis: dk[b, j, h] = scale * sum_i ds[i, j] q[b, i, h], dv[b, j, h] = sum_i p[i, j] upstream[b, i, h]
// with ds = p * (upstream[b, i, h] . v[b, j, h] - dots[b, h, i]) and p = exp(scale * q[b, i, h] . k[b, j, h] - log_sum[b, h, i]).
//   q, upstream: (B, TQ, H, D)     k, v: (B, TK, H, D)     log_sum, dots: (B, H, TQ) f32     y: (B, TK, 2, H, D)
// Each invocation computes one element of y with all scores of its column: right for every head size, fast for none.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    batch: u32,
    tq: u32,
    tk: u32,
    heads: u32,
    width: u32,
    scale: f32,
}

override CAUSAL: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<elem>;
@group(0) @binding(2) var<storage, read> k: array<elem>;
@group(0) @binding(3) var<storage, read> v: array<elem>;
@group(0) @binding(4) var<storage, read> upstream: array<elem>;
@group(0) @binding(5) var<storage, read> log_sum: array<f32>;
@group(0) @binding(6) var<storage, read> dots: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<elem>;

@compute @workgroup_size(64)
fn attention_key_value_gradient_serial(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let out = flat_index(id, groups, 64u);
    let row = params.heads * params.width;
    if out >= 2u * params.batch * params.tk * row {
        return;
    }
    let d = out % params.width;
    let h = (out / params.width) % params.heads;
    let is_value = (out / row) % 2u == 1u;
    let key = out / (2u * row);
    let j = key % params.tk;
    let b = key / params.tk;
    let ki = key * row + h * params.width;
    var sum = 0.0;
    for (var i = select(0u, j, CAUSAL == 1u); i < params.tq; i++) {
        let qi = (b * params.tq + i) * row + h * params.width;
        let statistics = (b * params.heads + h) * params.tq + i;
        var score = 0.0;
        var slope = 0.0;
        for (var c = 0u; c < params.width; c++) {
            score += f32(q[qi + c]) * f32(k[ki + c]);
            slope += f32(upstream[qi + c]) * f32(v[ki + c]);
        }
        let p = exp(score * params.scale - log_sum[statistics]);
        if is_value {
            sum += p * f32(upstream[qi + d]);
        } else {
            sum += params.scale * p * (slope - dots[statistics]) * f32(q[qi + d]);
        }
    }
    y[out] = elem(sum);
}
