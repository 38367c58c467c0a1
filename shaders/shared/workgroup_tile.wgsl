// What the products of a workgroup share. ACROSS x DOWN invocations compute a tile of the result, each of them 4 rows (with TALL
// 8), DOWN apart, in two vec4s of columns, ACROSS apart: neighbours read neighbouring banks. STEP steps of the inner axis at a
// time, the workgroup copies the rows of the left operand and the columns of the right one to workgroup memory; what the next
// STEP needs is read from storage before the arithmetic of this one, which hides the way: no branch that depends on the invocation
// stands around these reads, since what comes together after one is waited for there, and what must be zero is made so on
// its way to workgroup memory. What is the same for all invocations is computed from what they share, once for all.
// Operands are f32 there, whatever they are stored as: so each is converted or decoded once for the workgroup, not by all who
// read it. Sums are named by constant indices: dynamic ones leave registers.
// Feature `transposed`: the right operand is stored by columns, vec4s along the inner axis. It is copied as the left one is, and
// transposed in registers. Feature `left_transposed`: the left one is stored by columns, too, vec4s along the rows of the result; an invocation's
// rows are then four that follow each other.

import package::shared::product::add_products;
import package::shared::storage::elem;
import package::shared::weight::{decode, Extents, place, scale_at, Stored, stored, stored_at, stored_below};

const STEP: u32 = 16u;
// The same in vec4s, which is the width of a row of the left tile.
const STEP4: u32 = 4u;

override ACROSS: u32 = 8u;
override DOWN: u32 = 16u;
override TALL: u32 = 0u;
// 1: the last STEP of the inner axis (of a tap) may be a part of one.
override PARTIAL: u32 = 1u;

override INVOCATIONS: u32 = ACROSS * DOWN;
override ROWS: u32 = DOWN * (4u + 4u * TALL);
@if(left_transposed) override ROWS4: u32 = ROWS / 4u;
// Columns in vec4s.
override WIDTH: u32 = 2u * ACROSS;

// Invocation i copies vec4 i of a tile, then those that lie INVOCATIONS further on: always in the same place of a row, so many
// rows further down. None of the tiles' shapes has more than four copies.
@if(left_transposed) override LEFTDOWN: u32 = INVOCATIONS / ROWS4;
@else override LEFTDOWN: u32 = INVOCATIONS / STEP4;
override LEFTCOPIES: u32 = ROWS * STEP4 / INVOCATIONS;
@if(transposed) override RIGHTDOWN: u32 = INVOCATIONS / WIDTH / STEP4;
@else override RIGHTDOWN: u32 = INVOCATIONS / WIDTH;
@if(transposed) override RIGHTCOPIES: u32 = 4u / RIGHTDOWN;
@else override RIGHTCOPIES: u32 = STEP / RIGHTDOWN;

// naga takes a name for the length of an array, no expression.
override LEFTCELLS: u32 = ROWS * STEP4;
override RIGHTCELLS: u32 = STEP * WIDTH;
var<workgroup> left_tile: array<vec4<f32>, LEFTCELLS>;
var<workgroup> right_tile: array<vec4<f32>, RIGHTCELLS>;

// An invocation's copies of a STEP, as stored, and which of them count: zeros take the place of others.
struct Lefts {
    x0: vec4<elem>,
    x1: vec4<elem>,
    x2: vec4<elem>,
    x3: vec4<elem>,
    keep: vec4<bool>,
}

struct Rights {
    w0: Stored,
    w1: Stored,
    w2: Stored,
    w3: Stored,
}

// Where an invocation reads the right operand: the first vec4 of its batch (0 for a weight), its first row of a STEP, its column, which
// must exist, where they lie in the first STEP, and the row past the last one. Transposed, rows are columns of the result: the first
// one of its copies among the four that it belongs to, where each of them begins, and where their scales do.
@if(transposed) struct Place {
    row: u32,
    starts: vec4<u32>,
    scales: u32,
}
@else struct Place {
    first: u32,
    row: u32,
    column4: u32,
    at: u32,
    end: u32,
}

// Rows of eight columns: row i is vec4s 2i and 2i + 1.
alias Sums = array<vec4<f32>, 16>;

// Rows that are read at the same time, and cover the banks once without this, begin at different places.
fn swizzle(row: u32) -> u32 {
    return (row >> 1u) % STEP4;
}

// Where the first of an invocation's copies goes in a tile of rows of STEP4. A multiple of 2 STEP4 rows lies between copies, which
// the swizzle does not tell apart.
fn cell(index: u32) -> u32 {
    return index ^ swizzle(index / STEP4);
}

@if(left_transposed) fn put_left(index: u32, i: u32, x: vec4<elem>, keep: bool) {
    left_tile[index + i * INVOCATIONS] = select(vec4<f32>(), vec4<f32>(x), keep);
}
@else fn put_left(index: u32, i: u32, x: vec4<elem>, keep: bool) {
    left_tile[cell(index) + i * INVOCATIONS] = select(vec4<f32>(), vec4<f32>(x), keep);
}

@if(transposed) fn put_right(index: u32, i: u32, row: u32, w: Stored) {
    right_tile[cell(index) + i * INVOCATIONS] = decode(w, row + i * RIGHTDOWN);
}
@else fn put_right(index: u32, i: u32, row: u32, w: Stored) {
    right_tile[index + i * INVOCATIONS] = decode(w, row + i * RIGHTDOWN);
}

// Which of a tile's vec4s of columns an invocation copies. Transposed, rows of the tile are its columns: the first of each four, then
// the second ones, so that neighbours read neighbouring rows.
@if(transposed) fn position(index: u32) -> u32 {
    return index / STEP4 % WIDTH;
}
@else fn position(index: u32) -> u32 {
    return index % WIDTH;
}

// `end` is the row past the last one.
@if(transposed) fn place_right(first: u32, index: u32, column4: u32, end: u32, e: Extents) -> Place {
    let within = index / STEP4 / WIDTH;
    let row = 4u * column4 + within;
    let starts = vec4(
        place(first, row, 0u, e),
        place(first, row + RIGHTDOWN, 0u, e),
        place(first, row + 2u * RIGHTDOWN, 0u, e),
        place(first, row + 3u * RIGHTDOWN, 0u, e),
    );
    return Place(within, starts, scale_at(row, 0u, e));
}
@else fn place_right(first: u32, index: u32, column4: u32, end: u32, e: Extents) -> Place {
    let row = index / WIDTH;
    return Place(first, row, column4, place(first, row, column4, e), end);
}

// The STEP after one, in vec4s; the last one again after the last, where it is whole.
fn following(step4: u32, end4: u32) -> u32 {
    if PARTIAL == 0u {
        return min(step4 + STEP4, end4 - STEP4);
    }
    return step4 + STEP4;
}

// Rows past the end read the last one again: zeros of the left operand meet them.
@if(!transposed) fn right(p: Place, first: u32, i: u32, e: Extents) -> Stored {
    if PARTIAL == 0u {
        return stored_below(p.at, p.column4, first, i * RIGHTDOWN, e);
    }
    return stored(p.first, min(first + p.row + i * RIGHTDOWN, p.end - 1u), p.column4, e);
}

// An invocation's copies of what lies so many vec4s, and so many scales, behind the beginnings of its columns.
@if(transposed) fn fetch_columns(p: Place, values: u32, scales: u32) -> Rights {
    var r: Rights;
    r.w0 = stored_at(p.starts.x + values, p.scales + scales);
    if RIGHTCOPIES > 1u {
        r.w1 = stored_at(p.starts.y + values, p.scales + scales);
    }
    if RIGHTCOPIES > 2u {
        r.w2 = stored_at(p.starts.z + values, p.scales + scales);
        r.w3 = stored_at(p.starts.w + values, p.scales + scales);
    }
    return r;
}

// An invocation's copies of the STEP whose first row is `first`.
@if(!transposed) fn fetch_right(p: Place, first: u32, e: Extents) -> Rights {
    var r: Rights;
    r.w0 = right(p, first, 0u, e);
    if RIGHTCOPIES > 1u {
        r.w1 = right(p, first, 1u, e);
    }
    if RIGHTCOPIES > 2u {
        r.w2 = right(p, first, 2u, e);
        r.w3 = right(p, first, 3u, e);
    }
    return r;
}

// Writes what invocation `index` copied to the tiles, the right operand's from `row` of a STEP. All invocations must call it
// together: the first barrier waits until all have read the tiles, the second until they are written.
fn put(index: u32, l: Lefts, r: Rights, row: u32) {
    workgroupBarrier();
    put_left(index, 0u, l.x0, l.keep.x);
    if LEFTCOPIES > 1u {
        put_left(index, 1u, l.x1, l.keep.y);
    }
    if LEFTCOPIES > 2u {
        put_left(index, 2u, l.x2, l.keep.z);
        put_left(index, 3u, l.x3, l.keep.w);
    }
    put_right(index, 0u, row, r.w0);
    if RIGHTCOPIES > 1u {
        put_right(index, 1u, row, r.w1);
    }
    if RIGHTCOPIES > 2u {
        put_right(index, 2u, row, r.w2);
        put_right(index, 3u, row, r.w3);
    }
    workgroupBarrier();
}

// Where an invocation's first row begins, given its number.
@if(left_transposed) fn left_cell(row: u32) -> u32 {
    return row;
}
@else fn left_cell(row: u32) -> u32 {
    return cell(row * STEP4);
}

// The first or second four of an invocation's rows, four steps each, the k-th ones of a STEP: where the first one lies, or where they
// must be transposed all of them, one a column of the matrix.
@if(left_transposed) alias Rows = mat4x4<f32>;
@else alias Rows = u32;

@if(left_transposed) fn rows(first: u32, k: u32, four: u32) -> Rows {
    let at = 4u * k * ROWS4 + first + four * DOWN;
    return transpose(mat4x4(left_tile[at], left_tile[at + ROWS4], left_tile[at + 2u * ROWS4], left_tile[at + 3u * ROWS4]));
}
@else fn rows(first: u32, k: u32, four: u32) -> Rows {
    return (first ^ k) + 4u * four * DOWN * STEP4;
}

// Four steps of the i-th of them, which is read where it is needed.
@if(left_transposed) fn row(x: Rows, i: u32) -> vec4<f32> {
    return x[i];
}
@else fn row(x: Rows, i: u32) -> vec4<f32> {
    return left_tile[x + i * DOWN * STEP4];
}

// Where an invocation's four columns of the first of four steps lie, given the number of its vec4 of columns.
@if(transposed) fn right_cell(column4: u32) -> u32 {
    return cell(column4 * STEP4);
}
@else fn right_cell(column4: u32) -> u32 {
    return column4;
}

// Four columns of the right operand at four steps, the k-th ones of a STEP: one step a column of the matrix.
@if(transposed) fn steps(first: u32, k: u32) -> mat4x4<f32> {
    let at = first ^ k;
    let down = WIDTH * STEP4;
    return transpose(mat4x4(right_tile[at], right_tile[at + down], right_tile[at + 2u * down], right_tile[at + 3u * down]));
}
@else fn steps(first: u32, k: u32) -> mat4x4<f32> {
    let at = 4u * k * WIDTH + first;
    return mat4x4(right_tile[at], right_tile[at + WIDTH], right_tile[at + 2u * WIDTH], right_tile[at + 3u * WIDTH]);
}

fn add(sum: vec4<f32>, x: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
    return add_products(sum, x, b[0], b[1], b[2], b[3]);
}

// Adds a STEP, the one that begins with vec4 `first`, to an invocation's sums. Counted from what is no constant, so that no
// compiler writes the loop out: its body is long enough.
fn multiply(sums: ptr<function, Sums>, lane: vec3<u32>, first: u32) {
    let own = left_cell(lane.y);
    let low = right_cell(lane.x);
    let high = right_cell(lane.x + ACROSS);
    for (var step = first; step < first + STEP4; step++) {
        let k = step - first;
        let b = steps(low, k);
        let c = steps(high, k);
        let x = rows(own, k, 0u);
        let x0 = row(x, 0u);
        (*sums)[0] = add((*sums)[0], x0, b);
        (*sums)[1] = add((*sums)[1], x0, c);
        let x1 = row(x, 1u);
        (*sums)[2] = add((*sums)[2], x1, b);
        (*sums)[3] = add((*sums)[3], x1, c);
        let x2 = row(x, 2u);
        (*sums)[4] = add((*sums)[4], x2, b);
        (*sums)[5] = add((*sums)[5], x2, c);
        let x3 = row(x, 3u);
        (*sums)[6] = add((*sums)[6], x3, b);
        (*sums)[7] = add((*sums)[7], x3, c);
        if TALL == 1u {
            let y = rows(own, k, 1u);
            let x4 = row(y, 0u);
            (*sums)[8] = add((*sums)[8], x4, b);
            (*sums)[9] = add((*sums)[9], x4, c);
            let x5 = row(y, 1u);
            (*sums)[10] = add((*sums)[10], x5, b);
            (*sums)[11] = add((*sums)[11], x5, c);
            let x6 = row(y, 2u);
            (*sums)[12] = add((*sums)[12], x6, b);
            (*sums)[13] = add((*sums)[13], x6, c);
            let x7 = row(y, 3u);
            (*sums)[14] = add((*sums)[14], x7, b);
            (*sums)[15] = add((*sums)[15], x7, c);
        }
    }
}

// Where an invocation's row i lies in the tile, below its first one.
@if(left_transposed) fn row_of(i: u32) -> u32 {
    return 4u * (i / 4u) * DOWN + i % 4u;
}
@else fn row_of(i: u32) -> u32 {
    return i * DOWN;
}

// An invocation's first row.
@if(left_transposed) fn own_row(lane: vec3<u32>) -> u32 {
    return 4u * lane.y;
}
@else fn own_row(lane: vec3<u32>) -> u32 {
    return lane.y;
}

// Eight columns of a row, the second four ACROSS vec4s after the first.
struct Pair {
    low: vec4<f32>,
    high: vec4<f32>,
}

// Row i of an invocation's.
fn pair(sums: ptr<function, Sums>, i: u32) -> Pair {
    switch i {
        case 0u: { return Pair((*sums)[0], (*sums)[1]); }
        case 1u: { return Pair((*sums)[2], (*sums)[3]); }
        case 2u: { return Pair((*sums)[4], (*sums)[5]); }
        case 3u: { return Pair((*sums)[6], (*sums)[7]); }
        case 4u: { return Pair((*sums)[8], (*sums)[9]); }
        case 5u: { return Pair((*sums)[10], (*sums)[11]); }
        case 6u: { return Pair((*sums)[12], (*sums)[13]); }
        default: { return Pair((*sums)[14], (*sums)[15]); }
    }
}
