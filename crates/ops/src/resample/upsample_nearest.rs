use super::sum_of_blocks;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};
use std::ops::Range;

/// Repeats every pixel of x [N, H, W, C] `factor` times along both axes: the upsampling of UNet and VAE decoder.
#[derive(Clone, Debug)]
pub struct UpsampleNearest {
    /// Repetitions of each row and column.
    pub factor: usize,
}

params! {
    struct UpsampleParams { count: u32, width: u32, channels: u32, factor: u32 }
}

impl UpsampleNearest {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "upsample_nearest",
        summary: "Upsampling by a whole factor: every pixel repeated",
        shaders: &["upsample_nearest", "upsample_nearest_vec4"],
        cases,
    };
}

impl Operator for UpsampleNearest {
    fn name(&self) -> &'static str {
        "upsample_nearest"
    }

    fn attributes(&self) -> String {
        format!("factor={}", self.factor)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("upsample_nearest", inputs, 1)?;
        let x = &inputs[0];
        if x.shape.rank() != 4 || x.shape.count() == 0 || self.factor == 0 {
            let why = format!("takes an image [N, H, W, C] and a positive factor, got {x} and {}", self.factor);
            return Err(Error::operator("upsample_nearest", why));
        }
        let [height, width] = [x.shape[1], x.shape[2]].map(|n| n.saturating_mul(self.factor));
        Ok(TensorType::new(x.dtype, [x.shape[0], height, width, x.shape[3]]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let x = &cx.inputs[0];
        let variant = |name, shader, per_invocation: usize| {
            let count = cx.output.shape.count() / per_invocation;
            let params = UpsampleParams {
                count: count as u32,
                width: x.shape[2] as u32,
                channels: (x.shape[3] / per_invocation) as u32,
                factor: self.factor as u32,
            };
            let dispatch =
                Dispatch::new(shader, params).storage(x.dtype).bind([Slot::Input(0), Slot::Output]).over(count);
            Variant::single(name, dispatch)
        };
        let mut variants = Vec::new();
        if x.shape[3] % 4 == 0 {
            variants.push(variant("vec4", "upsample_nearest_vec4", 4));
        }
        variants.push(variant("flat", "upsample_nearest", 1));
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let input = inputs[0].tensor_type();
        let output = self.infer(std::slice::from_ref(&input))?;
        let x = inputs[0].as_f32()?;
        let row = input.shape[2] * input.shape[3];
        let mut y = Vec::with_capacity(output.shape.count());
        for row in x.chunks_exact(row) {
            for _ in 0..self.factor {
                for pixel in row.chunks_exact(input.shape[3]) {
                    (0..self.factor).for_each(|_| y.extend_from_slice(pixel));
                }
            }
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn rows(&self, _: &[TensorType], rows: Range<usize>) -> Option<RowsOf> {
        let from = rows.start / self.factor..rows.end.div_ceil(self.factor);
        let rows = from.start * self.factor..from.end * self.factor;
        Some(RowsOf { operator: self.boxed(), operands: vec![Some(from)], rows, cheap: true })
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let dx = sum_of_blocks(rule, [self.factor; 2])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |x: [usize; 4], factor| {
        let name = format!("x={}x{}x{}x{};factor={factor}", x[0], x[1], x[2], x[3]);
        Case::new(name, UpsampleNearest { factor }, vec![Operand::activation(x)], Tolerance::Exact)
    };
    let mut cases = vec![
        case([1, 1, 1, 1], 2),
        case([2, 3, 5, 4], 2),
        case([1, 4, 3, 20], 2),
        case([1, 3, 2, 5], 3),
        case([2, 2, 3, 8], 1),
        case([1, 32, 32, 1280], 2).benchmark(),
        case([1, 256, 256, 256], 2).benchmark(),
    ];
    for channels in [3, 4] {
        let x = Operand::activation([1, 3, 3, channels]).fill(Fill::every_class());
        let name = format!("x=1x3x3x{channels};factor=2;every_class");
        cases.push(Case::new(name, UpsampleNearest { factor: 2 }, vec![x], Tolerance::Exact));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_repeat_along_both_axes() {
        let x = HostTensor::from_f32([1, 1, 2, 1], vec![1.0, 2.0]).unwrap();
        let y = UpsampleNearest { factor: 2 }.reference(&[&x]).unwrap();
        assert_eq!(y.as_f32().unwrap(), [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
        assert!(UpsampleNearest { factor: 0 }.infer(&[x.tensor_type()]).is_err());
    }
}
