use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The gradient of [`L2Normalize`]: dx = (upstream - y·Σ upstream·y) / |x| for y = x / |x|, sums over the last axis; upstream / eps
/// where |x| is less than eps.
///
/// Operands: x [.., C]; upstream of x's type, which is the result's too.
#[derive(Clone, Debug)]
pub struct L2NormalizeGradient {
    /// Smallest divisor.
    pub eps: f32,
}

params! {
    struct L2GradientParams { rows: u32, width: u32, eps: f32 }
}

impl L2NormalizeGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "l2_normalize_gradient",
        summary: "Gradient of the division by the Euclidean norm",
        shaders: &["l2_normalize_gradient"],
        cases,
    };
}

impl Operator for L2NormalizeGradient {
    fn name(&self) -> &'static str {
        "l2_normalize_gradient"
    }

    fn attributes(&self) -> String {
        format!("eps={:e}", self.eps)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("l2_normalize_gradient", inputs, 2)?;
        if inputs[0].shape.rank() == 0 || !inputs[0].dtype.is_float() || inputs[0] != inputs[1] {
            let detail = format!("takes two operands of one float type with an axis, got {}", types(inputs));
            return Err(Error::operator("l2_normalize_gradient", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let elements = cx.output.shape.last();
        let rows = cx.output.shape.count() / elements.max(1);
        let by_four = elements % 4 == 0;
        let width = if by_four { elements / 4 } else { elements };
        let params = L2GradientParams { rows: rows as u32, width: width as u32, eps: self.eps };
        let dispatch = Dispatch::new("l2_normalize_gradient", params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .groups(rows);
        Ok(vec![Variant::single("workgroup", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let (width, eps) = (output.shape.last().max(1), f64::from(self.eps));
        let mut dx = Vec::with_capacity(output.shape.count());
        for (x, up) in inputs[0].as_f32()?.chunks_exact(width).zip(inputs[1].as_f32()?.chunks_exact(width)) {
            let pairs = || x.iter().zip(up).map(|(&x, &up)| (f64::from(x), f64::from(up)));
            let norm = pairs().map(|(x, _)| x * x).sum::<f64>().sqrt();
            let share = if norm < eps { 0.0 } else { pairs().map(|(x, up)| x * up).sum::<f64>() / (norm * norm) };
            dx.extend(pairs().map(|(x, up)| ((up - x * share) / norm.max(eps)) as f32));
        }
        HostTensor::from_f32(output.shape, dx)
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, eps: f32, x: Operand| {
        let (width, upstream) = (x.shape.last(), Operand::activation(x.shape.clone()));
        Case::new(name, L2NormalizeGradient { eps }, vec![x, upstream], Tolerance::Sum(width))
    };
    let normal = |shape: &[usize]| Operand::activation(shape);
    vec![
        case("x=3x2", 1e-12, normal(&[3, 2])),
        case("x=2x3x77", 1e-12, normal(&[2, 3, 77])),
        case("x=4x768", 1e-12, normal(&[4, 768])),
        // Shorter than eps: the divisor is constant.
        case("x=2x8;short", 0.25, normal(&[2, 8]).fill(Fill::Uniform(-0.05, 0.05))),
        case("x=2x8;zeros", 0.25, normal(&[2, 8]).fill(Fill::Values(vec![0.0]))),
    ]
}
