// scale[n, c] = gain[c] / sqrt(variance[n, g] + eps), shift[n, c] = bias[c] - mean[n, g] * scale[n, c] for the channels c
// of group g, from the statistics of chunks.
//   mean, squares: (N, chunks, C) f32, see group_norm_partial     gain, bias: (C) f32     scale, shift: (N, C) f32
// For CPU devices, where barriers cost more than the sums: one invocation combines one group of one picture, first the
// mean of the means, then the squares around it (Chan et al.). Neighbours take neighbouring groups.

struct Params {
    rows: u32,
    channels: u32,
    chunks: u32,
    chunk_rows: u32,
    groups: u32,
    eps: f32,
    // Groups of all pictures.
    count: u32,
}

override GAIN: u32 = 0u;
override BIAS: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> mean: array<f32>;
@group(0) @binding(2) var<storage, read> squares: array<f32>;
@group(0) @binding(3) var<storage, read> gain: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> scale: array<f32>;
@group(0) @binding(6) var<storage, read_write> shift: array<f32>;

@compute @workgroup_size(8)
fn group_norm_combine_serial(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.count {
        return;
    }
    let n = id.x / params.groups;
    let width = params.channels / params.groups;
    let first = (id.x - n * params.groups) * width;
    let partials = params.chunks * width;
    let count = f32(params.rows) * f32(width);
    // Means are summed around the first, so that a large common mean costs no precision.
    let around = mean[n * params.chunks * params.channels + first];
    var sum = 0.0;
    for (var j = 0u; j < partials; j++) {
        let k = j / width;
        let at = (n * params.chunks + k) * params.channels + first + j - k * width;
        let rows = f32(min(params.chunk_rows, params.rows - k * params.chunk_rows));
        sum += rows * (mean[at] - around);
    }
    let offset = sum / count;
    var square = 0.0;
    for (var j = 0u; j < partials; j++) {
        let k = j / width;
        let at = (n * params.chunks + k) * params.channels + first + j - k * width;
        let rows = f32(min(params.chunk_rows, params.rows - k * params.chunk_rows));
        let d = (mean[at] - around) - offset;
        square += squares[at] + rows * d * d;
    }
    let rate = inverseSqrt(square / count + params.eps);
    let middle = around + offset;
    for (var j = 0u; j < width; j++) {
        let c = first + j;
        var factor = rate;
        if GAIN == 1u {
            factor *= gain[c];
        }
        var add = -middle * factor;
        if BIAS == 1u {
            add += bias[c];
        }
        scale[n * params.channels + c] = factor;
        shift[n * params.channels + c] = add;
    }
}
