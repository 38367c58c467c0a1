// y[b, i, h, d] = sum_j p[j] v[b, j, h, d] with p = softmax over j of scale * q[b, i, h] . k[b, j, h] + mask[b, h, i, j].
//   q, y: (B, TQ, H, D)     k, v: (B, TK, H, D)     mask: (B or 1, H or 1, TQ, TK)     D in eights, at most 8
// Flash attention on cooperative matrices. A subgroup owns ROWS queries of one head, whose operands and sums stay in its
// matrices while the workgroup runs over the keys, KEYS at a time: these and their values are copied to workgroup memory at once,
// and the next ones are read from storage before the arithmetic, always, since a load in a branch of single invocations is waited for at its end.
// Between two copies each subgroup goes its own way, so that one's products overlap another's exponentials. Matrices show no
// elements, so scores go through workgroup memory to the lanes, a row each and a BLOCK of keys at a time, and come back as
// weights in f16. A row's scores are taken relative to an earlier maximum as long as a block's weights, added up, stay below
// MOST, which needs no maximum to know; only beyond that it is looked for, and the subgroup takes its sums through workgroup
// memory to rescale them. Keys past the end and excluded ones get weight 0; queries past the end read the last one again and are
// not stored. Matrices are named by constant indices once calls are inlined, which the build does, giving each a variable of
// the entry point (crates/ops/build/matrices.rs): dynamic ones leave registers. What depends on
// workgroup memory around them is a loop of at most one turn, since naga takes no branch there.
// Feature `coop8`: matrices of 8 x 8 in arrays of scalars, as Metal wants them; else 16 x 16 in vec4s.
// Workgroups run along the queries in x, heads in y, the batch in z.
// only permutation: coop16 f16
// only permutation: coop16 f16 wide
// only permutation: coop8 f16
// only permutation: coop8 f16 wide

import package::shared::attention::{CAUSAL, largest, LOG2E, MASK, masked_from, params, y};

enable f16;
enable wgpu_cooperative_matrix;

// D in eights.
override WIDTH: u32 = 8u;
// Most subgroups that the workgroup may have, a power of two, and its invocations. Larger subgroups, which are fewer, take
// several turns.
override STRIPS: u32 = 4u;
override LANES: u32 = 128u;
// Rows of queries of each lane where all subgroups have as many lanes, 0 where that varies.
override TURNS: u32 = 0u;
// 1 where all subgroups must rescale together: lavapipe counts the barriers of a workgroup's subgroups against each other.
override BALANCED: u32 = 0u;
// Of a step, one BLOCK or two.
override KEYS: u32 = 32u;

@if(coop8) const SIZE = 8u;
@else const SIZE = 16u;
const ROWS = 2u * SIZE;
const BLOCK = 32u;
// Far below what f16 holds.
const MOST = 4096.0;

// Matrices along D, and eights in their rows: D is padded with zeros.
override DEPTH: u32 = (8u * WIDTH + SIZE - 1u) / SIZE;
override EIGHTS: u32 = DEPTH * SIZE / 8u;
// Eights of a tile, and how many of them an invocation copies.
override TILE: u32 = KEYS * EIGHTS;
override COPIES: u32 = (TILE + LANES - 1u) / LANES;

// What operands and scores lie in. Padding spreads rows over the banks of workgroup memory: 16 bytes where lanes read parts of
// rows, and 32 where matrices of f32 are stored, whose first 12 hold what a row's lane keeps.
@if(coop8) const UNIT = 1u;
@else const UNIT = 4u;
@if(coop8) alias half_unit = f16;
@else alias half_unit = vec4<f16>;
@if(coop8) alias score_unit = f32;
@else alias score_unit = vec4<f32>;
override PITCH: u32 = (8u * EIGHTS + 8u) / UNIT;
const WEIGHT_PITCH = (BLOCK + 8u) / UNIT;
const SCORE_PITCH = (BLOCK + 8u) / UNIT;
// Four columns.
const FOUR = 4u / UNIT;
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

@group(0) @binding(1) var<storage, read> q: array<Eight>;
@group(0) @binding(2) var<storage, read> k: array<Eight>;
@group(0) @binding(3) var<storage, read> v: array<Eight>;

var<workgroup> keys: array<half_unit, TILEUNITS>;
var<workgroup> values: array<half_unit, TILEUNITS>;
// Each subgroup has ROWS rows of these. Queries pass through `weights`, sums through `scores`.
var<workgroup> weights: array<half_unit, WEIGHTUNITS>;
var<workgroup> scores: array<score_unit, SCOREUNITS>;

@if(coop8) alias Left = coop_mat8x8<f16, A>;
@else alias Left = coop_mat16x16<f16, A>;
@if(coop8) alias Right = coop_mat8x8<f16, B>;
@else alias Right = coop_mat16x16<f16, B>;
@if(coop8) alias Sum = coop_mat8x8<f32, C>;
@else alias Sum = coop_mat16x16<f32, C>;

// Two rows of matrices, the second from index 8 on.
alias Queries = array<Left, 16>;
alias Sums = array<Sum, 16>;
// Two rows of matrices, the second from index 4 on.
alias Scores = array<Sum, 8>;

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

// Eight t of a tile of keys or values from `first` on: columns past the width and rows past the last key are read, too.
fn place(t: u32, first: u32, k_at: u32) -> u32 {
    let row = min(first + t / EIGHTS, params.tk - 1u);
    return k_at + row * params.heads * WIDTH + min(t % EIGHTS, WIDTH - 1u);
}

// Columns past the width are zero.
fn within(e: Eight, column: u32) -> Eight {
    if EIGHTS > WIDTH && column >= WIDTH {
        return Eight();
    }
    return e;
}

fn stage_key(t: u32, e: Eight) {
    if TILE % LANES == 0u || t < TILE {
        put_key(t / EIGHTS * PITCH + t % EIGHTS * (8u / UNIT), within(e, t % EIGHTS));
    }
}

fn stage_value(t: u32, e: Eight) {
    if TILE % LANES == 0u || t < TILE {
        put_value(t / EIGHTS * PITCH + t % EIGHTS * (8u / UNIT), within(e, t % EIGHTS));
    }
}

// An invocation's copies of a tile; more than four are read where they are needed.
struct Held {
    e0: Eight,
    e1: Eight,
    e2: Eight,
    e3: Eight,
}

fn hold_keys(index: u32, first: u32, k_at: u32) -> Held {
    var h: Held;
    h.e0 = k[place(index, first, k_at)];
    if COPIES > 1u {
        h.e1 = k[place(index + LANES, first, k_at)];
    }
    if COPIES > 2u {
        h.e2 = k[place(index + 2u * LANES, first, k_at)];
    }
    if COPIES > 3u {
        h.e3 = k[place(index + 3u * LANES, first, k_at)];
    }
    return h;
}

fn hold_values(index: u32, first: u32, k_at: u32) -> Held {
    var h: Held;
    h.e0 = v[place(index, first, k_at)];
    if COPIES > 1u {
        h.e1 = v[place(index + LANES, first, k_at)];
    }
    if COPIES > 2u {
        h.e2 = v[place(index + 2u * LANES, first, k_at)];
    }
    if COPIES > 3u {
        h.e3 = v[place(index + 3u * LANES, first, k_at)];
    }
    return h;
}

fn stage_keys(h: Held, index: u32, first: u32, k_at: u32) {
    stage_key(index, h.e0);
    if COPIES > 1u {
        stage_key(index + LANES, h.e1);
    }
    if COPIES > 2u {
        stage_key(index + 2u * LANES, h.e2);
    }
    if COPIES > 3u {
        stage_key(index + 3u * LANES, h.e3);
    }
    for (var t = index + 4u * LANES; t < TILE; t += LANES) {
        stage_key(t, k[place(t, first, k_at)]);
    }
}

fn stage_values(h: Held, index: u32, first: u32, k_at: u32) {
    stage_value(index, h.e0);
    if COPIES > 1u {
        stage_value(index + LANES, h.e1);
    }
    if COPIES > 2u {
        stage_value(index + 2u * LANES, h.e2);
    }
    if COPIES > 3u {
        stage_value(index + 3u * LANES, h.e3);
    }
    for (var t = index + 4u * LANES; t < TILE; t += LANES) {
        stage_value(t, v[place(t, first, k_at)]);
    }
}

// What a row's lane keeps: the score that others are relative to, the sum of weights, the factor of a rescaling.
fn kept(r: u32) -> vec4<f32> {
    return score(r * SCORE_PITCH + BLOCK / UNIT);
}

fn keep(r: u32, row: vec4<f32>) {
    put_score(r * SCORE_PITCH + BLOCK / UNIT, row);
}

// Where a lane stands: the subgroup's first row in workgroup memory and its first query.
struct Place {
    area: u32,
    row: u32,
    lane: u32,
    lanes: u32,
}

// Takes BLOCK columns of the queries, from matrix `d` on.
fn take_queries(queries: ptr<function, Queries>, p: Place, q_at: u32, d: u32) {
    let first = d * SIZE / 8u;
    subgroupBarrier();
    for (var t = p.lane; t < ROWS * (BLOCK / 8u); t += p.lanes) {
        let r = t / (BLOCK / 8u);
        let column = t % (BLOCK / 8u);
        let read = min(first + column, WIDTH - 1u);
        let e = within(q[q_at + min(p.row + r, params.tq - 1u) * params.heads * WIDTH + read], first + column);
        let at = (p.area + r) * WEIGHT_PITCH + column * (8u / UNIT);
        put_weights(at, e.low);
        put_weights(at + FOUR, e.high);
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

// Adds to the scores of SIZE keys, matrix n of the block that begins at key `base` of the tile, the products along matrix d.
fn multiply_key(queries: ptr<function, Queries>, sums: ptr<function, Scores>, base: u32, d: u32, n: u32) {
    let stride = PITCH;
    let at = (base + n * SIZE) * PITCH + d * (SIZE / UNIT);
    let b = coopLoad<Right>(&keys[at], stride);
    (*sums)[n] = coopMultiplyAdd((*queries)[d], b, (*sums)[n]);
    (*sums)[4u + n] = coopMultiplyAdd((*queries)[8u + d], b, (*sums)[4u + n]);
}

fn multiply_keys(queries: ptr<function, Queries>, sums: ptr<function, Scores>, base: u32, d: u32) {
    multiply_key(queries, sums, base, d, 0u);
    multiply_key(queries, sums, base, d, 1u);
    if SIZE == 8u {
        multiply_key(queries, sums, base, d, 2u);
        multiply_key(queries, sums, base, d, 3u);
    }
}

fn store_scores(sums: ptr<function, Scores>, area: u32, n: u32) {
    let stride = SCORE_PITCH;
    let upper = area * SCORE_PITCH + n * (SIZE / UNIT);
    let lower = upper + SIZE * SCORE_PITCH;
    let a = (*sums)[n];
    let b = (*sums)[4u + n];
    coopStoreT(a, &scores[upper], stride);
    coopStoreT(b, &scores[lower], stride);
}

// Adds the values of SIZE keys from `base` of the tile on, matrix d of their columns.
fn multiply_value(sums: ptr<function, Sums>, a: Left, b: Left, base: u32, d: u32) {
    let stride = PITCH;
    let at = base * PITCH + d * (SIZE / UNIT);
    let c = coopLoadT<Right>(&values[at], stride);
    (*sums)[d] = coopMultiplyAdd(a, c, (*sums)[d]);
    (*sums)[8u + d] = coopMultiplyAdd(b, c, (*sums)[8u + d]);
}

// Those of matrix n of a block.
fn multiply_values(sums: ptr<function, Sums>, area: u32, block: u32, n: u32) {
    let stride = WEIGHT_PITCH;
    let base = block + n * SIZE;
    let upper = area * WEIGHT_PITCH + n * (SIZE / UNIT);
    let lower = upper + SIZE * WEIGHT_PITCH;
    let a = coopLoadT<Left>(&weights[upper], stride);
    let b = coopLoadT<Left>(&weights[lower], stride);
    multiply_value(sums, a, b, base, 0u);
    if DEPTH > 1u {
        multiply_value(sums, a, b, base, 1u);
    }
    if DEPTH > 2u {
        multiply_value(sums, a, b, base, 2u);
    }
    if DEPTH > 3u {
        multiply_value(sums, a, b, base, 3u);
    }
    if DEPTH > 4u {
        multiply_value(sums, a, b, base, 4u);
    }
    if DEPTH > 5u {
        multiply_value(sums, a, b, base, 5u);
    }
    if DEPTH > 6u {
        multiply_value(sums, a, b, base, 6u);
    }
    if DEPTH > 7u {
        multiply_value(sums, a, b, base, 7u);
    }
}

// Column i of BLOCK columns of the sums, those from matrix d on, to `scores` and back.
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
    for (var t = p.lane; t < ROWS * (BLOCK / 4u); t += p.lanes) {
        let r = p.area + t / (BLOCK / 4u);
        let at = r * SCORE_PITCH + t % (BLOCK / 4u) * FOUR;
        put_score(at, score(at) * kept(r).z);
    }
    subgroupBarrier();
    load_sum(sums, p.area, d, 0u);
    load_sum(sums, p.area, d, 1u);
    if SIZE == 8u {
        load_sum(sums, p.area, d, 2u);
        load_sum(sums, p.area, d, 3u);
    }
}

// Stores BLOCK columns of the result, the sums from matrix d on times what the rows keep last.
fn store(sums: ptr<function, Sums>, p: Place, q_at: u32, d: u32) {
    show_sums(sums, p.area, d);
    for (var t = p.lane; t < ROWS * (BLOCK / 4u); t += p.lanes) {
        let r = t / (BLOCK / 4u);
        let column = d * (SIZE / 4u) + t % (BLOCK / 4u);
        if p.row + r < params.tq && column < 2u * WIDTH {
            let s = score((p.area + r) * SCORE_PITCH + t % (BLOCK / 4u) * FOUR) * kept(p.area + r).z;
            y[(q_at + (p.row + r) * params.heads * WIDTH) * 2u + column] = vec4<f16>(s);
        }
    }
}

// A row of a block of scores in fours, times `scale`. Lanes that share banks take two fours the other way round: s0 belongs to
// the keys from 4 * `swap` on, s1 to the others of eight, and so on.
struct Row {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
    scale: f32,
}

fn take_row(r: u32, swap: u32, row: u32, first: u32, end: u32, mask_at: u32) -> Row {
    let even = r * SCORE_PITCH + swap * FOUR;
    let odd = r * SCORE_PITCH + (1u - swap) * FOUR;
    // Weights are powers of two. The scale is above 0, so that the largest score is the largest before it, too.
    var s = Row(
        score(even),
        score(odd),
        score(even + 2u * FOUR),
        score(odd + 2u * FOUR),
        score(even + 4u * FOUR),
        score(odd + 4u * FOUR),
        score(even + 6u * FOUR),
        score(odd + 6u * FOUR),
        params.scale * LOG2E,
    );
    if CAUSAL == 1u || MASK == 1u || first + BLOCK > end {
        let one = first + 4u * swap;
        let other = first + 4u * (1u - swap);
        s.s0 = masked_from(s.s0 * s.scale, LOG2E, row, one, end, mask_at);
        s.s1 = masked_from(s.s1 * s.scale, LOG2E, row, other, end, mask_at);
        s.s2 = masked_from(s.s2 * s.scale, LOG2E, row, one + 8u, end, mask_at);
        s.s3 = masked_from(s.s3 * s.scale, LOG2E, row, other + 8u, end, mask_at);
        s.s4 = masked_from(s.s4 * s.scale, LOG2E, row, one + 16u, end, mask_at);
        s.s5 = masked_from(s.s5 * s.scale, LOG2E, row, other + 16u, end, mask_at);
        s.s6 = masked_from(s.s6 * s.scale, LOG2E, row, one + 24u, end, mask_at);
        s.s7 = masked_from(s.s7 * s.scale, LOG2E, row, other + 24u, end, mask_at);
        s.scale = 1.0;
    }
    return s;
}

fn highest(s: Row) -> f32 {
    return s.scale * largest(max(max(max(s.s0, s.s1), max(s.s2, s.s3)), max(max(s.s4, s.s5), max(s.s6, s.s7))));
}

// Stores four weights and gives them before they are rounded: one that is beyond half precision must be seen.
fn weigh(at: u32, s: vec4<f32>, scale: f32, top: f32) -> vec4<f32> {
    let w = exp2(fma(s, vec4(scale), vec4(-top)));
    put_weights(at, vec4<f16>(w));
    return w;
}

// Stores the weights of a row relative to `top` and gives their sum.
fn weigh_row(s: Row, top: f32, r: u32, swap: u32) -> f32 {
    let even = r * WEIGHT_PITCH + swap * FOUR;
    let odd = r * WEIGHT_PITCH + (1u - swap) * FOUR;
    var sum = weigh(even, s.s0, s.scale, top);
    sum += weigh(odd, s.s1, s.scale, top);
    sum += weigh(even + 2u * FOUR, s.s2, s.scale, top);
    sum += weigh(odd + 2u * FOUR, s.s3, s.scale, top);
    sum += weigh(even + 4u * FOUR, s.s4, s.scale, top);
    sum += weigh(odd + 4u * FOUR, s.s5, s.scale, top);
    sum += weigh(even + 6u * FOUR, s.s6, s.scale, top);
    sum += weigh(odd + 6u * FOUR, s.s7, s.scale, top);
    return dot(sum, vec4(1.0));
}

// Makes the weights of a row of its scores; whether sums so far are to be rescaled.
fn soften(r: u32, row: u32, first: u32, end: u32, mask_at: u32) -> bool {
    // Rows in whose numbers these bits differ.
    let swap = ((r >> 2u) ^ (r >> 3u)) & 1u;
    let s = take_row(r, swap, row, first, end, mask_at);
    let before = kept(r);
    var top = before.x;
    // The first keys set a row's maximum: there is nothing to rescale yet.
    if first == 0u {
        top = max(top, highest(s));
    }
    var sum = weigh_row(s, top, r, swap);
    let grown = sum > MOST;
    if grown {
        // Read again, so that the scores need no registers until here.
        let again = take_row(r, swap, row, first, end, mask_at);
        top = max(top, highest(again));
        sum = weigh_row(again, top, r, swap);
    }
    let factor = exp2(before.x - top);
    keep(r, vec4(top, before.y * factor + sum, factor, select(0.0, 1.0, grown)));
    return grown;
}

// Adds a block of keys, which begins at `block` of the tile and at `first` of all.
fn attend(
    queries: ptr<function, Queries>,
    sums: ptr<function, Sums>,
    p: Place,
    block: u32,
    first: u32,
    end: u32,
    mask_at: u32,
) {
    var s = Scores();
    multiply_keys(queries, &s, block, 0u);
    if DEPTH > 1u {
        multiply_keys(queries, &s, block, 1u);
    }
    if DEPTH > 2u {
        multiply_keys(queries, &s, block, 2u);
    }
    if DEPTH > 3u {
        multiply_keys(queries, &s, block, 3u);
    }
    if DEPTH > 4u {
        multiply_keys(queries, &s, block, 4u);
    }
    if DEPTH > 5u {
        multiply_keys(queries, &s, block, 5u);
    }
    if DEPTH > 6u {
        multiply_keys(queries, &s, block, 6u);
    }
    if DEPTH > 7u {
        multiply_keys(queries, &s, block, 7u);
    }
    store_scores(&s, p.area, 0u);
    store_scores(&s, p.area, 1u);
    if SIZE == 8u {
        store_scores(&s, p.area, 2u);
        store_scores(&s, p.area, 3u);
    }
    // All have used the weights before, and the scores are there.
    subgroupBarrier();
    let last = params.tq - 1u;
    var grown = false;
    for (var i = 0u; i < TURNS; i++) {
        let r = p.lane + i * (ROWS / max(TURNS, 1u));
        grown = soften(p.area + r, min(p.row + r, last), first, end, mask_at) || grown;
    }
    if TURNS == 0u {
        for (var r = p.lane; r < ROWS; r += p.lanes) {
            grown = soften(p.area + r, min(p.row + r, last), first, end, mask_at) || grown;
        }
    }
    // The weights are there, and all have used the scores.
    subgroupBarrier();
    var any = subgroupAny(grown);
    if BALANCED == 1u {
        workgroupBarrier();
        for (var r = 0u; r < QUERIES; r++) {
            any = any || kept(r).w > 0.0;
        }
    }
    for (var turn = any; turn; turn = false) {
        rescale(sums, p, 0u);
        if 8u * EIGHTS > BLOCK {
            rescale(sums, p, BLOCK / SIZE);
        }
        subgroupBarrier();
    }
    multiply_values(sums, p.area, block, 0u);
    multiply_values(sums, p.area, block, 1u);
    if SIZE == 8u {
        multiply_values(sums, p.area, block, 2u);
        multiply_values(sums, p.area, block, 3u);
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
    let q_at = group.z * params.tq * row8 + group.y * WIDTH;
    let k_at = group.z * params.tk * row8 + group.y * WIDTH;
    let mask_at = group.z * params.mask_batch + group.y * params.mask_head;
    // A causal block sees nothing past its last query.
    let end = select(params.tk, min(params.tk, start + QUERIES), CAUSAL == 1u);

    for (var strip = 0u; strip < STRIPS; strip += subgroups) {
        let p = Place(subgroup * ROWS, start + (strip + subgroup) * ROWS, lane, lanes);
        var held_keys = hold_keys(index, 0u, k_at);
        var held_values = hold_values(index, 0u, k_at);
        for (var r = lane; r < ROWS; r += lanes) {
            // Zero keys have score 0 and add nothing but to the sum. Without them any score exceeds the first maximum.
            keep(p.area + r, vec4(select(-1e30 * LOG2E, 0.0, params.zero_keys > 0.0), params.zero_keys, 0.0, 0.0));
        }
        var queries = Queries();
        take_queries(&queries, p, q_at, 0u);
        if 8u * EIGHTS > BLOCK {
            take_queries(&queries, p, q_at, BLOCK / SIZE);
        }
        var sums = Sums();

        for (var first = 0u; first < end; first += KEYS) {
            // All have used the tiles before.
            workgroupBarrier();
            stage_keys(held_keys, index, first, k_at);
            stage_values(held_values, index, first, k_at);
            workgroupBarrier();
            held_keys = hold_keys(index, first + KEYS, k_at);
            held_values = hold_values(index, first + KEYS, k_at);
            for (var block = 0u; block < KEYS && first + block < end; block += BLOCK) {
                attend(&queries, &sums, p, block, first + block, end, mask_at);
            }
        }

        for (var r = lane; r < ROWS; r += lanes) {
            let sum = kept(p.area + r).y;
            keep(p.area + r, vec4(0.0, 0.0, select(0.0, 1.0 / sum, sum > 0.0), 0.0));
        }
        store(&sums, p, q_at, 0u);
        if 8u * EIGHTS > BLOCK {
            store(&sums, p, q_at, BLOCK / SIZE);
        }
        // All lanes have read what the next strip begins anew.
        subgroupBarrier();
    }
}
