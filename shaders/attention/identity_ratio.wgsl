// ratio[b, c] = sum_k products[b, k, c] / sum_k squares[b, k, c]: how much of h lies in i, per channel; 0 where h is 0.
//   products, squares: (B, chunks, C) f32, see identity_sums     ratio: (B, C) f32
// Each invocation computes one element.

import package::shared::grid::flat_index;

struct Params {
    channels: u32,
    chunks: u32,
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> products: array<f32>;
@group(0) @binding(2) var<storage, read> squares: array<f32>;
@group(0) @binding(3) var<storage, read_write> ratio: array<f32>;

@compute @workgroup_size(64)
fn identity_ratio(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let out = flat_index(id, groups, 64u);
    if out >= params.count {
        return;
    }
    let b = out / params.channels;
    let c = out - b * params.channels;
    var product = 0.0;
    var square = 0.0;
    for (var k = 0u; k < params.chunks; k++) {
        let at = (b * params.chunks + k) * params.channels + c;
        product += products[at];
        square += squares[at];
    }
    ratio[out] = select(0.0, product / square, square > 0.0);
}
