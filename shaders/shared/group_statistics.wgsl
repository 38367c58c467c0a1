// What both ways to combine the statistics of chunks share (see group_norm_combine): Chan et al.'s sums over the partial
// results of one group of channels of one image, and what is stored of them.

struct Params {
    rows: u32,
    channels: u32,
    chunks: u32,
    chunk_rows: u32,
    groups: u32,
    eps: f32,
    // Groups of all images.
    count: u32,
}

override GAIN: u32 = 0u;
override BIAS: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> mean: array<f32>;
@group(0) @binding(2) var<storage, read> squares: array<f32>;
@group(0) @binding(3) var<storage, read> gain: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> affine: array<f32>;

// One group of channels of one image.
struct Group {
    picture: u32,
    first: u32,
    width: u32,
    // Partial results: chunks times channels.
    partials: u32,
    // Values: rows times channels.
    count: f32,
    // The first mean. Means are summed around it, so that a large common mean costs no precision.
    around: f32,
}

fn group_at(picture: u32, group: u32) -> Group {
    let width = params.channels / params.groups;
    let first = group * width;
    let around = mean[picture * params.chunks * params.channels + first];
    return Group(picture, first, width, params.chunks * width, f32(params.rows) * f32(width), around);
}

// Where partial result j of a group lies, and over how many rows it was taken.
struct Partial {
    at: u32,
    rows: f32,
}

fn partial_at(g: Group, j: u32) -> Partial {
    let k = j / g.width;
    let at = (g.picture * params.chunks + k) * params.channels + g.first + j - k * g.width;
    return Partial(at, f32(min(params.chunk_rows, params.rows - k * params.chunk_rows)));
}

// Partial result j's share of the sum of values, taken around the first mean.
fn value_share(g: Group, j: u32) -> f32 {
    let p = partial_at(g, j);
    return p.rows * (mean[p.at] - g.around);
}

// Its share of the sum of squares around the group's mean, which lies `offset` from the first mean.
fn square_share(g: Group, j: u32, offset: f32) -> f32 {
    let p = partial_at(g, j);
    let d = (mean[p.at] - g.around) - offset;
    return squares[p.at] + p.rows * d * d;
}

// 1 / the deviation of a group whose squares around the mean sum up to `square`.
fn rate_of(g: Group, square: f32) -> f32 {
    return inverseSqrt(square / g.count + params.eps);
}

// Stores scale and shift of channel j of a group: all images' scales, then all shifts.
fn store(g: Group, j: u32, offset: f32, rate: f32) {
    let c = g.first + j;
    var factor = rate;
    let middle = g.around + offset;
    if GAIN == 1u {
        factor *= gain[c];
    }
    var add = -middle * factor;
    if BIAS == 1u {
        add += bias[c];
    }
    let at = g.picture * params.channels + c;
    affine[at] = factor;
    affine[params.count / params.groups * params.channels + at] = add;
}
