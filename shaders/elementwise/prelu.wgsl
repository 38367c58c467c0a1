// y[r, c] = x[r, c] for x >= 0, else slope[c] * x[r, c].
//   x, y: (rows, width)     slope: (width) f32     in cells
// Each invocation computes one cell of y.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, real};

@if(f16) enable f16;

struct Params {
    count: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> slope: array<real>;
@group(0) @binding(3) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn prelu(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let v = real(x[i]);
    y[i] = cell(select(v, v * slope[i % params.width], v < real(0.0)));
}
