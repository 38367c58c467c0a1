use crate::*;
use pulid_tensor::{HostTensor, Result, TensorType};

/// The gradient of [`PRelu`] in x: dx = upstream for x > 0, else slope·upstream.
///
/// Operands: x [.., C]; slope f32 [C]; upstream of x's type, which is the result's too.
#[derive(Clone, Debug)]
pub struct PReluGradient;

params! {
    struct PReluGradientParams { count: u32, width: u32 }
}

impl PReluGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "prelu_gradient",
        summary: "Gradient of ReLU with a slope per channel",
        shaders: &["prelu_gradient"],
        cases,
    };
}

impl Operator for PReluGradient {
    fn name(&self) -> &'static str {
        "prelu_gradient"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("prelu_gradient", inputs, 3)?;
        let output = PRelu.infer(&inputs[..2]).map_err(|e| e.of_operator(self.name()))?;
        if inputs[2] != output {
            let detail = format!("upstream must be {output}, got {}", types(inputs));
            return Err(pulid_tensor::Error::operator("prelu_gradient", detail));
        }
        Ok(output)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let width = cx.output.shape.last();
        let by_four = width % 4 == 0;
        let cell = if by_four { 4 } else { 1 };
        let count = cx.output.shape.count() / cell;
        let params = PReluGradientParams { count: count as u32, width: (width / cell) as u32 };
        let dispatch = Dispatch::new("prelu_gradient", params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Input(2), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (x, slope, upstream) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?);
        Ok(HostTensor::from_fn(output.shape, |i| {
            let scaled = || (f64::from(upstream[i]) * f64::from(slope[i % slope.len()])) as f32;
            if x[i] <= 0.0 { scaled() } else { upstream[i] }
        }))
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, x: Operand| {
        let (slope, upstream) = (Operand::parameter([x.shape.last()]), Operand::activation(x.shape.clone()));
        Case::new(name, PReluGradient, vec![x, slope, upstream], Tolerance::Pointwise)
    };
    let kinks = Fill::Values(vec![-1.0, -0.0, 0.0, 1.0, -0.5]);
    vec![
        case("x=1x1", Operand::activation([1, 1])),
        case("x=2x3x5x7", Operand::activation([2, 3, 5, 7])),
        case("x=2x5x3x16", Operand::activation([2, 5, 3, 16])),
        case("x=3x7;kinks", Operand::activation([3, 7]).fill(kinks)),
        case("x=1x112x112x64", Operand::activation([1, 112, 112, 64])).benchmark(),
    ]
}
