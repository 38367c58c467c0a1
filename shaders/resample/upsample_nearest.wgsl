// y[n, h, w, c] = x[n, h / factor, w / factor, c], whole division.
//   x: (N, H, W, C)      y: (N, H * factor, W * factor, C)      both as elements
// Each invocation copies one element of y.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
    width: u32,
    channels: u32,
    factor: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

@compute @workgroup_size(64)
fn upsample_nearest(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let c = i % params.channels;
    let column = (i / params.channels) % (params.width * params.factor) / params.factor;
    // Counts the rows of all images: their height does not matter.
    let row = i / (params.channels * params.width * params.factor) / params.factor;
    y[i] = x[(row * params.width + column) * params.channels + c];
}
