// dq[b, i, h] = scale * sum_j ds[i, j] k[b, j, h] with ds = p * (upstream[b, i, h] . v[b, j, h] - dots[b, h, i]) and
// p = exp(scale * q[b, i, h] . k[b, j, h] - log_sum[b, h, i]).
//   q, upstream, dq: (B, TQ, H, D)     k, v: (B, TK, H, D)     log_sum, dots: (B, H, TQ) f32
// Each invocation computes one element of dq with all scores of its row: right for every head size, fast for none.
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
@group(0) @binding(7) var<storage, read_write> dq: array<elem>;

@compute @workgroup_size(64)
fn attention_query_gradient_serial(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let out = flat_index(id, groups, 64u);
    let row = params.heads * params.width;
    if out >= params.batch * params.tq * row {
        return;
    }
    let d = out % params.width;
    let h = (out / params.width) % params.heads;
    let i = (out / row) % params.tq;
    let b = out / (row * params.tq);
    let qi = out - d;
    let ki = b * params.tk * row + h * params.width;
    let statistics = (b * params.heads + h) * params.tq + i;
    var sum = 0.0;
    let end = select(params.tk, min(params.tk, i + 1u), CAUSAL == 1u);
    for (var j = 0u; j < end; j++) {
        let at = ki + j * row;
        var score = 0.0;
        var slope = 0.0;
        for (var c = 0u; c < params.width; c++) {
            score += f32(q[qi + c]) * f32(k[at + c]);
            slope += f32(upstream[qi + c]) * f32(v[at + c]);
        }
        let p = exp(score * params.scale - log_sum[statistics]);
        sum += p * (slope - dots[statistics]) * f32(k[at + d]);
    }
    dq[out] = elem(sum * params.scale);
}
