// y[r, c] = (x[r, c] - mean[r]) / sqrt(variance[r] + eps) * gain[c] + bias[c].
//   x, y: (rows, width)     gain, bias: (width) f32     in cells
// Each invocation normalises one row; for devices on which barriers cost more than uncoalesced reads, and many rows.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

struct Params {
    rows: u32,
    width: u32,
    // Elements of a row.
    count: f32,
    eps: f32,
}

override GAIN: u32 = 0u;
override BIAS: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> gain: array<real>;
@group(0) @binding(3) var<storage, read> bias: array<real>;
@group(0) @binding(4) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(8)
fn layer_norm_serial(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = flat_index(id, groups, 8u);
    if row >= params.rows {
        return;
    }
    let first = row * params.width;
    var sum = real(0.0);
    for (var c = 0u; c < params.width; c++) {
        sum += real(x[first + c]);
    }
    let mean = total(sum) / params.count;
    var squares = real(0.0);
    for (var c = 0u; c < params.width; c++) {
        let d = real(x[first + c]) - mean;
        squares += d * d;
    }
    let scale = inverseSqrt(total(squares) / params.count + params.eps);
    for (var c = 0u; c < params.width; c++) {
        var v = (real(x[first + c]) - mean) * scale;
        if GAIN == 1u {
            v *= gain[c];
        }
        if BIAS == 1u {
            v += bias[c];
        }
        y[first + c] = cell(v);
    }
}
