use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// Dot products head by head: y[b, h, t] = Σd a[b, t, h, d]·b[b, t, h, d].
///
/// Operands: a and b [B, T, H·D] of one float type. Result: f32 [B, H, T].
#[derive(Clone, Debug)]
pub struct HeadDot {
    /// H.
    pub heads: usize,
}

params! {
    struct HeadDotParams { count: u32, positions: u32, heads: u32, width: u32 }
}

impl HeadDot {
    /// Registry entry.
    pub const INFO: OperatorInfo =
        OperatorInfo { name: "head_dot", summary: "Dot products head by head", shaders: &["head_dot"], cases };
}

impl Operator for HeadDot {
    fn name(&self) -> &'static str {
        "head_dot"
    }

    fn attributes(&self) -> String {
        format!("heads={}", self.heads)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("head_dot", inputs, 2)?;
        let a = &inputs[0];
        let divides = a.shape.rank() == 3 && self.heads > 0 && a.shape[2].is_multiple_of(self.heads);
        if !divides || a.shape.count() == 0 || !a.dtype.is_float() || inputs[1] != *a {
            let detail =
                format!("takes two of [B, T, H*D] of one float type, got {} ({})", types(inputs), self.attributes());
            return Err(Error::operator("head_dot", detail));
        }
        Ok(TensorType::f32([a.shape[0], self.heads, a.shape[1]]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let a = &cx.inputs[0];
        let (count, width) = (cx.output.shape.count(), a.shape[2] / self.heads);
        let by_four = width.is_multiple_of(4);
        let params = HeadDotParams {
            count: count as u32,
            positions: a.shape[1] as u32,
            heads: self.heads as u32,
            width: (if by_four { width / 4 } else { width }) as u32,
        };
        let dispatch = Dispatch::new("head_dot", params)
            .storage(a.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let (a, b) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let (positions, row) = (inputs[0].shape()[1], inputs[0].shape()[2]);
        let width = row / self.heads;
        Ok(HostTensor::from_fn(output.shape, |at| {
            let (image, h, t) = (at / (self.heads * positions), at / positions % self.heads, at % positions);
            let first = (image * positions + t) * row + h * width;
            a[first..][..width].iter().zip(&b[first..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
        }))
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: 2 * inputs[0].shape.count() as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |heads: usize, [b, t, d]: [usize; 3]| {
        let operands = vec![Operand::activation([b, t, heads * d]), Operand::activation([b, t, heads * d])];
        Case::new(format!("b={b};t={t};h={heads};d={d}"), HeadDot { heads }, operands, Tolerance::Sum(d))
    };
    vec![
        case(1, [1, 1, 1]),
        case(3, [2, 5, 7]),
        case(2, [2, 33, 16]),
        case(1, [1, 70, 160]),
        case(10, [2, 4096, 64]).benchmark(),
    ]
}
