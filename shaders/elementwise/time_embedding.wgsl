// y[b, j] = sin or cos of t[b] * max_period^(-j / (half - shift)) for j < half, the other half likewise; an odd last
// column is 0.
//   t: (count / dim) f32     y: (count / dim, dim)
// Each invocation computes one element of y.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::sine::sine;
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
