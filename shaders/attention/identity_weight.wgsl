// a[b, t] = mean over heads of the share that the first five keys have in softmax(q[b, t, h] . k[b, j, h]), unscaled, over
// the keys j and `zero_keys` keys of zeros after them.
//   q: (B, T, H, width)     k: (B, N, H, width)     a: (B, T) f32     in cells
// Each invocation computes one position over all heads; four keys share each read of q. Workgroups run along T in x,
// over B in y, so that keys are read uniformly.
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
@group(0) @binding(3) var<storage, read_write> a: array<f32>;

@compute @workgroup_size(64)
fn identity_weight(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let t = group.x * 64u + lane;
    if t >= params.positions {
        return;
    }
    let b = group.y;
    let row = params.heads * params.width;
    let last = params.keys - 1u;
    var mean = 0.0;
    for (var h = 0u; h < params.heads; h++) {
        let qi = (b * params.positions + t) * row + h * params.width;
        let ki = b * params.keys * row + h * params.width;
        // Zero keys have score 0. Without them any score exceeds the first `top`.
        var top = select(-1e30, 0.0, params.zero_keys > 0.0);
        var sum = params.zero_keys;
        var first = params.zeros_first;
        for (var j = 0u; j < params.keys; j += 4u) {
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
            let index = j + vec4(0u, 1u, 2u, 3u);
            let scores = select(vec4(-1e30), vec4(total(s0), total(s1), total(s2), total(s3)), index <= vec4(last));
            let next = max(top, max(max(scores.x, scores.y), max(scores.z, scores.w)));
            let keep = exp(top - next);
            let p = exp(scores - next);
            sum = sum * keep + dot(p, vec4(1.0));
            first = first * keep + dot(p, select(vec4(0.0), vec4(1.0), index < vec4(5u)));
            top = next;
        }
        mean += first / sum;
    }
    a[b * params.positions + t] = mean / f32(params.heads);
}
