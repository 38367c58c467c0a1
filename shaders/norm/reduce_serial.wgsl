// y[o] = sum, mean, largest or product of x over the reduced axes.
//   x: outer axes (kept) walked by near/far, reduced axes by inner_near/inner_far     y: (count) elements
// Each invocation computes one element of y. REDUCTION: 0 sum, 1 mean, 2 max, 3 product.
// permutation: f16

import package::shared::grid::flat_index;
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
fn reduce_serial(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let p = unravel(i, params.near, params.far);
    let first = offset_of(p, params.x_near, params.x_far);
    var sum = 0.0;
    // Not a constant: nothing need be larger than the smallest number.
    var high = f32(x[first]);
    var product = 1.0;
    for (var d = 0u; d < params.inner.w; d++) {
        for (var c = 0u; c < params.inner.z; c++) {
            for (var b = 0u; b < params.inner.y; b++) {
                let row = first + dot(vec3(b, c, d), params.inner_stride.yzw);
                // Partial sums keep the rounding error of long sums small.
                var part = 0.0;
                for (var a = 0u; a < params.inner.x; a++) {
                    let v = f32(x[row + a * params.inner_stride.x]);
                    part += v;
                    high = max(high, v);
                    product *= v;
                }
                sum += part;
            }
        }
    }
    switch REDUCTION {
        case 2u: { y[i] = elem(high); }
        case 3u: { y[i] = elem(product); }
        default: { y[i] = elem(sum * params.scale); }
    }
}
