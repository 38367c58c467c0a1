// y[n, h, w, c] = sum over taps i, j of weight_y(h, i) * weight_x(w, j) * x[n, row(h, i), column(w, j), c].
//   x: (N, H, W, C)      y: (N, OH, OW, C)
// An output position d lies at input position (scale * d + offset) / divisor, never below -1: the whole part selects the
// taps (clamped to the image), the remainder the weights. MODE: 0 nearest (offset already rounds), 1 bilinear,
// 2 bicubic with Keys' coefficient `cubic`. Each invocation computes one element of y.
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
    scale_y: i32,
    offset_y: i32,
    divisor_y: i32,
    scale_x: i32,
    offset_x: i32,
    divisor_x: i32,
    cubic: f32,
}

override MODE: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<elem>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

struct Position {
    whole: i32,
    part: f32,
}

// One divisor is added and one taken from the quotient, so that the division rounds down below zero too.
fn position(d: u32, scale: i32, offset: i32, divisor: i32) -> Position {
    let shifted = scale * i32(d) + offset + divisor;
    return Position(shifted / divisor - 1, f32(shifted % divisor) / f32(divisor));
}

// Weights of the pixels at -1, 0, 1 and 2 from the position's whole part.
fn cubic_weights(t: f32) -> vec4<f32> {
    let a = params.cubic;
    let near = vec2(t, 1.0 - t);
    let far = near + 1.0;
    let n = ((a + 2.0) * near - (a + 3.0)) * near * near + 1.0;
    let f = ((a * far - 5.0 * a) * far + 8.0 * a) * far - 4.0 * a;
    return vec4(f.x, n.x, n.y, f.y);
}

// Value at (row, column) of image n, the nearest border pixel outside.
fn load(n: u32, row: i32, column: i32, c: u32) -> f32 {
    let r = u32(clamp(row, 0, i32(params.height) - 1));
    let q = u32(clamp(column, 0, i32(params.width) - 1));
    return f32(x[((n * params.height + r) * params.width + q) * params.channels + c]);
}

fn cubic_row(n: u32, row: i32, column: i32, c: u32, weights: vec4<f32>) -> f32 {
    let v = vec4(
        load(n, row, column - 1, c),
        load(n, row, column, c),
        load(n, row, column + 1, c),
        load(n, row, column + 2, c),
    );
    return dot(v, weights);
}

@compute @workgroup_size(64)
fn resize2d(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let c = i % params.channels;
    let pixel = i / params.channels;
    let n = pixel / (params.out_width * params.out_height);
    let row = position((pixel / params.out_width) % params.out_height, params.scale_y, params.offset_y, params.divisor_y);
    let column = position(pixel % params.out_width, params.scale_x, params.offset_x, params.divisor_x);
    var v = 0.0;
    if MODE == 0u {
        v = load(n, row.whole, column.whole, c);
    } else if MODE == 1u {
        let top = mix(load(n, row.whole, column.whole, c), load(n, row.whole, column.whole + 1, c), column.part);
        let low = mix(load(n, row.whole + 1, column.whole, c), load(n, row.whole + 1, column.whole + 1, c), column.part);
        v = mix(top, low, row.part);
    } else {
        let wx = cubic_weights(column.part);
        let wy = cubic_weights(row.part);
        v = cubic_row(n, row.whole - 1, column.whole, c, wx) * wy.x
            + cubic_row(n, row.whole, column.whole, c, wx) * wy.y
            + cubic_row(n, row.whole + 1, column.whole, c, wx) * wy.z
            + cubic_row(n, row.whole + 2, column.whole, c, wx) * wy.w;
    }
    y[i] = elem(v);
}
