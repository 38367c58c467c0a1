// The weight of products of cooperative matrices: rows of the inner axis, eights of columns. What an invocation copies of a
// STEP is read as it is stored and only made f16 when it goes to workgroup memory, so that nothing waits for it meanwhile.
// Feature `transposed`: rows are the columns of the result, eights are of the inner axis.

import package::shared::cooperative_tile::{Eight, eight, PARTIAL, RIGHTCOPIES, RIGHTDOWN, stage_right};
import package::shared::weight::{bytes, Extents, nibbles};

// Eight columns of a row (with w4, of a pair of rows), as stored.
@if(w8 || w4) alias Stored = vec2<u32>;
@else alias Stored = Eight;

@group(0) @binding(2) var<storage, read> weight: array<Stored>;

// Scales of the eight columns of a block of rows.
@if(w8 || w4) alias Scales = vec4<u32>;
@else alias Scales = u32;

// An invocation's copies of a STEP. Those past the fourth are read where they are needed: no tile that is meant to be fast
// has any.
struct Rights {
    s0: Stored,
    s1: Stored,
    s2: Stored,
    s3: Stored,
    // Of the first, which are those of all: a STEP lies in one block of rows. Transposed, copies lie in blocks of their own.
    t0: Scales,
    @if(transposed) t1: Scales,
    @if(transposed) t2: Scales,
    @if(transposed) t3: Scales,
}

// Where an invocation reads: its first row, the same within the tap or matrix, which has `rows` rows in all, and its eight
// columns, which exist. `first` is the first eight of a batch (0 for a weight). Transposed, `row` is where the tap or matrix begins.
struct Place {
    first: u32,
    row: u32,
    within: u32,
    rows: u32,
    column8: u32,
}

// The row of copy i: the last one of all again past the end, where the left operand is zero; transposed, nothing is stored there.
@if(transposed) fn row_of(p: Place, i: u32) -> u32 {
    return p.row + min(p.within + i * RIGHTDOWN, p.rows - 1u);
}
@else fn row_of(p: Place, i: u32) -> u32 {
    let down = i * RIGHTDOWN;
    if PARTIAL == 1u {
        return p.row - p.within + min(p.within + down, p.rows - 1u);
    }
    return p.row + down;
}

// Copy i.
@if(w4) fn stored(p: Place, i: u32, e: Extents) -> Stored {
    return weight[(row_of(p, i) >> 1u) * (e.width4 >> 1u) + p.column8];
}
@elif(w8) fn stored(p: Place, i: u32, e: Extents) -> Stored {
    return weight[row_of(p, i) * (e.width4 >> 1u) + p.column8];
}
@else fn stored(p: Place, i: u32, e: Extents) -> Stored {
    return weight[p.first + row_of(p, i) * (e.width4 >> 1u) + p.column8];
}

// The scales of copy i's block of rows; nothing where there are none.
@if(w8 || w4) fn stored_scales(p: Place, i: u32, e: Extents) -> Scales {
    // Behind all values, two words for four columns.
    @if(w4) let values = (e.rows >> 2u) * e.width4;
    @if(w8) let values = (e.rows >> 1u) * e.width4;
    let at = values + (row_of(p, i) >> 5u) * e.width4 + 2u * p.column8;
    return vec4(weight[at], weight[at + 1u]);
}
@else fn stored_scales(p: Place, i: u32, e: Extents) -> Scales {
    return 0u;
}

fn fetch_right(p: Place, e: Extents) -> Rights {
    var r: Rights;
    r.t0 = stored_scales(p, 0u, e);
    r.s0 = stored(p, 0u, e);
    if RIGHTCOPIES > 1u {
        @if(transposed) r.t1 = stored_scales(p, 1u, e);
        r.s1 = stored(p, 1u, e);
    }
    if RIGHTCOPIES > 2u {
        @if(transposed) r.t2 = stored_scales(p, 2u, e);
        r.s2 = stored(p, 2u, e);
    }
    if RIGHTCOPIES > 3u {
        @if(transposed) r.t3 = stored_scales(p, 3u, e);
        r.s3 = stored(p, 3u, e);
    }
    return r;
}

// What is stored as f16; `row` decides between the rows of a pair.
@if(w4) fn decode(s: Stored, t: Scales, row: u32) -> Eight {
    let shift = 16u * (row & 1u);
    return eight(
        nibbles(s.x >> shift) * vec4(unpack2x16float(t.x), unpack2x16float(t.y)),
        nibbles(s.y >> shift) * vec4(unpack2x16float(t.z), unpack2x16float(t.w)),
    );
}
@elif(w8) fn decode(s: Stored, t: Scales, row: u32) -> Eight {
    return eight(
        bytes(s.x) * vec4(unpack2x16float(t.x), unpack2x16float(t.y)),
        bytes(s.y) * vec4(unpack2x16float(t.z), unpack2x16float(t.w)),
    );
}
@else fn decode(s: Stored, t: Scales, row: u32) -> Eight {
    return s;
}

// Which of a pair of rows copy i is: the last bit of this.
@if(transposed) fn row_of_pair(p: Place, i: u32) -> u32 {
    return p.within + i * RIGHTDOWN;
}
@else fn row_of_pair(p: Place, i: u32) -> u32 {
    return p.row + i * RIGHTDOWN;
}

// Writes what was fetched from p to workgroup memory.
fn put_rights(r: Rights, p: Place, e: Extents, index: u32) {
    @if(transposed) let t1 = r.t1;
    @else let t1 = r.t0;
    @if(transposed) let t2 = r.t2;
    @else let t2 = r.t0;
    @if(transposed) let t3 = r.t3;
    @else let t3 = r.t0;
    stage_right(index, 0u, decode(r.s0, r.t0, row_of_pair(p, 0u)));
    if RIGHTCOPIES > 1u {
        stage_right(index, 1u, decode(r.s1, t1, row_of_pair(p, 1u)));
    }
    if RIGHTCOPIES > 2u {
        stage_right(index, 2u, decode(r.s2, t2, row_of_pair(p, 2u)));
    }
    if RIGHTCOPIES > 3u {
        stage_right(index, 3u, decode(r.s3, t3, row_of_pair(p, 3u)));
    }
    for (var i = 4u; i < RIGHTCOPIES; i++) {
        @if(transposed) let t = stored_scales(p, i, e);
        @else let t = r.t0;
        stage_right(index, i, decode(stored(p, i, e), t, row_of_pair(p, i)));
    }
}
