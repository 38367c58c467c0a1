use super::{as_reference, moving_cost, walk_variant};
use crate::strided::{Walk, offsets, select};
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, Shape, TensorType};

/// x repeated along axes of extent 1 (and new leading axes) up to a shape, by NumPy's rule.
#[derive(Clone, Debug)]
pub struct Expand {
    /// The result's extents.
    pub shape: Shape,
}

impl Expand {
    /// Registry entry.
    pub const INFO: OperatorInfo =
        OperatorInfo { name: "expand", summary: "Repetition along axes of extent 1", shaders: &["expand"], cases };

    /// To the given extents.
    pub fn new(shape: impl Into<Shape>) -> Self {
        Expand { shape: shape.into() }
    }

    fn strides(&self, x: &TensorType) -> Result<Vec<usize>> {
        x.shape
            .broadcast_strides(&self.shape)
            .ok_or_else(|| Error::operator("expand", format!("{x} does not broadcast to {}", self.shape)))
    }
}

impl Operator for Expand {
    fn name(&self) -> &'static str {
        "expand"
    }

    fn attributes(&self) -> String {
        format!("shape={}", self.shape)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("expand", inputs, 1)?;
        Walk::new(&self.shape, &[&self.strides(&inputs[0])?]).check("expand")?;
        Ok(TensorType::new(inputs[0].dtype, self.shape.clone()))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        Ok(vec![walk_variant("expand", cx.output, &self.strides(&cx.inputs[0])?, 0)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let strides = self.strides(&inputs[0].tensor_type())?;
        Ok(as_reference(&select(inputs[0], offsets(&self.shape, &strides, 0), self.shape.clone())?))
    }

    fn cost(&self, _inputs: &[TensorType], output: &TensorType) -> Cost {
        moving_cost(output)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let dx = rule.sum_to(Value::Upstream, 0)?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: &[usize], to: &[usize]| {
        let name = format!("x={shape:?};to={to:?}").replace(", ", ",");
        Case::new(name, Expand::new(to), vec![Operand::activation(shape)], Tolerance::Exact)
    };
    let mut cases = vec![
        case(&[1], &[7]),
        case(&[3, 1], &[3, 5]),
        case(&[1, 5], &[3, 5]),
        case(&[1, 8], &[2, 3, 8]),
        case(&[2, 1, 3, 1, 2, 1], &[2, 4, 3, 5, 2, 3]),
        case(&[1, 77, 64], &[2, 77, 64]),
    ];
    for width in [17, 20] {
        let x = Operand::activation([1, width]).fill(Fill::every_class());
        let name = format!("x=[1,{width}];to=[3,{width}];every_class");
        cases.push(Case::new(name, Expand::new([3, width]), vec![x], Tolerance::Exact));
    }
    cases
}
