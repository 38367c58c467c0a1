// Rotates each pair (x[2j], x[2j + 1]) of every head by the position's angle:
// y[2j] = x[2j] cos[2j] - x[2j + 1] sin[2j], y[2j + 1] = x[2j + 1] cos[2j + 1] + x[2j] sin[2j + 1].
//   x, y: (B, T, H, pairs) as vec2     cos, sin: (T, pairs) as vec2, f32
// Each invocation rotates one pair.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
    positions: u32,
    heads: u32,
    pairs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec2<elem>>;
@group(0) @binding(2) var<storage, read> cosine: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> sine: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec2<elem>>;

@compute @workgroup_size(64)
fn rotary(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let row = i / params.pairs;
    let position = (row / params.heads) % params.positions;
    let at = position * params.pairs + i - row * params.pairs;
    let v = vec2<f32>(x[i]);
    y[i] = vec2<elem>(v * cosine[at] + vec2(-v.y, v.x) * sine[at]);
}
