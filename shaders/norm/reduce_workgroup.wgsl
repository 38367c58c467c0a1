// y[o] = sum, mean or largest of x over the reduced axes.
//   x: outer axes (kept) walked by near/far, reduced axes by inner/inner_stride     y: (count) elements
// One workgroup computes one element of y: each invocation takes every 64th reduced element; for few results and long
// reductions. REDUCTION: 0 sum, 1 mean, 2 max.
// permutation: f16

import package::shared::reduce::{workgroup_max, workgroup_sum};
import package::shared::storage::elem;
import package::shared::strided::{Position, unravel, offset_of};

@if(f16) enable f16;

struct Params {
    near: vec4<u32>,
    far: vec4<u32>,
    x_near: vec4<u32>,
    x_far: vec4<u32>,
    inner: vec4<u32>,
    inner_stride: vec4<u32>,
    count: u32,
    scale: f32,
}

override REDUCTION: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

@compute @workgroup_size(64)
fn reduce_workgroup(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if i >= params.count {
        return;
    }
    let p = unravel(i, params.near, params.far);
    let first = offset_of(p, params.x_near, params.x_far);
    let total = params.inner.x * params.inner.y * params.inner.z * params.inner.w;
    var sum = 0.0;
    // Not a constant: nothing need be larger than the smallest number.
    var high = f32(x[first]);
    for (var j = lane; j < total; j += 64u) {
        let b = j / params.inner.x;
        let c = b / params.inner.y;
        let d = c / params.inner.z;
        let at = vec4(j % params.inner.x, b % params.inner.y, c % params.inner.z, d);
        let v = f32(x[first + dot(at, params.inner_stride)]);
        sum += v;
        high = max(high, v);
    }
    var result = 0.0;
    if REDUCTION == 2u {
        result = workgroup_max(high, lane);
    } else {
        result = workgroup_sum(sum, lane) * params.scale;
    }
    if lane == 0u {
        y[i] = elem(result);
    }
}
