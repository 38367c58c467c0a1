// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 8.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide, a multiple of 8 too.
//   a: (G, M, K) as eights along K    b: (K, N) or (G, K, N) as eights along N, weights may be quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup computes ROWS x COLUMNS elements, see shared/cooperative_tile. Workgroups run along N in x, along M in y, over G
// in z. With gates, the first half of each subgroup's columns are values and the second half their gates.
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

import package::shared::cooperative_tile::{
    ACROSS, COLUMNS, Eight, INVOCATIONS, LANES, LEFTCOPIES, LEFTDOWN, LEFTWIDTH, multiply, RIGHTWIDTH, ROWS, SIZE,
    SPANCOLUMNS, SPANROWS, stage_left, stage_pair, staged, STEP, Sum, Sums,
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

// Copy i of the eight at `k8` of `row`, which lies at `start`; zero past the rows and from vec4 `end4`.
fn left(start: u32, row: u32, k8: u32, i: u32, end4: u32) -> Eight {
    var e = Eight();
    if row + i * LEFTDOWN < params.m && 2u * k8 < end4 {
        e = a[start + i * LEFTDOWN * (params.k4 >> 1u) + k8];
    }
    return e;
}

fn fetch_left(start: u32, row: u32, k8: u32, end4: u32) -> Lefts {
    var l: Lefts;
    l.e0 = left(start, row, k8, 0u, end4);
    if LEFTCOPIES > 1u {
        l.e1 = left(start, row, k8, 1u, end4);
    }
    if LEFTCOPIES > 2u {
        l.e2 = left(start, row, k8, 2u, end4);
    }
    if LEFTCOPIES > 3u {
        l.e3 = left(start, row, k8, 3u, end4);
    }
    return l;
}

fn put_lefts(l: Lefts, start: u32, row: u32, k8: u32, index: u32, end4: u32) {
    stage_left(index, 0u, l.e0);
    if LEFTCOPIES > 1u {
        stage_left(index, 1u, l.e1);
    }
    if LEFTCOPIES > 2u {
        stage_left(index, 2u, l.e2);
    }
    if LEFTCOPIES > 3u {
        stage_left(index, 3u, l.e3);
    }
    for (var i = 4u; i < LEFTCOPIES; i++) {
        stage_left(index, i, left(start, row, k8, i, end4));
    }
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
    let start = (g * params.a_batch4 + row * params.k4) >> 1u;
    let k8 = index % LEFTWIDTH;
    var column8 = group.x * RIGHTWIDTH + index % RIGHTWIDTH;
    if GATED == 1u {
        let within = column8 % (SPANCOLUMNS / 8u);
        column8 = column8 / (SPANCOLUMNS / 8u) * (SPANCOLUMNS / 16u) + within % (SPANCOLUMNS / 16u);
        // Values past the last one would be gates.
        column8 = select(params.n4, column8, 2u * column8 < width4()) + select(0u, width4() / 2u, within >= SPANCOLUMNS / 16u);
    }
    let e = extents();
    let k_row = index / RIGHTWIDTH;
    // What this subgroup computes. Subgroups take invocations in order.
    let subgroup = index / LANES;
    let down = subgroup / ACROSS * SPANROWS;
    let across = subgroup % ACROSS * SPANCOLUMNS;
    var sums = Sums();
    var place = Place((g * params.b_batch4) >> 1u, 4u * p.first4 + k_row, 4u * p.first4 + k_row, 4u * p.end4, column8);
    var lefts = fetch_left(start, row, p.first4 / 2u + k8, p.end4);
    var rights = fetch_right(place, e);
    for (var step = 4u * p.first4; step < 4u * p.end4; step += STEP) {
        // All have read the tiles.
        workgroupBarrier();
        put_lefts(lefts, start, row, step / 8u + k8, index, p.end4);
        put_rights(rights, place, e, index);
        workgroupBarrier();
        place.row += STEP;
        place.within += STEP;
        lefts = fetch_left(start, row, step / 8u + LEFTWIDTH + k8, p.end4);
        rights = fetch_right(place, e);
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
