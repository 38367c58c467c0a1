// y = h + scale * (i + (a - 1) * ratio * h): identity attention added to text attention, less its part along h.
//   h, i, y: (B, rows, width)     ratio: (B, width) f32     in cells along the channels     a: (B, rows) f32     scale: (B) f32
// MODE 0 leaves the projection out, 1 takes a as 0, 2 reads it. Each invocation computes one cell.
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

override MODE: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> h: array<cell>;
@group(0) @binding(2) var<storage, read> i: array<cell>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read> ratio: array<real>;
@group(0) @binding(5) var<storage, read> a: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<cell>;

@compute @workgroup_size(64)
fn identity_apply(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let out = flat_index(id, groups, 64u);
    if out >= params.count {
        return;
    }
    let base = real(h[out]);
    var identity = real(i[out]);
    let row = out / params.width;
    let b = row / params.rows;
    if MODE > 0u {
        var weight = -1.0;
        if MODE == 2u {
            weight += a[row];
        }
        identity += weight * ratio[b * params.width + out - row * params.width] * base;
    }
    y[out] = cell(base + scale[b] * identity);
}
