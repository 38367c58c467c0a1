// y[b, i, h, d] = sum_j p[j] v[b, j, h, d] with p = softmax over j of scale * q[b, i, h] . k[b, j, h] + mask[b, h, i, j].
//   q, y: (B, TQ, H, D)     k, v: (B, TK, H, D)     mask: (B or 1, H or 1, TQ, TK)     D in vec4, at most 16
// Flash attention in workgroup memory. 8 x 8 invocations take ROWS queries of one head, whose sums stay in their registers while they run
// over the keys, KEYS at a time: each computes the scores of 4 (with TALL 8) rows, 8 apart, against 4 keys, 8 apart, then 8 columns of
// these rows' sums, in two vec4s, 8 apart. A CHUNK of all queries and keys is in workgroup memory at a time, then a half of the
// values; what comes next is read from storage before the arithmetic, outside of all branches that depend on the invocation.
// Every invocation keeps the maxima of its rows, which it finds from those of the 8 that share them, and its own part of
// the weights' sums. The last keys are read again where TK is no multiple of KEYS, and those seen before get weight 0, as
// excluded ones do; queries past the end read the last one again and are not stored.
// Workgroups run along the queries in x, heads in y, the batch in z.
// permutation: f16
// permutation: f16 wide

import package::shared::attention::{CAUSAL, k, largest, LOG2E, MASK, masked, params, q, v, y};
import package::shared::product::add_products;
import package::shared::storage::elem;

@if(f16) enable f16;

// D in vec4.
override WIDTH: u32 = 16u;
override TALL: u32 = 0u;
// 1: there are fewer keys than KEYS.
override FEW: u32 = 1u;

const KEYS: u32 = 32u;
// Vec4s of D in workgroup memory at a time.
const CHUNK: u32 = 4u;

override ROWS: u32 = 32u + 32u * TALL;
override CHUNKS: u32 = (WIDTH + 3u) / CHUNK;
// Vec4s of an invocation's columns, and of a row of values.
override COLUMNS: u32 = (WIDTH + 7u) / 8u;
override PITCH: u32 = 8u * COLUMNS;
// Keys between an invocation's copies of values.
override APART: u32 = 16u / COLUMNS;

// Where keys begin behind queries, and maxima behind values, which take the queries' place.
override KEYS_AT: u32 = ROWS * CHUNK;
const MAXIMA_AT: u32 = 256u;
// naga takes a name for the length of an array, no expression.
override TILECELLS: u32 = 320u + 64u * TALL;
override WEIGHTCELLS: u32 = ROWS * 8u;
var<workgroup> tile: array<vec4<f32>, TILECELLS>;
// Weights of a row: vec4 x holds those of keys x, x + 8, x + 16 and x + 24.
var<workgroup> weights: array<vec4<f32>, WEIGHTCELLS>;

// Row i's scores against four keys.
alias Scores = array<vec4<f32>, 8>;
// Rows of eight columns: row i is vec4s 2i and 2i + 1.
alias Sums = array<vec4<f32>, 16>;

// Of rows 0 to 3 and 4 to 7.
struct Rows {
    low: vec4<f32>,
    high: vec4<f32>,
}

// Where an invocation stands: its place of the 8 x 8, and of its first row of queries.
struct Lane {
    x: u32,
    y: u32,
    row: u32,
}

// An invocation's copies of a CHUNK, as stored.
struct Chunk {
    q0: vec4<elem>,
    q1: vec4<elem>,
    q2: vec4<elem>,
    q3: vec4<elem>,
    k0: vec4<elem>,
    k1: vec4<elem>,
}

// Those of half of the values.
struct Values {
    v0: vec4<elem>,
    v1: vec4<elem>,
    v2: vec4<elem>,
    v3: vec4<elem>,
}

// Where an invocation's copies begin: of its rows of queries, of keys and of values. `lane` is its number.
struct Sources {
    queries: vec4<u32>,
    keys: vec2<u32>,
    values: u32,
    lane: u32,
    // From a key to the next.
    step: u32,
}

// Vec4 `own` of a chunk; the last one again past the width.
fn column(chunk: u32, own: u32) -> u32 {
    if WIDTH % CHUNK == 0u {
        return chunk * CHUNK + own;
    }
    return min(chunk * CHUNK + own, WIDTH - 1u);
}

// Chunk `chunk` of the queries and of the keys from `first` on.
fn fetch(s: Sources, chunk: u32, first: u32) -> Chunk {
    let at = column(chunk, s.lane % CHUNK);
    let below = first * s.step + at;
    var c: Chunk;
    c.q0 = q[s.queries.x + at];
    c.q1 = q[s.queries.y + at];
    if TALL == 1u {
        c.q2 = q[s.queries.z + at];
        c.q3 = q[s.queries.w + at];
    }
    c.k0 = k[s.keys.x + below];
    c.k1 = k[s.keys.y + below];
    return c;
}

// Rows that are read at the same time, and cover the banks once without this, begin at different places.
fn swizzle(row: u32) -> u32 {
    return (row >> 1u) % CHUNK;
}

fn put_query(s: Sources, i: u32, x: vec4<elem>, keep: bool) {
    let row = s.lane / CHUNK + 16u * i;
    tile[row * CHUNK + ((s.lane % CHUNK) ^ swizzle(row))] = select(vec4<f32>(), vec4<f32>(x), keep);
}

fn put_key(s: Sources, i: u32, x: vec4<elem>) {
    let row = s.lane / CHUNK + 16u * i;
    tile[KEYS_AT + row * CHUNK + ((s.lane % CHUNK) ^ swizzle(row))] = vec4<f32>(x);
}

fn put(s: Sources, c: Chunk, chunk: u32) {
    let keep = WIDTH % CHUNK == 0u || chunk * CHUNK + s.lane % CHUNK < WIDTH;
    put_query(s, 0u, c.q0, keep);
    put_query(s, 1u, c.q1, keep);
    if TALL == 1u {
        put_query(s, 2u, c.q2, keep);
        put_query(s, 3u, c.q3, keep);
    }
    put_key(s, 0u, c.k0);
    put_key(s, 1u, c.k1);
}

// Half of the values: of the keys from `first` on, those that are 4 half .. 4 half + 3 modulo 8.
fn value(s: Sources, i: u32, first: u32, half: u32) -> vec4<elem> {
    let down = 4u * half + APART * i;
    if FEW == 1u {
        let slot = s.lane / PITCH;
        let row = slot % 4u + slot / 4u * 8u + down;
        return v[s.values + min(row, params.tk - 1u) * s.step];
    }
    return v[s.values + (first + down) * s.step];
}

fn fetch_values(s: Sources, first: u32, half: u32) -> Values {
    var c: Values;
    c.v0 = value(s, 0u, first, half);
    c.v1 = value(s, 1u, first, half);
    if COLUMNS > 1u {
        c.v2 = value(s, 2u, first, half);
        c.v3 = value(s, 3u, first, half);
    }
    return c;
}

fn put_values(s: Sources, c: Values) {
    tile[s.lane] = vec4<f32>(c.v0);
    tile[s.lane + 64u] = vec4<f32>(c.v1);
    if COLUMNS > 1u {
        tile[s.lane + 128u] = vec4<f32>(c.v2);
        tile[s.lane + 192u] = vec4<f32>(c.v3);
    }
}

// Adds a CHUNK to an invocation's scores. Counted from what is no constant, so that no compiler writes the loop out.
fn multiply(scores: ptr<function, Scores>, l: Lane, first: u32) {
    let q_own = l.y * CHUNK + swizzle(l.y);
    let k_own = KEYS_AT + l.x * CHUNK + swizzle(l.x);
    for (var step = first; step < first + CHUNK; step++) {
        let i = step - first;
        let own = q_own ^ i;
        let z0 = tile[k_own ^ i];
        let z1 = tile[(k_own ^ i) + 8u * CHUNK];
        let z2 = tile[(k_own ^ i) + 16u * CHUNK];
        let z3 = tile[(k_own ^ i) + 24u * CHUNK];
        let b0 = vec4(z0.x, z1.x, z2.x, z3.x);
        let b1 = vec4(z0.y, z1.y, z2.y, z3.y);
        let b2 = vec4(z0.z, z1.z, z2.z, z3.z);
        let b3 = vec4(z0.w, z1.w, z2.w, z3.w);
        (*scores)[0] = add_products((*scores)[0], tile[own], b0, b1, b2, b3);
        (*scores)[1] = add_products((*scores)[1], tile[own + 8u * CHUNK], b0, b1, b2, b3);
        (*scores)[2] = add_products((*scores)[2], tile[own + 16u * CHUNK], b0, b1, b2, b3);
        (*scores)[3] = add_products((*scores)[3], tile[own + 24u * CHUNK], b0, b1, b2, b3);
        if TALL == 1u {
            (*scores)[4] = add_products((*scores)[4], tile[own + 32u * CHUNK], b0, b1, b2, b3);
            (*scores)[5] = add_products((*scores)[5], tile[own + 40u * CHUNK], b0, b1, b2, b3);
            (*scores)[6] = add_products((*scores)[6], tile[own + 48u * CHUNK], b0, b1, b2, b3);
            (*scores)[7] = add_products((*scores)[7], tile[own + 56u * CHUNK], b0, b1, b2, b3);
        }
    }
}

// Scores of row i, in powers of two: those of the keys j, j + 8, j + 16 and j + 24, of which the ones before `first` were seen.
fn scaled(s: vec4<f32>, l: Lane, i: u32, j: u32, first: u32, end: u32, mask_at: u32) -> vec4<f32> {
    var t = s * (params.scale * LOG2E);
    if CAUSAL == 0u && MASK == 0u && j - l.x == first && first + KEYS <= end {
        return t;
    }
    let row = min(l.row + 8u * i, params.tq - 1u);
    let key = j + vec4(0u, 8u, 16u, 24u);
    return masked(t, LOG2E, row, key, (key < vec4(end)) & (key >= vec4(first)), mask_at);
}

fn added(s: vec4<f32>) -> f32 {
    return (s.x + s.y) + (s.z + s.w);
}

// Finishes the scores and gives the largest of each row.
fn finish_scores(s: ptr<function, Scores>, l: Lane, j: u32, first: u32, end: u32, mask_at: u32) -> Rows {
    (*s)[0] = scaled((*s)[0], l, 0u, j, first, end, mask_at);
    (*s)[1] = scaled((*s)[1], l, 1u, j, first, end, mask_at);
    (*s)[2] = scaled((*s)[2], l, 2u, j, first, end, mask_at);
    (*s)[3] = scaled((*s)[3], l, 3u, j, first, end, mask_at);
    var high = Rows(vec4(largest((*s)[0]), largest((*s)[1]), largest((*s)[2]), largest((*s)[3])), vec4(0.0));
    if TALL == 1u {
        (*s)[4] = scaled((*s)[4], l, 4u, j, first, end, mask_at);
        (*s)[5] = scaled((*s)[5], l, 5u, j, first, end, mask_at);
        (*s)[6] = scaled((*s)[6], l, 6u, j, first, end, mask_at);
        (*s)[7] = scaled((*s)[7], l, 7u, j, first, end, mask_at);
        high.high = vec4(largest((*s)[4]), largest((*s)[5]), largest((*s)[6]), largest((*s)[7]));
    }
    return high;
}

// What an invocation tells those that share its rows.
fn tell(lane: u32, r: Rows) {
    tile[MAXIMA_AT + lane * (1u + TALL)] = r.low;
    if TALL == 1u {
        tile[MAXIMA_AT + lane * 2u + 1u] = r.high;
    }
}

// What number a of these told, in an order that spreads reads over the banks.
fn told(l: Lane, a: u32) -> Rows {
    let at = MAXIMA_AT + (l.y * 8u + ((a + l.y) & 7u)) * (1u + TALL);
    var r = Rows(tile[at], vec4(0.0));
    if TALL == 1u {
        r.high = tile[at + 1u];
    }
    return r;
}

fn larger(r: Rows, s: Rows) -> Rows {
    return Rows(max(r.low, s.low), max(r.high, s.high));
}

fn sum(r: Rows, s: Rows) -> Rows {
    return Rows(r.low + s.low, r.high + s.high);
}

// Stores the weights of row i, gives their sum, and rescales the row's sums.
fn weigh(
    scores: ptr<function, Scores>,
    sums: ptr<function, Sums>,
    l: Lane,
    i: u32,
    top: f32,
    factor: f32,
) -> f32 {
    let p = exp2((*scores)[i] - top);
    weights[(l.y + 8u * i) * 8u + (l.x ^ l.y)] = p;
    (*sums)[2u * i] *= factor;
    if COLUMNS > 1u {
        (*sums)[2u * i + 1u] *= factor;
    }
    return added(p);
}

// Adds a half of the values, of which four keys lie behind each vec4 of weights.
fn add_values(sums: ptr<function, Sums>, l: Lane, half: u32, first: u32) {
    for (var step = first; step < first + 4u; step++) {
        let i = step - first;
        let at = i * PITCH + l.x;
        let own = l.y * 8u + ((4u * half + i) ^ l.y);
        let b0 = tile[at];
        let b1 = tile[at + 4u * PITCH];
        let b2 = tile[at + 8u * PITCH];
        let b3 = tile[at + 12u * PITCH];
        var c0 = vec4<f32>();
        var c1 = vec4<f32>();
        var c2 = vec4<f32>();
        var c3 = vec4<f32>();
        if COLUMNS > 1u {
            c0 = tile[at + 8u];
            c1 = tile[at + 4u * PITCH + 8u];
            c2 = tile[at + 8u * PITCH + 8u];
            c3 = tile[at + 12u * PITCH + 8u];
        }
        let p0 = weights[own];
        let p1 = weights[own + 64u];
        let p2 = weights[own + 128u];
        let p3 = weights[own + 192u];
        (*sums)[0] = add_products((*sums)[0], p0, b0, b1, b2, b3);
        (*sums)[2] = add_products((*sums)[2], p1, b0, b1, b2, b3);
        (*sums)[4] = add_products((*sums)[4], p2, b0, b1, b2, b3);
        (*sums)[6] = add_products((*sums)[6], p3, b0, b1, b2, b3);
        if COLUMNS > 1u {
            (*sums)[1] = add_products((*sums)[1], p0, c0, c1, c2, c3);
            (*sums)[3] = add_products((*sums)[3], p1, c0, c1, c2, c3);
            (*sums)[5] = add_products((*sums)[5], p2, c0, c1, c2, c3);
            (*sums)[7] = add_products((*sums)[7], p3, c0, c1, c2, c3);
        }
        if TALL == 1u {
            let p4 = weights[own + 256u];
            let p5 = weights[own + 320u];
            let p6 = weights[own + 384u];
            let p7 = weights[own + 448u];
            (*sums)[8] = add_products((*sums)[8], p4, b0, b1, b2, b3);
            (*sums)[10] = add_products((*sums)[10], p5, b0, b1, b2, b3);
            (*sums)[12] = add_products((*sums)[12], p6, b0, b1, b2, b3);
            (*sums)[14] = add_products((*sums)[14], p7, b0, b1, b2, b3);
            if COLUMNS > 1u {
                (*sums)[9] = add_products((*sums)[9], p4, c0, c1, c2, c3);
                (*sums)[11] = add_products((*sums)[11], p5, c0, c1, c2, c3);
                (*sums)[13] = add_products((*sums)[13], p6, c0, c1, c2, c3);
                (*sums)[15] = add_products((*sums)[15], p7, c0, c1, c2, c3);
            }
        }
    }
}

// Stores row i of the sums, whose weights add up to `total`.
fn store(sums: ptr<function, Sums>, l: Lane, i: u32, at: u32, total: f32) {
    if l.row + 8u * i < params.tq {
        let scale = select(0.0, 1.0 / total, total > 0.0);
        if l.x < WIDTH {
            y[at] = vec4<elem>((*sums)[2u * i] * scale);
        }
        if COLUMNS > 1u && l.x + 8u < WIDTH {
            y[at + 8u] = vec4<elem>((*sums)[2u * i + 1u] * scale);
        }
    }
}

@compute @workgroup_size(64)
fn attention_workgroup_tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row4 = params.heads * WIDTH;
    let start = group.x * ROWS;
    let l = Lane(lane % 8u, lane / 8u, start + lane / 8u);
    let last = params.tq - 1u;
    let q_at = group.z * params.tq * row4 + group.y * WIDTH;
    let k_at = group.z * params.tk * row4 + group.y * WIDTH;
    let mask_at = group.z * params.mask_batch + group.y * params.mask_head;
    // A causal block sees nothing past its last query.
    let end = select(params.tk, min(params.tk, start + ROWS), CAUSAL == 1u);
    // Where the last KEYS begin.
    let final_first = max(params.tk, KEYS) - KEYS;

    let copied = lane / CHUNK;
    let rows = min(vec4(start + copied) + vec4(0u, 16u, 32u, 48u), vec4(last));
    let keys = min(vec2(copied, copied + 16u), vec2(params.tk - 1u));
    let slot = lane / PITCH;
    let value_row = select(slot % 4u + slot / 4u * 8u, 0u, FEW == 1u);
    let values_at = k_at + value_row * row4 + min(lane % PITCH, WIDTH - 1u);
    let s = Sources(vec4(q_at) + rows * row4, vec2(k_at) + keys * row4, values_at, lane, row4);

    // Zero keys have score 0 and add nothing but to the sum. Without them any score exceeds the first maximum.
    let lowest = select(-1e30 * LOG2E, 0.0, params.zero_keys > 0.0);
    var top = Rows(vec4(lowest), vec4(lowest));
    let seen = select(0.0, params.zero_keys, l.x == 0u);
    var weight = Rows(vec4(seen), vec4(seen));
    var sums = Sums();
    var chunk = fetch(s, 0u, 0u);
    for (var first = 0u; first < end; first += KEYS) {
        let base = min(first, final_first);
        var scores = Scores();
        for (var c = 0u; c < CHUNKS; c++) {
            // All have used what was there.
            workgroupBarrier();
            put(s, chunk, c);
            workgroupBarrier();
            let done = c + 1u == CHUNKS;
            chunk = fetch(s, select(c + 1u, 0u, done), select(base, min(first + KEYS, final_first), done));
            multiply(&scores, l, first);
        }
        var values = fetch_values(s, base, 0u);
        let high = finish_scores(&scores, l, base + l.x, first, end, mask_at);
        workgroupBarrier();
        tell(lane, high);
        workgroupBarrier();
        let before = top;
        top = larger(top, larger(larger(told(l, 0u), told(l, 1u)), larger(told(l, 2u), told(l, 3u))));
        top = larger(top, larger(larger(told(l, 4u), told(l, 5u)), larger(told(l, 6u), told(l, 7u))));
        let factor = Rows(exp2(before.low - top.low), exp2(before.high - top.high));
        var part = Rows();
        part.low.x = weigh(&scores, &sums, l, 0u, top.low.x, factor.low.x);
        part.low.y = weigh(&scores, &sums, l, 1u, top.low.y, factor.low.y);
        part.low.z = weigh(&scores, &sums, l, 2u, top.low.z, factor.low.z);
        part.low.w = weigh(&scores, &sums, l, 3u, top.low.w, factor.low.w);
        if TALL == 1u {
            part.high.x = weigh(&scores, &sums, l, 4u, top.high.x, factor.high.x);
            part.high.y = weigh(&scores, &sums, l, 5u, top.high.y, factor.high.y);
            part.high.z = weigh(&scores, &sums, l, 6u, top.high.z, factor.high.z);
            part.high.w = weigh(&scores, &sums, l, 7u, top.high.w, factor.high.w);
        }
        weight = Rows(fma(weight.low, factor.low, part.low), fma(weight.high, factor.high, part.high));
        put_values(s, values);
        workgroupBarrier();
        values = fetch_values(s, base, 1u);
        add_values(&sums, l, 0u, first);
        workgroupBarrier();
        put_values(s, values);
        workgroupBarrier();
        add_values(&sums, l, 1u, first);
    }

    workgroupBarrier();
    tell(lane, weight);
    workgroupBarrier();
    var total = sum(sum(told(l, 0u), told(l, 1u)), sum(told(l, 2u), told(l, 3u)));
    total = sum(total, sum(sum(told(l, 4u), told(l, 5u)), sum(told(l, 6u), told(l, 7u))));
    let at = q_at + l.row * row4 + l.x;
    store(&sums, l, 0u, at, total.low.x);
    store(&sums, l, 1u, at + 8u * row4, total.low.y);
    store(&sums, l, 2u, at + 16u * row4, total.low.z);
    store(&sums, l, 3u, at + 24u * row4, total.low.w);
    if TALL == 1u {
        store(&sums, l, 4u, at + 32u * row4, total.high.x);
        store(&sums, l, 5u, at + 40u * row4, total.high.y);
        store(&sums, l, 6u, at + 48u * row4, total.high.z);
        store(&sums, l, 7u, at + 56u * row4, total.high.w);
    }
}
