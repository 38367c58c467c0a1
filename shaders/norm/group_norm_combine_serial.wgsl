// scale[n, c] = gain[c] / sqrt(variance[n, g] + eps), shift[n, c] = bias[c] - mean[n, g] * scale[n, c] for the channels c
// of group g, from the statistics of chunks.
//   mean, squares: (N, chunks, C) f32, see group_norm_partial     gain, bias: (C) f32     scale, shift: (2, N, C) f32
// For CPU devices, where barriers cost more than the sums: one invocation combines one group of one image, first the
// mean of the means, then the squares around it (Chan et al.). Neighbours take neighbouring groups.

import package::shared::group_statistics::{group_at, params, rate_of, square_share, store, value_share};

@compute @workgroup_size(8)
fn group_norm_combine_serial(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.count {
        return;
    }
    let picture = id.x / params.groups;
    let g = group_at(picture, id.x - picture * params.groups);
    var sum = 0.0;
    for (var j = 0u; j < g.partials; j++) {
        sum += value_share(g, j);
    }
    let offset = sum / g.count;
    var square = 0.0;
    for (var j = 0u; j < g.partials; j++) {
        square += square_share(g, j, offset);
    }
    let rate = rate_of(g, square);
    for (var j = 0u; j < g.width; j++) {
        store(g, j, offset, rate);
    }
}
