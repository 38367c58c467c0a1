// Derivatives of the functions in shared/activation.wgsl, by its constants. They match `Activation::slope` in crates/ops.

import package::shared::activation::{ACTIVATION, FIRST, SECOND, erf4, sigmoid4, tanh4};

// d/dx of x * Phi(x): Phi(x) + x * phi(x).
fn gelu_slope4(x: vec4<f32>) -> vec4<f32> {
    // Beyond 14 the density is below f32's range; squares of larger numbers may be beyond it.
    let near = clamp(x, vec4(-14.0), vec4(14.0));
    return 0.5 * (1.0 + erf4(x * 0.7071067811865476)) + near * (0.3989422804014327 * exp(-0.5 * near * near));
}

// d/dx of x * sigmoid(k x).
fn swish_slope4(x: vec4<f32>, k: f32) -> vec4<f32> {
    let s = sigmoid4(k * x);
    return s * (1.0 + k * clamp(x, vec4(-100.0), vec4(100.0)) * (1.0 - s));
}

fn slope4(x: vec4<f32>) -> vec4<f32> {
    switch ACTIVATION {
        case 1u: { return select(vec4(1.0), vec4(0.0), x <= vec4(0.0)); }
        case 2u: { return swish_slope4(x, 1.0); }
        case 3u: { return gelu_slope4(x); }
        case 4u: { return swish_slope4(x, 1.702); }
        case 5u: {
            let s = sigmoid4(x);
            return s * (1.0 - s);
        }
        case 6u: { return select(vec4(1.0), vec4(FIRST), x <= vec4(0.0)); }
        case 7u: { return exp(x); }
        case 8u: { return 0.5 * inverseSqrt(x); }
        case 9u: { return -0.5 * inverseSqrt(x) / x; }
        case 10u: {
            let t = tanh4(x);
            return 1.0 - t * t;
        }
        case 11u: { return select(vec4(1.0), vec4(0.0), (x < vec4(FIRST)) | (x > vec4(SECOND))); }
        case 12u: { return vec4(-1.0); }
        case 13u: { return sign(x); }
        case 14u: { return -1.0 / (x * x); }
        case 15u: { return vec4(FIRST); }
        default: { return vec4(1.0); }
    }
}

// The same for a cell, see shared/vector.
@if(vec4) fn slope_cell(x: vec4<f32>) -> vec4<f32> { return slope4(x); }
@else fn slope_cell(x: f32) -> f32 { return slope4(vec4(x)).x; }
