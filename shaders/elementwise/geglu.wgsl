// y[r, c] = x[r, c] * gelu(x[r, width + c]), with the exact GELU.
//   x: (rows, 2 width)     y: (rows, width)     in cells; width counts cells
// Each invocation computes one cell of y.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, gelu_cell, real};

@if(f16) enable f16;

struct Params {
    count: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn geglu(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    // Element i of y lies in row i / width, whose first half starts that many widths further in x.
    let first = i + (i / params.width) * params.width;
    y[i] = cell(real(x[first]) * gelu_cell(real(x[first + params.width])));
}
