// y[b, i, h, d] = sum_j p[j] v[b, j, h, d] with p = softmax over j of scale * q[b, i, h] . k[b, j, h] + mask[b, h, i, j].
//   q, y: (B, TQ, H, D)     k, v: (B, TK, H, D)     mask: (B or 1, H or 1, TQ, TK)     D in eights, at most 8
// Flash attention on cooperative matrices. A subgroup owns ROWS queries of one head, whose operands and sums stay in its
// matrices while the workgroup runs over the keys, KEYS at a time, and copies keys and values to workgroup memory; what comes
// next is read from storage before the arithmetic that does not need it. Matrices show no elements, so scores go through
// workgroup memory to the lanes, a row each, and come back as weights in f16. A row's scores are taken relative to an earlier
// maximum as long as its weights stay below 2^HEADROOM; only beyond that the workgroup takes its sums through workgroup memory
// to rescale them. Keys past the end and excluded ones get weight 0; queries past the end read the last one again and are not
// stored. Matrices are named by constant indices once calls are inlined: dynamic ones leave registers. What depends on
// workgroup memory around them is a loop of at most one turn, since naga takes no branch there.
// Feature `coop8`: matrices of 8 x 8 in arrays of scalars, as Metal wants them; else 16 x 16 in vec4s.
// Workgroups run along the queries in x, heads in y, the batch in z.
// only permutation: coop16 f16
// only permutation: coop16 f16 wide
// only permutation: coop8 f16
// only permutation: coop8 f16 wide

enable f16;
enable wgpu_cooperative_matrix;

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
// D in eights.
override WIDTH: u32 = 8u;
// Most subgroups that the workgroup may have, a power of two, and its invocations. Larger subgroups, which are fewer, take
// several turns.
override STRIPS: u32 = 4u;
override LANES: u32 = 128u;

@if(coop8) const SIZE = 8u;
@else const SIZE = 16u;
const ROWS = 2u * SIZE;
const KEYS = 32u;
const HEADROOM = 8.0;
const LOG2E = 1.4426950408889634;
const EXCLUDED = -3e38;

// Matrices along D, and eights in their rows: D is padded with zeros.
override DEPTH: u32 = (8u * WIDTH + SIZE - 1u) / SIZE;
override EIGHTS: u32 = DEPTH * SIZE / 8u;
// Eights of a tile, and how many of them an invocation copies.
override TILE: u32 = KEYS * EIGHTS;
override COPIES: u32 = (TILE + LANES - 1u) / LANES;

// What operands and scores lie in. 16 bytes of padding per row spread the rows over the banks.
@if(coop8) const UNIT = 1u;
@else const UNIT = 4u;
@if(coop8) alias half_unit = f16;
@else alias half_unit = vec4<f16>;
@if(coop8) alias score_unit = f32;
@else alias score_unit = vec4<f32>;
override PITCH: u32 = (8u * EIGHTS + 8u) / UNIT;
const WEIGHT_PITCH = (KEYS + 8u) / UNIT;
const SCORE_PITCH = (KEYS + 4u) / UNIT;
// naga takes a name for the length of an array, no expression.
override TILEUNITS: u32 = KEYS * PITCH;
override QUERIES: u32 = STRIPS * ROWS;
override WEIGHTUNITS: u32 = QUERIES * WEIGHT_PITCH;
override SCOREUNITS: u32 = QUERIES * SCORE_PITCH;

// 16 bytes, so that they are read at once.
struct Eight {
    low: vec4<f16>,
    high: vec4<f16>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Eight>;
@group(0) @binding(2) var<storage, read> k: array<Eight>;
@group(0) @binding(3) var<storage, read> v: array<Eight>;
@if(wide) @group(0) @binding(4) var<storage, read> mask: array<f32>;
@else @group(0) @binding(4) var<storage, read> mask: array<f16>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f16>>;

var<workgroup> keys: array<half_unit, TILEUNITS>;
var<workgroup> values: array<half_unit, TILEUNITS>;
// Each subgroup has ROWS rows of these. Queries pass through `weights`, sums through `scores`.
var<workgroup> weights: array<half_unit, WEIGHTUNITS>;
var<workgroup> scores: array<score_unit, SCOREUNITS>;
// Of each row: the score that others are relative to, the sum of weights, the factor of a rescaling.
var<workgroup> top: array<f32, QUERIES>;
var<workgroup> total: array<f32, QUERIES>;
var<workgroup> keep: array<f32, QUERIES>;
// The last keys whose scores ask some row of the workgroup to rescale. All subgroups do so together: lavapipe counts the
// barriers of a workgroup's subgroups against each other.
var<workgroup> grown: u32;

@if(coop8) alias Left = coop_mat8x8<f16, A>;
@else alias Left = coop_mat16x16<f16, A>;
@if(coop8) alias Right = coop_mat8x8<f16, B>;
@else alias Right = coop_mat16x16<f16, B>;
@if(coop8) alias Sum = coop_mat8x8<f32, C>;
@else alias Sum = coop_mat16x16<f32, C>;

// Two rows of matrices, the second from index 8 on.
alias Queries = array<Left, 16>;
alias Sums = array<Sum, 16>;

@if(coop8) fn put_key(at: u32, e: Eight) {
    keys[at] = e.low.x;
    keys[at + 1u] = e.low.y;
    keys[at + 2u] = e.low.z;
    keys[at + 3u] = e.low.w;
    keys[at + 4u] = e.high.x;
    keys[at + 5u] = e.high.y;
    keys[at + 6u] = e.high.z;
    keys[at + 7u] = e.high.w;
}
@else fn put_key(at: u32, e: Eight) {
    keys[at] = e.low;
    keys[at + 1u] = e.high;
}

@if(coop8) fn put_value(at: u32, e: Eight) {
    values[at] = e.low.x;
    values[at + 1u] = e.low.y;
    values[at + 2u] = e.low.z;
    values[at + 3u] = e.low.w;
    values[at + 4u] = e.high.x;
    values[at + 5u] = e.high.y;
    values[at + 6u] = e.high.z;
    values[at + 7u] = e.high.w;
}
@else fn put_value(at: u32, e: Eight) {
    values[at] = e.low;
    values[at + 1u] = e.high;
}

@if(coop8) fn put_weights(at: u32, w: vec4<f16>) {
    weights[at] = w.x;
    weights[at + 1u] = w.y;
    weights[at + 2u] = w.z;
    weights[at + 3u] = w.w;
}
@else fn put_weights(at: u32, w: vec4<f16>) {
    weights[at] = w;
}

@if(coop8) fn score(at: u32) -> vec4<f32> {
    return vec4(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
}
@else fn score(at: u32) -> vec4<f32> {
    return scores[at];
}

@if(coop8) fn put_score(at: u32, s: vec4<f32>) {
    scores[at] = s.x;
    scores[at + 1u] = s.y;
    scores[at + 2u] = s.z;
    scores[at + 3u] = s.w;
}
@else fn put_score(at: u32, s: vec4<f32>) {
    scores[at] = s;
}

// Eight t of the keys from `first` on.
fn key(t: u32, first: u32, k_at: u32) -> Eight {
    let column = t % EIGHTS;
    var e = Eight();
    if column < WIDTH {
        e = k[k_at + min(first + t / EIGHTS, params.tk - 1u) * params.heads * WIDTH + column];
    }
    return e;
}

fn value(t: u32, first: u32, k_at: u32) -> Eight {
    let column = t % EIGHTS;
    var e = Eight();
    if column < WIDTH {
        e = v[k_at + min(first + t / EIGHTS, params.tk - 1u) * params.heads * WIDTH + column];
    }
    return e;
}

fn stage_key(t: u32, e: Eight) {
    if t < TILE {
        put_key(t / EIGHTS * PITCH + t % EIGHTS * (8u / UNIT), e);
    }
}

fn stage_value(t: u32, e: Eight) {
    if t < TILE {
        put_value(t / EIGHTS * PITCH + t % EIGHTS * (8u / UNIT), e);
    }
}

// An invocation's copies of a tile; more than two are read where they are needed.
struct Held {
    e0: Eight,
    e1: Eight,
}

fn hold_keys(index: u32, first: u32, k_at: u32) -> Held {
    var h: Held;
    h.e0 = key(index, first, k_at);
    if COPIES > 1u {
        h.e1 = key(index + LANES, first, k_at);
    }
    return h;
}

fn hold_values(index: u32, first: u32, k_at: u32) -> Held {
    var h: Held;
    h.e0 = value(index, first, k_at);
    if COPIES > 1u {
        h.e1 = value(index + LANES, first, k_at);
    }
    return h;
}

fn stage_keys(h: Held, index: u32, first: u32, k_at: u32) {
    stage_key(index, h.e0);
    if COPIES > 1u {
        stage_key(index + LANES, h.e1);
    }
    for (var i = 2u; i < COPIES; i++) {
        let t = index + i * LANES;
        stage_key(t, key(t, first, k_at));
    }
}

fn stage_values(h: Held, index: u32, first: u32, k_at: u32) {
    stage_value(index, h.e0);
    if COPIES > 1u {
        stage_value(index + LANES, h.e1);
    }
    for (var i = 2u; i < COPIES; i++) {
        let t = index + i * LANES;
        stage_value(t, value(t, first, k_at));
    }
}

// Where a lane stands: the subgroup's first row in workgroup memory and its first query.
struct Place {
    area: u32,
    row: u32,
    lane: u32,
    lanes: u32,
}

// Takes KEYS columns of the queries, from matrix `d` on.
fn take_queries(queries: ptr<function, Queries>, p: Place, q_at: u32, d: u32) {
    let first = d * SIZE / 8u;
    subgroupBarrier();
    for (var t = p.lane; t < ROWS * (KEYS / 8u); t += p.lanes) {
        let r = t / (KEYS / 8u);
        let column = t % (KEYS / 8u);
        var e = Eight();
        if first + column < WIDTH {
            e = q[q_at + min(p.row + r, params.tq - 1u) * params.heads * WIDTH + first + column];
        }
        let at = (p.area + r) * WEIGHT_PITCH + column * (8u / UNIT);
        put_weights(at, e.low);
        put_weights(at + 4u / UNIT, e.high);
    }
    subgroupBarrier();
    take_query(queries, p.area, d, 0u);
    take_query(queries, p.area, d, 1u);
    if SIZE == 8u {
        take_query(queries, p.area, d, 2u);
        take_query(queries, p.area, d, 3u);
    }
}

fn take_query(queries: ptr<function, Queries>, area: u32, d: u32, i: u32) {
    let stride = WEIGHT_PITCH;
    let upper = area * WEIGHT_PITCH + i * (SIZE / UNIT);
    let lower = upper + SIZE * WEIGHT_PITCH;
    (*queries)[d + i] = coopLoadT<Left>(&weights[upper], stride);
    (*queries)[8u + d + i] = coopLoadT<Left>(&weights[lower], stride);
}

// Adds to the scores of the SIZE keys at `n` the products along matrix d.
fn multiply_key(queries: ptr<function, Queries>, sums: ptr<function, array<Sum, 8>>, d: u32, n: u32) {
    let stride = PITCH;
    let at = n * SIZE * PITCH + d * (SIZE / UNIT);
    let b = coopLoad<Right>(&keys[at], stride);
    (*sums)[n] = coopMultiplyAdd((*queries)[d], b, (*sums)[n]);
    (*sums)[4u + n] = coopMultiplyAdd((*queries)[8u + d], b, (*sums)[4u + n]);
}

fn multiply_keys(queries: ptr<function, Queries>, sums: ptr<function, array<Sum, 8>>, d: u32) {
    multiply_key(queries, sums, d, 0u);
    multiply_key(queries, sums, d, 1u);
    if SIZE == 8u {
        multiply_key(queries, sums, d, 2u);
        multiply_key(queries, sums, d, 3u);
    }
}

fn store_scores(sums: ptr<function, array<Sum, 8>>, area: u32, n: u32) {
    let stride = SCORE_PITCH;
    let upper = area * SCORE_PITCH + n * (SIZE / UNIT);
    let lower = upper + SIZE * SCORE_PITCH;
    let a = (*sums)[n];
    let b = (*sums)[4u + n];
    coopStoreT(a, &scores[upper], stride);
    coopStoreT(b, &scores[lower], stride);
}

// Adds the SIZE keys at `n`, matrix d of the values.
fn multiply_value(sums: ptr<function, Sums>, a: Left, b: Left, n: u32, d: u32) {
    let stride = PITCH;
    let at = n * SIZE * PITCH + d * (SIZE / UNIT);
    let c = coopLoadT<Right>(&values[at], stride);
    (*sums)[d] = coopMultiplyAdd(a, c, (*sums)[d]);
    (*sums)[8u + d] = coopMultiplyAdd(b, c, (*sums)[8u + d]);
}

fn multiply_values(sums: ptr<function, Sums>, area: u32, n: u32) {
    let stride = WEIGHT_PITCH;
    let upper = area * WEIGHT_PITCH + n * (SIZE / UNIT);
    let lower = upper + SIZE * WEIGHT_PITCH;
    let a = coopLoadT<Left>(&weights[upper], stride);
    let b = coopLoadT<Left>(&weights[lower], stride);
    multiply_value(sums, a, b, n, 0u);
    if DEPTH > 1u {
        multiply_value(sums, a, b, n, 1u);
    }
    if DEPTH > 2u {
        multiply_value(sums, a, b, n, 2u);
    }
    if DEPTH > 3u {
        multiply_value(sums, a, b, n, 3u);
    }
    if DEPTH > 4u {
        multiply_value(sums, a, b, n, 4u);
    }
    if DEPTH > 5u {
        multiply_value(sums, a, b, n, 5u);
    }
    if DEPTH > 6u {
        multiply_value(sums, a, b, n, 6u);
    }
    if DEPTH > 7u {
        multiply_value(sums, a, b, n, 7u);
    }
}

// Column i of KEYS columns of the sums, those from matrix d on, to `scores` and back.
fn store_sum(sums: ptr<function, Sums>, area: u32, d: u32, i: u32) {
    let stride = SCORE_PITCH;
    let upper = area * SCORE_PITCH + i * (SIZE / UNIT);
    let lower = upper + SIZE * SCORE_PITCH;
    let a = (*sums)[d + i];
    let b = (*sums)[8u + d + i];
    coopStoreT(a, &scores[upper], stride);
    coopStoreT(b, &scores[lower], stride);
}

fn load_sum(sums: ptr<function, Sums>, area: u32, d: u32, i: u32) {
    let stride = SCORE_PITCH;
    let upper = area * SCORE_PITCH + i * (SIZE / UNIT);
    let lower = upper + SIZE * SCORE_PITCH;
    (*sums)[d + i] = coopLoadT<Sum>(&scores[upper], stride);
    (*sums)[8u + d + i] = coopLoadT<Sum>(&scores[lower], stride);
}

fn show_sums(sums: ptr<function, Sums>, area: u32, d: u32) {
    // All lanes have read what was here.
    subgroupBarrier();
    store_sum(sums, area, d, 0u);
    store_sum(sums, area, d, 1u);
    if SIZE == 8u {
        store_sum(sums, area, d, 2u);
        store_sum(sums, area, d, 3u);
    }
    subgroupBarrier();
}

fn rescale(sums: ptr<function, Sums>, p: Place, d: u32) {
    show_sums(sums, p.area, d);
    for (var t = p.lane; t < ROWS * (KEYS / 4u); t += p.lanes) {
        let r = p.area + t / (KEYS / 4u);
        let at = r * SCORE_PITCH + t % (KEYS / 4u) * (4u / UNIT);
        put_score(at, score(at) * keep[r]);
    }
    subgroupBarrier();
    load_sum(sums, p.area, d, 0u);
    load_sum(sums, p.area, d, 1u);
    if SIZE == 8u {
        load_sum(sums, p.area, d, 2u);
        load_sum(sums, p.area, d, 3u);
    }
}

// Stores KEYS columns of the result, `keep` times the sums from matrix d on.
fn store(sums: ptr<function, Sums>, p: Place, q_at: u32, d: u32) {
    show_sums(sums, p.area, d);
    for (var t = p.lane; t < ROWS * (KEYS / 4u); t += p.lanes) {
        let r = t / (KEYS / 4u);
        let column = d * (SIZE / 4u) + t % (KEYS / 4u);
        if p.row + r < params.tq && column < 2u * WIDTH {
            let s = score((p.area + r) * SCORE_PITCH + t % (KEYS / 4u) * (4u / UNIT)) * keep[p.area + r];
            y[(q_at + (p.row + r) * params.heads * WIDTH) * 2u + column] = vec4<f16>(s);
        }
    }
}

// Scores of one row against four keys, masked.
fn masked(scaled: vec4<f32>, row: u32, first: u32, end: u32, mask_at: u32) -> vec4<f32> {
    let key = first + vec4(0u, 1u, 2u, 3u);
    var s = scaled;
    if MASK == 1u {
        let at = vec4(mask_at + row * params.tk) + min(key, vec4(params.tk - 1u));
        s += LOG2E * vec4(f32(mask[at.x]), f32(mask[at.y]), f32(mask[at.z]), f32(mask[at.w]));
    }
    var seen = key < vec4(end);
    if CAUSAL == 1u {
        seen = seen & (key <= vec4(row));
    }
    return select(vec4(EXCLUDED), s, seen);
}

fn largest(s: vec4<f32>) -> f32 {
    return max(max(s.x, s.y), max(s.z, s.w));
}

// Stores four weights and gives them as they are stored.
fn weigh(at: u32, exponent: vec4<f32>) -> vec4<f32> {
    let w = vec4<f16>(exp2(exponent));
    put_weights(at, w);
    return vec4<f32>(w);
}

// Makes the weights of a row of its scores.
fn soften(r: u32, row: u32, first: u32, end: u32, mask_at: u32) {
    let at = r * SCORE_PITCH;
    const STEP = 4u / UNIT;
    var s0 = score(at);
    var s1 = score(at + STEP);
    var s2 = score(at + 2u * STEP);
    var s3 = score(at + 3u * STEP);
    var s4 = score(at + 4u * STEP);
    var s5 = score(at + 5u * STEP);
    var s6 = score(at + 6u * STEP);
    var s7 = score(at + 7u * STEP);
    // Weights are powers of two. The scale is above 0, so that the largest score is the largest before it, too.
    var scale = params.scale * LOG2E;
    if CAUSAL == 1u || MASK == 1u || first + KEYS > end {
        s0 = masked(s0 * scale, row, first, end, mask_at);
        s1 = masked(s1 * scale, row, first + 4u, end, mask_at);
        s2 = masked(s2 * scale, row, first + 8u, end, mask_at);
        s3 = masked(s3 * scale, row, first + 12u, end, mask_at);
        s4 = masked(s4 * scale, row, first + 16u, end, mask_at);
        s5 = masked(s5 * scale, row, first + 20u, end, mask_at);
        s6 = masked(s6 * scale, row, first + 24u, end, mask_at);
        s7 = masked(s7 * scale, row, first + 28u, end, mask_at);
        scale = 1.0;
    }
    let high = scale * largest(max(max(max(s0, s1), max(s2, s3)), max(max(s4, s5), max(s6, s7))));
    let before = top[r];
    // The first keys set a row's maximum: there is nothing to rescale yet.
    let limit = before + select(HEADROOM, 0.0, first == 0u);
    let next = select(before, high, high > limit);
    let into = r * WEIGHT_PITCH;
    var sum = weigh(into, s0 * scale - next);
    sum += weigh(into + STEP, s1 * scale - next);
    sum += weigh(into + 2u * STEP, s2 * scale - next);
    sum += weigh(into + 3u * STEP, s3 * scale - next);
    sum += weigh(into + 4u * STEP, s4 * scale - next);
    sum += weigh(into + 5u * STEP, s5 * scale - next);
    sum += weigh(into + 6u * STEP, s6 * scale - next);
    sum += weigh(into + 7u * STEP, s7 * scale - next);
    let factor = exp2(before - next);
    top[r] = next;
    keep[r] = factor;
    total[r] = total[r] * factor + dot(sum, vec4(1.0));
    if high > limit && first > 0u {
        grown = first;
    }
}

@compute @workgroup_size(LANES)
fn attention_cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    // Subgroups take invocations in order.
    let subgroup = subgroupBroadcastFirst(index / lanes);
    let subgroups = LANES / lanes;
    let row8 = params.heads * WIDTH;
    let start = group.x * QUERIES;
    let last = params.tq - 1u;
    let q_at = group.z * params.tq * row8 + group.y * WIDTH;
    let k_at = group.z * params.tk * row8 + group.y * WIDTH;
    let mask_at = group.z * params.mask_batch + group.y * params.mask_head;
    // A causal block sees nothing past its last query.
    let end = select(params.tk, min(params.tk, start + QUERIES), CAUSAL == 1u);

    for (var strip = 0u; strip < STRIPS; strip += subgroups) {
        let p = Place(subgroup * ROWS, start + (strip + subgroup) * ROWS, lane, lanes);
        for (var r = lane; r < ROWS; r += lanes) {
            // Zero keys have score 0 and add nothing but to the sum. Without them any score exceeds the first maximum.
            top[p.area + r] = select(-1e30 * LOG2E, 0.0, params.zero_keys > 0.0);
            total[p.area + r] = params.zero_keys;
        }
        var queries = Queries();
        take_queries(&queries, p, q_at, 0u);
        if 8u * EIGHTS > KEYS {
            take_queries(&queries, p, q_at, KEYS / SIZE);
        }
        var sums = Sums();
        var held = hold_keys(index, 0u, k_at);
        stage_keys(held, index, 0u, k_at);

        for (var first = 0u; first < end; first += KEYS) {
            // The keys are there, and all have used the values before.
            workgroupBarrier();
            held = hold_values(index, first, k_at);
            var s = array<Sum, 8>();
            multiply_keys(&queries, &s, 0u);
            if DEPTH > 1u {
                multiply_keys(&queries, &s, 1u);
            }
            if DEPTH > 2u {
                multiply_keys(&queries, &s, 2u);
            }
            if DEPTH > 3u {
                multiply_keys(&queries, &s, 3u);
            }
            if DEPTH > 4u {
                multiply_keys(&queries, &s, 4u);
            }
            if DEPTH > 5u {
                multiply_keys(&queries, &s, 5u);
            }
            if DEPTH > 6u {
                multiply_keys(&queries, &s, 6u);
            }
            if DEPTH > 7u {
                multiply_keys(&queries, &s, 7u);
            }
            store_scores(&s, p.area, 0u);
            store_scores(&s, p.area, 1u);
            if SIZE == 8u {
                store_scores(&s, p.area, 2u);
                store_scores(&s, p.area, 3u);
            }
            stage_values(held, index, first, k_at);
            held = hold_keys(index, first + KEYS, k_at);
            subgroupBarrier();
            for (var r = lane; r < ROWS; r += lanes) {
                soften(p.area + r, min(p.row + r, last), first, end, mask_at);
            }
            // The values are there, and all have used the keys.
            workgroupBarrier();
            stage_keys(held, index, first + KEYS, k_at);
            for (var turn = subgroupAny(grown == first); turn; turn = false) {
                rescale(&sums, p, 0u);
                if 8u * EIGHTS > KEYS {
                    rescale(&sums, p, KEYS / SIZE);
                }
            }
            multiply_values(&sums, p.area, 0u);
            multiply_values(&sums, p.area, 1u);
            if SIZE == 8u {
                multiply_values(&sums, p.area, 2u);
                multiply_values(&sums, p.area, 3u);
            }
        }

        for (var r = lane; r < ROWS; r += lanes) {
            let sum = total[p.area + r];
            keep[p.area + r] = select(0.0, 1.0 / sum, sum > 0.0);
        }
        store(&sums, p, q_at, 0u);
        if 8u * EIGHTS > KEYS {
            store(&sums, p, q_at, KEYS / SIZE);
        }
    }
}
