use super::prefer_serial;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The gradient of [`Softmax`]: dx = y·(upstream - Σ upstream·y), the sum over the last axis.
///
/// Operands: y [.., C], the softmax's result; upstream of its type, which is the result's too.
#[derive(Clone, Debug)]
pub struct SoftmaxGradient;

params! {
    struct SoftmaxGradientParams { rows: u32, width: u32 }
}

impl SoftmaxGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "softmax_gradient",
        summary: "Gradient of softmax, from its result",
        shaders: &["softmax_gradient_serial", "softmax_gradient_workgroup"],
        cases,
    };
}

impl Operator for SoftmaxGradient {
    fn name(&self) -> &'static str {
        "softmax_gradient"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("softmax_gradient", inputs, 2)?;
        if inputs[0].shape.rank() == 0 || !inputs[0].dtype.is_float() || inputs[0] != inputs[1] {
            let detail = format!("takes two operands of one float type with an axis, got {}", types(inputs));
            return Err(Error::operator("softmax_gradient", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let elements = cx.output.shape.last();
        let rows = cx.output.shape.count() / elements.max(1);
        let by_four = elements % 4 == 0;
        let width = if by_four { elements / 4 } else { elements };
        let dispatch = |shader| {
            Dispatch::new(shader, SoftmaxGradientParams { rows: rows as u32, width: width as u32 })
                .storage(cx.output.dtype)
                .feature("vec4", by_four)
                .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
        };
        let mut variants = vec![
            Variant::single("workgroup", dispatch("softmax_gradient_workgroup").groups(rows)),
            Variant::single("serial", dispatch("softmax_gradient_serial").over(rows)),
        ];
        if prefer_serial(cx.capabilities.kind, rows) {
            variants.reverse();
        }
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let width = output.shape.last().max(1);
        let mut dx = Vec::with_capacity(output.shape.count());
        for (y, up) in inputs[0].as_f32()?.chunks_exact(width).zip(inputs[1].as_f32()?.chunks_exact(width)) {
            let sum: f64 = y.iter().zip(up).map(|(&y, &up)| f64::from(y) * f64::from(up)).sum();
            dx.extend(y.iter().zip(up).map(|(&y, &up)| (f64::from(y) * (f64::from(up) - sum)) as f32));
        }
        HostTensor::from_f32(output.shape, dx)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: 4 * output.shape.count() as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize]| {
        let width = *shape.last().unwrap_or(&1);
        // Rows that sum up to about one.
        let y = Operand::activation(shape).fill(Fill::Uniform(0.0, 2.0 / width as f32));
        Case::new(name, SoftmaxGradient, vec![y, Operand::activation(shape)], Tolerance::Sum(width))
    };
    vec![
        case("x=3x1", &[3, 1]),
        case("x=3x63", &[3, 63]),
        case("x=3x64", &[3, 64]),
        case("x=3x65", &[3, 65]),
        case("x=2x5x77", &[2, 5, 77]),
        case("x=40x8", &[40, 8]),
        case("x=35x9", &[35, 9]),
        case("x=3x260", &[3, 260]),
        case("x=2x4096", &[2, 4096]),
        case("x=4096x4096", &[4096, 4096]).benchmark(),
    ]
}
