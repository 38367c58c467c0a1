// What the tiled gradients of convolutions share: parameters and bindings, where a pixel's values came from, and how a result
// is stored. The weight is read as the convolution has it, rows of one input channel, and transposed in registers.

import package::shared::storage::elem;
import package::shared::weight::Extents;

// Channels count vec4s.
struct Params {
    // Of dx, all images.
    pixels: u32,
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
}

// Whether some stride is more than one.
override STRIDED: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> upstream: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<elem>>;

// Extents of the weight: taps and input channels are its rows.
fn extents() -> Extents {
    return Extents(params.kernel_height * params.kernel_width * params.out_channels * 4u, params.up_channels);
}

// Row and column of pixel p of dx in the padded image, and its image. Pixels past the end read the last one again and are not
// stored.
fn place(p: u32) -> vec3<u32> {
    let q = min(p, params.pixels - 1u);
    let column = q % params.out_width;
    let row = (q / params.out_width) % params.out_height;
    return vec3(row + params.pad_top, column + params.pad_left, q / (params.out_width * params.out_height));
}

// Number of the window whose tap, `step` from its start, lies at `at`; past the end where there is none.
fn window(at: u32, step: u32, stride: u32) -> u32 {
    // Below zero it wraps, far past the end.
    let start = at - step;
    if STRIDED == 1u {
        return select(0xffffffffu, start / stride, start % stride == 0u);
    }
    return start;
}

// The pixel of upstream whose window has the pixel at `at` under its tap (ky, kx): first element, and whether there is one.
struct Source {
    at: u32,
    inside: bool,
}

fn source(at: vec3<u32>, ky: u32, kx: u32) -> Source {
    let row = window(at.x, ky * params.dilation_y, params.stride_y);
    let column = window(at.y, kx * params.dilation_x, params.stride_x);
    let inside = row < params.height && column < params.width;
    let i = ((at.z * params.height + row) * params.width + column) * params.up_channels;
    return Source(select(0u, i, inside), inside);
}

// Four channels of upstream, `o4` from a source; zero where there is none.
fn load(s: Source, o4: u32) -> vec4<f32> {
    return select(vec4(0.0), vec4<f32>(upstream[s.at + o4]), s.inside);
}

// Stores four channels of a pixel; those past the end are not stored.
fn store(p: u32, c4: u32, sum: vec4<f32>) {
    if p >= params.pixels || c4 >= params.out_channels {
        return;
    }
    dx[p * params.out_channels + c4] = vec4<elem>(sum);
}
