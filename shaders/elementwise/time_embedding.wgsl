// y[b, j] = sin or cos of t[b] * max_period^(-j / (half - shift)) for j < half, the other half likewise; an odd last
// column is 0.
//   t: (count / dim) f32     y: (count / dim, dim)
// Each invocation computes one element of y. WGSL's own sin and cos may be wrong by 2^-11 and more for large phases, so
// they are computed here: phase reduced to [-pi/4, pi/4] by three-part subtraction, then a short Taylor series.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
    dim: u32,
    // Cosines before sines.
    flip: u32,
    // -ln(max_period) / (half - shift)
    log_ratio: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> t: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

// sin(phase + quarter * pi/2)
fn sine(phase: f32, quarter: i32) -> f32 {
    let n = round(phase * 0.63661977);
    // pi/2 in three parts whose products with n are exact.
    let r = ((phase - n * 1.5703125) - n * 4.8375129699707e-4) - n * 7.5497899548918e-8;
    let s = r * r;
    let sine = r * (1.0 + s * (-1.0 / 6.0 + s * (1.0 / 120.0 + s * (-1.0 / 5040.0 + s / 362880.0))));
    let cosine = 1.0 + s * (-0.5 + s * (1.0 / 24.0 + s * (-1.0 / 720.0 + s / 40320.0)));
    let turn = (i32(n) + quarter) & 3;
    let value = select(sine, cosine, (turn & 1) == 1);
    return select(value, -value, turn >= 2);
}

@compute @workgroup_size(64)
fn time_embedding(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let row = i / params.dim;
    let column = i - row * params.dim;
    let half = params.dim / 2u;
    if column >= 2u * half {
        y[i] = elem(0.0);
        return;
    }
    let second = column >= half;
    let j = select(column, column - half, second);
    let phase = t[row] * exp(params.log_ratio * f32(j));
    let quarter = select(0, 1, second != (params.flip == 1u));
    y[i] = elem(sine(phase, quarter));
}
