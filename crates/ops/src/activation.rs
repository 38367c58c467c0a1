//! Activations: pointwise functions that stand alone or as epilogues.

use serde::Serialize;

/// A pointwise function of one value, usable alone ([`crate::Unary`]) and as an epilogue.
///
/// Codes are shared with `shaders/shared/activation.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// max(x, 0).
    Relu,
    /// x·σ(x), also called swish.
    Silu,
    /// x·Φ(x) with the exact error function.
    Gelu,
    /// x·σ(1.702 x), CLIP's quick GELU.
    QuickGelu,
    /// σ(x).
    Sigmoid,
    /// x for x >= 0, else slope·x.
    LeakyRelu(f32),
    /// eˣ.
    Exp,
    /// √x.
    Sqrt,
    /// 1/√x.
    Rsqrt,
    /// tanh(x).
    Tanh,
    /// min(max(x, low), high).
    Clamp(f32, f32),
    /// -x.
    Neg,
    /// |x|.
    Abs,
    /// 1/x.
    Reciprocal,
    /// x·scale + offset.
    Affine(f32, f32),
}

impl Activation {
    /// Code of the function in `shared/activation.wgsl`.
    pub const fn code(self) -> u32 {
        match self {
            Activation::None => 0,
            Activation::Relu => 1,
            Activation::Silu => 2,
            Activation::Gelu => 3,
            Activation::QuickGelu => 4,
            Activation::Sigmoid => 5,
            Activation::LeakyRelu(_) => 6,
            Activation::Exp => 7,
            Activation::Sqrt => 8,
            Activation::Rsqrt => 9,
            Activation::Tanh => 10,
            Activation::Clamp(..) => 11,
            Activation::Neg => 12,
            Activation::Abs => 13,
            Activation::Reciprocal => 14,
            Activation::Affine(..) => 15,
        }
    }

    /// The function's two constants (slope; low and high; scale and offset), 0 where it has none.
    pub const fn constants(self) -> (f32, f32) {
        match self {
            Activation::LeakyRelu(slope) => (slope, 0.0),
            Activation::Clamp(low, high) => (low, high),
            Activation::Affine(scale, offset) => (scale, offset),
            _ => (0.0, 0.0),
        }
    }

    /// The function in double precision.
    pub fn apply(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Activation::None => x,
            // `f64::max` would turn NaN into 0.
            Activation::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Activation::Silu => x * sigmoid(x),
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Sigmoid => sigmoid(x),
            Activation::LeakyRelu(slope) => {
                if x < 0.0 {
                    x * f64::from(slope)
                } else {
                    x
                }
            }
            Activation::Exp => x.exp(),
            Activation::Sqrt => x.sqrt(),
            Activation::Rsqrt => 1.0 / x.sqrt(),
            Activation::Tanh => x.tanh(),
            Activation::Clamp(low, high) => {
                if x < f64::from(low) {
                    f64::from(low)
                } else if x > f64::from(high) {
                    f64::from(high)
                } else {
                    x
                }
            }
            Activation::Neg => -x,
            Activation::Abs => x.abs(),
            Activation::Reciprocal => 1.0 / x,
            Activation::Affine(scale, offset) => x * f64::from(scale) + f64::from(offset),
        }
    }

    /// The derivative in double precision. Where there is none, at a kink, it is PyTorch's.
    pub fn slope(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let choose = |condition: bool, yes: f64, no: f64| if condition { yes } else { no };
        match self {
            Activation::None => 1.0,
            Activation::Relu => choose(x <= 0.0, 0.0, 1.0),
            Activation::Silu => {
                let s = sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
            Activation::Gelu => {
                let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
                0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density
            }
            Activation::QuickGelu => {
                let s = sigmoid(1.702 * x);
                s * (1.0 + 1.702 * x * (1.0 - s))
            }
            Activation::Sigmoid => {
                let s = sigmoid(x);
                s * (1.0 - s)
            }
            Activation::LeakyRelu(slope) => choose(x <= 0.0, f64::from(slope), 1.0),
            Activation::Exp => x.exp(),
            Activation::Sqrt => 0.5 / x.sqrt(),
            Activation::Rsqrt => -0.5 / (x * x.sqrt()),
            Activation::Tanh => 1.0 - x.tanh().powi(2),
            Activation::Clamp(low, high) => choose(x < f64::from(low) || x > f64::from(high), 0.0, 1.0),
            Activation::Neg => -1.0,
            Activation::Abs => choose(x == 0.0, 0.0, x.signum()),
            Activation::Reciprocal => -1.0 / (x * x),
            Activation::Affine(scale, _) => f64::from(scale),
        }
    }

    /// Short canonical text for attributes, for example `silu` or `leaky_relu(0.1)`.
    pub fn label(self) -> String {
        match self {
            Activation::LeakyRelu(s) => format!("leaky_relu({s})"),
            Activation::Clamp(a, b) => format!("clamp({a},{b})"),
            Activation::Affine(a, b) => format!("affine({a},{b})"),
            other => {
                let mut text = String::new();
                for c in format!("{other:?}").chars() {
                    if c.is_ascii_uppercase() && !text.is_empty() {
                        text.push('_');
                    }
                    text.push(c.to_ascii_lowercase());
                }
                text
            }
        }
    }
}
