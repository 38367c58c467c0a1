// alpha[b, t] = scale[b] / heads * sum_c g[b, t, c] * ratio[b, c] * h[b, t, c].
//   g, h: (B, rows, width)     ratio: (B, width) f32     in cells along the channels     scale: (B) f32     alpha: (B, rows) f32
// One workgroup computes one element: its invocations take cells in turn.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::reduce::workgroup_sum;
import package::shared::vector::{cell, real, total};

@if(f16) enable f16;

struct Params {
    rows: u32,
    width: u32,
    count: u32,
    heads: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> g: array<cell>;
@group(0) @binding(2) var<storage, read> h: array<cell>;
@group(0) @binding(3) var<storage, read> scale: array<f32>;
@group(0) @binding(4) var<storage, read> ratio: array<real>;
@group(0) @binding(5) var<storage, read_write> alpha: array<f32>;

@compute @workgroup_size(64)
fn identity_alpha(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    // The same for the whole workgroup, as the sum's barriers ask.
    if row >= params.count {
        return;
    }
    let b = row / params.rows;
    var sum = real(0.0);
    for (var c = lane; c < params.width; c += 64u) {
        let at = row * params.width + c;
        sum += real(g[at]) * ratio[b * params.width + c] * real(h[at]);
    }
    let all = workgroup_sum(total(sum), lane);
    if lane == 0u {
        alpha[row] = scale[b] / params.heads * all;
    }
}
