// y = weights[0] * a + weights[1] * b, where an operand of weight zero is left out, whatever it holds.
//   a, b, y: (count) f32     weights: (2) f32
// Each invocation computes one element.

import package::shared::grid::flat_index;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn weighted_sum(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    var sum = 0.0;
    if weights[0] != 0.0 {
        sum += weights[0] * a[i];
    }
    if weights[1] != 0.0 {
        sum += weights[1] * b[i];
    }
    y[i] = sum;
}
