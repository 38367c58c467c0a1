// What the tiled convolutions share: their parameters and bindings, where a window lies, and how a result is finished.
// A shader whose operand is no array of vec4 declares that binding itself.
// Feature `split`: workgroups in z take parts of the inner axis, and y is the sums of each part, (P, N, OH, OW, O) in f32, which
// `split_k_reduce` adds and finishes.

import package::shared::activation::activate4;
import package::shared::storage::elem;
import package::shared::weight::Extents;

// Channels count the elements of x's and y's bindings.
struct Params {
    pixels: u32,
    height: u32,
    width: u32,
    in_channels: u32,
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
    // Steps of the inner axis to a part, counted as the shader does.
    part: u32,
}

override BIAS: u32 = 0u;
// 1: a residual of y's shape; 2: one for each image and channel, (N, O).
override RESIDUAL: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<elem>>;
@if(split) @group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@else @group(0) @binding(5) var<storage, read_write> y: array<vec4<elem>>;

// Extents of the weight, given the input channels as scalars: taps and channels are its rows. Feature `transposed`: channels of the
// output are, and those of the input count vec4s.
@if(transposed) fn extents(in_channels: u32) -> Extents {
    return Extents(params.kernel_height * params.kernel_width * 4u * params.out_channels, params.in_channels);
}
@else fn extents(in_channels: u32) -> Extents {
    return Extents(params.kernel_height * params.kernel_width * in_channels, params.out_channels);
}

// Top left corner of pixel p's window (below zero by the padding, wrapped) and its image. Pixels past the end read
// the last one again and are not stored.
fn corner(p: u32) -> vec3<u32> {
    let q = min(p, params.pixels - 1u);
    let column = q % params.out_width;
    let row = (q / params.out_width) % params.out_height;
    let n = q / (params.out_width * params.out_height);
    return vec3(row * params.stride_y - params.pad_top, column * params.stride_x - params.pad_left, n);
}

// Whether tap (dy, dx) of the window at c is inside the image.
fn inside(c: vec3<u32>, dy: u32, dx: u32) -> bool {
    return c.x + dy < params.height && c.y + dx < params.width;
}

// First element of the input pixel under a tap; 0 for one outside.
fn address(c: vec3<u32>, dy: u32, dx: u32) -> u32 {
    let i = ((c.z * params.height + c.x + dy) * params.width + c.y + dx) * params.in_channels;
    return select(0u, i, inside(c, dy, dx));
}

// The part of `steps` of the inner axis that layer z of the workgroups takes: its first step and the one past its last.
@if(split) fn part(z: u32, steps: u32) -> vec2<u32> {
    return vec2(z * params.part, min((z + 1u) * params.part, steps));
}
@else fn part(z: u32, steps: u32) -> vec2<u32> {
    return vec2(0u, steps);
}

// Number of a workgroup along the pixels, which go on in z where there are no parts.
@if(split) fn tile_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y;
}
@else fn tile_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.z * groups.y + group.y;
}

// Stores four channels of a pixel: the sum of part z as it is, else all of it.
fn store_part(z: u32, p: u32, o4: u32, sum: vec4<f32>) {
    store_at(p, o4, pixel_at(z, p) + o4, sum);
}

// Where pixel p of part z begins in y.
@if(split) fn pixel_at(z: u32, p: u32) -> u32 {
    return (z * params.pixels + p) * params.out_channels;
}
@else fn pixel_at(z: u32, p: u32) -> u32 {
    return p * params.out_channels;
}

// The same where the channels' place in y is known.
@if(split) fn store_at(p: u32, o4: u32, at: u32, sum: vec4<f32>) {
    if p < params.pixels && o4 < params.out_channels {
        y[at] = sum;
    }
}
@else fn store_at(p: u32, o4: u32, at: u32, sum: vec4<f32>) {
    if p < params.pixels && o4 < params.out_channels {
        finish(p, o4, at, sum);
    }
}

// The residual's element for channels `o` of pixel p, in units of the shader's channels.
fn residual_at(p: u32, o: u32) -> u32 {
    if RESIDUAL == 2u {
        return p / (params.out_height * params.out_width) * params.out_channels + o;
    }
    return p * params.out_channels + o;
}

// Finishes and stores four channels of a pixel; those past the end are not stored.
fn store(p: u32, o4: u32, sum: vec4<f32>) {
    if p < params.pixels && o4 < params.out_channels {
        finish(p, o4, p * params.out_channels + o4, sum);
    }
}

fn finish(p: u32, o4: u32, at: u32, sum: vec4<f32>) {
    var v = sum;
    if BIAS == 1u {
        v += bias[o4];
    }
    v = activate4(v);
    if RESIDUAL == 2u {
        v += vec4<f32>(residual[residual_at(p, o4)]);
    } else if RESIDUAL > 0u {
        v += vec4<f32>(residual[at]);
    }
    y[at] = vec4<elem>(v);
}
