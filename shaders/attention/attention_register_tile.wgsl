// y[b, i, h, d] = sum_j p[j] v[b, j, h, d] with p = softmax over j of scale * q[b, i, h] . k[b, j, h] + mask[b, h, i, j].
//   q, y: (B, TQ, H, D)     k, v: (B, TK, H, D)     mask: (B or 1, H or 1, TQ, TK)     D in vec4, at most 16
// Each invocation takes 4 queries of one head: they and their sums stay in registers, so that a load of a key or value, which costs
// several products on a CPU device without wide subgroups, feeds four. Online softmax over the keys, without workgroup memory or
// barriers; sums are rescaled where the largest score grows, which is rare after the first keys. Queries past the end read the
// last one again and are not stored. Workgroups of 8 run along the queries in x, heads in y, the batch in z.
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
    mask_batch: u32,
    mask_head: u32,
    scale: f32,
    // Keys and values of zeros besides those in k and v.
    zero_keys: f32,
}

override CAUSAL: u32 = 0u;
override MASK: u32 = 0u;
// Blocks of 4 vec4 that hold D.
override BLOCKS: u32 = 4u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<elem>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<elem>>;
@if(wide) @group(0) @binding(4) var<storage, read> mask: array<f32>;
@else @group(0) @binding(4) var<storage, read> mask: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<elem>>;

// D values, zeros behind them.
struct Row {
    a: mat4x4<f32>,
    b: mat4x4<f32>,
    c: mat4x4<f32>,
    d: mat4x4<f32>,
}

// A query's part: its running maximum, the sum of its weights, its weighted values.
struct State {
    top: f32,
    weight: f32,
    sum: Row,
}

fn q_block(at: u32, c: u32) -> mat4x4<f32> {
    return mat4x4(q_vec4(at, c), q_vec4(at, c + 1u), q_vec4(at, c + 2u), q_vec4(at, c + 3u));
}

fn q_vec4(at: u32, c: u32) -> vec4<f32> {
    // What lies behind a head's end is the next one's.
    return select(vec4(0.0), vec4<f32>(q[at + min(c, params.width - 1u)]), c < params.width);
}

fn query(at: u32) -> Row {
    var r = Row();
    r.a = q_block(at, 0u);
    if BLOCKS > 1u { r.b = q_block(at, 4u); }
    if BLOCKS > 2u { r.c = q_block(at, 8u); }
    if BLOCKS > 3u { r.d = q_block(at, 12u); }
    return r;
}

// Zeros of the queries meet what lies behind a key's end.
fn k_block(at: u32, c: u32) -> mat4x4<f32> {
    let last = params.width - 1u;
    return mat4x4(
        vec4<f32>(k[at + min(c, last)]),
        vec4<f32>(k[at + min(c + 1u, last)]),
        vec4<f32>(k[at + min(c + 2u, last)]),
        vec4<f32>(k[at + min(c + 3u, last)]),
    );
}

// What is behind a value's end is not stored.
fn v_block(at: u32, c: u32) -> mat4x4<f32> {
    let last = params.width - 1u;
    return mat4x4(
        vec4<f32>(v[at + min(c, last)]),
        vec4<f32>(v[at + min(c + 1u, last)]),
        vec4<f32>(v[at + min(c + 2u, last)]),
        vec4<f32>(v[at + min(c + 3u, last)]),
    );
}

// Products of one vec4 each, which are added last.
fn products(x: mat4x4<f32>, z: mat4x4<f32>) -> vec4<f32> {
    return x[0] * z[0] + x[1] * z[1] + x[2] * z[2] + x[3] * z[3];
}

fn y_block(at: u32, c: u32, m: mat4x4<f32>) {
    if c < params.width { y[at + c] = vec4<elem>(m[0]); }
    if c + 1u < params.width { y[at + c + 1u] = vec4<elem>(m[1]); }
    if c + 2u < params.width { y[at + c + 2u] = vec4<elem>(m[2]); }
    if c + 3u < params.width { y[at + c + 3u] = vec4<elem>(m[3]); }
}

// The state's maximum becomes `top`.
fn raised(s: State, top: f32) -> State {
    let keep = exp(s.top - top);
    return State(top, s.weight * keep, Row(s.sum.a * keep, s.sum.b * keep, s.sum.c * keep, s.sum.d * keep));
}

fn store(i: u32, at: u32, s: State) {
    if i >= params.tq {
        return;
    }
    let scale = select(0.0, 1.0 / s.weight, s.weight > 0.0);
    y_block(at, 0u, s.sum.a * scale);
    if BLOCKS > 1u { y_block(at, 4u, s.sum.b * scale); }
    if BLOCKS > 2u { y_block(at, 8u, s.sum.c * scale); }
    if BLOCKS > 3u { y_block(at, 12u, s.sum.d * scale); }
}

@compute @workgroup_size(8)
fn attention_register_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let row4 = params.heads * params.width;
    let i = (group.x * 8u + lane.x) * 4u;
    if i >= params.tq {
        return;
    }
    let last = params.tq - 1u;
    let queries = vec4(i, min(i + 1u, last), min(i + 2u, last), min(i + 3u, last));
    let at = vec4(group.z * params.tq * row4 + group.y * params.width) + queries * row4;
    let k_at = group.z * params.tk * row4 + group.y * params.width;
    let mask_at = vec4(group.z * params.mask_batch + group.y * params.mask_head) + queries * params.tk;
    let q0 = query(at.x);
    let q1 = query(at.y);
    let q2 = query(at.z);
    let q3 = query(at.w);
    // Zero keys have score 0 and add nothing but to the sum. Without them any score exceeds the first maximum.
    let none = State(select(-1e30, 0.0, params.zero_keys > 0.0), params.zero_keys, Row());
    var s0 = none;
    var s1 = none;
    var s2 = none;
    var s3 = none;
    // A causal query sees nothing past itself.
    let end = select(params.tk, min(params.tk, queries.w + 1u), CAUSAL == 1u);
    for (var j = 0u; j < end; j++) {
        let key_at = k_at + j * row4;
        var z = k_block(key_at, 0u);
        var d0 = products(q0.a, z);
        var d1 = products(q1.a, z);
        var d2 = products(q2.a, z);
        var d3 = products(q3.a, z);
        if BLOCKS > 1u {
            z = k_block(key_at, 4u);
            d0 += products(q0.b, z);
            d1 += products(q1.b, z);
            d2 += products(q2.b, z);
            d3 += products(q3.b, z);
        }
        if BLOCKS > 2u {
            z = k_block(key_at, 8u);
            d0 += products(q0.c, z);
            d1 += products(q1.c, z);
            d2 += products(q2.c, z);
            d3 += products(q3.c, z);
        }
        if BLOCKS > 3u {
            z = k_block(key_at, 12u);
            d0 += products(q0.d, z);
            d1 += products(q1.d, z);
            d2 += products(q2.d, z);
            d3 += products(q3.d, z);
        }
        let one = vec4(1.0);
        var score = vec4(dot(d0, one), dot(d1, one), dot(d2, one), dot(d3, one)) * params.scale;
        if MASK == 1u {
            let m = mask_at + j;
            score += vec4(f32(mask[m.x]), f32(mask[m.y]), f32(mask[m.z]), f32(mask[m.w]));
        }
        if CAUSAL == 1u {
            // So low that its weight is exactly 0.
            score = select(vec4(-3e38), score, vec4(j) <= queries);
        }
        if score.x > s0.top { s0 = raised(s0, score.x); }
        if score.y > s1.top { s1 = raised(s1, score.y); }
        if score.z > s2.top { s2 = raised(s2, score.z); }
        if score.w > s3.top { s3 = raised(s3, score.w); }
        let p = exp(score - vec4(s0.top, s1.top, s2.top, s3.top));
        s0.weight += p.x;
        s1.weight += p.y;
        s2.weight += p.z;
        s3.weight += p.w;
        z = v_block(key_at, 0u);
        s0.sum.a += p.x * z;
        s1.sum.a += p.y * z;
        s2.sum.a += p.z * z;
        s3.sum.a += p.w * z;
        if BLOCKS > 1u {
            z = v_block(key_at, 4u);
            s0.sum.b += p.x * z;
            s1.sum.b += p.y * z;
            s2.sum.b += p.z * z;
            s3.sum.b += p.w * z;
        }
        if BLOCKS > 2u {
            z = v_block(key_at, 8u);
            s0.sum.c += p.x * z;
            s1.sum.c += p.y * z;
            s2.sum.c += p.z * z;
            s3.sum.c += p.w * z;
        }
        if BLOCKS > 3u {
            z = v_block(key_at, 12u);
            s0.sum.d += p.x * z;
            s1.sum.d += p.y * z;
            s2.sum.d += p.z * z;
            s3.sum.d += p.w * z;
        }
    }
    store(i, at.x, s0);
    store(i + 1u, at.y, s1);
    store(i + 2u, at.z, s2);
    store(i + 3u, at.w, s3);
}
