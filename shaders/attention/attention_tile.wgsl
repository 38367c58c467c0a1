// y[b, i, h, d] = sum_j p[j] v[b, j, h, d] with p = softmax over j of scale * q[b, i, h] . k[b, j, h] + mask[b, h, i, j].
//   q, y: (B, TQ, H, D)     k, v: (B, TK, H, D)     mask: (B or 1, H or 1, TQ, TK)     D in vec4, at most 40
// One workgroup of LANES invocations takes QUERIES queries of one head and runs over the keys, 32 at a time, in three
// steps: scores into workgroup memory, tiles of 4 x 4 per invocation; softmax weights with the running maximum and sum
// of each row; weighted values added to the sums in workgroup memory, tiles of 4 rows x vec4 per invocation. Barriers
// part the steps: each reads what other invocations wrote in the one before. Keys past the end and masked by order get
// a score so low that their weight is exactly 0; queries past the end read the last one again and are not stored.
// Workgroups run along the queries in x, heads in y, the batch in z.
// permutation: f16
// permutation: f16 wide

import package::shared::attention::{CAUSAL, k, masked_from, params, q, v, y};
import package::shared::storage::elem;

@if(f16) enable f16;

// Queries of a workgroup, 16 or 32; QUERIES * width <= 640.
override QUERIES: u32 = 32u;
override LANES: u32 = 64u;

const KEYS = 32u;
// Vec4 of scores in a row.
const GROUPS = 8u;

var<workgroup> scores: array<vec4<f32>, 256>;
var<workgroup> sums: array<vec4<f32>, 640>;
// Of each row: largest score, sum of weights, factor of this block's rescaling.
var<workgroup> top: array<f32, 32>;
var<workgroup> weight: array<f32, 32>;
var<workgroup> keep: array<f32, 32>;

@compute @workgroup_size(LANES)
fn attention_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row4 = params.heads * params.width;
    let start = group.x * QUERIES;
    let last = params.tq - 1u;
    let q_at = group.z * params.tq * row4 + group.y * params.width;
    let k_at = group.z * params.tk * row4 + group.y * params.width;
    let mask_at = group.z * params.mask_batch + group.y * params.mask_head;
    // A causal block sees nothing past its last query.
    let end = select(params.tk, min(params.tk, start + QUERIES), CAUSAL == 1u);

    for (var r = lane; r < QUERIES; r += LANES) {
        // Zero keys have score 0 and add nothing but to the sum. Without them any score exceeds the first maximum.
        top[r] = select(-1e30, 0.0, params.zero_keys > 0.0);
        weight[r] = params.zero_keys;
    }
    for (var t = lane; t < QUERIES * params.width; t += LANES) {
        sums[t] = vec4(0.0);
    }

    for (var first = 0u; first < end; first += KEYS) {
        for (var t = lane; t < QUERIES / 4u * GROUPS; t += LANES) {
            let column = t % GROUPS;
            let r = (t / GROUPS) * 4u;
            let i0 = start + r;
            let j0 = first + column * 4u;
            let past = params.tk - 1u;
            var q0 = q_at + min(i0, last) * row4;
            var q1 = q_at + min(i0 + 1u, last) * row4;
            var q2 = q_at + min(i0 + 2u, last) * row4;
            var q3 = q_at + min(i0 + 3u, last) * row4;
            var k0 = k_at + min(j0, past) * row4;
            var k1 = k_at + min(j0 + 1u, past) * row4;
            var k2 = k_at + min(j0 + 2u, past) * row4;
            var k3 = k_at + min(j0 + 3u, past) * row4;
            var s0 = vec4(0.0);
            var s1 = vec4(0.0);
            var s2 = vec4(0.0);
            var s3 = vec4(0.0);
            for (var c = 0u; c < params.width; c++) {
                let x0 = vec4<f32>(q[q0 + c]);
                let x1 = vec4<f32>(q[q1 + c]);
                let x2 = vec4<f32>(q[q2 + c]);
                let x3 = vec4<f32>(q[q3 + c]);
                let z0 = vec4<f32>(k[k0 + c]);
                let z1 = vec4<f32>(k[k1 + c]);
                let z2 = vec4<f32>(k[k2 + c]);
                let z3 = vec4<f32>(k[k3 + c]);
                s0 += vec4(dot(x0, z0), dot(x0, z1), dot(x0, z2), dot(x0, z3));
                s1 += vec4(dot(x1, z0), dot(x1, z1), dot(x1, z2), dot(x1, z3));
                s2 += vec4(dot(x2, z0), dot(x2, z1), dot(x2, z2), dot(x2, z3));
                s3 += vec4(dot(x3, z0), dot(x3, z1), dot(x3, z2), dot(x3, z3));
            }
            let at = r * GROUPS + column;
            scores[at] = masked_from(s0 * params.scale, 1.0, min(i0, last), j0, end, mask_at);
            scores[at + GROUPS] = masked_from(s1 * params.scale, 1.0, min(i0 + 1u, last), j0, end, mask_at);
            scores[at + 2u * GROUPS] = masked_from(s2 * params.scale, 1.0, min(i0 + 2u, last), j0, end, mask_at);
            scores[at + 3u * GROUPS] = masked_from(s3 * params.scale, 1.0, min(i0 + 3u, last), j0, end, mask_at);
        }
        workgroupBarrier();

        for (var r = lane; r < QUERIES; r += LANES) {
            let at = r * GROUPS;
            var high = scores[at];
            for (var c = 1u; c < GROUPS; c++) {
                high = max(high, scores[at + c]);
            }
            let before = top[r];
            let next = max(before, max(max(high.x, high.y), max(high.z, high.w)));
            var total = vec4(0.0);
            for (var c = 0u; c < GROUPS; c++) {
                let p = exp(scores[at + c] - next);
                scores[at + c] = p;
                total += p;
            }
            let factor = exp(before - next);
            top[r] = next;
            keep[r] = factor;
            weight[r] = weight[r] * factor + dot(total, vec4(1.0));
        }
        workgroupBarrier();

        for (var t = lane; t < QUERIES / 4u * params.width; t += LANES) {
            let column = t % params.width;
            let r = (t / params.width) * 4u;
            let at = r * params.width + column;
            var a0 = sums[at] * keep[r];
            var a1 = sums[at + params.width] * keep[r + 1u];
            var a2 = sums[at + 2u * params.width] * keep[r + 2u];
            var a3 = sums[at + 3u * params.width] * keep[r + 3u];
            for (var c = 0u; c < GROUPS; c++) {
                let j0 = first + c * 4u;
                let past = params.tk - 1u;
                let p0 = scores[r * GROUPS + c];
                let p1 = scores[(r + 1u) * GROUPS + c];
                let p2 = scores[(r + 2u) * GROUPS + c];
                let p3 = scores[(r + 3u) * GROUPS + c];
                let z0 = vec4<f32>(v[k_at + min(j0, past) * row4 + column]);
                let z1 = vec4<f32>(v[k_at + min(j0 + 1u, past) * row4 + column]);
                let z2 = vec4<f32>(v[k_at + min(j0 + 2u, past) * row4 + column]);
                let z3 = vec4<f32>(v[k_at + min(j0 + 3u, past) * row4 + column]);
                a0 += p0.x * z0 + p0.y * z1 + p0.z * z2 + p0.w * z3;
                a1 += p1.x * z0 + p1.y * z1 + p1.z * z2 + p1.w * z3;
                a2 += p2.x * z0 + p2.y * z1 + p2.z * z2 + p2.w * z3;
                a3 += p3.x * z0 + p3.y * z1 + p3.z * z2 + p3.w * z3;
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
            let total = weight[r];
            let scale = select(0.0, 1.0 / total, total > 0.0);
            y[q_at + (start + r) * row4 + t - r * params.width] = vec4<elem>(sums[t] * scale);
        }
    }
}
