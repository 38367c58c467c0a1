// What both ways to compute a layer norm's gradient share: parameters and operands.

import package::shared::vector::{cell, real};

struct Params {
    rows: u32,
    width: u32,
    // Elements of a row.
    count: f32,
    eps: f32,
}

override GAIN: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> upstream: array<cell>;
@group(0) @binding(3) var<storage, read> gain: array<real>;
@group(0) @binding(4) var<storage, read_write> dx: array<cell>;

// The gradient in the normalised x, in cell c of the row that begins at `first`.
fn weighted(first: u32, c: u32) -> real {
    let g = real(upstream[first + c]);
    if GAIN == 1u {
        return g * gain[c];
    }
    return g;
}
