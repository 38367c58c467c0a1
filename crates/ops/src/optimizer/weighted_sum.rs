use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = v a + w b, where an operand of weight zero is left out, whatever it holds: gradients are accumulated by (1, scale), a moving
/// average of decay d is followed by (d, 1 - d), and a step that must be skipped is by (1, 0).
///
/// Operands: a and b f32 of one shape; weights f32 [2], (v, w), which change with the step. Result: f32 like a.
#[derive(Clone, Debug)]
pub struct WeightedSum;

params! {
    struct WeightedSumParams { count: u32 }
}

impl WeightedSum {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "weighted_sum",
        summary: "Two tensors by two weights: accumulation of gradients, moving averages",
        shaders: &["weighted_sum"],
        cases,
    };
}

impl Operator for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("weighted_sum", inputs, 3)?;
        let a = TensorType::f32(inputs[0].shape.clone());
        if inputs != [a.clone(), a.clone(), TensorType::f32([2])] || a.shape.count() == 0 {
            let detail = format!("takes two f32 tensors of one shape and f32 [2], got {}", types(inputs));
            return Err(Error::operator("weighted_sum", detail));
        }
        Ok(a)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.output.shape.count();
        let slots = [Slot::Input(0), Slot::Input(1), Slot::Input(2), Slot::Output];
        let params = WeightedSumParams { count: count as u32 };
        Ok(vec![Variant::single("flat", Dispatch::new("weighted_sum", params).bind(slots).over(count))])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let (a, b, weights) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?);
        let part = |weight: f32, value: f32| if weight == 0.0 { 0.0 } else { f64::from(weight) * f64::from(value) };
        let y = |i: usize| (part(weights[0], a[i]) + part(weights[1], b[i])) as f32;
        Ok(HostTensor::from_fn(inputs[0].shape().clone(), y))
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize], weights: [f32; 2], b: Fill| {
        let weights = Operand::parameter([2]).fill(Fill::Values(weights.to_vec()));
        let operands = vec![Operand::parameter(shape), Operand::parameter(shape).fill(b), weights];
        Case::new(name, WeightedSum, operands, Tolerance::Pointwise)
    };
    let normal = || Fill::Normal(0.0, 1.0);
    vec![
        case("a=1;accumulate", &[1], [1.0, 0.125], normal()),
        case("a=5x13;average", &[5, 13], [0.75, 0.25], normal()),
        case("a=257;skipped", &[257], [1.0, 0.0], Fill::Values(vec![f32::NAN, f32::INFINITY, 1.0])),
        case("a=64;begun", &[64], [0.0, -3.0], normal()),
        case("a=2048x1280", &[2048, 1280], [1.0, 0.5], normal()).benchmark(),
    ]
}
