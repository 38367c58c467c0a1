// y[i0, i1, ...] = x[start0 + i0 step0, start1 + i1 step1, ...].
//   x: walked from `start` by strides times steps     y: dense
// Each invocation moves one cell.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::moving::words;
import package::shared::strided::{Position, unravel, offset_of};

@if(f16) enable f16;

struct Params {
    near: vec4<u32>,
    far: vec4<u32>,
    x_near: vec4<u32>,
    x_far: vec4<u32>,
    start: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<words>;
@group(0) @binding(2) var<storage, read_write> y: array<words>;

@compute @workgroup_size(64)
fn slice(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i < params.count {
        y[i] = x[params.start + offset_of(unravel(i, params.near, params.far), params.x_near, params.x_far)];
    }
}
