use crate::*;
use pulid_tensor::{HostTensor, Result, TensorType};
use std::ops::Range;

/// y = f(x) for an [`Activation`].
#[derive(Clone, Debug)]
pub struct Unary(pub Activation);

params! {
    struct UnaryParams { count: u32 }
}

impl Unary {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "unary",
        summary: "A pointwise function: ReLU, SiLU, GELU (exact, quick), sigmoid, leaky ReLU, exp, sqrt, ...",
        shaders: &["unary"],
        cases,
    };
}

impl Operator for Unary {
    fn name(&self) -> &'static str {
        "unary"
    }

    fn attributes(&self) -> String {
        format!("f={}", self.0.label())
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("unary", inputs, 1)?;
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.output.shape.count();
        let dispatch = Dispatch::new("unary", UnaryParams { count: count as u32 })
            .storage(cx.output.dtype)
            .activation(self.0)
            .bind([Slot::Input(0), Slot::Output])
            .over(count.div_ceil(4));
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let x = inputs[0].as_f32()?;
        Ok(HostTensor::from_fn(inputs[0].shape().clone(), |i| self.0.apply(f64::from(x[i])) as f32))
    }

    fn as_epilogue(&self, operand: usize, _inputs: &[TensorType]) -> Option<Epilogue> {
        // A network scales by many different numbers (SCRFD's heads do): each would make one more pipeline of the producer,
        // whose compilation costs more than the pass over memory that it saves.
        let fits = operand == 0 && !matches!(self.0, Activation::Affine(..));
        fits.then_some(Epilogue::Activation(self.0))
    }

    fn rows(&self, _: &[TensorType], rows: Range<usize>) -> Option<RowsOf> {
        Some(RowsOf::same(self, rows, [true]))
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let dx = rule.apply(ActivationGradient(self.0), [Value::Operand(0), Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let functions = [
        Activation::Relu,
        Activation::Silu,
        Activation::Gelu,
        Activation::QuickGelu,
        Activation::Sigmoid,
        Activation::LeakyRelu(0.1),
        Activation::Exp,
        Activation::Tanh,
        Activation::Clamp(-0.5, 0.75),
        Activation::Neg,
        Activation::Abs,
        Activation::Affine(0.18215, -1.5),
    ];
    let mut cases: Vec<_> = functions
        .into_iter()
        .map(|f| {
            let x = Operand::activation([1027]).fill(Fill::Normal(0.0, 2.0));
            Case::new(format!("f={};count=1027", f.label()), Unary(f), vec![x], Tolerance::Transcendental)
        })
        .collect();
    for f in [Activation::Sqrt, Activation::Rsqrt, Activation::Reciprocal] {
        let x = Operand::activation([130]).fill(Fill::Uniform(0.1, 9.0));
        cases.push(Case::new(format!("f={};count=130", f.label()), Unary(f), vec![x], Tolerance::Transcendental));
    }
    // Far from zero, where exp over- and underflows: no NaN may appear.
    let extreme = Fill::Values(vec![-60000.0, -200.0, -90.0, 0.0, 90.0, 200.0, 60000.0]);
    for f in [Activation::Silu, Activation::Gelu, Activation::QuickGelu, Activation::Sigmoid, Activation::Tanh] {
        let x = Operand::activation([7]).fill(extreme.clone());
        cases.push(Case::new(format!("f={};extreme", f.label()), Unary(f), vec![x], Tolerance::Transcendental));
    }
    for count in [255, 256, 257] {
        let x = Operand::activation([count]);
        cases.push(Case::new(format!("f=relu;count={count}"), Unary(Activation::Relu), vec![x], Tolerance::Pointwise));
    }
    for f in functions.into_iter().chain([Activation::Sqrt, Activation::Rsqrt, Activation::Reciprocal]) {
        let classes = Fill::normal_classes();
        let fill = match f {
            // These clamp before anything else, which WGSL leaves open for NaN.
            Activation::Sigmoid | Activation::Tanh => classes.only(|v| !v.is_nan()),
            Activation::Sqrt => classes.only(|v| v >= 0.0 || v.is_nan()),
            // Half precision rounds less to zero, whose sign is open.
            Activation::Rsqrt => classes.only(|v| v >= 2f32.powi(-14) || v.is_nan()),
            Activation::Reciprocal => Fill::divisors(),
            _ => classes,
        };
        let x = Operand::activation([37]).fill(fill);
        let name = format!("f={};every_class", f.label());
        cases.push(Case::new(name, Unary(f), vec![x], Tolerance::Transcendental));
    }
    // Results and guards that fill a binding together.
    let count = (LARGEST_BINDING - 4096) / 4;
    let x = Operand::activation([count]).fill(Fill::Values((0..61).map(|i| i as f32).collect()));
    let whole =
        Case::new(format!("f=neg;count={count};whole_binding"), Unary(Activation::Neg), vec![x], Tolerance::Exact);
    cases.push(whole.large());
    let x = Operand::activation([1, 64, 64, 320]);
    let big = Case::new("f=silu;shape=1x64x64x320", Unary(Activation::Silu), vec![x], Tolerance::Transcendental);
    cases.push(big.benchmark());
    cases
}
