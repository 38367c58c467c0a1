use crate::strided::{Walk, offsets};
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = a where the condition is not 0, else b, broadcast by NumPy's rule: what is not chosen leaves no trace, however
/// large.
///
/// Operands: condition, a, b, all of one float type, which is the result's too.
#[derive(Clone, Debug)]
pub struct Select;

params! {
    struct SelectParams {
        near: [u32; 4], far: [u32; 4],
        condition_near: [u32; 4], condition_far: [u32; 4],
        a_near: [u32; 4], a_far: [u32; 4],
        b_near: [u32; 4], b_far: [u32; 4],
        count: u32,
    }
}

impl Select {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "select",
        summary: "One operand where a condition holds, else another, with broadcasting",
        shaders: &["select_where"],
        cases,
    };

    /// The strides of the operands along the result.
    fn strides(inputs: &[TensorType], y: &TensorType) -> Result<Vec<Vec<usize>>> {
        let all: Option<Vec<_>> = inputs.iter().map(|t| t.shape.broadcast_strides(&y.shape)).collect();
        all.ok_or_else(|| Error::operator("select", format!("{} do not broadcast to {y}", types(inputs))))
    }

    fn walk(inputs: &[TensorType], y: &TensorType) -> Result<Walk> {
        let strides = Self::strides(inputs, y)?;
        Ok(Walk::new(&y.shape, &[&strides[0], &strides[1], &strides[2]]))
    }
}

impl Operator for Select {
    fn name(&self) -> &'static str {
        "select"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("select", inputs, 3)?;
        let dtype = inputs[0].dtype;
        let shape = inputs[0].shape.broadcast(&inputs[1].shape).and_then(|s| s.broadcast(&inputs[2].shape));
        let Some(shape) = shape.filter(|_| dtype.is_float() && inputs.iter().all(|t| t.dtype == dtype)) else {
            let detail = format!("takes one float type and shapes that broadcast, got {}", types(inputs));
            return Err(Error::operator("select", detail));
        };
        let output = TensorType::new(dtype, shape);
        Self::walk(inputs, &output)?.check("select")?;
        Ok(output)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let walk = Self::walk(cx.inputs, cx.output)?;
        let cells = walk.by_four(&[]);
        let by_four = cells.is_some();
        let walk = cells.unwrap_or(walk);
        let (near, far) = walk.extent_vectors();
        let (condition_near, condition_far) = walk.stride_vectors(0);
        let (a_near, a_far) = walk.stride_vectors(1);
        let (b_near, b_far) = walk.stride_vectors(2);
        let count = walk.count();
        let params = SelectParams {
            near,
            far,
            condition_near,
            condition_far,
            a_near,
            a_far,
            b_near,
            b_far,
            count: count as u32,
        };
        let dispatch = Dispatch::new("select_where", params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .constant("RANK", walk.rank())
            .bind([Slot::Input(0), Slot::Input(1), Slot::Input(2), Slot::Output])
            .over(count);
        Ok(vec![Variant::single(if by_four { "cells" } else { "elements" }, dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let strides = Self::strides(&types, &output)?;
        let (c, a, b) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?);
        let y = offsets(&output.shape, &strides[0], 0)
            .zip(offsets(&output.shape, &strides[1], 0).zip(offsets(&output.shape, &strides[2], 0)))
            .map(|(i, (j, k))| if c[i] != 0.0 { a[j] } else { b[k] })
            .collect();
        HostTensor::from_f32(output.shape, y)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if rule.needs(0) {
            return Err(rule.fail("has no gradient in the condition"));
        }
        let zero = rule.apply(Unary(Activation::Affine(0.0, 0.0)), [Value::Upstream])?;
        for (operand, chosen) in [(1, [Value::Upstream, zero]), (2, [zero, Value::Upstream])] {
            if rule.needs(operand) {
                let part = rule.apply(Select, [Value::Operand(0), chosen[0], chosen[1]])?;
                let part = rule.sum_to(part, operand)?;
                rule.set(operand, part);
            }
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let truth = Fill::Values(vec![0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    let shapes: [[&[usize]; 3]; 5] = [
        [&[3, 5], &[3, 5], &[3, 5]],
        [&[2, 3, 8], &[2, 3, 8], &[2, 3, 8]],
        [&[2, 1, 8], &[3, 8], &[8]],
        [&[7], &[4, 7], &[1]],
        [&[4, 1, 3], &[1], &[5, 1]],
    ];
    let text = |s: &[usize]| s.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    let mut cases: Vec<_> = shapes
        .into_iter()
        .map(|[c, a, b]| {
            let name = format!("condition={};a={};b={}", text(c), text(a), text(b));
            let operands =
                vec![Operand::activation(c).fill(truth.clone()), Operand::activation(a), Operand::activation(b)];
            Case::new(name, Select, operands, Tolerance::Exact)
        })
        .collect();
    for width in [17, 20] {
        let class = || Operand::activation([3, width]).fill(Fill::every_class());
        let operands = vec![Operand::activation([3, 1]).fill(truth.clone()), class(), class()];
        cases.push(Case::new(format!("a=3x{width};every_class"), Select, operands, Tolerance::Exact));
    }
    cases
}
