// factors[b, 0, c] = products / squares; factors[b, 1, c] = scale[b] * along / squares: both 0 where h is 0.
//   products, squares and along are sums[b, k, 0 to 2, c] over the chunks k, see identity_gradient_sums
//   sums: (B, chunks, 3, C) f32     scale: (B) f32     factors: (B, 2, C) f32
// Each invocation computes both factors of one channel.

import package::shared::grid::flat_index;

struct Params {
    channels: u32,
    chunks: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> factors: array<f32>;

@compute @workgroup_size(64)
fn identity_gradient_factors(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let out = flat_index(id, groups, 64u);
    if out >= params.count {
        return;
    }
    let b = out / params.channels;
    let c = out - b * params.channels;
    var product = 0.0;
    var square = 0.0;
    var along = 0.0;
    for (var k = 0u; k < params.chunks; k++) {
        let at = (b * params.chunks + k) * 3u * params.channels + c;
        product += sums[at];
        square += sums[at + params.channels];
        along += sums[at + 2u * params.channels];
    }
    let first = b * 2u * params.channels + c;
    factors[first] = select(0.0, product / square, square > 0.0);
    factors[first + params.channels] = select(0.0, scale[b] * along / square, square > 0.0);
}
