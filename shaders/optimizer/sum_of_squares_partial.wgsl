// (sum of x^2 over the finite elements, 1 where an element is not finite else 0) of each chunk of a tensor.
//   x: (count) f32     partial: (all tensors' chunks) sum and flag, this tensor's from `first` on
// One workgroup takes one chunk: each invocation every 64th element, then all together, always in the same order.

import package::shared::reduce::{workgroup_max, workgroup_sum};

struct Params {
    count: u32,
    chunk: u32,
    chunks: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partial: array<vec2<f32>>;

@compute @workgroup_size(64)
fn sum_of_squares_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group.y * groups.x + group.x;
    if i >= params.chunks {
        return;
    }
    let end = min((i + 1u) * params.chunk, params.count);
    var sum = 0.0;
    var broken = 0.0;
    for (var j = i * params.chunk + lane; j < end; j += 64u) {
        let v = x[j];
        // By its bits: WGSL lets compilers take comparisons for those of finite numbers.
        if (bitcast<u32>(v) & 0x7f800000u) == 0x7f800000u {
            broken = 1.0;
        } else {
            sum += v * v;
        }
    }
    sum = workgroup_sum(sum, lane);
    broken = workgroup_max(broken, lane);
    if lane == 0u {
        partial[params.first + i] = vec2(sum, broken);
    }
}
