use super::{as_reference, moving_cost};
use crate::*;
use pulid_tensor::{Data, Error, HostTensor, Result, TensorType};

/// Operands one after the other along an axis.
///
/// Operands: one or more of one element type whose extents agree except along `axis`.
#[derive(Clone, Debug)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

params! {
    struct ConcatParams { count: u32, inner: u32, outer: u32, start: u32 }
}

impl Concat {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "concat",
        summary: "Operands one after the other along an axis",
        shaders: &["concat"],
        cases,
    };

    /// Along the given axis.
    pub fn new(axis: usize) -> Self {
        Concat { axis }
    }

    /// Consecutive elements that each operand adds to one outer index.
    fn runs(&self, inputs: &[TensorType]) -> Vec<usize> {
        inputs.iter().map(|t| t.shape[self.axis..].iter().product()).collect()
    }
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn attributes(&self) -> String {
        format!("axis={}", self.axis)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let fail = |why: &str| Error::operator("concat", format!("{why}: {} ({})", types(inputs), self.attributes()));
        let Some(first) = inputs.first() else {
            return Err(fail("needs an operand"));
        };
        if self.axis >= first.shape.rank() {
            return Err(fail("there is no such axis"));
        }
        let mut shape = first.shape.to_vec();
        shape[self.axis] = 0;
        for t in inputs {
            let agree = t.dtype == first.dtype
                && t.shape.rank() == shape.len()
                && (0..shape.len()).all(|axis| axis == self.axis || t.shape[axis] == shape[axis]);
            if !agree {
                return Err(fail("types must agree except along the axis"));
            }
            shape[self.axis] += t.shape[self.axis];
        }
        Ok(TensorType::new(first.dtype, shape))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let runs = self.runs(cx.inputs);
        let outer: usize = runs.iter().sum();
        let mut start = 0;
        let mut dispatches = Vec::new();
        for (i, &inner) in runs.iter().enumerate() {
            // Each operand is moved by whole cells when its own run and place allow it.
            let by_four = [inner, outer, start].iter().all(|n| n % 4 == 0);
            let cell = if by_four { 4 } else { 1 };
            let count = cx.inputs[i].shape.count() / cell;
            let params = ConcatParams {
                count: count as u32,
                inner: (inner / cell) as u32,
                outer: (outer / cell) as u32,
                start: (start / cell) as u32,
            };
            if count > 0 {
                dispatches.push(
                    Dispatch::new("concat", params)
                        .storage(cx.output.dtype)
                        .feature("vec4", by_four)
                        .bind([Slot::Input(i), Slot::Output])
                        .over(count),
                );
            }
            start += inner;
        }
        Ok(vec![Variant { name: "per_operand", dispatches, scratch: Vec::new() }])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let runs = self.runs(&types);
        let outer = output.shape[..self.axis].iter().product::<usize>();
        fn join<T: Copy>(parts: &[&[T]], runs: &[usize], outer: usize) -> Vec<T> {
            let pieces = (0..outer).flat_map(|o| parts.iter().zip(runs).map(move |(p, &n)| &p[o * n..][..n]));
            pieces.flatten().copied().collect()
        }
        if types[0].dtype == pulid_tensor::DType::U32 {
            let parts = inputs.iter().map(|t| t.as_u32()).collect::<Result<Vec<_>>>()?;
            return HostTensor::new(output.shape, Data::U32(join(&parts, &runs, outer)));
        }
        let converted: Vec<_> = inputs.iter().map(|t| as_reference(t)).collect();
        let parts = converted.iter().map(HostTensor::as_f32).collect::<Result<Vec<_>>>()?;
        HostTensor::from_f32(output.shape, join(&parts, &runs, outer))
    }

    fn cost(&self, _inputs: &[TensorType], output: &TensorType) -> Cost {
        moving_cost(output)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let (whole, mut start) = (rule.shape(Value::Upstream), 0);
        for i in 0..rule.operands() {
            let size = rule.shape(Value::Operand(i))[self.axis];
            if rule.needs(i) {
                let part = rule.apply(Slice::along(&whole, self.axis, start, size), [Value::Upstream])?;
                rule.set(i, part);
            }
            start += size;
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |axis: usize, shapes: &[&[usize]]| {
        let name = format!("axis={axis};x={shapes:?}").replace(", ", ",");
        let operands = shapes.iter().map(|s| Operand::activation(*s)).collect();
        Case::new(name, Concat::new(axis), operands, Tolerance::Exact)
    };
    let mut cases = vec![
        case(0, &[&[3], &[1]]),
        case(1, &[&[2, 3], &[2, 4]]),
        case(1, &[&[2, 3, 5], &[2, 1, 5], &[2, 2, 5]]),
        case(3, &[&[2, 3, 3, 8], &[2, 3, 3, 12]]),
        case(0, &[&[1, 7], &[2, 7]]),
        case(2, &[&[1, 2, 4], &[1, 2, 3], &[1, 2, 5], &[1, 2, 4]]),
        case(1, &[&[2, 5]]),
        case(3, &[&[2, 64, 64, 640], &[2, 64, 64, 320]]).benchmark(),
    ];
    // What is moved keeps its class.
    for width in [1, 4] {
        let part = |rows: usize| Operand::activation([rows, width]).fill(Fill::every_class());
        let name = format!("axis=0;x=[[17,{width}],[9,{width}]];every_class");
        cases.push(Case::new(name, Concat::new(0), vec![part(17), part(9)], Tolerance::Exact));
    }
    cases
}
