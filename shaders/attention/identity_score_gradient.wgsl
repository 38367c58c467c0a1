// y[b, h, t, j] = alpha[b, t] * p[j] * ([j < 5] - first) with p = softmax over j of q[b, t, h] . k[b, j, h], unscaled, over the
// keys and `zero_keys` keys of zeros after them, and first = the sum of p over the first five.
//   q: (B, T, H, width)     k: (B, N, H, width)     in cells     alpha: (B, T) f32     y: (B, H, T, N) f32
// Each invocation computes one position of one head: scores into its part of y, from which it then makes the gradients; four
// keys share each read of q. Workgroups run along T in x, over H in y and B in z, so that keys are read uniformly.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

struct Params {
    positions: u32,
    keys: u32,
    heads: u32,
    width: u32,
    zero_keys: f32,
    // How many of the first five keys are zeros.
    zeros_first: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<cell>;
@group(0) @binding(2) var<storage, read> k: array<cell>;
@group(0) @binding(3) var<storage, read> alpha: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn identity_score_gradient(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let t = group.x * 64u + lane;
    if t >= params.positions {
        return;
    }
    let row = params.heads * params.width;
    let qi = (group.z * params.positions + t) * row + group.y * params.width;
    let ki = group.z * params.keys * row + group.y * params.width;
    let out = ((group.z * params.heads + group.y) * params.positions + t) * params.keys;
    let last = params.keys - 1u;
    // Zero keys have score 0.
    var top = select(-1e30, 0.0, params.zero_keys > 0.0);
    for (var j = 0u; j < params.keys; j += 4u) {
        // Keys past the end read the last one again and store its score once more.
        let at = min(vec4(j) + vec4(0u, 1u, 2u, 3u), vec4(last));
        let key = vec4(ki) + at * row;
        var s0 = real(0.0);
        var s1 = real(0.0);
        var s2 = real(0.0);
        var s3 = real(0.0);
        for (var c = 0u; c < params.width; c++) {
            let x = real(q[qi + c]);
            s0 += x * real(k[key.x + c]);
            s1 += x * real(k[key.y + c]);
            s2 += x * real(k[key.z + c]);
            s3 += x * real(k[key.w + c]);
        }
        let scores = vec4(total(s0), total(s1), total(s2), total(s3));
        y[out + at.x] = scores.x;
        y[out + at.y] = scores.y;
        y[out + at.z] = scores.z;
        y[out + at.w] = scores.w;
        top = max(top, max(max(scores.x, scores.y), max(scores.z, scores.w)));
    }
    let zero = exp(-top);
    var sum = 0.0;
    var first = 0.0;
    if params.zero_keys > 0.0 {
        sum = params.zero_keys * zero;
        first = params.zeros_first * zero;
    }
    for (var j = 0u; j < params.keys; j++) {
        let p = exp(y[out + j] - top);
        sum += p;
        if j < 5u {
            first += p;
        }
    }
    let factor = alpha[group.z * params.positions + t] / sum;
    for (var j = 0u; j < params.keys; j++) {
        let own = select(0.0, 1.0, j < 5u);
        y[out + j] = factor * exp(y[out + j] - top) * (own - first / sum);
    }
}
