// y = x rounded to f16, two elements a word, so that it also runs where shaders cannot name f16.
//   x: (count) elements, f32 or f16     y: (count) halves in u32
// Each invocation converts two consecutive elements. An odd count leaves the last upper half as it was.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(64)
fn cast_to_f16(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let pair = flat_index(id, groups, 64u);
    let i = pair * 2u;
    if i >= params.count {
        return;
    }
    if i + 1u < params.count {
        y[pair] = pack2x16float(vec2(f32(x[i]), f32(x[i + 1u])));
    } else {
        y[pair] = (y[pair] & 0xffff0000u) | (pack2x16float(vec2(f32(x[i]), 0.0)) & 0xffffu);
    }
}
