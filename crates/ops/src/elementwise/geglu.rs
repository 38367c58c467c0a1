use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = a·gelu(b) for x = [a, b] along the last axis, with the exact GELU: the gate of diffusers' feed-forward.
///
/// Operand: x [.., 2N]. Result: [.., N].
#[derive(Clone, Debug)]
pub struct GeGlu;

params! {
    struct GeGluParams { count: u32, width: u32 }
}

impl GeGlu {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "geglu",
        summary: "First half times the exact GELU of the second half of the last axis",
        shaders: &["geglu"],
        cases,
    };
}

impl Operator for GeGlu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("geglu", inputs, 1)?;
        let mut shape = inputs[0].shape.to_vec();
        match shape.last_mut() {
            Some(last) if *last % 2 == 0 && *last > 0 && inputs[0].dtype.is_float() => *last /= 2,
            _ => return Err(Error::operator("geglu", format!("the last extent must be even, got {}", inputs[0]))),
        }
        Ok(TensorType::new(inputs[0].dtype, shape))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let width = cx.output.shape.last();
        let by_four = width % 4 == 0;
        let cell = if by_four { 4 } else { 1 };
        let count = cx.output.shape.count() / cell;
        let dispatch = Dispatch::new("geglu", GeGluParams { count: count as u32, width: (width / cell) as u32 })
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type()])?;
        let (x, width) = (inputs[0].as_f32()?, output.shape.last());
        Ok(HostTensor::from_fn(output.shape, |i| {
            let first = (i / width) * 2 * width + i % width;
            (f64::from(x[first]) * Activation::Gelu.apply(f64::from(x[first + width]))) as f32
        }))
    }

    fn as_epilogue(&self, _operand: usize, _inputs: &[TensorType]) -> Option<Epilogue> {
        Some(Epilogue::Gate(Activation::Gelu))
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let dx = rule.apply(GeGluGradient, [Value::Operand(0), Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize]| {
        Case::new(name, GeGlu, vec![Operand::activation(shape)], Tolerance::Transcendental)
    };
    vec![
        case("x=2", &[2]),
        case("x=3x5x14", &[3, 5, 14]),
        case("x=2x9x48", &[2, 9, 48]),
        case("x=2x4096x5120", &[2, 4096, 5120]).benchmark(),
    ]
}
