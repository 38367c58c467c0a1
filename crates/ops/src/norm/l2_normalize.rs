use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = x / max(|x|, eps), the Euclidean norm taken over the last axis (PyTorch's `normalize`).
///
/// Operand: x [.., C]. Result: x's type.
#[derive(Clone, Debug)]
pub struct L2Normalize {
    /// Smallest divisor.
    pub eps: f32,
}

impl Default for L2Normalize {
    fn default() -> Self {
        L2Normalize { eps: 1e-12 }
    }
}

params! {
    struct L2Params { rows: u32, width: u32, eps: f32 }
}

impl L2Normalize {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "l2_normalize",
        summary: "Division of the last axis by its Euclidean norm",
        shaders: &["l2_normalize_workgroup"],
        cases,
    };
}

impl Operator for L2Normalize {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn attributes(&self) -> String {
        format!("eps={:e}", self.eps)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("l2_normalize", inputs, 1)?;
        if inputs[0].shape.rank() == 0 || !inputs[0].dtype.is_float() {
            let detail = format!("needs a float operand with an axis, got {}", inputs[0]);
            return Err(Error::operator("l2_normalize", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let elements = cx.output.shape.last();
        let rows = cx.output.shape.count() / elements.max(1);
        let by_four = elements % 4 == 0;
        let width = if by_four { elements / 4 } else { elements };
        let params = L2Params { rows: rows as u32, width: width as u32, eps: self.eps };
        let dispatch = Dispatch::new("l2_normalize_workgroup", params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Output])
            .groups(rows);
        Ok(vec![Variant::single("workgroup", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type()])?;
        let mut y = Vec::with_capacity(output.shape.count());
        for row in inputs[0].as_f32()?.chunks_exact(output.shape.last().max(1)) {
            let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(f64::from(self.eps));
            y.extend(row.iter().map(|&v| (f64::from(v) / norm) as f32));
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let dx = rule.apply(L2NormalizeGradient { eps: self.eps }, [Value::Operand(0), Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize]| {
        let width = *shape.last().unwrap_or(&1);
        Case::new(name, L2Normalize::default(), vec![Operand::activation(shape)], Tolerance::Sum(width))
    };
    let zeros = Operand::activation([2, 8]).fill(Fill::Values(vec![0.0]));
    vec![
        case("x=3x1", &[3, 1]),
        case("x=2x3x77", &[2, 3, 77]),
        case("x=4x768", &[4, 768]),
        Case::new("x=2x8;zeros", L2Normalize::default(), vec![zeros], Tolerance::Pointwise),
    ]
}
