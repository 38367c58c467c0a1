// Pointwise functions that kernels apply to their results. Codes and constants match `Activation` in crates/ops.

override ACTIVATION: u32 = 0u;
override FIRST: f32 = 0.0;
override SECOND: f32 = 0.0;

// erf(x) after Abramowitz and Stegun 7.1.26, |error| <= 1.5e-7; exact enough that GELU agrees with f64 to f32 rounding.
fn erf4(x: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - p * exp(-x * x));
}

// 1 / (1 + exp(-x)), written so that exp never overflows into a NaN-prone range. Far below zero it is zero, so that its product
// with the largest negative numbers is.
fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    return select(1.0 / (1.0 + exp(-clamp(x, vec4(-80.0), vec4(80.0)))), vec4(0.0), x < vec4(-80.0));
}

// tanh by exp of a clamped argument: some drivers overflow in their own for |x| > 44.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let e = exp(-2.0 * min(abs(x), vec4(20.0)));
    return sign(x) * (1.0 - e) / (1.0 + e);
}

// x * Phi(x) with the exact error function.
fn gelu4(x: vec4<f32>) -> vec4<f32> {
    return 0.5 * x * (1.0 + erf4(x * 0.7071067811865476));
}

// y, but NaN where x is. Drivers may make max and min of a comparison and a selection, which lose it; of its bits they know nothing.
fn keep_nan4(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
    return select(y, x, (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) > vec4(0x7f800000u));
}

fn activate4(x: vec4<f32>) -> vec4<f32> {
    switch ACTIVATION {
        case 1u: { return keep_nan4(x, select(x, vec4(0.0), x < vec4(0.0))); }
        case 2u: { return x * sigmoid4(x); }
        case 3u: { return gelu4(x); }
        case 4u: { return x * sigmoid4(1.702 * x); }
        case 5u: { return sigmoid4(x); }
        case 6u: { return select(x, x * FIRST, x < vec4(0.0)); }
        case 7u: { return exp(x); }
        case 8u: { return sqrt(x); }
        case 9u: { return inverseSqrt(x); }
        case 10u: { return tanh4(x); }
        case 11u: {
            let low = select(x, vec4(FIRST), x < vec4(FIRST));
            return keep_nan4(x, select(low, vec4(SECOND), low > vec4(SECOND)));
        }
        case 12u: { return -x; }
        case 13u: { return abs(x); }
        case 14u: { return 1.0 / x; }
        case 15u: { return x * FIRST + SECOND; }
        default: { return x; }
    }
}

fn activate(x: f32) -> f32 {
    return activate4(vec4(x)).x;
}
