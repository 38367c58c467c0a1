use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};
use std::ops::Range;

/// y = x in another float type; f32 to f16 rounds to nearest.
#[derive(Clone, Debug)]
pub struct Cast(pub DType);

params! {
    struct CastParams { count: u32 }
}

impl Cast {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "cast",
        summary: "Conversion between f32 and f16",
        shaders: &["cast_to_f16", "cast_to_f32"],
        cases,
    };
}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn attributes(&self) -> String {
        format!("to={}", self.0)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("cast", inputs, 1)?;
        if !inputs[0].dtype.is_float() || !self.0.is_float() {
            return Err(Error::operator(
                "cast",
                format!("converts between f32 and f16, not {} to {}", inputs[0], self.0),
            ));
        }
        Ok(TensorType::new(self.0, inputs[0].shape.clone()))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.output.shape.count();
        let (shader, invocations) = match self.0 {
            DType::F16 => ("cast_to_f16", count.div_ceil(2)),
            _ => ("cast_to_f32", count),
        };
        let dispatch = Dispatch::new(shader, CastParams { count: count as u32 })
            .storage(cx.inputs[0].dtype)
            .bind([Slot::Input(0), Slot::Output])
            .over(invocations);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        // Rounded and back: the result is f32 like every reference's.
        Ok(inputs[0].cast(self.0).cast(DType::F32))
    }

    fn rows(&self, _: &[TensorType], rows: Range<usize>) -> Option<RowsOf> {
        Some(RowsOf::same(self, rows, [true]))
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let dtype = rule.ty(Value::Operand(0)).dtype;
        let dx = rule.cast(Value::Upstream, dtype)?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (to, text) in [(DType::F32, "f32"), (DType::F16, "f16")] {
        // 65520 is the first number that rounds to infinity in half precision.
        let Fill::Values(mut values) = Fill::every_class() else { continue };
        values.extend([65519.0, 65520.0, -65520.0, 1e6, 2f32.powi(-25), 1.5 * 2f32.powi(-24)]);
        let x = Operand::activation([values.len()]).fill(Fill::Values(values));
        cases.push(Case::new(format!("to={text};every_class"), Cast(to), vec![x], Tolerance::Pointwise));
        for count in [1, 130, 131] {
            let x = Operand::activation([count]).fill(Fill::Normal(0.0, 100.0));
            // Pointwise rather than exact: WGSL lets packing round either way.
            cases.push(Case::new(format!("to={text};count={count}"), Cast(to), vec![x], Tolerance::Pointwise));
        }
    }
    cases
}
