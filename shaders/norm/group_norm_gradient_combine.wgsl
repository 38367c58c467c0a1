// means[0, n, c] and means[1, n, c]: the means of w and of w * xh over the group of channel c, from the sums of chunks.
//   sums: (2, N, chunks, C) f32, see group_norm_gradient_partial     means: (2, N, C) f32
// One workgroup combines one group of one image, in a fixed order.

import package::shared::reduce::workgroup_sum;

struct Params {
    rows: u32,
    channels: u32,
    chunks: u32,
    // Channels of a group.
    width: u32,
    batch: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> means: array<f32>;

@compute @workgroup_size(64)
fn group_norm_gradient_combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * params.width;
    let image = group.y * params.chunks * params.channels;
    let half = params.batch * params.chunks * params.channels;
    var sum = 0.0;
    var product = 0.0;
    for (var j = lane; j < params.chunks * params.width; j += 64u) {
        let k = j / params.width;
        let at = image + k * params.channels + first + j - k * params.width;
        sum += sums[at];
        product += sums[half + at];
    }
    let count = f32(params.rows) * f32(params.width);
    let mean = workgroup_sum(sum, lane) / count;
    let mean_product = workgroup_sum(product, lane) / count;
    for (var j = lane; j < params.width; j += 64u) {
        let at = group.y * params.channels + first + j;
        means[at] = mean;
        means[params.batch * params.channels + at] = mean_product;
    }
}
