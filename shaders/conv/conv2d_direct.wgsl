// y[n, h, w, o] = f(sum over i, j, c of x[n, h * stride_y + i * dilation_y - pad_top, w * stride_x + j * dilation_x -
// pad_left, first + c] * weight[i, j, c, o] + bias[o]) + residual[n, h, w, o]; first is the start of o's channel
// group.
//   x: (N, H, W, I)      weight: (KH, KW, I / groups, O), may be packed halves      bias: (O) f32
//   residual, y: (N, OH, OW, O)
// Each invocation computes one element of y, neighbours along O. The plain variant: any size and any grouping.
// permutation: f16
// permutation: w16

import package::shared::activation::activate;
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
    out_channels: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    dilation_y: u32,
    dilation_x: u32,
    pad_top: u32,
    pad_left: u32,
    group_inputs: u32,
    group_outputs: u32,
}

override BIAS: u32 = 0u;
// 1: a residual of y's shape; 2: one for each image and channel, (N, O).
override RESIDUAL: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@if(w16) @group(0) @binding(2) var<storage, read> weight: array<u32>;
@else @group(0) @binding(2) var<storage, read> weight: array<elem>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;

@if(w16) fn load_weight(i: u32) -> f32 { return unpack2x16float(weight[i >> 1u])[i & 1u]; }
@else fn load_weight(i: u32) -> f32 { return f32(weight[i]); }

@compute @workgroup_size(64)
fn conv2d_direct(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let o = i % params.out_channels;
    let pixel = i / params.out_channels;
    let out_x = pixel % params.out_width;
    let out_y = (pixel / params.out_width) % params.out_height;
    let n = pixel / (params.out_width * params.out_height);
    let first = (o / params.group_outputs) * params.group_inputs;
    var sum = 0.0;
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        // Wraps below zero: one comparison catches both edges.
        let in_y = out_y * params.stride_y + ky * params.dilation_y - params.pad_top;
        if in_y >= params.height {
            continue;
        }
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let in_x = out_x * params.stride_x + kx * params.dilation_x - params.pad_left;
            if in_x >= params.width {
                continue;
            }
            let xi = ((n * params.height + in_y) * params.width + in_x) * params.channels + first;
            var wi = (ky * params.kernel_width + kx) * params.group_inputs * params.out_channels + o;
            for (var c = 0u; c < params.group_inputs; c++) {
                sum += f32(x[xi + c]) * load_weight(wi);
                wi += params.out_channels;
            }
        }
    }
    if BIAS == 1u {
        sum += bias[o];
    }
    sum = activate(sum);
    if RESIDUAL == 1u {
        sum += f32(residual[i]);
    }
    if RESIDUAL == 2u {
        sum += f32(residual[n * params.out_channels + o]);
    }
    y[i] = elem(sum);
}
