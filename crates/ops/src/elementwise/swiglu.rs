use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = silu(a)·b: the gate of EVA02's feed-forward.
///
/// Operands: a and b of one type. Result: the same type.
#[derive(Clone, Debug)]
pub struct SwiGlu;

params! {
    struct SwiGluParams { count: u32 }
}

impl SwiGlu {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "swiglu",
        summary: "SiLU of the first operand times the second",
        shaders: &["swiglu"],
        cases,
    };
}

impl Operator for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("swiglu", inputs, 2)?;
        if inputs[0] != inputs[1] || !inputs[0].dtype.is_float() {
            let detail = format!("operands must have one float type, got {}", types(inputs));
            return Err(Error::operator("swiglu", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let elements = cx.output.shape.count();
        let by_four = elements % 4 == 0;
        let count = if by_four { elements / 4 } else { elements };
        let dispatch = Dispatch::new("swiglu", SwiGluParams { count: count as u32 })
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let (a, b) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        Ok(HostTensor::from_fn(output.shape, |i| (Activation::Silu.apply(f64::from(a[i])) * f64::from(b[i])) as f32))
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize]| {
        let operands = vec![Operand::activation(shape), Operand::activation(shape)];
        Case::new(name, SwiGlu, operands, Tolerance::Transcendental)
    };
    vec![
        case("a=1", &[1]),
        case("a=3x5x7", &[3, 5, 7]),
        case("a=2x9x24", &[2, 9, 24]),
        case("a=1x577x2730", &[1, 577, 2730]).benchmark(),
    ]
}
