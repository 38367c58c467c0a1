// What the products of a workgroup share. ACROSS x DOWN invocations compute a tile of the result, each of them 4 rows (with TALL
// 8), DOWN apart, in two vec4s of columns, ACROSS apart: neighbours read neighbouring banks. STEP steps of the inner axis at a
// time, the workgroup copies the rows of the left operand and the columns of the right one to workgroup memory; what the next
// STEP needs is read from storage before the arithmetic of this one, which hides the way: no branch that depends on the invocation
// stands around these reads, since what comes together after one is waited for there, and what must be zero is made so on
// its way to workgroup memory. What is the same for all invocations is computed from what they share, once for all.
// Operands are f32 there, whatever they are stored as: so each is converted or decoded once for the workgroup, not by all who
// read it. Sums are named by constant indices: dynamic ones leave registers.

import package::shared::product::add_products;
import package::shared::storage::elem;
import package::shared::weight::{decode, Extents, place, Stored, stored, stored_below};

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
// Columns in vec4s.
override WIDTH: u32 = 2u * ACROSS;

// Invocation i copies vec4 i of a tile, then those that lie INVOCATIONS further on: always in the same place of a row, so many
// rows further down. None of the tiles' shapes has more than four copies.
override LEFTDOWN: u32 = INVOCATIONS / STEP4;
override LEFTCOPIES: u32 = ROWS / LEFTDOWN;
override RIGHTDOWN: u32 = INVOCATIONS / WIDTH;
override RIGHTCOPIES: u32 = STEP / RIGHTDOWN;

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
// must exist, where they lie in the first STEP, and the row past the last one.
struct Place {
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

fn put_left(index: u32, i: u32, x: vec4<elem>, keep: bool) {
    // A multiple of 2 STEP4 rows lies between copies, which the swizzle does not tell apart.
    let row = index / STEP4;
    left_tile[(row + i * LEFTDOWN) * STEP4 + ((index % STEP4) ^ swizzle(row))] = select(vec4<f32>(), vec4<f32>(x), keep);
}

fn put_right(index: u32, i: u32, row: u32, w: Stored) {
    right_tile[index + i * INVOCATIONS] = decode(w, row + i * RIGHTDOWN);
}

fn place_right(first: u32, index: u32, column4: u32, end: u32, e: Extents) -> Place {
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
fn right(p: Place, first: u32, i: u32, e: Extents) -> Stored {
    if PARTIAL == 0u {
        return stored_below(p.at, p.column4, first, i * RIGHTDOWN, e);
    }
    return stored(p.first, min(first + p.row + i * RIGHTDOWN, p.end - 1u), p.column4, e);
}

// An invocation's copies of the STEP whose first row is `first`.
fn fetch_right(p: Place, first: u32, e: Extents) -> Rights {
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

// Adds a STEP, the one that begins with vec4 `first`, to an invocation's sums. Counted from what is no constant, so that no
// compiler writes the loop out: its body is long enough.
fn multiply(sums: ptr<function, Sums>, lane: vec3<u32>, first: u32) {
    let down = DOWN * STEP4;
    let own = lane.y * STEP4 + swizzle(lane.y);
    for (var step = first; step < first + STEP4; step++) {
        let k = step - first;
        let left = own ^ k;
        let right = 4u * k * WIDTH + lane.x;
        let b0 = right_tile[right];
        let b1 = right_tile[right + WIDTH];
        let b2 = right_tile[right + 2u * WIDTH];
        let b3 = right_tile[right + 3u * WIDTH];
        let c0 = right_tile[right + ACROSS];
        let c1 = right_tile[right + ACROSS + WIDTH];
        let c2 = right_tile[right + ACROSS + 2u * WIDTH];
        let c3 = right_tile[right + ACROSS + 3u * WIDTH];
        let x0 = left_tile[left];
        (*sums)[0] = add_products((*sums)[0], x0, b0, b1, b2, b3);
        (*sums)[1] = add_products((*sums)[1], x0, c0, c1, c2, c3);
        let x1 = left_tile[left + down];
        (*sums)[2] = add_products((*sums)[2], x1, b0, b1, b2, b3);
        (*sums)[3] = add_products((*sums)[3], x1, c0, c1, c2, c3);
        let x2 = left_tile[left + 2u * down];
        (*sums)[4] = add_products((*sums)[4], x2, b0, b1, b2, b3);
        (*sums)[5] = add_products((*sums)[5], x2, c0, c1, c2, c3);
        let x3 = left_tile[left + 3u * down];
        (*sums)[6] = add_products((*sums)[6], x3, b0, b1, b2, b3);
        (*sums)[7] = add_products((*sums)[7], x3, c0, c1, c2, c3);
        if TALL == 1u {
            let x4 = left_tile[left + 4u * down];
            (*sums)[8] = add_products((*sums)[8], x4, b0, b1, b2, b3);
            (*sums)[9] = add_products((*sums)[9], x4, c0, c1, c2, c3);
            let x5 = left_tile[left + 5u * down];
            (*sums)[10] = add_products((*sums)[10], x5, b0, b1, b2, b3);
            (*sums)[11] = add_products((*sums)[11], x5, c0, c1, c2, c3);
            let x6 = left_tile[left + 6u * down];
            (*sums)[12] = add_products((*sums)[12], x6, b0, b1, b2, b3);
            (*sums)[13] = add_products((*sums)[13], x6, c0, c1, c2, c3);
            let x7 = left_tile[left + 7u * down];
            (*sums)[14] = add_products((*sums)[14], x7, b0, b1, b2, b3);
            (*sums)[15] = add_products((*sums)[15], x7, c0, c1, c2, c3);
        }
    }
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
