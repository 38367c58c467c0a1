// y[b, i, h, d] = sum_j p[j] v[b, j, h, d] with p = softmax over j of scale * q[b, i, h] . k[b, j, h] + mask[b, h, i, j].
//   q, y: (B, TQ, H, D)     k, v: (B, TK, H, D)     mask: (B or 1, H or 1, TQ, TK)
// Each invocation computes one element of y with all scores of its row, so scores are computed D times: right for every
// head size, fast for none. Online softmax: one pass over the keys, rescaled when the largest score grows.
// permutation: f16
// permutation: f16 wide

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    batch: u32,
    tq: u32,
    tk: u32,
    heads: u32,
    width: u32,
    mask_batch: u32,
    mask_head: u32,
    scale: f32,
    // Keys and values of zeros besides those in k and v.
    zero_keys: f32,
}

override CAUSAL: u32 = 0u;
override MASK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<elem>;
@group(0) @binding(2) var<storage, read> k: array<elem>;
@group(0) @binding(3) var<storage, read> v: array<elem>;
@if(wide) @group(0) @binding(4) var<storage, read> mask: array<f32>;
@else @group(0) @binding(4) var<storage, read> mask: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;

@compute @workgroup_size(64)
fn attention_serial(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
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
    let mi = b * params.mask_batch + h * params.mask_head + i * params.tk;
    // Zero keys have score 0 and add nothing but to the sum. Without them any score exceeds the first `top`.
    var top = select(-1e30, 0.0, params.zero_keys > 0.0);
    var sum = params.zero_keys;
    var value = 0.0;
    let end = select(params.tk, min(params.tk, i + 1u), CAUSAL == 1u);
    for (var j = 0u; j < end; j++) {
        let at = ki + j * row;
        var score = 0.0;
        for (var c = 0u; c < params.width; c++) {
            score += f32(q[qi + c]) * f32(k[at + c]);
        }
        score *= params.scale;
        if MASK == 1u {
            score += f32(mask[mi + j]);
        }
        // Excluded keys stay below the first `top`, and their weight is exactly 0.
        let next = max(top, score);
        let keep = exp(top - next);
        let p = exp(score - next);
        sum = sum * keep + p;
        value = value * keep + p * f32(v[at + d]);
        top = next;
    }
    y[out] = elem(select(0.0, value / sum, sum > 0.0));
}
