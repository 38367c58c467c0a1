// y = [dh, di] along the last axis: dh = g + ratio * e + share * (i - 2 * ratio * h) with e = scale * (a - 1) * g, and
// di = scale * g + share * h.
//   g, h, i: (B, rows, width)     y: (B, rows, 2 width)     factors: (B, 2, width) f32, ratio before share     in cells along
//   the channels     a: (B, rows) f32     scale: (B) f32
// MODE 1 takes a as 0, 2 reads it. Each invocation computes one cell of dh and of di.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::vector::{cell, real};

@if(f16) enable f16;

struct Params {
    count: u32,
    rows: u32,
    width: u32,
}

override MODE: u32 = 1u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<cell>;
@group(0) @binding(2) var<storage, read> h: array<cell>;
@group(0) @binding(3) var<storage, read> i: array<cell>;
@group(0) @binding(4) var<storage, read> scale: array<f32>;
@group(0) @binding(5) var<storage, read> factors: array<real>;
@group(0) @binding(6) var<storage, read> a: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn identity_gradient_apply(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = flat_index(id, groups, 64u);
    if at >= params.count {
        return;
    }
    let row = at / params.width;
    let c = at - row * params.width;
    let b = row / params.rows;
    let ratio = factors[b * 2u * params.width + c];
    let share = factors[(b * 2u + 1u) * params.width + c];
    var weight = -1.0;
    if MODE == 2u {
        weight += a[row];
    }
    let up = real(g[at]);
    let base = real(h[at]);
    let out = row * 2u * params.width + c;
    y[out] = cell(up + ratio * (scale[b] * weight * up) + share * (real(i[at]) - 2.0 * ratio * base));
    y[out + params.width] = cell(scale[b] * up + share * base);
}
