// y[p, o] = f(sum over taps t and channels c of x[pixel(p, t), c] * weight[t, c, o] + bias[o]) + residual[p, o], where
// p counts the pixels of all images; one group, I and O multiples of 8: a matrix product whose rows are gathered.
//   x: (N, H, W, I) as eights along I    weight: (KH, KW, I, O) as eights along O, may be quantised blocks
//   bias: (O) f32                        residual, y: (N, OH, OW, O) as vec4 along O
// A workgroup computes ROWS pixels x COLUMNS channels, see shared/cooperative_tile. A STEP is of one tap, so that the last one
// of a tap may be short and nothing is divided on the way. Workgroups run along O in x and along pixels in y, then z; with feature `split` over
// parts of the inner axis in z.
// Feature `transposed`: the weight is (KH, KW, O, I) as eights along I, and its taps are flipped: the convolution that is the
// gradient of one with that weight and stride 1.
// only permutation: coop16 f16
// only permutation: coop16 f16 packed
// only permutation: coop16 f16 w8
// only permutation: coop16 f16 w8 packed
// only permutation: coop16 f16 w4
// only permutation: coop16 f16 w4 packed
// only permutation: coop8 f16
// only permutation: coop8 f16 w8
// only permutation: coop8 f16 w4
// only permutation: split coop16 f16
// only permutation: split coop16 f16 packed
// only permutation: split coop16 f16 w8
// only permutation: split coop16 f16 w8 packed
// only permutation: split coop16 f16 w4
// only permutation: split coop16 f16 w4 packed
// only permutation: split coop8 f16
// only permutation: split coop8 f16 w8
// only permutation: split coop8 f16 w4
// only permutation: transposed coop16 f16
// only permutation: transposed coop16 f16 packed
// only permutation: transposed coop16 f16 w8
// only permutation: transposed coop16 f16 w8 packed
// only permutation: transposed coop16 f16 w4
// only permutation: transposed coop16 f16 w4 packed
// only permutation: transposed coop8 f16
// only permutation: transposed coop8 f16 w8
// only permutation: transposed coop8 f16 w4
// only permutation: split transposed coop16 f16
// only permutation: split transposed coop16 f16 packed
// only permutation: split transposed coop16 f16 w8
// only permutation: split transposed coop16 f16 w8 packed
// only permutation: split transposed coop16 f16 w4
// only permutation: split transposed coop16 f16 w4 packed
// only permutation: split transposed coop8 f16
// only permutation: split transposed coop8 f16 w8
// only permutation: split transposed coop8 f16 w4

import package::shared::conv2d_tile::{corner, extents, params, part, store_part, tile_number};
import package::shared::cooperative_tile::{
    ACROSS, COLUMNS, Eight, INVOCATIONS, kept, LANES, LEFTCOPIES, LEFTDOWN, LEFTWIDTH, multiply, PARTIAL, RIGHTWIDTH, ROWS,
    SIZE, SPANCOLUMNS, SPANROWS, stage_left, stage_pair, staged, STEP, Sum, Sums,
};
import package::shared::cooperative_weight::{fetch_right, Place, put_rights};

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(1) var<storage, read> x: array<Eight>;

// An invocation's copies of a STEP of the input; more than four are read where they are needed.
struct Lefts {
    e0: Eight,
    e1: Eight,
    e2: Eight,
    e3: Eight,
}

// A pixel's window: its corner, and where that lies in x with the place of this invocation's channels (wrapped below zero).
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

// Where a STEP is: the tap, what it adds to a window's place, and its first channel in eights.
struct Tap {
    dy: u32,
    dx: u32,
    at: u32,
    channel8: u32,
}

fn window(p: u32, k8: u32) -> Window {
    let c = corner(p);
    return Window(c.x, c.y, ((c.z * params.height + c.x) * params.width + c.y) * (params.in_channels >> 1u) + k8);
}

// Whether there is something under a tap: it may lie outside the image, or past the channels.
fn within(w: Window, t: Tap, k8: u32) -> bool {
    let inside = w.y + t.dy < params.height && w.x + t.dx < params.width;
    return inside && (PARTIAL == 0u || 2u * (t.channel8 + k8) < params.in_channels);
}

// Eight channels under a tap; any where there is nothing.
fn left(w: Window, t: Tap, k8: u32) -> Eight {
    return x[select(0u, w.at + t.at + t.channel8, within(w, t, k8))];
}

fn fetch_left(w: Windows, t: Tap, k8: u32) -> Lefts {
    var l: Lefts;
    l.e0 = left(w.w0, t, k8);
    if LEFTCOPIES > 1u {
        l.e1 = left(w.w1, t, k8);
    }
    if LEFTCOPIES > 2u {
        l.e2 = left(w.w2, t, k8);
    }
    if LEFTCOPIES > 3u {
        l.e3 = left(w.w3, t, k8);
    }
    return l;
}

fn put_lefts(l: Lefts, w: Windows, p: u32, t: Tap, k8: u32, index: u32) {
    stage_left(index, 0u, kept(l.e0, within(w.w0, t, k8)));
    if LEFTCOPIES > 1u {
        stage_left(index, 1u, kept(l.e1, within(w.w1, t, k8)));
    }
    if LEFTCOPIES > 2u {
        stage_left(index, 2u, kept(l.e2, within(w.w2, t, k8)));
    }
    if LEFTCOPIES > 3u {
        stage_left(index, 3u, kept(l.e3, within(w.w3, t, k8)));
    }
    for (var i = 4u; i < LEFTCOPIES; i++) {
        let further = window(p + i * LEFTDOWN, k8);
        stage_left(index, i, kept(left(further, t, k8), within(further, t, k8)));
    }
}

// The next STEP: further along the channels, else the next tap.
fn advance(t: Tap) -> Tap {
    var next = t;
    next.channel8 += STEP / 8u;
    if 2u * next.channel8 >= params.in_channels {
        next.channel8 = 0u;
        next.dx += params.dilation_x;
        if next.dx >= params.kernel_width * params.dilation_x {
            next.dx = 0u;
            next.dy += params.dilation_y;
        }
        next.at = (next.dy * params.width + next.dx) * (params.in_channels >> 1u);
    }
    return next;
}

// The place of step `step`, of so many to a tap.
fn tap(step: u32, of_tap: u32) -> Tap {
    let t = step / of_tap;
    let dy = t / params.kernel_width * params.dilation_y;
    let dx = t % params.kernel_width * params.dilation_x;
    return Tap(dy, dx, (dy * params.width + dx) * (params.in_channels >> 1u), step % of_tap * (STEP / 8u));
}

// The first of the weight's rows under tap number `t`.
@if(transposed) fn first_row(t: u32) -> u32 {
    return (params.kernel_height * params.kernel_width - 1u - t) * 4u * params.out_channels;
}
@else fn first_row(t: u32) -> u32 {
    return t * 4u * params.in_channels;
}

// Where an invocation reads the weight, for a tap whose rows begin at `row`. Past the last channels those of the last ones are computed
// again and not stored.
@if(transposed) fn place_of(t: Tap, row: u32, column: u32, index: u32) -> Place {
    let channel8 = min(t.channel8 + index % RIGHTWIDTH, params.in_channels / 2u - 1u);
    return Place(0u, row, column * COLUMNS + index / RIGHTWIDTH, 4u * params.out_channels, channel8);
}
@else fn place_of(t: Tap, row: u32, column: u32, index: u32) -> Place {
    let within = 8u * t.channel8 + index / RIGHTWIDTH;
    let column8 = min(column * RIGHTWIDTH + index % RIGHTWIDTH, params.out_channels / 2u - 1u);
    return Place(0u, row + within, within, 4u * params.in_channels, column8);
}

// Where two matrices of sums go: the first pixel and vec4 of channels, and who stores them.
struct Target {
    pixel: u32,
    o4: u32,
    // Of the workgroups.
    layer: u32,
    subgroup: u32,
    lane: u32,
}

// Stores matrices p and q of a subgroup's sums, side by side: row i of its matrices, pair number `pair`.
fn finish(p: Sum, q: Sum, t: Target, i: u32, pair: u32) {
    stage_pair(p, q, t.subgroup);
    store_pair(t, i, pair);
}

// Stores what is staged of them.
fn store_pair(t: Target, i: u32, pair: u32) {
    for (var at = t.lane; at < SIZE * SIZE / 2u; at += LANES) {
        let r = at / (SIZE / 2u);
        let c = at % (SIZE / 2u);
        store_part(t.layer, t.pixel + i * SIZE + r, t.o4 + pair * (SIZE / 2u) + c, staged(t.subgroup, r, c));
    }
}

@compute @workgroup_size(INVOCATIONS)
fn conv2d_cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let first = tile_number(group, groups) * ROWS;
    // What this invocation copies.
    let p = first + index / LEFTWIDTH;
    let k8 = index % LEFTWIDTH;
    let windows = Windows(
        window(p, k8),
        window(p + LEFTDOWN, k8),
        window(p + 2u * LEFTDOWN, k8),
        window(p + 3u * LEFTDOWN, k8),
    );
    let in_channels = 4u * params.in_channels;
    let e = extents(in_channels);
    // What this subgroup computes. Subgroups take invocations in order.
    let subgroup = index / LANES;
    let down = subgroup / ACROSS * SPANROWS;
    let across = subgroup % ACROSS * SPANCOLUMNS;
    var sums = Sums();
    let of_tap = (in_channels + STEP - 1u) / STEP;
    let steps = part(group.z, params.kernel_height * params.kernel_width * of_tap);
    var t = tap(steps.x, of_tap);
    var number = steps.x / of_tap;
    var place = place_of(t, first_row(number), group.x, index);
    var lefts = fetch_left(windows, t, k8);
    var rights = fetch_right(place, e);
    for (var step = steps.x + 1u; step <= steps.y; step++) {
        // All have read the tiles.
        workgroupBarrier();
        put_lefts(lefts, windows, p, t, k8, index);
        put_rights(rights, place, e, index);
        workgroupBarrier();
        t = advance(t);
        if t.channel8 == 0u {
            number++;
        }
        place = place_of(t, first_row(number), group.x, index);
        if step < steps.y {
            lefts = fetch_left(windows, t, k8);
            rights = fetch_right(place, e);
        }
        multiply(&sums, down, across);
    }
    let to = Target(first + down, (group.x * COLUMNS + across) >> 2u, group.z, subgroup, index % LANES);
    finish(sums[0], sums[1], to, 0u, 0u);
    finish(sums[4], sums[5], to, 1u, 0u);
    if SPANCOLUMNS > 2u * SIZE {
        finish(sums[2], sums[3], to, 0u, 1u);
        finish(sums[6], sums[7], to, 1u, 1u);
    }
    if SPANROWS > 2u * SIZE {
        finish(sums[8], sums[9], to, 2u, 0u);
        finish(sums[12], sums[13], to, 3u, 0u);
    }
    if SPANROWS > 2u * SIZE && SPANCOLUMNS > 2u * SIZE {
        finish(sums[10], sums[11], to, 2u, 1u);
        finish(sums[14], sums[15], to, 3u, 1u);
    }
}
