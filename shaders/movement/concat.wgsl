// y[o, start + i] = x[o, i]: one operand's place in the result.
//   x: (count / inner, inner)     y: (.., outer)     in cells
// Each invocation moves one cell; one dispatch per operand.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::moving::words;

@if(f16) enable f16;

struct Params {
    count: u32,
    inner: u32,
    outer: u32,
    start: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<words>;
@group(0) @binding(2) var<storage, read_write> y: array<words>;

@compute @workgroup_size(64)
fn concat(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i < params.count {
        let o = i / params.inner;
        y[o * params.outer + params.start + i - o * params.inner] = x[i];
    }
}
