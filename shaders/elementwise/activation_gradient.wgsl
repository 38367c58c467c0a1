// dx = upstream * f'(x), f given by ACTIVATION.
//   x, upstream, dx: (count) cells
// Each invocation computes one cell.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::slope::slope_cell;
import package::shared::vector::{cell, real};

@if(f16) enable f16;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> upstream: array<cell>;
@group(0) @binding(3) var<storage, read_write> dx: array<cell>;

@compute @workgroup_size(64)
fn activation_gradient(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    dx[i] = cell(real(upstream[i]) * slope_cell(real(x[i])));
}
