// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I a multiple of 4, any O: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) elements, may be packed halves
//   bias: (O) f32                        residual, y: (N, OH, OW, O) elements
// Each invocation computes one pixel x 4 or 8 (WIDE) channels: last layers, whose few output channels do not fill a
// workgroup. Lanes run along pixels and share the weights (uniform loads). Workgroups run along pixels in x and along
// groups of channels in z.
// permutation: f16
// permutation: w16

import package::shared::activation::activate4;
import package::shared::conv2d_tile::{BIAS, RESIDUAL, params, residual_at, x};
import package::shared::storage::elem;

@if(f16) enable f16;

override WIDE: u32 = 0u;

@if(w16) @group(0) @binding(2) var<storage, read> weight: array<u32>;
@else @group(0) @binding(2) var<storage, read> weight: array<elem>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;

@if(w16) fn load_weight(i: u32) -> f32 { return unpack2x16float(weight[i >> 1u])[i & 1u]; }
@else fn load_weight(i: u32) -> f32 { return f32(weight[i]); }

// Weights of channels o to o + 3 at step `i` of the inner axis; channels past the end read the last one again.
fn load_weights(i: u32, o: u32) -> vec4<f32> {
    let first = i * params.out_channels;
    let last = params.out_channels - 1u;
    return vec4(
        load_weight(first + min(o, last)),
        load_weight(first + min(o + 1u, last)),
        load_weight(first + min(o + 2u, last)),
        load_weight(first + min(o + 3u, last)),
    );
}

fn store_channel(p: u32, o: u32, v: f32) {
    if o >= params.out_channels {
        return;
    }
    let i = p * params.out_channels + o;
    var r = v;
    if RESIDUAL > 0u {
        r += f32(residual[residual_at(p, o)]);
    }
    y[i] = elem(r);
}

fn store(p: u32, o: u32, sum: vec4<f32>) {
    var v = sum;
    if BIAS == 1u {
        let last = params.out_channels - 1u;
        v += vec4(bias[min(o, last)], bias[min(o + 1u, last)], bias[min(o + 2u, last)], bias[min(o + 3u, last)]);
    }
    v = activate4(v);
    store_channel(p, o, v.x);
    store_channel(p, o + 1u, v.y);
    store_channel(p, o + 2u, v.z);
    store_channel(p, o + 3u, v.w);
}

@compute @workgroup_size(64)
fn conv2d_few_outputs(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    let p = group.x * 64u + lane.x;
    if p >= params.pixels {
        return;
    }
    let o = group.z * select(4u, 8u, WIDE == 1u);
    let top = (p / params.out_width) % params.out_height * params.stride_y - params.pad_top;
    let left = p % params.out_width * params.stride_x - params.pad_left;
    let first_row = p / (params.out_width * params.out_height) * params.height;
    var low = vec4(0.0);
    var high = vec4(0.0);
    for (var ky = 0u; ky < params.kernel_height; ky++) {
        let row = top + ky * params.dilation_y;
        for (var kx = 0u; kx < params.kernel_width; kx++) {
            let column = left + kx * params.dilation_x;
            // Rows and columns above the image have wrapped: one comparison catches both edges.
            let inside = row < params.height && column < params.width;
            let from_pixel = select(0u, ((first_row + row) * params.width + column) * params.in_channels, inside);
            let step = (ky * params.kernel_width + kx) * params.in_channels * 4u;
            for (var c = 0u; c < params.in_channels; c++) {
                let v = select(vec4(0.0), vec4<f32>(x[from_pixel + c]), inside);
                let i = step + c * 4u;
                low += v.x * load_weights(i, o) + v.y * load_weights(i + 1u, o) + v.z * load_weights(i + 2u, o)
                    + v.w * load_weights(i + 3u, o);
                if WIDE == 1u {
                    high += v.x * load_weights(i, o + 4u) + v.y * load_weights(i + 1u, o + 4u)
                        + v.z * load_weights(i + 2u, o + 4u) + v.w * load_weights(i + 3u, o + 4u);
                }
            }
        }
    }
    store(p, o, low);
    if WIDE == 1u {
        store(p, o + 4u, high);
    }
}
