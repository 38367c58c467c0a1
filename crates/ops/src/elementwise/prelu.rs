use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = x for x >= 0, else slope·x, with one slope per channel.
///
/// Operands: x [.., C]; slope f32 [C]. Result: x's type. (A single slope for all channels is
/// [`Activation::LeakyRelu`].)
#[derive(Clone, Debug)]
pub struct PRelu;

params! {
    struct PReluParams { count: u32, width: u32 }
}

impl PRelu {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "prelu",
        summary: "ReLU with a slope per channel for negative values",
        shaders: &["prelu"],
        cases,
    };
}

impl Operator for PRelu {
    fn name(&self) -> &'static str {
        "prelu"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("prelu", inputs, 2)?;
        let channels = inputs[0].shape.last();
        if inputs[1] != TensorType::f32([channels]) || channels == 0 || !inputs[0].dtype.is_float() {
            let detail = format!("the slope must be f32[{channels}], got {}", types(inputs));
            return Err(Error::operator("prelu", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let width = cx.output.shape.last();
        let by_four = width % 4 == 0;
        let cell = if by_four { 4 } else { 1 };
        let count = cx.output.shape.count() / cell;
        let dispatch = Dispatch::new("prelu", PReluParams { count: count as u32, width: (width / cell) as u32 })
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let (x, slope) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        Ok(HostTensor::from_fn(output.shape, |i| {
            let v = f64::from(x[i]);
            if v < 0.0 { (v * f64::from(slope[i % slope.len()])) as f32 } else { x[i] }
        }))
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if rule.needs(1) {
            return Err(rule.fail("has no gradient rule for the slope"));
        }
        let dx = rule.apply(PReluGradient, [Value::Operand(0), Value::Operand(1), Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize]| {
        let slope = Operand::parameter([*shape.last().unwrap_or(&1)]);
        Case::new(name, PRelu, vec![Operand::activation(shape), slope], Tolerance::Pointwise)
    };
    // Far from the kink, where differences tell the gradient.
    let mut apart = case("x=3x5;apart", &[3, 5]);
    apart.operands[0].fill = Fill::Values(vec![-1.5, 0.4, -0.3, 1.2, 2.5, -0.8, 0.7]);
    vec![
        apart,
        case("x=1x1", &[1, 1]),
        case("x=2x3x5x7", &[2, 3, 5, 7]),
        case("x=2x5x3x16", &[2, 5, 3, 16]),
        case("x=1x112x112x64", &[1, 112, 112, 64]).benchmark(),
    ]
}
