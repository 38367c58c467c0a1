// The weight of the tiled products: rows of the inner axis, vec4s of columns. Packed halves are unpacked, quantised blocks
// (see crates/tensor/src/quantized.rs) multiplied by their scales, where they are read.

import package::shared::storage::elem;

@if(w16) @group(0) @binding(2) var<storage, read> weight: array<vec2<u32>>;
@elif(w8 || w4) @group(0) @binding(2) var<storage, read> weight: array<u32>;
@else @group(0) @binding(2) var<storage, read> weight: array<vec4<elem>>;

// The weight's extents: rows of the whole weight, columns in fours.
struct Extents {
    rows: u32,
    width4: u32,
}

// Where block row / 32's scales of four columns lie: words of two halves behind all values; nowhere without any.
@if(w8) fn scale_at(row: u32, column4: u32, e: Extents) -> u32 {
    return e.rows * e.width4 + ((row >> 5u) * e.width4 + column4) * 2u;
}
@elif(w4) fn scale_at(row: u32, column4: u32, e: Extents) -> u32 {
    return (e.rows >> 1u) * e.width4 + ((row >> 5u) * e.width4 + column4) * 2u;
}
@else fn scale_at(row: u32, column4: u32, e: Extents) -> u32 {
    return 0u;
}

@if(w8 || w4) fn scales(at: u32) -> vec4<f32> {
    return vec4(unpack2x16float(weight[at]), unpack2x16float(weight[at + 1u]));
}

@if(w4) fn nibbles(half: u32) -> vec4<f32> {
    return vec4<f32>(vec4(half, half >> 4u, half >> 8u, half >> 12u) & vec4(15u)) - 8.0;
}

@if(w8) fn bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(word));
}

// A vec4 of an unquantised weight.
@if(w16) fn value(i: u32) -> vec4<f32> {
    let p = weight[i];
    return vec4(unpack2x16float(p.x), unpack2x16float(p.y));
}
@elif(!w8 && !w4) fn value(i: u32) -> vec4<f32> {
    return vec4<f32>(weight[i]);
}

// Four columns of a row (with w4, of a pair of rows) as stored, which are decoded where they are needed.
@if(w8 || w4) struct Stored {
    values: u32,
    scales: vec2<u32>,
}
@elif(w16) alias Stored = vec2<u32>;
@else alias Stored = vec4<elem>;

// Four columns whose values and scales lie there.
@if(w8 || w4) fn stored_at(values: u32, scales: u32) -> Stored {
    return Stored(weight[values], vec2(weight[scales], weight[scales + 1u]));
}
@else fn stored_at(values: u32, scales: u32) -> Stored {
    return weight[values];
}

// What so many rows take, in elements of the binding; an even number of rows, or it is rounded down to the pair's first.
@if(w4) fn height(rows: u32, e: Extents) -> u32 {
    return (rows >> 1u) * e.width4;
}
@else fn height(rows: u32, e: Extents) -> u32 {
    return rows * e.width4;
}

// Where the values of four columns of a row lie; `first` is the first vec4 of a batch (0 for a weight).
@if(w8 || w4) fn place(first: u32, row: u32, column4: u32, e: Extents) -> u32 {
    return height(row, e) + column4;
}
@else fn place(first: u32, row: u32, column4: u32, e: Extents) -> u32 {
    return first + height(row, e) + column4;
}

// Four columns of a row.
fn stored(first: u32, row: u32, column4: u32, e: Extents) -> Stored {
    return stored_at(place(first, row, column4, e), scale_at(row, column4, e));
}

// As `stored`, `below` + `down` rows below one of the first 16 rows, whose `place` is given. `below` is a multiple of 16, which no
// block's end parts, and `down` is even; where they are the same for all invocations, as they should be, nothing here is multiplied
// for each.
fn stored_below(place: u32, column4: u32, below: u32, down: u32, e: Extents) -> Stored {
    return stored_at(place + height(below + down, e), scale_at(below, column4, e));
}

// What a row's four columns are; the row decides between those of a pair.
@if(w8) fn decode(s: Stored, row: u32) -> vec4<f32> {
    return bytes(s.values) * vec4(unpack2x16float(s.scales.x), unpack2x16float(s.scales.y));
}
@elif(w4) fn decode(s: Stored, row: u32) -> vec4<f32> {
    return nibbles(s.values >> (16u * (row & 1u))) * vec4(unpack2x16float(s.scales.x), unpack2x16float(s.scales.y));
}
@elif(w16) fn decode(s: Stored, row: u32) -> vec4<f32> {
    return vec4(unpack2x16float(s.x), unpack2x16float(s.y));
}
@else fn decode(s: Stored, row: u32) -> vec4<f32> {
    return vec4<f32>(s);
}

fn load_row(first: u32, row: u32, column4: u32, e: Extents) -> vec4<f32> {
    return decode(stored(first, row, column4, e), row);
}

// Four columns of rows row .. row + 3, row a multiple of 4: one row a column of the result.
@if(w8) fn load_rows(first: u32, row: u32, column4: u32, e: Extents) -> mat4x4<f32> {
    let i = row * e.width4 + column4;
    let scale = scales(scale_at(row, column4, e));
    return mat4x4(
        bytes(weight[i]) * scale,
        bytes(weight[i + e.width4]) * scale,
        bytes(weight[i + 2u * e.width4]) * scale,
        bytes(weight[i + 3u * e.width4]) * scale,
    );
}
@elif(w4) fn load_rows(first: u32, row: u32, column4: u32, e: Extents) -> mat4x4<f32> {
    let i = (row >> 1u) * e.width4 + column4;
    let scale = scales(scale_at(row, column4, e));
    let low = weight[i];
    let high = weight[i + e.width4];
    return mat4x4(
        nibbles(low) * scale,
        nibbles(low >> 16u) * scale,
        nibbles(high) * scale,
        nibbles(high >> 16u) * scale,
    );
}
@else fn load_rows(first: u32, row: u32, column4: u32, e: Extents) -> mat4x4<f32> {
    let i = first + row * e.width4 + column4;
    return mat4x4(value(i), value(i + e.width4), value(i + 2u * e.width4), value(i + 3u * e.width4));
}
