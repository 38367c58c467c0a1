// y[i0, i1, ...] = x[i0 - before0, i1 - before1, ...] where that lies inside x, else a constant.
//   x: up to six axes, walked by strides     y: dense, in cells along the innermost axis
// Each invocation writes one cell. Axes are numbered from the innermost.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::moving::{word_of, words};
import package::shared::strided::{Position, unravel, offset_of};

@if(f16) enable f16;

struct Params {
    near: vec4<u32>,
    far: vec4<u32>,
    x_near: vec4<u32>,
    x_far: vec4<u32>,
    before_near: vec4<u32>,
    before_far: vec4<u32>,
    size_near: vec4<u32>,
    size_far: vec4<u32>,
    count: u32,
    value: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<words>;
@group(0) @binding(2) var<storage, read_write> y: array<words>;

@compute @workgroup_size(64)
fn pad(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let p = unravel(i, params.near, params.far);
    // Positions before the start wrap to large numbers and fail the comparison too.
    let inside = Position(p.near - params.before_near, p.far - params.before_far);
    if all(inside.near < params.size_near) && all(inside.far < params.size_far) {
        y[i] = x[offset_of(inside, params.x_near, params.x_far)];
    } else {
        y[i] = words(word_of(params.value));
    }
}
