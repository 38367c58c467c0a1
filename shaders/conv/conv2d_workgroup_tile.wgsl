// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I and O multiples of 4: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as vec4 along I      weight: (KH, KW, I, O) as vec4 along O, may be packed halves or quantised
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// A workgroup computes ROWS pixels x 4 WIDTH channels, see shared/workgroup_tile. Taps and input channels form one inner axis of
// KH * KW * I steps, along which each invocation keeps its place, so that nothing is divided on the way. Workgroups run along O
// in x and along pixels in y, then z; with feature `split` over parts of the inner axis in z.
// Feature `transposed`: the weight is (KH, KW, O, I) as vec4 along I, and its taps are flipped; rows and columns of x lie SPREADY and
// SPREADX apart, with zeros between: the convolution that is the gradient of one with that weight and stride.
// permutation: f16
// permutation: w16
// permutation: w8
// permutation: w4
// permutation: f16 w8
// permutation: f16 w4
// permutation: transposed
// permutation: transposed f16
// permutation: transposed w16
// permutation: transposed w8
// permutation: transposed w4
// permutation: transposed f16 w8
// permutation: transposed f16 w4
// permutation: split
// permutation: split f16
// permutation: split w16
// permutation: split w8
// permutation: split w4
// permutation: split f16 w8
// permutation: split f16 w4
// permutation: split transposed
// permutation: split transposed f16
// permutation: split transposed w16
// permutation: split transposed w8
// permutation: split transposed w4
// permutation: split transposed f16 w8
// permutation: split transposed f16 w4

import package::shared::conv2d_tile::{corner, extents, params, part, pixel_at, store_at, tile_number, x};
import package::shared::storage::elem;
import package::shared::weight::{Extents, height};
import package::shared::workgroup_tile::{
    ACROSS, DOWN, fetch_columns, fetch_right, following, LEFTCOPIES, LEFTDOWN, Lefts, multiply, pair, PARTIAL, Place, place_right,
    position, put, Rights, ROWS, STEP4, Sums, WIDTH,
};

@if(f16) enable f16;

@if(transposed) override SPREADY: u32 = 1u;
@if(transposed) override SPREADX: u32 = 1u;

// A pixel's window: its corner, and where that lies in x (wrapped below zero); where x is spread out, its image instead.
struct Window {
    y: u32,
    x: u32,
    at: u32,
}

// Those of an invocation's copies.
struct Windows {
    w0: Window,
    w1: Window,
    w2: Window,
    w3: Window,
}

// A place on the inner axis: the tap, its number, its channel, and what they add to a window's place.
struct Tap {
    dy: u32,
    dx: u32,
    number: u32,
    channel: u32,
    at: u32,
}

// What a STEP adds to a place, and to `at` where the channels and the row of taps come to an end.
struct Advance {
    step: Tap,
    after_channels: u32,
    after_row: u32,
}

@if(transposed) fn spread() -> bool {
    return SPREADY > 1u || SPREADX > 1u;
}
@else fn spread() -> bool {
    return false;
}

// Pixel p's, whose place is that of channel `channel`.
fn window(p: u32, channel: u32) -> Window {
    let c = corner(p);
    if spread() {
        return Window(c.x, c.y, c.z * params.height * params.width * params.in_channels + channel);
    }
    return Window(c.x, c.y, ((c.z * params.height + c.x) * params.width + c.y) * params.in_channels + channel);
}

// The place of vec4 `s4` of the inner axis.
fn tap(s4: u32) -> Tap {
    let t = s4 / params.in_channels;
    let dy = t / params.kernel_width * params.dilation_y;
    let dx = t % params.kernel_width * params.dilation_x;
    let channel = s4 % params.in_channels;
    return Tap(dy, dx, t, channel, (dy * params.width + dx) * params.in_channels + channel);
}

fn advance() -> Advance {
    let after_channels = (params.dilation_x - 1u) * params.in_channels;
    let row = params.dilation_y * params.width - params.kernel_width * params.dilation_x;
    return Advance(tap(STEP4), after_channels, row * params.in_channels);
}

// A STEP further: each part of the place at most once past its end.
fn next(t: Tap, a: Advance) -> Tap {
    let s = a.step;
    var n = Tap(t.dy + s.dy, t.dx + s.dx, t.number + s.number, t.channel + s.channel, t.at + s.at);
    if n.channel >= params.in_channels {
        n.channel -= params.in_channels;
        n.number++;
        n.dx += params.dilation_x;
        n.at += a.after_channels;
    }
    if n.dx >= params.kernel_width * params.dilation_x {
        n.dx -= params.kernel_width * params.dilation_x;
        n.dy += params.dilation_y;
        n.at += a.after_row;
    }
    return n;
}

@if(transposed) fn inside(w: Window, t: Tap) -> bool {
    let y = w.y + t.dy;
    let x = w.x + t.dx;
    let between = y % SPREADY > 0u || x % SPREADX > 0u;
    return y < params.height * SPREADY && x < params.width * SPREADX && !between;
}
@else fn inside(w: Window, t: Tap) -> bool {
    return w.y + t.dy < params.height && w.x + t.dx < params.width;
}

// Where the input under a tap lies, inside the image.
@if(transposed) fn address(w: Window, t: Tap) -> u32 {
    if spread() {
        return w.at + ((w.y + t.dy) / SPREADY * params.width + (w.x + t.dx) / SPREADX) * params.in_channels + t.channel;
    }
    return w.at + t.at;
}
@else fn address(w: Window, t: Tap) -> u32 {
    return w.at + t.at;
}

// The input under a tap, any where that is outside the image.
fn left(w: Window, t: Tap, keep: bool) -> vec4<elem> {
    return x[select(0u, address(w, t), keep)];
}

// An invocation's copies of the weight for the STEP that begins with vec4 `step`, under tap t; `channel` is what it adds to the tap's.
// Past the last tap, where all of the input counts as zero, it is read again.
@if(transposed) fn fetch_weight(p: Place, t: Tap, channel: u32, step: u32, e: Extents) -> Rights {
    let last = params.kernel_height * params.kernel_width - 1u;
    let rows = (last - min(t.number, last)) * 4u * params.out_channels;
    let c4 = t.channel + channel;
    return fetch_columns(p, height(rows, e) + c4, ((rows >> 5u) * e.width4 + c4) * 2u);
}
@else fn fetch_weight(p: Place, t: Tap, channel: u32, step: u32, e: Extents) -> Rights {
    return fetch_right(p, 4u * step, e);
}

// An invocation's copies; none counts past the last tap.
fn fetch_left(w: Windows, t: Tap) -> Lefts {
    var l: Lefts;
    l.keep = vec4(inside(w.w0, t), inside(w.w1, t), inside(w.w2, t), inside(w.w3, t));
    if PARTIAL == 1u {
        l.keep = l.keep & vec4(t.dy < params.kernel_height * params.dilation_y);
    }
    l.x0 = left(w.w0, t, l.keep.x);
    if LEFTCOPIES > 1u {
        l.x1 = left(w.w1, t, l.keep.y);
    }
    if LEFTCOPIES > 2u {
        l.x2 = left(w.w2, t, l.keep.z);
        l.x3 = left(w.w3, t, l.keep.w);
    }
    return l;
}

@compute @workgroup_size(ACROSS, DOWN)
fn conv2d_workgroup_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first = tile_number(group, groups) * ROWS;
    // What this invocation copies.
    let p = first + index / STEP4;
    // Where each STEP lies within a tap, all invocations go through the taps together, each with its own channel of a STEP.
    let own = index % STEP4;
    let together = PARTIAL == 0u;
    let channel = select(0u, own, together);
    let windows = Windows(
        window(p, channel),
        window(p + LEFTDOWN, channel),
        window(p + 2u * LEFTDOWN, channel),
        window(p + 3u * LEFTDOWN, channel),
    );
    let steps4 = params.kernel_height * params.kernel_width * params.in_channels;
    let steps = part(group.z, steps4);
    var t = tap(steps.x + select(own, 0u, together));
    let a = advance();
    let e = extents(4u * params.in_channels);
    let column4 = min(group.x * WIDTH + position(index), params.out_channels - 1u);
    let place = place_right(0u, index, column4, 4u * steps.y, e);
    var sums = Sums();
    var lefts = fetch_left(windows, t);
    var rights = fetch_weight(place, t, channel, steps.x, e);
    for (var step = steps.x; step < steps.y; step += STEP4) {
        put(index, lefts, rights, place.row);
        t = next(t, a);
        lefts = fetch_left(windows, t);
        rights = fetch_weight(place, t, channel, following(step, steps.y), e);
        multiply(&sums, lane, step);
    }
    let across = group.x * WIDTH + lane.x;
    let within = lane.y * params.out_channels + across;
    // Counted from what is no constant, so that no driver writes the loop out.
    for (var down = first; down < first + ROWS; down += DOWN) {
        let sum = pair(&sums, (down - first) / DOWN);
        let at = pixel_at(group.z, down) + within;
        store_at(down + lane.y, across, at, sum.low);
        store_at(down + lane.y, across + ACROSS, at + ACROSS, sum.high);
    }
}
