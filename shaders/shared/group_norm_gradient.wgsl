// What both passes over the elements of a group norm's gradient share: their parameters, the operands, and where an
// invocation's cell of channels of a chunk of rows lies.

import package::shared::slope::slope_cell;
import package::shared::vector::{cell, real};

struct Params {
    rows: u32,
    width: u32,
    chunks: u32,
    chunk_rows: u32,
    count: u32,
}

override GAIN: u32 = 0u;
override BIAS: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> upstream: array<cell>;
@group(0) @binding(3) var<storage, read> affine: array<real>;
@group(0) @binding(4) var<storage, read> gain: array<real>;
@group(0) @binding(5) var<storage, read> bias: array<real>;

// An invocation's channels.
struct Channels {
    // First cell of x, and number of rows.
    first: u32,
    rows: u32,
    // Where the channels lie in (N, width).
    channel: u32,
    // The normalised x is x * rate + shift, what the activation takes is that times gain plus bias.
    rate: real,
    shift: real,
    gain: real,
    bias: real,
}

// Cells of (N, width).
fn channels_of_all() -> u32 {
    return params.count / params.chunks;
}

fn channels_at(i: u32) -> Channels {
    let nk = i / params.width;
    let c = i - nk * params.width;
    let n = nk / params.chunks;
    let row = (nk - n * params.chunks) * params.chunk_rows;
    let channel = n * params.width + c;
    var at = Channels(
        (n * params.rows + row) * params.width + c,
        min(params.chunk_rows, params.rows - row),
        channel,
        affine[channel],
        affine[channels_of_all() + channel],
        real(1.0),
        real(0.0),
    );
    if GAIN == 1u {
        at.gain = gain[c];
    }
    if BIAS == 1u {
        at.bias = bias[c];
    }
    return at;
}

// The gradient in the normalised x at cell j.
fn weighted(at: Channels, j: u32, xh: real) -> real {
    return at.gain * (real(upstream[j]) * slope_cell(xh * at.gain + at.bias));
}
