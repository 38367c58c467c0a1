use super::{as_reference, moving_cost, walk_variant};
use crate::strided::Walk;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The axes in another order: axis `i` of the result is axis `order[i]` of the operand.
#[derive(Clone, Debug)]
pub struct Permute {
    /// Each axis of the operand once.
    pub order: Vec<usize>,
}

impl Permute {
    /// Registry entry.
    pub const INFO: OperatorInfo =
        OperatorInfo { name: "permute", summary: "The axes in another order", shaders: &["permute"], cases };

    /// With the given order.
    pub fn new(order: impl Into<Vec<usize>>) -> Self {
        Permute { order: order.into() }
    }

    fn strides(&self, x: &TensorType) -> Vec<usize> {
        let strides = x.shape.strides();
        self.order.iter().map(|&axis| strides[axis]).collect()
    }
}

impl Operator for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn attributes(&self) -> String {
        format!("order={:?}", self.order)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("permute", inputs, 1)?;
        let x = &inputs[0];
        let mut sorted = self.order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.shape.rank()) {
            return Err(Error::operator("permute", format!("{:?} does not reorder the axes of {x}", self.order)));
        }
        let shape: Vec<usize> = self.order.iter().map(|&axis| x.shape[axis]).collect();
        Walk::new(&shape, &[&self.strides(x)]).check("permute")?;
        Ok(TensorType::new(x.dtype, shape))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        Ok(vec![walk_variant("permute", cx.output, &self.strides(&cx.inputs[0]), 0)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        Ok(as_reference(&inputs[0].permute(&self.order)?))
    }

    fn cost(&self, _inputs: &[TensorType], output: &TensorType) -> Cost {
        moving_cost(output)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let mut back = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(i, &axis)| back[axis] = i);
        let dx = rule.apply(Permute::new(back), [Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: &[usize], order: &[usize]| {
        let name = format!("x={shape:?};order={order:?}").replace(", ", ",");
        Case::new(name, Permute::new(order), vec![Operand::activation(shape)], Tolerance::Exact)
    };
    let mut cases = vec![
        case(&[5], &[0]),
        case(&[3, 7], &[1, 0]),
        case(&[2, 3, 5, 4], &[0, 3, 1, 2]),
        case(&[2, 5, 3, 8], &[0, 2, 1, 3]),
        case(&[2, 3, 4, 5, 6, 2], &[5, 3, 1, 4, 2, 0]),
        case(&[1, 6, 1, 4], &[3, 2, 1, 0]),
        case(&[1, 64, 64, 320], &[0, 3, 1, 2]).benchmark(),
        case(&[2, 4096, 10, 64], &[0, 2, 1, 3]).benchmark(),
    ];
    let indices = Case::new("indices", Permute::new([1, 0]), vec![Operand::index([3, 5], 1 << 30)], Tolerance::Exact);
    cases.push(indices);
    for (shape, order) in [([17, 3, 1], [1, 0, 2]), ([3, 5, 8], [1, 0, 2])] {
        let x = Operand::activation(shape).fill(Fill::every_class());
        let name = format!("x={shape:?};order={order:?};every_class").replace(", ", ",");
        cases.push(Case::new(name, Permute::new(order), vec![x], Tolerance::Exact));
    }
    cases
}
