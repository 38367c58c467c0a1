use super::{as_reference, moving_cost};
use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// A constant border around a tensor.
#[derive(Clone, Debug)]
pub struct Pad {
    /// Elements added before each axis.
    pub before: Vec<usize>,
    /// Elements added after each axis.
    pub after: Vec<usize>,
    /// Their value.
    pub value: f32,
}

params! {
    struct PadParams {
        near: [u32; 4], far: [u32; 4],
        x_near: [u32; 4], x_far: [u32; 4],
        before_near: [u32; 4], before_far: [u32; 4],
        size_near: [u32; 4], size_far: [u32; 4],
        count: u32, value: f32,
    }
}

/// The shader's two vectors for values given outermost axis first.
fn vectors(values: impl DoubleEndedIterator<Item = usize>, fill: u32) -> ([u32; 4], [u32; 4]) {
    let mut all = [fill; 8];
    for (slot, value) in all.iter_mut().zip(values.rev()) {
        *slot = value as u32;
    }
    let [a, b, c, d, e, f, g, h] = all;
    ([a, b, c, d], [e, f, g, h])
}

impl Pad {
    /// Registry entry.
    pub const INFO: OperatorInfo =
        OperatorInfo { name: "pad", summary: "A constant border around a tensor", shaders: &["pad"], cases };

    /// Zeros before and after each axis.
    pub fn zeros(before: impl Into<Vec<usize>>, after: impl Into<Vec<usize>>) -> Self {
        Pad { before: before.into(), after: after.into(), value: 0.0 }
    }
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn attributes(&self) -> String {
        format!("before={:?};after={:?};value={}", self.before, self.after, self.value)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("pad", inputs, 1)?;
        let x = &inputs[0];
        let rank = x.shape.rank();
        let fail = |why: &str| Error::operator("pad", format!("{why}: {x} ({})", self.attributes()));
        if [self.before.len(), self.after.len()] != [rank; 2] || rank > 8 {
            return Err(fail("needs a width before and after each of at most 8 axes"));
        }
        if x.dtype == DType::U32 && self.value != 0.0 {
            return Err(fail("indices are padded with 0 only"));
        }
        let shape: Vec<usize> = (0..rank).map(|axis| self.before[axis] + x.shape[axis] + self.after[axis]).collect();
        Ok(TensorType::new(x.dtype, shape))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (x, y) = (&cx.inputs[0].shape, &cx.output.shape);
        let last = x.rank().saturating_sub(1);
        let inner = [self.before.last(), self.after.last(), x.extents().last()];
        let by_four = x.rank() > 0 && inner.iter().flatten().all(|n| **n % 4 == 0);
        // Extents and positions along the innermost axis, and strides along the others, count cells.
        let cell = if by_four { 4 } else { 1 };
        let on_last = |axis: usize, n: usize| if axis == last { n / cell } else { n };
        let strides = x.strides();
        let (near, far) = vectors((0..y.rank()).map(|a| on_last(a, y[a])), 1);
        let (x_near, x_far) = vectors((0..y.rank()).map(|a| if a == last { 1 } else { strides[a] / cell }), 0);
        let (before_near, before_far) = vectors((0..y.rank()).map(|a| on_last(a, self.before[a])), 0);
        let (size_near, size_far) = vectors((0..y.rank()).map(|a| on_last(a, x[a])), 1);
        let count = y.count() / cell;
        let params = PadParams {
            near,
            far,
            x_near,
            x_far,
            before_near,
            before_far,
            size_near,
            size_far,
            count: count as u32,
            value: self.value,
        };
        let dispatch = Dispatch::new("pad", params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .constant("RANK", y.rank().max(1) as u32)
            .bind([Slot::Input(0), Slot::Output])
            .over(count);
        Ok(vec![Variant::single(if by_four { "cells" } else { "elements" }, dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let ty = inputs[0].tensor_type();
        let output = self.infer(std::slice::from_ref(&ty))?;
        let source = as_reference(inputs[0]).cast(DType::F32);
        let x = source.as_f32()?;
        let (own, strides) = (ty.shape.strides(), output.shape.strides());
        let y = HostTensor::from_fn(output.shape.clone(), |i| {
            let mut from = 0;
            for axis in 0..strides.len() {
                let position = (i / strides[axis]) % output.shape[axis];
                if position < self.before[axis] || position - self.before[axis] >= ty.shape[axis] {
                    return self.value;
                }
                from += (position - self.before[axis]) * own[axis];
            }
            x[from]
        });
        Ok(if ty.dtype == DType::U32 { y.cast(DType::U32) } else { y })
    }

    fn cost(&self, _inputs: &[TensorType], output: &TensorType) -> Cost {
        moving_cost(output)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let x = rule.shape(Value::Operand(0));
        let dx = rule.apply(Slice::new(self.before.clone(), x.to_vec()), [Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: &[usize], op: Pad| {
        let name = format!("x={shape:?};{}", op.attributes()).replace(", ", ",");
        Case::new(name, op, vec![Operand::activation(shape)], Tolerance::Exact)
    };
    let mut cases = vec![
        case(&[1], Pad::zeros([0], [3])),
        case(&[3, 5], Pad { value: 0.5, ..Pad::zeros([1, 0], [2, 4]) }),
        case(&[2, 3, 3, 8], Pad::zeros([0, 0, 0, 0], [0, 1, 1, 0])),
        case(&[2, 3, 8], Pad { value: -1.0, ..Pad::zeros([0, 1, 4], [0, 0, 8]) }),
        case(&[2, 1, 3, 2, 1, 3], Pad::zeros([1, 0, 1, 0, 2, 0], [0, 1, 0, 2, 0, 1])),
        case(&[2, 3], Pad::zeros([0, 0], [0, 0])),
    ];
    for (width, value) in [(17, f32::MIN), (20, f32::MAX)] {
        let op = Pad { value, ..Pad::zeros([1, 0], [0, 4]) };
        let x = Operand::activation([3, width]).fill(Fill::every_class());
        cases.push(Case::new(format!("x=[3,{width}];every_class"), op, vec![x], Tolerance::Exact));
    }
    cases
}
