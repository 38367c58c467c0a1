// scale[n, c] = gain[c] / sqrt(variance[n, g] + eps), shift[n, c] = bias[c] - mean[n, g] * scale[n, c] for the channels c
// of group g, from the statistics of chunks.
//   mean, squares: (N, chunks, C) f32, see group_norm_partial     gain, bias: (C) f32     scale, shift: (2, N, C) f32
// One workgroup combines one group of one image: first the mean of the means, then the squares around it (Chan et al.).

import package::shared::group_statistics::{group_at, rate_of, square_share, store, value_share};
import package::shared::reduce::workgroup_sum;

@compute @workgroup_size(64)
fn group_norm_combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let g = group_at(group.y, group.x);
    var sum = 0.0;
    for (var j = lane; j < g.partials; j += 64u) {
        sum += value_share(g, j);
    }
    let offset = workgroup_sum(sum, lane) / g.count;
    var square = 0.0;
    for (var j = lane; j < g.partials; j += 64u) {
        square += square_share(g, j, offset);
    }
    let rate = rate_of(g, workgroup_sum(square, lane));
    for (var j = lane; j < g.width; j += 64u) {
        store(g, j, offset, rate);
    }
}
