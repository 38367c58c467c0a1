// dx[p, c] = sum over taps t and the output channels o of c's group of upstream[window(p, t), o] * weight[t, c, o], for the
// windows that have pixel p under tap t; p counts the pixels of all images.
//   upstream: (N, OH, OW, O)      weight: (KH, KW, I / groups, O), may be packed halves      dx: (N, H, W, I)
// Each invocation computes one element of dx, neighbours along I. The plain variant: any size and any grouping.
// permutation: f16
// permutation: w16

import package::shared::grid::flat_index;
import package::shared::storage::elem;

@if(f16) enable f16;

struct Params {
    count: u32,
    // Of upstream.
    height: u32,
    width: u32,
    up_channels: u32,
    // Of dx.
    out_height: u32,
    out_width: u32,
    out_channels: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    dilation_y: u32,
    dilation_x: u32,
    pad_top: u32,
    pad_left: u32,
    // Channels of a group, of dx and of upstream.
    group_inputs: u32,
    group_outputs: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> upstream: array<elem>;
@if(w16) @group(0) @binding(2) var<storage, read> weight: array<u32>;
@else @group(0) @binding(2) var<storage, read> weight: array<elem>;
@group(0) @binding(3) var<storage, read_write> dx: array<elem>;

@if(w16) fn load_weight(i: u32) -> f32 { return unpack2x16float(weight[i >> 1u])[i & 1u]; }
@else fn load_weight(i: u32) -> f32 { return f32(weight[i]); }

@compute @workgroup_size(64)
fn conv2d_gradient_direct(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let c = i % params.out_channels;
    let pixel = i / params.out_channels;
    let column = pixel % params.out_width + params.pad_left;
    let row = (pixel / params.out_width) % params.out_height + params.pad_top;
    let n = pixel / (params.out_width * params.out_height);
    let group = c / params.group_inputs;
    let first = group * params.group_outputs;
    var sum = 0.0;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        // Where a window with this tap here begins. Below zero it wraps, far past the end.
        let top = row - ky * params.dilation_y;
        let up_y = top / params.stride_y;
        if up_y >= params.height || up_y * params.stride_y != top {
            continue;
        }
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let left = column - kx * params.dilation_x;
            let up_x = left / params.stride_x;
            if up_x >= params.width || up_x * params.stride_x != left {
                continue;
            }
            let up = ((n * params.height + up_y) * params.width + up_x) * params.up_channels + first;
            let tap = ky * params.kernel_width + kx;
            let w = (tap * params.group_inputs + c - group * params.group_inputs) * params.up_channels + first;
            for (var o = 0u; o < params.group_outputs; o++) {
                sum += f32(upstream[up + o]) * load_weight(w + o);
            }
        }
    }
    dx[i] = elem(sum);
}
