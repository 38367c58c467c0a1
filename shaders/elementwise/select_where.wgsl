// y = a where condition is not 0, else b, with broadcasting.
//   condition, a, b: any strides     y: dense
// Each invocation computes one cell of y; the operands are then walked by cells too.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::strided::{Position, unravel, offset_of};
import package::shared::vector::{cell, real};

@if(f16) enable f16;

struct Params {
    near: vec4<u32>,
    far: vec4<u32>,
    condition_near: vec4<u32>,
    condition_far: vec4<u32>,
    a_near: vec4<u32>,
    a_far: vec4<u32>,
    b_near: vec4<u32>,
    b_far: vec4<u32>,
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> condition: array<cell>;
@group(0) @binding(2) var<storage, read> a: array<cell>;
@group(0) @binding(3) var<storage, read> b: array<cell>;
@group(0) @binding(4) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn select_where(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let p = unravel(i, params.near, params.far);
    let holds = real(condition[offset_of(p, params.condition_near, params.condition_far)]) != real(0.0);
    let x = a[offset_of(p, params.a_near, params.a_far)];
    let z = b[offset_of(p, params.b_near, params.b_far)];
    y[i] = select(z, x, holds);
}
