// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 8.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide, a multiple of 8 too.
//   a: (G, M, K) as eights along K    b: (K, N) or (G, K, N) as eights along N, weights may be quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup computes ROWS x COLUMNS elements, see shared/cooperative_tile. Workgroups run along N in x, along M in y, over G
// in z. With gates, the first half of each subgroup's columns are values and the second half their gates.
// Feature `transposed`: b is (N, K) or (G, N, K) as eights along K, without gates.
// only permutation: coop16 f16
// only permutation: coop16 f16 packed
// only permutation: coop16 f16 w8
// only permutation: coop16 f16 w8 packed
// only permutation: coop16 f16 w4
// only permutation: coop16 f16 w4 packed
// only permutation: coop8 f16
// only permutation: coop8 f16 w8
// only permutation: coop8 f16 w4
// only permutation: split coop16 f16
// only permutation: split coop16 f16 packed
// only permutation: split coop16 f16 w8
// only permutation: split coop16 f16 w8 packed
// only permutation: split coop16 f16 w4
// only permutation: split coop16 f16 w4 packed
// only permutation: split coop8 f16
// only permutation: split coop8 f16 w8
// only permutation: split coop8 f16 w4
// only permutation: transposed coop16 f16
// only permutation: transposed coop16 f16 packed
// only permutation: transposed coop16 f16 w8
// only permutation: transposed coop16 f16 w8 packed
// only permutation: transposed coop16 f16 w4
// only permutation: transposed coop16 f16 w4 packed
// only permutation: transposed coop8 f16
// only permutation: transposed coop8 f16 w8
// only permutation: transposed coop8 f16 w4
// only permutation: split transposed coop16 f16
// only permutation: split transposed coop16 f16 packed
// only permutation: split transposed coop16 f16 w8
// only permutation: split transposed coop16 f16 w8 packed
// only permutation: split transposed coop16 f16 w4
// only permutation: split transposed coop16 f16 w4 packed
// only permutation: split transposed coop8 f16
// only permutation: split transposed coop8 f16 w8
// only permutation: split transposed coop8 f16 w4

import package::shared::cooperative_tile::{
    ACROSS, COLUMNS, Eight, INVOCATIONS, kept, LANES, LEFTCOPIES, LEFTDOWN, LEFTWIDTH, multiply, PARTIAL, RIGHTWIDTH, ROWS,
    SIZE, SPANCOLUMNS, SPANROWS, stage_left, stage_pair, staged, STEP, Sum, Sums,
};
import package::shared::cooperative_weight::{fetch_right, Place, put_rights};
import package::shared::matmul_tile::{extents, GATED, params, part, store, store_gated, width4};

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(1) var<storage, read> a: array<Eight>;

// An invocation's copies of a STEP of the left operand; more than four are read where they are needed.
struct Lefts {
    e0: Eight,
    e1: Eight,
    e2: Eight,
    e3: Eight,
}

// Where this invocation's copies begin: their rows, the last one again past the end, and their eight within a STEP.
fn left_rows(start: u32, row: u32, i: vec4<u32>) -> vec4<u32> {
    return vec4(start) + min(vec4(row) + i * LEFTDOWN, vec4(params.m - 1u)) * (params.k4 >> 1u);
}

// The eight of the inner axis that is read for `k8`: the last one again past the end.
fn left_column(k8: u32, end8: u32) -> u32 {
    return select(k8, min(k8, end8 - 1u), PARTIAL == 1u);
}

fn fetch_left(rows: vec4<u32>, k8: u32, end8: u32) -> Lefts {
    let column = left_column(k8, end8);
    var l: Lefts;
    l.e0 = a[rows.x + column];
    if LEFTCOPIES > 1u {
        l.e1 = a[rows.y + column];
    }
    if LEFTCOPIES > 2u {
        l.e2 = a[rows.z + column];
    }
    if LEFTCOPIES > 3u {
        l.e3 = a[rows.w + column];
    }
    return l;
}

// Copy i, zero past the inner axis.
fn put_left(index: u32, i: u32, e: Eight, within: bool) {
    if PARTIAL == 1u {
        stage_left(index, i, kept(e, within));
    } else {
        stage_left(index, i, e);
    }
}

fn put_lefts(l: Lefts, start: u32, row: u32, k8: u32, end8: u32, index: u32) {
    let within = k8 < end8;
    put_left(index, 0u, l.e0, within);
    if LEFTCOPIES > 1u {
        put_left(index, 1u, l.e1, within);
    }
    if LEFTCOPIES > 2u {
        put_left(index, 2u, l.e2, within);
    }
    if LEFTCOPIES > 3u {
        put_left(index, 3u, l.e3, within);
    }
    for (var i = 4u; i < LEFTCOPIES; i++) {
        put_left(index, i, a[left_rows(start, row, vec4(i)).x + left_column(k8, end8)], within);
    }
}

// The eight columns of b that an invocation copies. Past the last columns those of the last ones are computed again and not stored.
fn columns_of(column: u32, index: u32) -> u32 {
    let column8 = column * RIGHTWIDTH + index % RIGHTWIDTH;
    if GATED == 1u {
        let within = column8 % (SPANCOLUMNS / 8u);
        let value8 = column8 / (SPANCOLUMNS / 8u) * (SPANCOLUMNS / 16u) + within % (SPANCOLUMNS / 16u);
        return min(value8, width4() / 2u - 1u) + select(0u, width4() / 2u, within >= SPANCOLUMNS / 16u);
    }
    return min(column8, params.n4 / 2u - 1u);
}

// Where an invocation reads matrix g of b for the STEP that begins at `step`.
@if(transposed) fn place_of(g: u32, step: u32, end: u32, column: u32, index: u32) -> Place {
    let k8 = left_column(step / 8u + index % RIGHTWIDTH, end / 8u);
    return Place((g * params.b_batch4) >> 1u, 0u, column * COLUMNS + index / RIGHTWIDTH, 4u * params.n4, k8);
}
@else fn place_of(g: u32, step: u32, end: u32, column: u32, index: u32) -> Place {
    let row = step + index / RIGHTWIDTH;
    return Place((g * params.b_batch4) >> 1u, row, row, end, columns_of(column, index));
}

// The same for the STEP that begins at `step`, after the one before.
@if(transposed) fn further(p: Place, step: u32, end: u32, index: u32) -> Place {
    var next = p;
    next.column8 = left_column(step / 8u + index % RIGHTWIDTH, end / 8u);
    return next;
}
@else fn further(p: Place, step: u32, end: u32, index: u32) -> Place {
    var next = p;
    next.row += STEP;
    next.within += STEP;
    return next;
}

// Where two matrices of sums go: the first row and vec4 of columns, the batch, and who stores them.
struct Target {
    row: u32,
    column4: u32,
    g: u32,
    subgroup: u32,
    lane: u32,
}

// Stores matrix row i of a subgroup's sums: p and q lie side by side in the result or are values and their gates. `pair`
// counts such pairs.
fn finish(p: Sum, q: Sum, t: Target, i: u32, pair: u32) {
    stage_pair(p, q, t.subgroup);
    store_pair(t, i, pair);
}

// Stores what is staged of them.
fn store_pair(t: Target, i: u32, pair: u32) {
    let row = t.row + i * SIZE;
    if GATED == 1u {
        let column4 = t.column4 + pair * (SIZE / 4u);
        for (var at = t.lane; at < SIZE * SIZE / 4u; at += LANES) {
            let r = at / (SIZE / 4u);
            let c = at % (SIZE / 4u);
            store_gated(row + r, column4 + c, t.g, staged(t.subgroup, r, c), staged(t.subgroup, r, c + SIZE / 4u));
        }
    } else {
        let column4 = t.column4 + pair * (SIZE / 2u);
        for (var at = t.lane; at < SIZE * SIZE / 2u; at += LANES) {
            let r = at / (SIZE / 2u);
            let c = at % (SIZE / 2u);
            store(row + r, column4 + c, t.g, staged(t.subgroup, r, c));
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn matmul_cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let p = part(group.z);
    let g = p.g;
    // What this invocation copies.
    let row = group.y * ROWS + index / LEFTWIDTH;
    let start = (g * params.a_batch4) >> 1u;
    let rows = left_rows(start, row, vec4(0u, 1u, 2u, 3u));
    let k8 = index % LEFTWIDTH;
    let e = extents();
    // What this subgroup computes. Subgroups take invocations in order.
    let subgroup = index / LANES;
    let down = subgroup / ACROSS * SPANROWS;
    let across = subgroup % ACROSS * SPANCOLUMNS;
    var sums = Sums();
    let end = 4u * p.end4;
    var place = place_of(g, 4u * p.first4, end, group.x, index);
    var lefts = fetch_left(rows, p.first4 / 2u + k8, end / 8u);
    var rights = fetch_right(place, e);
    for (var step = 4u * p.first4; step < end; step += STEP) {
        // All have read the tiles.
        workgroupBarrier();
        put_lefts(lefts, start, row, step / 8u + k8, end / 8u, index);
        put_rights(rights, place, e, index);
        workgroupBarrier();
        place = further(place, step + STEP, end, index);
        if step + STEP < end {
            lefts = fetch_left(rows, step / 8u + LEFTWIDTH + k8, end / 8u);
            rights = fetch_right(place, e);
        }
        multiply(&sums, down, across);
    }
    let t = Target(group.y * ROWS + down, (group.x * COLUMNS + across) >> (2u + GATED), group.z, subgroup, index % LANES);
    if SPANCOLUMNS == 2u * SIZE {
        finish(sums[0], sums[1], t, 0u, 0u);
        finish(sums[4], sums[5], t, 1u, 0u);
        if SPANROWS > 2u * SIZE {
            finish(sums[8], sums[9], t, 2u, 0u);
            finish(sums[12], sums[13], t, 3u, 0u);
        }
    } else if GATED == 1u {
        finish(sums[0], sums[2], t, 0u, 0u);
        finish(sums[1], sums[3], t, 0u, 1u);
        finish(sums[4], sums[6], t, 1u, 0u);
        finish(sums[5], sums[7], t, 1u, 1u);
        if SPANROWS > 2u * SIZE {
            finish(sums[8], sums[10], t, 2u, 0u);
            finish(sums[9], sums[11], t, 2u, 1u);
            finish(sums[12], sums[14], t, 3u, 0u);
            finish(sums[13], sums[15], t, 3u, 1u);
        }
    } else {
        finish(sums[0], sums[1], t, 0u, 0u);
        finish(sums[2], sums[3], t, 0u, 1u);
        finish(sums[4], sums[5], t, 1u, 0u);
        finish(sums[6], sums[7], t, 1u, 1u);
        if SPANROWS > 2u * SIZE {
            finish(sums[8], sums[9], t, 2u, 0u);
            finish(sums[10], sums[11], t, 2u, 1u);
            finish(sums[12], sums[13], t, 3u, 0u);
            finish(sums[14], sums[15], t, 3u, 1u);
        }
    }
}
