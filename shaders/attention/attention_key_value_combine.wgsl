// y[i] = sum over chunks of parts[chunk, i], in order.
//   parts: (chunks, count) f32     y: (count)     in vec4
// Each invocation computes one vec4 of y.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
    chunks: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<elem>>;

@compute @workgroup_size(64)
fn attention_key_value_combine(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    var sum = parts[i];
    for (var chunk = 1u; chunk < params.chunks; chunk++) {
        sum += parts[chunk * params.count + i];
    }
    y[i] = vec4<elem>(sum);
}
