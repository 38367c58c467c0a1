use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// A function of one value that stands alone; those that kernels also take as epilogues are [`Activation`]s.
///
/// Codes are shared with `shaders/elementwise/pointwise.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// The error function.
    Erf,
    /// The natural logarithm.
    Log,
    /// Down to a whole number.
    Floor,
    /// Up to a whole number.
    Ceil,
    /// To the nearest whole number, halves to even.
    Round,
    /// -1, 0 or 1.
    Sign,
    /// sin(x).
    Sin,
    /// cos(x).
    Cos,
    /// log(1 + eˣ).
    Softplus,
    /// x / (1 + |x|).
    Softsign,
    /// x·tanh(softplus(x)).
    Mish,
    /// GELU by its approximation with tanh.
    GeluTanh,
    /// alpha·x + beta, within 0 and 1.
    HardSigmoid(f32, f32),
    /// x times the hard sigmoid of 1/6 and 1/2.
    HardSwish,
    /// gamma·x for x >= 0, else gamma·alpha·(eˣ - 1): ELU and SELU.
    Elu(f32, f32),
    /// max(x, 0) + min(0, alpha·(e^(x / alpha) - 1)).
    Celu(f32),
    /// x·σ(alpha·x).
    Swish(f32),
    /// x where it is above the threshold, else 0.
    Threshold(f32),
    /// x moved towards 0 by the second number where |x| exceeds the first, else 0.
    Shrink(f32, f32),
}

impl Function {
    /// Code of the function in the shader.
    const fn code(self) -> u32 {
        match self {
            Function::Erf => 0,
            Function::Log => 1,
            Function::Floor => 2,
            Function::Ceil => 3,
            Function::Round => 4,
            Function::Sign => 5,
            Function::Sin => 6,
            Function::Cos => 7,
            Function::Softplus => 8,
            Function::Softsign => 9,
            Function::Mish => 10,
            Function::GeluTanh => 11,
            Function::HardSigmoid(..) => 12,
            Function::HardSwish => 13,
            Function::Elu(..) => 14,
            Function::Celu(_) => 15,
            Function::Swish(_) => 16,
            Function::Threshold(_) => 17,
            Function::Shrink(..) => 18,
        }
    }

    const fn constants(self) -> (f32, f32) {
        match self {
            Function::HardSigmoid(a, b) | Function::Elu(a, b) | Function::Shrink(a, b) => (a, b),
            Function::Celu(a) | Function::Swish(a) | Function::Threshold(a) => (a, 0.0),
            _ => (0.0, 0.0),
        }
    }

    /// The function in double precision.
    pub fn apply(self, x: f64) -> f64 {
        let hard_sigmoid = |a: f64, b: f64| (a * x + b).clamp(0.0, 1.0);
        let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Function::Erf => libm::erf(x),
            Function::Log => x.ln(),
            Function::Floor => x.floor(),
            Function::Ceil => x.ceil(),
            Function::Round => x.round_ties_even(),
            Function::Sign if x == 0.0 => 0.0,
            Function::Sign => x.signum(),
            Function::Sin => x.sin(),
            Function::Cos => x.cos(),
            Function::Softplus => softplus,
            Function::Softsign => x / (1.0 + x.abs()),
            Function::Mish => x * softplus.tanh(),
            Function::GeluTanh => 0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)).tanh()),
            Function::HardSigmoid(a, b) => hard_sigmoid(f64::from(a), f64::from(b)),
            Function::HardSwish => x * hard_sigmoid(1.0 / 6.0, 0.5),
            Function::Elu(a, gamma) => f64::from(gamma) * if x < 0.0 { f64::from(a) * x.exp_m1() } else { x },
            Function::Celu(a) => x.max(0.0) + f64::from(a) * (x.min(0.0) / f64::from(a)).exp_m1(),
            Function::Swish(a) => x * sigmoid(f64::from(a) * x),
            Function::Threshold(a) if x > f64::from(a) => x,
            Function::Shrink(a, b) if x.abs() > f64::from(a) => x - x.signum() * f64::from(b),
            Function::Threshold(_) | Function::Shrink(..) => 0.0,
        }
    }
}

const SQRT_2_OVER_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;

/// y = f(x) for a [`Function`].
#[derive(Clone, Debug)]
pub struct Pointwise(pub Function);

params! {
    struct PointwiseParams { count: u32 }
}

impl Pointwise {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "pointwise",
        summary: "A function that is no epilogue: erf, log, rounding, sin, cos, hard sigmoid, hard swish, ELU, mish, ...",
        shaders: &["pointwise"],
        cases,
    };
}

impl Operator for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn attributes(&self) -> String {
        format!("f={:?}", self.0)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("pointwise", inputs, 1)?;
        if !inputs[0].dtype.is_float() {
            return Err(Error::operator("pointwise", format!("takes floats, got {}", inputs[0])));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.output.shape.count();
        let (alpha, beta) = self.0.constants();
        let dispatch = Dispatch::new("pointwise", PointwiseParams { count: count as u32 })
            .storage(cx.output.dtype)
            .constant("FUNCTION", self.0.code())
            .constant("ALPHA", alpha)
            .constant("BETA", beta)
            .bind([Slot::Input(0), Slot::Output])
            .over(count.div_ceil(4));
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let x = inputs[0].as_f32()?;
        Ok(HostTensor::from_fn(inputs[0].shape().clone(), |i| self.0.apply(f64::from(x[i])) as f32))
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let functions = [
        Function::Erf,
        Function::Sign,
        Function::Sin,
        Function::Cos,
        Function::Softplus,
        Function::Softsign,
        Function::Mish,
        Function::GeluTanh,
        Function::HardSigmoid(0.2, 0.5),
        Function::HardSwish,
        Function::Elu(1.0, 1.0),
        Function::Elu(1.6732632, 1.050701),
        Function::Celu(2.0),
        Function::Swish(0.5),
    ];
    let mut cases: Vec<_> = functions
        .into_iter()
        .map(|f| {
            let x = Operand::activation([1027]).fill(Fill::Normal(0.0, 2.0));
            let op = Pointwise(f);
            Case::new(format!("{};count=1027", op.attributes()), op, vec![x], Tolerance::Transcendental)
        })
        .collect();
    let x = Operand::activation([130]).fill(Fill::Uniform(1.5, 9.0));
    let log = Pointwise(Function::Log);
    cases.push(Case::new("f=Log;count=130", log, vec![x], Tolerance::Transcendental));
    // Values that f16 holds exactly, at and beside the jumps.
    let steps = Fill::Values(vec![-2.5, -2.0, -1.5, -0.75, -0.5, 0.0, 0.25, 0.5, 0.75, 1.5, 2.5, 3.5, 7.0]);
    let jumps = [
        Function::Floor,
        Function::Ceil,
        Function::Round,
        Function::Sign,
        Function::Threshold(0.5),
        Function::Shrink(0.5, 0.25),
    ];
    for f in jumps {
        let op = Pointwise(f);
        let x = Operand::activation([13]).fill(steps.clone());
        cases.push(Case::new(format!("{};steps", op.attributes()), op, vec![x], Tolerance::Exact));
    }
    let smooth = [Function::Erf, Function::HardSigmoid(0.2, 0.5)];
    for f in smooth.into_iter().chain([Function::Floor, Function::Ceil, Function::Round, Function::Sign]) {
        let op = Pointwise(f);
        let x = Operand::activation([37]).fill(Fill::normal_classes().only(|v| !v.is_nan()));
        cases.push(Case::new(format!("{};every_class", op.attributes()), op, vec![x], Tolerance::Transcendental));
    }
    // Far from zero, where exp over- and underflows: no NaN may appear.
    let extreme = Fill::Values(vec![-200.0, -90.0, 0.0, 90.0, 200.0]);
    let f = [Function::Softplus, Function::Mish, Function::GeluTanh, Function::Elu(1.0, 1.0), Function::Swish(2.0)];
    for f in f {
        let op = Pointwise(f);
        let x = Operand::activation([5]).fill(extreme.clone());
        cases.push(Case::new(format!("{};extreme", op.attributes()), op, vec![x], Tolerance::Transcendental));
    }
    cases
}
