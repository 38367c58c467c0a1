// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup computes ROWS x 4 WIDTH elements, see shared/workgroup_tile. Workgroups run along N in x, along M in y, over G in
// z, with feature `split` over parts of K, too. With gates, each invocation's first four columns are values and its second four their gates.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4
// permutation: split
// permutation: split f16
// permutation: split w16
// permutation: split w8
// permutation: split w4
// permutation: split f16 w8
// permutation: split f16 w4

import package::shared::matmul_tile::{
    a, extents, GATED, params, part, pitch, row_at, store_at, store_gated_at, width4,
};
import package::shared::workgroup_tile::{
    ACROSS, DOWN, fetch_right, following, LEFTCOPIES, LEFTDOWN, Lefts, multiply, pair, PARTIAL, place_right, put, ROWS, STEP4, Sums,
    WIDTH,
};

@if(f16) enable f16;

// Where row `row` of a begins. Rows past the end read the last one again and are not stored.
fn row_start(g: u32, row: u32) -> u32 {
    return g * params.a_batch4 + min(row, params.m - 1u) * params.k4;
}

// An invocation's copies from vec4 k4 of the rows that begin at these places; none counts from vec4 `end4` on.
fn fetch_left(starts: vec4<u32>, k4: u32, end4: u32) -> Lefts {
    var l: Lefts;
    var at = k4;
    l.keep = vec4(true);
    if PARTIAL == 1u {
        at = min(k4, end4 - 1u);
        l.keep = vec4(k4 < end4);
    }
    l.x0 = a[starts.x + at];
    if LEFTCOPIES > 1u {
        l.x1 = a[starts.y + at];
    }
    if LEFTCOPIES > 2u {
        l.x2 = a[starts.z + at];
        l.x3 = a[starts.w + at];
    }
    return l;
}

@compute @workgroup_size(ACROSS, DOWN)
fn matmul_workgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let p = part(group.z);
    let g = p.g;
    let first = group.y * ROWS;
    // What this invocation copies.
    let row = first + index / STEP4;
    let starts = vec4(
        row_start(g, row),
        row_start(g, row + LEFTDOWN),
        row_start(g, row + 2u * LEFTDOWN),
        row_start(g, row + 3u * LEFTDOWN),
    );
    let own = index % STEP4;
    let position = index % WIDTH;
    var column4 = group.x * WIDTH + position;
    if GATED == 1u {
        // Values past the last one, which are not stored, are gates.
        column4 = group.x * ACROSS + position % ACROSS + position / ACROSS * width4();
    }
    let e = extents();
    let place = place_right(g * params.b_batch4, index, min(column4, params.n4 - 1u), 4u * p.end4, e);
    var sums = Sums();
    var lefts = fetch_left(starts, p.first4 + own, p.end4);
    var rights = fetch_right(place, 4u * p.first4, e);
    for (var step = p.first4; step < p.end4; step += STEP4) {
        put(index, lefts, rights, place.row);
        let after = following(step, p.end4);
        lefts = fetch_left(starts, after + own, p.end4);
        rights = fetch_right(place, 4u * after, e);
        multiply(&sums, lane, step);
    }
    let across = group.x * select(WIDTH, ACROSS, GATED == 1u) + lane.x;
    let within = lane.y * pitch() + across;
    if GATED == 1u {
        // Counted from what is no constant, so that no driver writes the loop with its gates out.
        for (var down = first; down < first + ROWS; down += DOWN) {
            let sum = pair(&sums, (down - first) / DOWN);
            store_gated_at(down + lane.y, across, row_at(down, group.z) + within, sum.low, sum.high);
        }
    } else {
        for (var i = 0u; i < ROWS / DOWN; i++) {
            let sum = pair(&sums, i);
            let down = first + i * DOWN;
            let at = row_at(down, group.z) + within;
            store_at(down + lane.y, across, at, sum.low);
            store_at(down + lane.y, across + ACROSS, at + ACROSS, sum.high);
        }
    }
}
