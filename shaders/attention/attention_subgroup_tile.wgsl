// y[b, i, h, d] = sum_j p[j] v[b, j, h, d] with p = softmax over j of scale * q[b, i, h] . k[b, j, h] + mask[b, h, i, j].
//   q, y: (B, TQ, H, D)     k, v: (B, TK, H, D)     mask: (B or 1, H or 1, TQ, TK)     D in vec4, at most 16
// For CPU devices whose subgroups have 8 lanes, where loads are dear and broadcasts are not (see matmul_subgroup_tile).
// A workgroup is one subgroup, takes 8 queries of one head and runs over the keys, 32 at a time. Scores and softmax: a
// lane is a query, which meets each key by broadcast and keeps its own running maximum and sum. Values: a lane is a
// vec4 of D, or two (BLOCKS), which meets each query's weights by broadcast and keeps its sums in registers. A lane
// finds its weights again in workgroup memory, which nobody else reads: there are no barriers. Keys past the end and
// masked by order get a score so low that their weight is exactly 0; queries past the end read the last one again and
// are not stored. Workgroups run along the queries in x, heads in y, the batch in z.
// permutation: f16
// permutation: f16 wide

import package::shared::attention::{CAUSAL, k, largest, masked_from, params, q, v, y};
import package::shared::storage::elem;

@if(f16) enable f16;

// 1 for D up to 8 vec4, 2 for up to 16.
override BLOCKS: u32 = 2u;

const KEYS = 32u;

// Weights of 4 keys: 8 groups of keys x 8 queries.
var<workgroup> weights: array<vec4<f32>, 64>;

// Four values by their weights.
fn weighted(p: vec4<f32>, z0: vec4<f32>, z1: vec4<f32>, z2: vec4<f32>, z3: vec4<f32>) -> vec4<f32> {
    return p.x * z0 + p.y * z1 + p.z * z2 + p.w * z3;
}

// One invocation per lane of a subgroup of 8.
@compute @workgroup_size(8)
fn attention_subgroup_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let row4 = params.heads * params.width;
    let start = group.x * 8u;
    let last = params.tq - 1u;
    let past = params.tk - 1u;
    let q_at = group.z * params.tq * row4 + group.y * params.width;
    let k_at = group.z * params.tk * row4 + group.y * params.width;
    let mask_at = group.z * params.mask_batch + group.y * params.mask_head;
    // A causal block sees nothing past its last query.
    let end = select(params.tk, min(params.tk, start + 8u), CAUSAL == 1u);
    let row = min(start + lane, last);
    let query = q_at + row * row4;
    // Columns past the end read the last one again and are not stored.
    let left = min(lane, params.width - 1u);
    let right = min(lane + 8u, params.width - 1u);

    // Zero keys have score 0 and add nothing but to the sum. Without them any score exceeds the first maximum.
    var top = select(-1e30, 0.0, params.zero_keys > 0.0);
    var total = params.zero_keys;
    var l0 = vec4(0.0);
    var l1 = vec4(0.0);
    var l2 = vec4(0.0);
    var l3 = vec4(0.0);
    var l4 = vec4(0.0);
    var l5 = vec4(0.0);
    var l6 = vec4(0.0);
    var l7 = vec4(0.0);
    var r0 = vec4(0.0);
    var r1 = vec4(0.0);
    var r2 = vec4(0.0);
    var r3 = vec4(0.0);
    var r4 = vec4(0.0);
    var r5 = vec4(0.0);
    var r6 = vec4(0.0);
    var r7 = vec4(0.0);
    for (var first = 0u; first < end; first += KEYS) {
        let k0 = k_at + min(first + 0u + lane, past) * row4;
        let k1 = k_at + min(first + 8u + lane, past) * row4;
        let k2 = k_at + min(first + 16u + lane, past) * row4;
        let k3 = k_at + min(first + 24u + lane, past) * row4;
        var s0 = vec4(0.0);
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        var s3 = vec4(0.0);
        var s4 = vec4(0.0);
        var s5 = vec4(0.0);
        var s6 = vec4(0.0);
        var s7 = vec4(0.0);
        for (var c = 0u; c < params.width; c++) {
            let x = vec4<f32>(q[query + c]);
            let z0 = vec4<f32>(k[k0 + c]);
            s0 += vec4(
                dot(x, subgroupBroadcast(z0, 0u)),
                dot(x, subgroupBroadcast(z0, 1u)),
                dot(x, subgroupBroadcast(z0, 2u)),
                dot(x, subgroupBroadcast(z0, 3u)),
            );
            s1 += vec4(
                dot(x, subgroupBroadcast(z0, 4u)),
                dot(x, subgroupBroadcast(z0, 5u)),
                dot(x, subgroupBroadcast(z0, 6u)),
                dot(x, subgroupBroadcast(z0, 7u)),
            );
            let z1 = vec4<f32>(k[k1 + c]);
            s2 += vec4(
                dot(x, subgroupBroadcast(z1, 0u)),
                dot(x, subgroupBroadcast(z1, 1u)),
                dot(x, subgroupBroadcast(z1, 2u)),
                dot(x, subgroupBroadcast(z1, 3u)),
            );
            s3 += vec4(
                dot(x, subgroupBroadcast(z1, 4u)),
                dot(x, subgroupBroadcast(z1, 5u)),
                dot(x, subgroupBroadcast(z1, 6u)),
                dot(x, subgroupBroadcast(z1, 7u)),
            );
            let z2 = vec4<f32>(k[k2 + c]);
            s4 += vec4(
                dot(x, subgroupBroadcast(z2, 0u)),
                dot(x, subgroupBroadcast(z2, 1u)),
                dot(x, subgroupBroadcast(z2, 2u)),
                dot(x, subgroupBroadcast(z2, 3u)),
            );
            s5 += vec4(
                dot(x, subgroupBroadcast(z2, 4u)),
                dot(x, subgroupBroadcast(z2, 5u)),
                dot(x, subgroupBroadcast(z2, 6u)),
                dot(x, subgroupBroadcast(z2, 7u)),
            );
            let z3 = vec4<f32>(k[k3 + c]);
            s6 += vec4(
                dot(x, subgroupBroadcast(z3, 0u)),
                dot(x, subgroupBroadcast(z3, 1u)),
                dot(x, subgroupBroadcast(z3, 2u)),
                dot(x, subgroupBroadcast(z3, 3u)),
            );
            s7 += vec4(
                dot(x, subgroupBroadcast(z3, 4u)),
                dot(x, subgroupBroadcast(z3, 5u)),
                dot(x, subgroupBroadcast(z3, 6u)),
                dot(x, subgroupBroadcast(z3, 7u)),
            );
        }
        s0 = masked_from(s0 * params.scale, 1.0, row, first + 0u, end, mask_at);
        s1 = masked_from(s1 * params.scale, 1.0, row, first + 4u, end, mask_at);
        s2 = masked_from(s2 * params.scale, 1.0, row, first + 8u, end, mask_at);
        s3 = masked_from(s3 * params.scale, 1.0, row, first + 12u, end, mask_at);
        s4 = masked_from(s4 * params.scale, 1.0, row, first + 16u, end, mask_at);
        s5 = masked_from(s5 * params.scale, 1.0, row, first + 20u, end, mask_at);
        s6 = masked_from(s6 * params.scale, 1.0, row, first + 24u, end, mask_at);
        s7 = masked_from(s7 * params.scale, 1.0, row, first + 28u, end, mask_at);
        let high = max(max(max(s0, s1), max(s2, s3)), max(max(s4, s5), max(s6, s7)));
        let next = max(top, largest(high));
        var sum = vec4(0.0);
        s0 = exp(s0 - next);
        sum += s0;
        weights[0u + lane] = s0;
        s1 = exp(s1 - next);
        sum += s1;
        weights[8u + lane] = s1;
        s2 = exp(s2 - next);
        sum += s2;
        weights[16u + lane] = s2;
        s3 = exp(s3 - next);
        sum += s3;
        weights[24u + lane] = s3;
        s4 = exp(s4 - next);
        sum += s4;
        weights[32u + lane] = s4;
        s5 = exp(s5 - next);
        sum += s5;
        weights[40u + lane] = s5;
        s6 = exp(s6 - next);
        sum += s6;
        weights[48u + lane] = s6;
        s7 = exp(s7 - next);
        sum += s7;
        weights[56u + lane] = s7;
        let keep = exp(top - next);
        top = next;
        total = total * keep + dot(sum, vec4(1.0));
        l0 *= subgroupBroadcast(keep, 0u);
        l1 *= subgroupBroadcast(keep, 1u);
        l2 *= subgroupBroadcast(keep, 2u);
        l3 *= subgroupBroadcast(keep, 3u);
        l4 *= subgroupBroadcast(keep, 4u);
        l5 *= subgroupBroadcast(keep, 5u);
        l6 *= subgroupBroadcast(keep, 6u);
        l7 *= subgroupBroadcast(keep, 7u);
        if BLOCKS == 2u {
            r0 *= subgroupBroadcast(keep, 0u);
            r1 *= subgroupBroadcast(keep, 1u);
            r2 *= subgroupBroadcast(keep, 2u);
            r3 *= subgroupBroadcast(keep, 3u);
            r4 *= subgroupBroadcast(keep, 4u);
            r5 *= subgroupBroadcast(keep, 5u);
            r6 *= subgroupBroadcast(keep, 6u);
            r7 *= subgroupBroadcast(keep, 7u);
        }
        for (var g = 0u; g < 8u; g++) {
            let own = weights[g * 8u + lane];
            let j = first + g * 4u;
            let v0 = k_at + min(j, past) * row4;
            let v1 = k_at + min(j + 1u, past) * row4;
            let v2 = k_at + min(j + 2u, past) * row4;
            let v3 = k_at + min(j + 3u, past) * row4;
            let a0 = vec4<f32>(v[v0 + left]);
            let a1 = vec4<f32>(v[v1 + left]);
            let a2 = vec4<f32>(v[v2 + left]);
            let a3 = vec4<f32>(v[v3 + left]);
            l0 += weighted(subgroupBroadcast(own, 0u), a0, a1, a2, a3);
            l1 += weighted(subgroupBroadcast(own, 1u), a0, a1, a2, a3);
            l2 += weighted(subgroupBroadcast(own, 2u), a0, a1, a2, a3);
            l3 += weighted(subgroupBroadcast(own, 3u), a0, a1, a2, a3);
            l4 += weighted(subgroupBroadcast(own, 4u), a0, a1, a2, a3);
            l5 += weighted(subgroupBroadcast(own, 5u), a0, a1, a2, a3);
            l6 += weighted(subgroupBroadcast(own, 6u), a0, a1, a2, a3);
            l7 += weighted(subgroupBroadcast(own, 7u), a0, a1, a2, a3);
            if BLOCKS == 2u {
                let b0 = vec4<f32>(v[v0 + right]);
                let b1 = vec4<f32>(v[v1 + right]);
                let b2 = vec4<f32>(v[v2 + right]);
                let b3 = vec4<f32>(v[v3 + right]);
                r0 += weighted(subgroupBroadcast(own, 0u), b0, b1, b2, b3);
                r1 += weighted(subgroupBroadcast(own, 1u), b0, b1, b2, b3);
                r2 += weighted(subgroupBroadcast(own, 2u), b0, b1, b2, b3);
                r3 += weighted(subgroupBroadcast(own, 3u), b0, b1, b2, b3);
                r4 += weighted(subgroupBroadcast(own, 4u), b0, b1, b2, b3);
                r5 += weighted(subgroupBroadcast(own, 5u), b0, b1, b2, b3);
                r6 += weighted(subgroupBroadcast(own, 6u), b0, b1, b2, b3);
                r7 += weighted(subgroupBroadcast(own, 7u), b0, b1, b2, b3);
            }
        }
    }

    let scale = select(0.0, 1.0 / total, total > 0.0);
    // One store in a loop instead of one for each row: it is compiled once. From zero the driver would unroll it.
    for (var query = start; query < min(start + 8u, params.tq); query++) {
        let i = query - start;
        var l = l0;
        l = select(l, l1, i == 1u);
        l = select(l, l2, i == 2u);
        l = select(l, l3, i == 3u);
        l = select(l, l4, i == 4u);
        l = select(l, l5, i == 5u);
        l = select(l, l6, i == 6u);
        l = select(l, l7, i == 7u);
        var r = r0;
        if BLOCKS == 2u {
            r = select(r, r1, i == 1u);
            r = select(r, r2, i == 2u);
            r = select(r, r3, i == 3u);
            r = select(r, r4, i == 4u);
            r = select(r, r5, i == 5u);
            r = select(r, r6, i == 6u);
            r = select(r, r7, i == 7u);
        }
        let factor = subgroupShuffle(scale, i);
        let out = q_at + query * row4;
        if lane < params.width {
            y[out + lane] = vec4<elem>(l * factor);
        }
        if BLOCKS == 2u && lane + 8u < params.width {
            y[out + lane + 8u] = vec4<elem>(r * factor);
        }
    }
}
