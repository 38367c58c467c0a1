// What attention's tiles share: parameters, bindings, and which keys a query sees. A shader whose operands are no arrays of vec4
// declares those bindings itself.

import package::shared::storage::elem;

struct Params {
    tq: u32,
    tk: u32,
    heads: u32,
    // D in vec4.
    width: u32,
    mask_batch: u32,
    mask_head: u32,
    scale: f32,
    // Keys and values of zeros besides those in k and v.
    zero_keys: f32,
}

override CAUSAL: u32 = 0u;
override MASK: u32 = 0u;

const LOG2E = 1.4426950408889634;
// Of a key that is not seen: so low that its weight is exactly 0.
const EXCLUDED = -3e38;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<elem>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<elem>>;
@if(wide) @group(0) @binding(4) var<storage, read> mask: array<f32>;
@else @group(0) @binding(4) var<storage, read> mask: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<elem>>;

// Scores of a row against four keys, of which those that are `there` count, with what the mask adds: in powers of e times `unit`.
fn masked(scores: vec4<f32>, unit: f32, row: u32, key: vec4<u32>, there: vec4<bool>, mask_at: u32) -> vec4<f32> {
    var s = scores;
    if MASK == 1u {
        let at = vec4(mask_at + row * params.tk) + min(key, vec4(params.tk - 1u));
        s += unit * vec4(f32(mask[at.x]), f32(mask[at.y]), f32(mask[at.z]), f32(mask[at.w]));
    }
    var seen = there;
    if CAUSAL == 1u {
        seen = seen & (key <= vec4(row));
    }
    return select(vec4(EXCLUDED), s, seen);
}

// The same of four keys from `first` on, those before `end`.
fn masked_from(scores: vec4<f32>, unit: f32, row: u32, first: u32, end: u32, mask_at: u32) -> vec4<f32> {
    let key = first + vec4(0u, 1u, 2u, 3u);
    return masked(scores, unit, row, key, key < vec4(end), mask_at);
}

// The largest of four.
fn largest(s: vec4<f32>) -> f32 {
    return max(max(s.x, s.y), max(s.z, s.w));
}
