// [dk, dv] along the last axis: dk[b, j, h] = scale * sum_i ds[i, j] q[b, i, h], dv[b, j, h] = sum_i p[i, j] upstream[b, i, h]
// with ds = p * (upstream[b, i, h] . v[b, j, h] - dots[b, h, i]) and p = exp(scale * q[b, i, h] . k[b, j, h] - log_sum[b, h, i]).
//   q, upstream: (B, TQ, H, D)     k, v: (B, TK, H, D)     log_sum, dots: (B, H, TQ) f32     D in vec4, at most 40
//   y: (chunks, B, TK, 2, H, D), the sums over chunks of queries, which attention_key_value_combine adds up
// One workgroup of LANES invocations takes KEYS keys of one head and runs over a chunk's queries, 32 at a time, in two steps:
// p and ds into workgroup memory, tiles of 4 x 4 per invocation; weighted queries and upstreams added to the sums in workgroup
// memory, tiles of 4 rows x vec4 per invocation. Barriers part the steps: each reads what other invocations wrote in the one
// before. Queries past the end and masked by order have p and ds 0; keys past the end read the last one again and are not stored.
// Workgroups run along the keys in x, heads in y, chunks of each image in z.
// permutation: f16
// permutation: f16 wide

import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    tq: u32,
    tk: u32,
    heads: u32,
    // D in vec4.
    width: u32,
    batch: u32,
    // Queries of a chunk, a multiple of 32.
    chunk: u32,
    scale: f32,
}

override CAUSAL: u32 = 0u;
// Keys of a workgroup, 8 or 16; KEYS * width <= 320.
override KEYS: u32 = 16u;
override LANES: u32 = 64u;

const QUERIES = 32u;
// Vec4 of p in a row.
const GROUPS = 8u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<elem>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<elem>>;
@group(0) @binding(4) var<storage, read> upstream: array<vec4<elem>>;
@group(0) @binding(5) var<storage, read> log_sum: array<f32>;
@group(0) @binding(6) var<storage, read> dots: array<f32>;
@if(wide) @group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;
@else @group(0) @binding(7) var<storage, read_write> y: array<vec4<elem>>;

@if(wide) alias stored = vec4<f32>;
@else alias stored = vec4<elem>;

// A row for each key.
var<workgroup> p: array<vec4<f32>, 128>;
var<workgroup> ds: array<vec4<f32>, 128>;
var<workgroup> key_sums: array<vec4<f32>, 320>;
var<workgroup> value_sums: array<vec4<f32>, 320>;

@compute @workgroup_size(LANES)
fn attention_key_value_gradient_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row4 = params.heads * params.width;
    let start = group.x * KEYS;
    let last = params.tq - 1u;
    let past = params.tk - 1u;
    let image = group.z % params.batch;
    let from_query = group.z / params.batch * params.chunk;
    let end = min(params.tq, from_query + params.chunk);
    let q_at = image * params.tq * row4 + group.y * params.width;
    let k_at = image * params.tk * row4 + group.y * params.width;
    let statistics = (image * params.heads + group.y) * params.tq;
    // Queries before the first key see no key of a causal block.
    let first_query = select(from_query, max(from_query, start / QUERIES * QUERIES), CAUSAL == 1u);

    for (var t = lane; t < KEYS * params.width; t += LANES) {
        key_sums[t] = vec4(0.0);
        value_sums[t] = vec4(0.0);
    }
    for (var first = first_query; first < end; first += QUERIES) {
        for (var t = lane; t < KEYS / 4u * GROUPS; t += LANES) {
            let column = t % GROUPS;
            let r = (t / GROUPS) * 4u;
            let j = vec4(start + r) + vec4(0u, 1u, 2u, 3u);
            let i = vec4(first + column * 4u) + vec4(0u, 1u, 2u, 3u);
            let near = min(i, vec4(last));
            let qi = vec4(q_at) + near * row4;
            let ki = vec4(k_at) + min(j, vec4(past)) * row4;
            var s = mat4x4<f32>();
            var g = mat4x4<f32>();
            for (var c = 0u; c < params.width; c++) {
                let queries = mat4x4(
                    vec4<f32>(q[qi.x + c]),
                    vec4<f32>(q[qi.y + c]),
                    vec4<f32>(q[qi.z + c]),
                    vec4<f32>(q[qi.w + c]),
                );
                s = mat4x4(
                    s[0] + vec4<f32>(k[ki.x + c]) * queries,
                    s[1] + vec4<f32>(k[ki.y + c]) * queries,
                    s[2] + vec4<f32>(k[ki.z + c]) * queries,
                    s[3] + vec4<f32>(k[ki.w + c]) * queries,
                );
                let up = mat4x4(
                    vec4<f32>(upstream[qi.x + c]),
                    vec4<f32>(upstream[qi.y + c]),
                    vec4<f32>(upstream[qi.z + c]),
                    vec4<f32>(upstream[qi.w + c]),
                );
                g = mat4x4(
                    g[0] + vec4<f32>(v[ki.x + c]) * up,
                    g[1] + vec4<f32>(v[ki.y + c]) * up,
                    g[2] + vec4<f32>(v[ki.z + c]) * up,
                    g[3] + vec4<f32>(v[ki.w + c]) * up,
                );
            }
            let at = vec4(statistics) + near;
            let top = vec4(log_sum[at.x], log_sum[at.y], log_sum[at.z], log_sum[at.w]);
            let dot = vec4(dots[at.x], dots[at.y], dots[at.z], dots[at.w]);
            for (var a = 0u; a < 4u; a++) {
                var score = s[0];
                var slope = g[0];
                score = select(score, s[1], a == 1u);
                slope = select(slope, g[1], a == 1u);
                score = select(score, s[2], a == 2u);
                slope = select(slope, g[2], a == 2u);
                score = select(score, s[3], a == 3u);
                slope = select(slope, g[3], a == 3u);
                var seen = i < vec4(end);
                if CAUSAL == 1u {
                    seen = seen & (vec4(start + r + a) <= i);
                }
                let weight = select(vec4(0.0), exp(score * params.scale - top), seen);
                p[(r + a) * GROUPS + column] = weight;
                ds[(r + a) * GROUPS + column] = weight * (slope - dot);
            }
        }
        workgroupBarrier();

        for (var t = lane; t < KEYS / 4u * params.width; t += LANES) {
            let column = t % params.width;
            let r = (t / params.width) * 4u;
            let at = r * params.width + column;
            let w = params.width;
            var a = mat4x4(key_sums[at], key_sums[at + w], key_sums[at + 2u * w], key_sums[at + 3u * w]);
            var b = mat4x4(value_sums[at], value_sums[at + w], value_sums[at + 2u * w], value_sums[at + 3u * w]);
            for (var c = 0u; c < GROUPS; c++) {
                let i = min(vec4(first + c * 4u) + vec4(0u, 1u, 2u, 3u), vec4(last));
                let qi = vec4(q_at + column) + i * row4;
                let row = r * GROUPS + c;
                let queries =
                    mat4x4(vec4<f32>(q[qi.x]), vec4<f32>(q[qi.y]), vec4<f32>(q[qi.z]), vec4<f32>(q[qi.w]));
                a += queries * mat4x4(ds[row], ds[row + GROUPS], ds[row + 2u * GROUPS], ds[row + 3u * GROUPS]);
                let up = mat4x4(
                    vec4<f32>(upstream[qi.x]),
                    vec4<f32>(upstream[qi.y]),
                    vec4<f32>(upstream[qi.z]),
                    vec4<f32>(upstream[qi.w]),
                );
                b += up * mat4x4(p[row], p[row + GROUPS], p[row + 2u * GROUPS], p[row + 3u * GROUPS]);
            }
            key_sums[at] = a[0];
            key_sums[at + w] = a[1];
            key_sums[at + 2u * w] = a[2];
            key_sums[at + 3u * w] = a[3];
            value_sums[at] = b[0];
            value_sums[at + w] = b[1];
            value_sums[at + 2u * w] = b[2];
            value_sums[at + 3u * w] = b[3];
        }
        workgroupBarrier();
    }

    for (var t = lane; t < KEYS * params.width; t += LANES) {
        let r = t / params.width;
        if start + r <= past {
            let out = (group.z * params.tk + start + r) * 2u * row4 + group.y * params.width + t - r * params.width;
            y[out] = stored(key_sums[t] * params.scale);
            y[out + row4] = stored(value_sums[t]);
        }
    }
}
