use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// dx = upstream·f'(x) for an [`Activation`].
///
/// Operands: x; upstream of x's type, which is the result's too.
#[derive(Clone, Debug)]
pub struct ActivationGradient(pub Activation);

params! {
    struct ActivationGradientParams { count: u32 }
}

impl ActivationGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "activation_gradient",
        summary: "Gradient of a pointwise function",
        shaders: &["activation_gradient"],
        cases,
    };
}

impl Operator for ActivationGradient {
    fn name(&self) -> &'static str {
        "activation_gradient"
    }

    fn attributes(&self) -> String {
        format!("f={}", self.0.label())
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("activation_gradient", inputs, 2)?;
        if inputs[0] != inputs[1] || !inputs[0].dtype.is_float() {
            let detail = format!("takes two operands of one float type, got {}", types(inputs));
            return Err(Error::operator("activation_gradient", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let by_four = cx.output.shape.count().is_multiple_of(4);
        let count = cx.output.shape.count() / if by_four { 4 } else { 1 };
        let dispatch = Dispatch::new("activation_gradient", ActivationGradientParams { count: count as u32 })
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .activation(self.0)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let (x, upstream) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let dx = |i: usize| (f64::from(upstream[i]) * self.0.slope(f64::from(x[i]))) as f32;
        Ok(HostTensor::from_fn(inputs[0].shape().clone(), dx))
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    use Activation::*;
    let both = |shape: &[usize], x: Fill| vec![Operand::activation(shape).fill(x), Operand::activation(shape)];
    let case = |name: String, f: Activation, operands: Vec<Operand>| {
        Case::new(name, ActivationGradient(f), operands, Tolerance::Transcendental)
    };
    let functions = [
        None,
        Relu,
        Silu,
        Gelu,
        QuickGelu,
        Sigmoid,
        LeakyRelu(0.1),
        Exp,
        Tanh,
        Clamp(-0.5, 0.75),
        Neg,
        Abs,
        Affine(0.18215, -1.5),
    ];
    let mut cases: Vec<_> = functions
        .into_iter()
        .map(|f| case(format!("f={};count=1027", f.label()), f, both(&[1027], Fill::Normal(0.0, 2.0))))
        .collect();
    for f in [Sqrt, Rsqrt, Reciprocal] {
        cases.push(case(format!("f={};count=130", f.label()), f, both(&[130], Fill::Uniform(0.1, 9.0))));
    }
    // Kinks, and where exponentials over- and underflow: no NaN may appear.
    let extreme = Fill::Values(vec![-60000.0, -200.0, -90.0, -20.0, -0.5, 0.0, 0.75, 20.0, 90.0, 200.0, 60000.0]);
    for f in [Relu, Silu, Gelu, QuickGelu, Sigmoid, LeakyRelu(0.1), Tanh, Clamp(-0.5, 0.75), Abs] {
        cases.push(case(format!("f={};extreme", f.label()), f, both(&[11], extreme.clone())));
    }
    for count in [1, 256, 260] {
        cases.push(case(format!("f=silu;count={count}"), Silu, both(&[count], Fill::Normal(0.0, 1.0))));
    }
    cases.push(
        case("f=silu;shape=1x64x64x320".into(), Silu, both(&[1, 64, 64, 320], Fill::Normal(0.0, 1.0))).benchmark(),
    );
    cases
}
