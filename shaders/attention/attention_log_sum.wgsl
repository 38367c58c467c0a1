// log_sum[b, h, i] = ln(zero_keys + sum_j exp(scale * q[b, i, h] . k[b, j, h])).
//   q: (B, TQ, H, width)     k: (B, TK, H, width)     log_sum: (B, H, TQ) f32     in cells
// Each invocation computes one query of one head in one pass over the keys, rescaled when the largest score grows; four
// keys share each read of q. Workgroups run along the queries in x, heads in y, the batch in z, so that keys are read
// uniformly.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

struct Params {
    tq: u32,
    tk: u32,
    heads: u32,
    width: u32,
    scale: f32,
    // Keys of zeros besides those in k.
    zero_keys: f32,
}

override CAUSAL: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<cell>;
@group(0) @binding(2) var<storage, read> k: array<cell>;
@group(0) @binding(3) var<storage, read_write> log_sum: array<f32>;

@compute @workgroup_size(64)
fn attention_log_sum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group.x * 64u + lane;
    if i >= params.tq {
        return;
    }
    let row = params.heads * params.width;
    let qi = (group.z * params.tq + i) * row + group.y * params.width;
    let ki = group.z * params.tk * row + group.y * params.width;
    let end = select(params.tk, min(params.tk, i + 1u), CAUSAL == 1u);
    let last = end - 1u;
    // Zero keys have score 0. Without them any score exceeds the first `top`.
    var top = select(-1e30, 0.0, params.zero_keys > 0.0);
    var sum = params.zero_keys;
    for (var j = 0u; j < end; j += 4u) {
        // Keys past the end read the last one again and are excluded.
        let k0 = ki + j * row;
        let k1 = ki + min(j + 1u, last) * row;
        let k2 = ki + min(j + 2u, last) * row;
        let k3 = ki + min(j + 3u, last) * row;
        var s0 = real(0.0);
        var s1 = real(0.0);
        var s2 = real(0.0);
        var s3 = real(0.0);
        for (var c = 0u; c < params.width; c++) {
            let x = real(q[qi + c]);
            s0 += x * real(k[k0 + c]);
            s1 += x * real(k[k1 + c]);
            s2 += x * real(k[k2 + c]);
            s3 += x * real(k[k3 + c]);
        }
        let seen = j + vec4(0u, 1u, 2u, 3u) <= vec4(last);
        let dots = vec4(total(s0), total(s1), total(s2), total(s3)) * params.scale;
        let scores = select(vec4(-3e38), dots, seen);
        let next = max(top, max(max(scores.x, scores.y), max(scores.z, scores.w)));
        sum = sum * exp(top - next) + dot(exp(scores - next), vec4(1.0));
        top = next;
    }
    log_sum[(group.z * params.heads + group.y) * params.tq + i] = top + log(sum);
}
