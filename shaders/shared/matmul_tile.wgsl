// What the tiled matrix products share: their parameters and bindings, and how a result is finished.
// Feature `split`: workgroups in z take parts of the inner axis besides matrices, and y is the sums of each part, (P, G, M, N)
// in f32, which `split_k_reduce` adds and finishes.

import package::shared::activation::activate4;
import package::shared::storage::elem;
import package::shared::weight::Extents;

struct Params {
    m: u32,
    n4: u32,
    k4: u32,
    a_batch4: u32,
    b_batch4: u32,
    alpha: f32,
    // Matrices, and vec4s of the inner axis to a part.
    batch: u32,
    part4: u32,
}

override BIAS: u32 = 0u;
override RESIDUAL: u32 = 0u;
// 1: the first half of b's columns are values, the second half their gates, and y = value * f(gate).
override GATED: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<elem>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<vec4<elem>>;
@if(split) @group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@else @group(0) @binding(5) var<storage, read_write> y: array<vec4<elem>>;

// Extents of b, which is shared/weight.wgsl's binding, as it is stored. Feature `transposed`: by columns.
@if(transposed) fn extents() -> Extents {
    return Extents(4u * params.n4, params.k4);
}
@else fn extents() -> Extents {
    return Extents(4u * params.k4, params.n4);
}

// Columns of y in vec4s, which is how far the gates lie behind their values in b.
fn width4() -> u32 {
    return params.n4 >> GATED;
}

// The product in four columns of b, which must exist.
fn biased(column4: u32, sum: vec4<f32>) -> vec4<f32> {
    var v = sum * params.alpha;
    if BIAS == 1u {
        v += bias[column4];
    }
    return v;
}

// The matrix of layer z of the workgroups, and the part of the inner axis that it takes, in vec4s.
struct Part {
    g: u32,
    first4: u32,
    end4: u32,
}

fn part(z: u32) -> Part {
    let first4 = z / params.batch * params.part4;
    return Part(z % params.batch, first4, min(first4 + params.part4, params.k4));
}

// From a row of y to the next, in vec4s.
@if(split) fn pitch() -> u32 {
    return params.n4;
}
@else fn pitch() -> u32 {
    return width4();
}

// Where row `row` of layer g begins in y.
fn row_at(row: u32, g: u32) -> u32 {
    return (g * params.m + row) * pitch();
}

// Finishes and stores four columns of a row of layer g; those past the end are not stored.
fn store(row: u32, column4: u32, g: u32, sum: vec4<f32>) {
    store_at(row, column4, row_at(row, g) + column4, sum);
}

// The same where their place in y is known.
@if(split) fn store_at(row: u32, column4: u32, at: u32, sum: vec4<f32>) {
    if row < params.m && column4 < params.n4 {
        y[at] = sum;
    }
}
@else fn store_at(row: u32, column4: u32, at: u32, sum: vec4<f32>) {
    if row < params.m && column4 < params.n4 {
        finish(at, activate4(biased(column4, sum)));
    }
}

// The same where columns have gates, whose sums are the last operand.
fn store_gated(row: u32, column4: u32, g: u32, sum: vec4<f32>, gate: vec4<f32>) {
    store_gated_at(row, column4, row_at(row, g) + column4, sum, gate);
}

@if(split) fn store_gated_at(row: u32, column4: u32, at: u32, sum: vec4<f32>, gate: vec4<f32>) {
    if column4 < width4() {
        store_at(row, column4, at, sum);
        store_at(row, column4 + width4(), at + width4(), gate);
    }
}
@else fn store_gated_at(row: u32, column4: u32, at: u32, sum: vec4<f32>, gate: vec4<f32>) {
    if row < params.m && column4 < width4() {
        finish(at, biased(column4, sum) * activate4(biased(column4 + width4(), gate)));
    }
}

fn finish(at: u32, value: vec4<f32>) {
    var v = value;
    if RESIDUAL == 1u {
        v += vec4<f32>(residual[at]);
    }
    y[at] = vec4<elem>(v);
}
