// y[r, c] = f((x[r, c] - mean[c]) / sqrt(variance[c] + eps) * gain[c] + bias[c]), f given by ACTIVATION.
//   x, y: (rows, width)     gain, bias, mean, variance: (width) f32     in cells
// Each invocation computes one cell of y.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{activate_cell, cell, real};

@if(f16) enable f16;

struct Params {
    count: u32,
    width: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> gain: array<real>;
@group(0) @binding(3) var<storage, read> bias: array<real>;
@group(0) @binding(4) var<storage, read> mean: array<real>;
@group(0) @binding(5) var<storage, read> variance: array<real>;
@group(0) @binding(6) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn batch_norm(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let c = i % params.width;
    let scale = gain[c] * inverseSqrt(variance[c] + params.eps);
    y[i] = cell(activate_cell((real(x[i]) - mean[c]) * scale + bias[c]));
}
