// y[n, h, w, c] = max over i, j of x[n, h * stride_y + i * dilation_y - pad_top, w * stride_x + j * dilation_x - pad_left,
// c], over the taps inside the image.
//   x: (N, H, W, C)      y: (N, OH, OW, C)
// Each invocation computes one element of y.
// permutation: f16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    dilation_y: u32,
    dilation_x: u32,
    pad_top: u32,
    pad_left: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

@compute @workgroup_size(64)
fn max_pool2d(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let c = i % params.channels;
    let pixel = i / params.channels;
    let out_x = pixel % params.out_width;
    let out_y = (pixel / params.out_width) % params.out_height;
    let n = pixel / (params.out_width * params.out_height);
    // Replaced by the first element, which may be minus infinity.
    var best = -3.4028234e38;
    var unseen = true;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        // Wraps below zero: one comparison catches both edges.
        let row = out_y * params.stride_y + ky * params.dilation_y - params.pad_top;
        if row >= params.height {
            continue;
        }
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let column = out_x * params.stride_x + kx * params.dilation_x - params.pad_left;
            if column >= params.width {
                continue;
            }
            let v = f32(x[((n * params.height + row) * params.width + column) * params.channels + c]);
            best = select(max(best, v), v, unseen);
            unseen = false;
        }
    }
    y[i] = elem(best);
}
