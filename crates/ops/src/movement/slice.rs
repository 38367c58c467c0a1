use super::{as_reference, moving_cost, walk_variant};
use crate::strided::{Walk, offsets, select};
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// Part of a tensor: y[i, ..] = x[start + i·step, ..] along each axis.
#[derive(Clone, Debug)]
pub struct Slice {
    /// First index along each axis.
    pub starts: Vec<usize>,
    /// Number of elements along each axis.
    pub sizes: Vec<usize>,
    /// Distance of consecutive elements along each axis, 1 or more.
    pub steps: Vec<usize>,
}

impl Slice {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "slice",
        summary: "Part of a tensor: start, size and step along each axis",
        shaders: &["slice"],
        cases,
    };

    /// Consecutive elements.
    pub fn new(starts: impl Into<Vec<usize>>, sizes: impl Into<Vec<usize>>) -> Self {
        let (starts, sizes) = (starts.into(), sizes.into());
        let steps = vec![1; sizes.len()];
        Slice { starts, sizes, steps }
    }

    /// `size` elements from `start` along one axis of a tensor of the given extents, everything along the others.
    pub fn along(extents: &[usize], axis: usize, start: usize, size: usize) -> Self {
        let mut slice = Slice::new(vec![0; extents.len()], extents);
        if axis < extents.len() {
            slice.starts[axis] = start;
            slice.sizes[axis] = size;
        }
        slice
    }

    /// Strides of the walk and its start.
    fn walk(&self, x: &TensorType) -> (Vec<usize>, usize) {
        let own = x.shape.strides();
        let start = own.iter().zip(&self.starts).map(|(stride, start)| stride * start).sum();
        (own.iter().zip(&self.steps).map(|(stride, step)| stride * step).collect(), start)
    }
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn attributes(&self) -> String {
        format!("starts={:?};sizes={:?};steps={:?}", self.starts, self.sizes, self.steps)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("slice", inputs, 1)?;
        let x = &inputs[0];
        let rank = x.shape.rank();
        let fits = |axis: usize| {
            let (start, size, step) = (self.starts[axis], self.sizes[axis], self.steps[axis]);
            let last = step.checked_mul(size.saturating_sub(1)).and_then(|n| n.checked_add(start));
            size > 0 && step > 0 && last.is_some_and(|last| last < x.shape[axis])
        };
        let lengths = [self.starts.len(), self.sizes.len(), self.steps.len()];
        if lengths != [rank; 3] || !(0..rank).all(fits) {
            return Err(Error::operator("slice", format!("does not lie within {x} ({})", self.attributes())));
        }
        Walk::new(&self.sizes, &[&self.walk(x).0]).check("slice")?;
        Ok(TensorType::new(x.dtype, self.sizes.clone()))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (strides, start) = self.walk(&cx.inputs[0]);
        Ok(vec![walk_variant("slice", cx.output, &strides, start)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let ty = inputs[0].tensor_type();
        let output = self.infer(std::slice::from_ref(&ty))?;
        let (strides, start) = self.walk(&ty);
        Ok(as_reference(&select(inputs[0], offsets(&self.sizes, &strides, start), output.shape)?))
    }

    fn cost(&self, _inputs: &[TensorType], output: &TensorType) -> Cost {
        moving_cost(output)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if self.steps.iter().zip(&self.sizes).any(|(&step, &size)| step > 1 && size > 1) {
            return Err(rule.fail("has no gradient rule for steps over 1"));
        }
        let x = rule.shape(Value::Operand(0));
        let after: Vec<_> = (0..x.rank()).map(|axis| x[axis] - self.starts[axis] - self.sizes[axis]).collect();
        let dx = rule.apply(Pad::zeros(self.starts.clone(), after), [Value::Upstream])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |shape: &[usize], op: Slice| {
        let name = format!("x={shape:?};{}", op.attributes()).replace(", ", ",");
        Case::new(name, op, vec![Operand::activation(shape)], Tolerance::Exact)
    };
    let mut cases = vec![
        case(&[5], Slice::new([4], [1])),
        case(&[3, 7], Slice::new([1, 2], [2, 4])),
        case(&[2, 6, 8], Slice::along(&[2, 6, 8], 1, 1, 4)),
        case(&[2, 6, 8], Slice::along(&[2, 6, 8], 2, 4, 4)),
        case(&[2, 6, 8], Slice::along(&[2, 6, 8], 2, 3, 4)),
        case(&[2, 9, 5], Slice { steps: vec![1, 2, 3], ..Slice::new([0, 1, 1], [2, 4, 2]) }),
        case(&[2, 3, 2, 3, 2, 3], Slice::new([1, 1, 1, 1, 1, 1], [1, 2, 1, 2, 1, 2])),
        case(&[2, 577, 1024], Slice::along(&[2, 577, 1024], 1, 1, 576)).benchmark(),
    ];
    for (width, first) in [(19, 1), (24, 4)] {
        let x = Operand::activation([3, width]).fill(Fill::every_class());
        let name = format!("x=[3,{width}];starts=[0,{first}];every_class");
        cases.push(Case::new(name, Slice::new([0, first], [3, width - first]), vec![x], Tolerance::Exact));
    }
    // The last elements of a whole binding.
    let count = LARGEST_BINDING / 4;
    let x = Operand::activation([count]).fill(Fill::Values((0..61).map(|i| i as f32).collect()));
    let op = Slice::new([count - 1027], [1027]);
    cases.push(Case::new(format!("x=[{count}];whole_binding"), op, vec![x], Tolerance::Exact).large());
    cases
}
