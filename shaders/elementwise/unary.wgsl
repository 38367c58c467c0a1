// y = f(x), f given by ACTIVATION.
//   x: (count) elements     y: (count) elements
// Each invocation computes four consecutive elements; the last one fewer.
// permutation: f16

import package::shared::activation::activate4;
import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

@compute @workgroup_size(64)
fn unary(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let first = flat_index(id, groups, 64u) * 4u;
    if first + 3u < params.count {
        let v = activate4(vec4(f32(x[first]), f32(x[first + 1u]), f32(x[first + 2u]), f32(x[first + 3u])));
        y[first] = elem(v.x);
        y[first + 1u] = elem(v.y);
        y[first + 2u] = elem(v.z);
        y[first + 3u] = elem(v.w);
        return;
    }
    for (var i = first; i < params.count; i++) {
        y[i] = elem(activate4(vec4(f32(x[i]))).x);
    }
}
