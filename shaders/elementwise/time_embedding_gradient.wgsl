// dt[b] = sum over columns of upstream[b, j] * d/dt of y[b, j], for y[b, j] = sin or cos of t[b] * f_j, f_j = max_period^(-j / (half - shift)):
// f_j * cos or -f_j * sin. An odd last column adds nothing.
//   t, dt: (count) f32     upstream: (count, dim)
// Each invocation computes one element of dt.
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
@group(0) @binding(2) var<storage, read> upstream: array<elem>;
@group(0) @binding(3) var<storage, read_write> dt: array<f32>;

@compute @workgroup_size(64)
fn time_embedding_gradient(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let row = flat_index(id, groups, 64u);
    if row >= params.count {
        return;
    }
    let half = params.dim / 2u;
    let first = select(0u, half, params.flip == 1u);
    var sum = 0.0;
    for (var j = 0u; j < half; j++) {
        let frequency = exp(params.log_ratio * f32(j));
        let phase = t[row] * frequency;
        let of_sine = f32(upstream[row * params.dim + first + j]);
        let of_cosine = f32(upstream[row * params.dim + half - first + j]);
        sum += frequency * (of_sine * sine(phase, 1) - of_cosine * sine(phase, 0));
    }
    dt[row] = sum;
}
