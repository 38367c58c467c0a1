// The sums and flags of `sum_of_squares_partial` together; a sum that overflows is flagged too.
//   partial: (count) sum and flag     y: (2) sum, flag
// One workgroup: each invocation takes every 64th, then all together, always in the same order.

import package::shared::reduce::{workgroup_max, workgroup_sum};

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partial: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn sum_of_squares_combine(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    var broken = 0.0;
    for (var j = lane; j < params.count; j += 64u) {
        sum += partial[j].x;
        broken = max(broken, partial[j].y);
    }
    sum = workgroup_sum(sum, lane);
    broken = workgroup_max(broken, lane);
    if lane == 0u {
        y[0] = sum;
        y[1] = select(broken, 1.0, (bitcast<u32>(sum) & 0x7f800000u) == 0x7f800000u);
    }
}
