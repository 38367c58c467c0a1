// y[g, m, n] = f(alpha * sum_k a[g, m, k] * b[g, k, n] + bias[n]) + residual[g, m, n], K and N multiples of 4.
// With GATED, [v, w] = alpha * a b + bias along N and y = v * f(w) + residual, N / 2 wide; N is then a multiple of 8.
//   a: (G, M, K) as vec4 along K      b: (K, N) or (G, K, N) as vec4 along N, weights may be packed halves or quantised blocks
//   bias: (N) f32                     residual, y: (G, M, N) as vec4 along N
// A workgroup computes ROWS x 4 WIDTH elements, see shared/workgroup_tile. Workgroups run along N in x, along M in y, over G in
// z, with feature `split` over parts of K, too. With gates, each invocation's first four columns are values and its second four their gates.
// Feature `transposed`: b is (N, K) or (G, N, K) as vec4 along K, without gates. Feature `left_transposed`: a is (G, K, M) as vec4
// along M, a multiple of 4, without gates.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4
// permutation: transposed
// permutation: transposed f16
// permutation: transposed w16
// permutation: transposed w8
// permutation: transposed w4
// permutation: transposed f16 w8
// permutation: transposed f16 w4
// permutation: left_transposed
// permutation: left_transposed f16
// permutation: left_transposed w16
// permutation: split
// permutation: split f16
// permutation: split w16
// permutation: split w8
// permutation: split w4
// permutation: split f16 w8
// permutation: split f16 w4
// permutation: split transposed
// permutation: split transposed f16
// permutation: split transposed w16
// permutation: split transposed w8
// permutation: split transposed w4
// permutation: split transposed f16 w8
// permutation: split transposed f16 w4
// permutation: split left_transposed
// permutation: split left_transposed f16
// permutation: split left_transposed w16

import package::shared::matmul_tile::{
    a, extents, GATED, params, part, pitch, row_at, store_at, store_gated_at, width4,
};
import package::shared::weight::Extents;
import package::shared::workgroup_tile::{
    ACROSS, DOWN, fetch_columns, fetch_right, following, LEFTCOPIES, LEFTDOWN, Lefts, multiply, own_row, pair, PARTIAL, Place, place_right,
    position, put, Rights, row_of, ROWS, ROWS4, STEP4, Sums, WIDTH,
};

@if(f16) enable f16;

// Where an invocation reads a: where the row of each of its copies begins, and its vec4 of a STEP; where a is transposed its column, and
// its first row of a STEP.
@if(left_transposed) struct Start {
    at: u32,
    own: u32,
}
@else struct Start {
    at: vec4<u32>,
    own: u32,
}

// Where row `row` of a begins. Rows past the end read the last one again and are not stored.
@if(!left_transposed) fn row_start(g: u32, row: u32) -> u32 {
    return g * params.a_batch4 + min(row, params.m - 1u) * params.k4;
}

// The place of invocation `index`, for the tile that begins with row `first`.
@if(left_transposed) fn start(g: u32, first: u32, index: u32) -> Start {
    let own = index / ROWS4;
    let m4 = min(first / 4u + index % ROWS4, params.m / 4u - 1u);
    return Start(g * params.a_batch4 + m4, own);
}
@else fn start(g: u32, first: u32, index: u32) -> Start {
    let row = first + index / STEP4;
    let at = vec4(
        row_start(g, row),
        row_start(g, row + LEFTDOWN),
        row_start(g, row + 2u * LEFTDOWN),
        row_start(g, row + 3u * LEFTDOWN),
    );
    return Start(at, index % STEP4);
}

// An invocation's copies of a for the STEP that begins with vec4 `step`; none counts from vec4 `end4` on.
@if(left_transposed) fn fetch_left(s: Start, step: u32, end4: u32) -> Lefts {
    var l: Lefts;
    let first = 4u * step + s.own;
    let rows = vec4(first, first + LEFTDOWN, first + 2u * LEFTDOWN, first + 3u * LEFTDOWN);
    var at = rows;
    l.keep = vec4(true);
    if PARTIAL == 1u {
        at = min(rows, vec4(4u * end4 - 1u));
        l.keep = rows < vec4(4u * end4);
    }
    let m4 = params.m / 4u;
    l.x0 = a[s.at + at.x * m4];
    if LEFTCOPIES > 1u {
        l.x1 = a[s.at + at.y * m4];
    }
    if LEFTCOPIES > 2u {
        l.x2 = a[s.at + at.z * m4];
        l.x3 = a[s.at + at.w * m4];
    }
    return l;
}
@else fn fetch_left(s: Start, step: u32, end4: u32) -> Lefts {
    var l: Lefts;
    let k4 = step + s.own;
    var at = k4;
    l.keep = vec4(true);
    if PARTIAL == 1u {
        at = min(k4, end4 - 1u);
        l.keep = vec4(k4 < end4);
    }
    l.x0 = a[s.at.x + at];
    if LEFTCOPIES > 1u {
        l.x1 = a[s.at.y + at];
    }
    if LEFTCOPIES > 2u {
        l.x2 = a[s.at.z + at];
        l.x3 = a[s.at.w + at];
    }
    return l;
}

// An invocation's copies of b for the STEP that begins with vec4 `step`.
@if(transposed) fn fetch_b(p: Place, step: u32, index: u32, end4: u32, e: Extents) -> Rights {
    let k4 = min(step + index % STEP4, end4 - 1u);
    return fetch_columns(p, k4, 2u * k4);
}
@else fn fetch_b(p: Place, step: u32, index: u32, end4: u32, e: Extents) -> Rights {
    return fetch_right(p, 4u * step, e);
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
    let start = start(g, first, index);
    let position4 = position(index);
    var column4 = group.x * WIDTH + position4;
    if GATED == 1u {
        // Values past the last one, which are not stored, are gates.
        column4 = group.x * ACROSS + position4 % ACROSS + position4 / ACROSS * width4();
    }
    let e = extents();
    let place = place_right(g * params.b_batch4, index, min(column4, params.n4 - 1u), 4u * p.end4, e);
    var sums = Sums();
    var lefts = fetch_left(start, p.first4, p.end4);
    var rights = fetch_b(place, p.first4, index, p.end4, e);
    for (var step = p.first4; step < p.end4; step += STEP4) {
        put(index, lefts, rights, place.row);
        let after = following(step, p.end4);
        lefts = fetch_left(start, after, p.end4);
        rights = fetch_b(place, after, index, p.end4, e);
        multiply(&sums, lane, step);
    }
    let across = group.x * select(WIDTH, ACROSS, GATED == 1u) + lane.x;
    let own = own_row(lane);
    let within = own * pitch() + across;
    if GATED == 1u {
        // Counted from what is no constant, so that no driver writes the loop with its gates out.
        for (var down = first; down < first + ROWS; down += DOWN) {
            let sum = pair(&sums, (down - first) / DOWN);
            store_gated_at(down + own, across, row_at(down, group.z) + within, sum.low, sum.high);
        }
    } else {
        for (var i = 0u; i < ROWS / DOWN; i++) {
            let sum = pair(&sums, i);
            let down = first + row_of(i);
            let at = row_at(down, group.z) + within;
            store_at(down + own, across, at, sum.low);
            store_at(down + own, across + ACROSS, at + ACROSS, sum.high);
        }
    }
}
