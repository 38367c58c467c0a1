// dq[b, i, h] = scale * sum_j ds[i, j] k[b, j, h] with ds = p * (upstream[b, i, h] . v[b, j, h] - dots[b, h, i]) and
// p = exp(scale * q[b, i, h] . k[b, j, h] - log_sum[b, h, i]).
//   q, upstream, dq: (B, TQ, H, D)     k, v: (B, TK, H, D)     log_sum, dots: (B, H, TQ) f32     D in vec4, at most 40
// One workgroup of LANES invocations takes QUERIES queries of one head and runs over the keys, 32 at a time, in two steps:
// ds into workgroup memory, tiles of 4 x 4 per invocation; weighted keys added to the sums in workgroup memory, tiles of 4
// rows x vec4 per invocation. Barriers part the steps: each reads what other invocations wrote in the one before. Keys
// past the end and masked by order have ds 0; queries past the end read the last one again and are not stored.
// Workgroups run along the queries in x, heads in y, the batch in z.
// permutation: f16

import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    tq: u32,
    tk: u32,
    heads: u32,
    // D in vec4.
    width: u32,
    scale: f32,
}

override CAUSAL: u32 = 0u;
// Queries of a workgroup, 16 or 32; QUERIES * width <= 640.
override QUERIES: u32 = 32u;
override LANES: u32 = 64u;

const KEYS = 32u;
// Vec4 of ds in a row.
const GROUPS = 8u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<elem>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<elem>>;
@group(0) @binding(4) var<storage, read> upstream: array<vec4<elem>>;
@group(0) @binding(5) var<storage, read> log_sum: array<f32>;
@group(0) @binding(6) var<storage, read> dots: array<f32>;
@group(0) @binding(7) var<storage, read_write> dq: array<vec4<elem>>;

var<workgroup> ds: array<vec4<f32>, 256>;
var<workgroup> sums: array<vec4<f32>, 640>;

// ds of one query against four keys.
fn slopes(score: vec4<f32>, slope: vec4<f32>, query: u32, key: vec4<u32>, statistics: u32) -> vec4<f32> {
    var seen = key < vec4(params.tk);
    if CAUSAL == 1u {
        seen = seen & (key <= vec4(query));
    }
    let p = exp(score * params.scale - log_sum[statistics + query]);
    return select(vec4(0.0), p * (slope - dots[statistics + query]), seen);
}

@compute @workgroup_size(LANES)
fn attention_query_gradient_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row4 = params.heads * params.width;
    let start = group.x * QUERIES;
    let last = params.tq - 1u;
    let past = params.tk - 1u;
    let q_at = group.z * params.tq * row4 + group.y * params.width;
    let k_at = group.z * params.tk * row4 + group.y * params.width;
    let statistics = (group.z * params.heads + group.y) * params.tq;
    // A causal block sees nothing past its last query.
    let end = select(params.tk, min(params.tk, start + QUERIES), CAUSAL == 1u);

    for (var t = lane; t < QUERIES * params.width; t += LANES) {
        sums[t] = vec4(0.0);
    }
    for (var first = 0u; first < end; first += KEYS) {
        for (var t = lane; t < QUERIES / 4u * GROUPS; t += LANES) {
            let column = t % GROUPS;
            let r = (t / GROUPS) * 4u;
            let i = min(vec4(start + r) + vec4(0u, 1u, 2u, 3u), vec4(last));
            let j = vec4(first + column * 4u) + vec4(0u, 1u, 2u, 3u);
            let qi = vec4(q_at) + i * row4;
            let ki = vec4(k_at) + min(j, vec4(past)) * row4;
            var s0 = vec4(0.0);
            var s1 = vec4(0.0);
            var s2 = vec4(0.0);
            var s3 = vec4(0.0);
            var g0 = vec4(0.0);
            var g1 = vec4(0.0);
            var g2 = vec4(0.0);
            var g3 = vec4(0.0);
            for (var c = 0u; c < params.width; c++) {
                let keys = mat4x4(
                    vec4<f32>(k[ki.x + c]),
                    vec4<f32>(k[ki.y + c]),
                    vec4<f32>(k[ki.z + c]),
                    vec4<f32>(k[ki.w + c]),
                );
                s0 += vec4<f32>(q[qi.x + c]) * keys;
                s1 += vec4<f32>(q[qi.y + c]) * keys;
                s2 += vec4<f32>(q[qi.z + c]) * keys;
                s3 += vec4<f32>(q[qi.w + c]) * keys;
                let values = mat4x4(
                    vec4<f32>(v[ki.x + c]),
                    vec4<f32>(v[ki.y + c]),
                    vec4<f32>(v[ki.z + c]),
                    vec4<f32>(v[ki.w + c]),
                );
                g0 += vec4<f32>(upstream[qi.x + c]) * values;
                g1 += vec4<f32>(upstream[qi.y + c]) * values;
                g2 += vec4<f32>(upstream[qi.z + c]) * values;
                g3 += vec4<f32>(upstream[qi.w + c]) * values;
            }
            let at = r * GROUPS + column;
            ds[at] = slopes(s0, g0, i.x, j, statistics);
            ds[at + GROUPS] = slopes(s1, g1, i.y, j, statistics);
            ds[at + 2u * GROUPS] = slopes(s2, g2, i.z, j, statistics);
            ds[at + 3u * GROUPS] = slopes(s3, g3, i.w, j, statistics);
        }
        workgroupBarrier();

        for (var t = lane; t < QUERIES / 4u * params.width; t += LANES) {
            let column = t % params.width;
            let r = (t / params.width) * 4u;
            let at = r * params.width + column;
            var a0 = sums[at];
            var a1 = sums[at + params.width];
            var a2 = sums[at + 2u * params.width];
            var a3 = sums[at + 3u * params.width];
            for (var c = 0u; c < GROUPS; c++) {
                let j = min(vec4(first + c * 4u) + vec4(0u, 1u, 2u, 3u), vec4(past));
                let ki = vec4(k_at + column) + j * row4;
                let keys =
                    mat4x4(vec4<f32>(k[ki.x]), vec4<f32>(k[ki.y]), vec4<f32>(k[ki.z]), vec4<f32>(k[ki.w]));
                a0 += keys * ds[r * GROUPS + c];
                a1 += keys * ds[(r + 1u) * GROUPS + c];
                a2 += keys * ds[(r + 2u) * GROUPS + c];
                a3 += keys * ds[(r + 3u) * GROUPS + c];
            }
            sums[at] = a0;
            sums[at + params.width] = a1;
            sums[at + 2u * params.width] = a2;
            sums[at + 3u * params.width] = a3;
        }
        workgroupBarrier();
    }

    for (var t = lane; t < QUERIES * params.width; t += LANES) {
        let r = t / params.width;
        if start + r <= last {
            dq[q_at + (start + r) * row4 + t - r * params.width] = vec4<elem>(sums[t] * params.scale);
        }
    }
}
