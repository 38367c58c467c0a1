use super::prefer_serial;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// Softmax over the last axis, with f32 statistics.
///
/// Operand: x [.., C]. Result: x's type.
#[derive(Clone, Debug)]
pub struct Softmax;

params! {
    struct SoftmaxParams { rows: u32, width: u32 }
}

impl Softmax {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "softmax",
        summary: "Softmax over the last axis",
        shaders: &["softmax_serial", "softmax_workgroup"],
        cases,
    };
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("softmax", inputs, 1)?;
        if inputs[0].shape.rank() == 0 || !inputs[0].dtype.is_float() {
            return Err(Error::operator("softmax", format!("needs a float operand with an axis, got {}", inputs[0])));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let elements = cx.output.shape.last();
        let rows = cx.output.shape.count() / elements.max(1);
        let by_four = elements % 4 == 0;
        let width = if by_four { elements / 4 } else { elements };
        let dispatch = |shader| {
            Dispatch::new(shader, SoftmaxParams { rows: rows as u32, width: width as u32 })
                .storage(cx.output.dtype)
                .feature("vec4", by_four)
                .bind([Slot::Input(0), Slot::Output])
        };
        let mut variants = vec![
            Variant::single("workgroup", dispatch("softmax_workgroup").groups(rows)),
            Variant::single("serial", dispatch("softmax_serial").over(rows)),
        ];
        if prefer_serial(cx.capabilities.kind, rows) {
            variants.reverse();
        }
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type()])?;
        let mut y = Vec::with_capacity(output.shape.count());
        for row in inputs[0].as_f32()?.chunks_exact(output.shape.last().max(1)) {
            let top = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
            let sum: f64 = row.iter().map(|&v| (f64::from(v) - top).exp()).sum();
            y.extend(row.iter().map(|&v| ((f64::from(v) - top).exp() / sum) as f32));
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        Cost { flops: 4 * output.shape.count() as u64, bytes: (inputs[0].bytes() + output.bytes()) as u64 }
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let dx = rule.apply(SoftmaxGradient, [Value::Result, Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize], deviation: f32| {
        let x = Operand::activation(shape).fill(Fill::Normal(0.0, deviation));
        Case::new(name, Softmax, vec![x], Tolerance::Transcendental)
    };
    let extreme = Fill::Values(vec![-60000.0, 50000.0, 0.0, 50000.0, -3.0]);
    // A mask's way to say that something does not count.
    let masked = Fill::Values(vec![f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 0.25, -3.0, f32::NEG_INFINITY]);
    let masked = |width: usize| {
        let x = Operand::activation([3, width]).fill(masked.clone());
        Case::new(format!("x=3x{width};masked"), Softmax, vec![x], Tolerance::Transcendental)
    };
    vec![
        masked(7),
        masked(64),
        case("x=3x63", &[3, 63], 3.0),
        case("x=3x64", &[3, 64], 3.0),
        case("x=3x65", &[3, 65], 3.0),
        case("x=3x1", &[3, 1], 1.0),
        case("x=2x5x77", &[2, 5, 77], 3.0),
        case("x=40x8", &[40, 8], 3.0),
        case("x=35x9", &[35, 9], 3.0),
        case("x=3x260", &[3, 260], 10.0),
        case("x=2x4096", &[2, 4096], 2.0),
        Case::new("x=2x5;extreme", Softmax, vec![Operand::activation([2, 5]).fill(extreme)], Tolerance::Transcendental),
        case("x=4096x4096", &[4096, 4096], 2.0).benchmark(),
    ]
}
