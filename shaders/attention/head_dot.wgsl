// y[b, h, t] = sum_d a[b, t, h, d] * b[b, t, h, d].
//   a, b: (B, T, H, width) in cells     y: (B, H, T) f32
// Each invocation computes one element of y.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

struct Params {
    count: u32,
    positions: u32,
    heads: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<cell>;
@group(0) @binding(2) var<storage, read> b: array<cell>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn head_dot(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    // In the operands' order, so that neighbours read neighbouring heads.
    let at = flat_index(id, groups, 64u);
    if at >= params.count {
        return;
    }
    let h = at % params.heads;
    let t = (at / params.heads) % params.positions;
    let image = at / (params.heads * params.positions);
    var sum = real(0.0);
    for (var c = at * params.width; c < (at + 1u) * params.width; c++) {
        sum += real(a[c]) * real(b[c]);
    }
    y[(image * params.heads + h) * params.positions + t] = total(sum);
}
