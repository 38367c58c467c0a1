// For y = a * gelu(b), x = [a, b] along the last axis: dx = [upstream * gelu(b), upstream * a * gelu'(b)].
//   x, dx: (rows, 2 width)     upstream: (rows, width)     in cells; width counts cells
// Each invocation computes both cells of dx that one cell of the upstream decides.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::slope::gelu_slope4;
import package::shared::vector::{cell, gelu_cell, real};

@if(f16) enable f16;

struct Params {
    count: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<cell>;
@group(0) @binding(2) var<storage, read> upstream: array<cell>;
@group(0) @binding(3) var<storage, read_write> dx: array<cell>;

@if(vec4) fn gelu_slope(v: vec4<f32>) -> vec4<f32> { return gelu_slope4(v); }
@else fn gelu_slope(v: f32) -> f32 { return gelu_slope4(vec4(v)).x; }

@compute @workgroup_size(64)
fn geglu_gradient(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    // Element i of the upstream lies in row i / width, whose first half starts that many widths further in x.
    let first = i + (i / params.width) * params.width;
    let up = real(upstream[i]);
    let a = real(x[first]);
    let b = real(x[first + params.width]);
    dx[first] = cell(up * gelu_cell(b));
    dx[first + params.width] = cell(up * a * gelu_slope(b));
}
