use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// The sum of squares of all elements of one or more tensors, and whether one of them is not finite: what gradients are clipped by,
/// and what tells that a step must be skipped. Summed in two stages in a fixed order, so that equal gradients give equal bits.
///
/// Operands: any number of f32 tensors. Result: f32 [2], the sum over the finite elements, and 1 where an element is NaN or infinite
/// or the sum overflows, else 0.
#[derive(Clone, Debug)]
pub struct SumOfSquares;

params! {
    struct SquaresParams { count: u32, chunk: u32, chunks: u32, first: u32 }
}

params! {
    struct CombineSquaresParams { count: u32 }
}

/// Elements of a chunk at least, so that an invocation sums many before they are stored.
const FEWEST_ELEMENTS: usize = 4096;

/// Chunks of a tensor at most: they occupy a large GPU, and hundreds of tensors' are still few for one workgroup to combine.
const MOST_CHUNKS: usize = 256;

/// Elements of a chunk and chunks of a tensor.
fn chunks(count: usize) -> [usize; 2] {
    let chunk = count.div_ceil(MOST_CHUNKS).max(FEWEST_ELEMENTS);
    [chunk, count.div_ceil(chunk)]
}

impl SumOfSquares {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "sum_of_squares",
        summary: "The sum of squares over many tensors, and whether all of them are finite",
        shaders: &["sum_of_squares_partial", "sum_of_squares_combine"],
        cases,
    };
}

impl Operator for SumOfSquares {
    fn name(&self) -> &'static str {
        "sum_of_squares"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let fits = |ty: &TensorType| ty.dtype == DType::F32 && ty.shape.count() > 0;
        if inputs.is_empty() || !inputs.iter().all(fits) {
            let detail = format!("takes f32 tensors of at least one element, got {}", types(inputs));
            return Err(Error::operator("sum_of_squares", detail));
        }
        Ok(TensorType::f32([2]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let mut dispatches = Vec::with_capacity(cx.inputs.len() + 1);
        let mut first = 0;
        for (i, input) in cx.inputs.iter().enumerate() {
            let count = input.shape.count();
            let [chunk, chunks] = chunks(count);
            let params =
                SquaresParams { count: count as u32, chunk: chunk as u32, chunks: chunks as u32, first: first as u32 };
            let slots = [Slot::Input(i), Slot::Scratch(0)];
            dispatches.push(Dispatch::new("sum_of_squares_partial", params).bind(slots).groups(chunks));
            first += chunks;
        }
        let params = CombineSquaresParams { count: first as u32 };
        let slots = [Slot::Scratch(0), Slot::Output];
        dispatches.push(Dispatch::new("sum_of_squares_combine", params).bind(slots).groups(1));
        Ok(vec![Variant { name: "two_stages", dispatches, scratch: vec![first * 8] }])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let (mut sum, mut broken) = (0f64, false);
        for input in inputs {
            for &v in input.as_f32()? {
                match v.is_finite() {
                    true => sum += f64::from(v).powi(2),
                    false => broken = true,
                }
            }
        }
        let sum = sum as f32;
        HostTensor::from_f32([2], vec![sum, f32::from(u8::from(broken || !sum.is_finite()))])
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, operands: Vec<Operand>| {
        let count: usize = operands.iter().map(|o| o.shape.count()).sum();
        Case::new(name, SumOfSquares, operands, Tolerance::Sum(count))
    };
    let normal = |shape: &[usize]| Operand::parameter(shape);
    let values = |shape: &[usize], values: &[f32]| Operand::parameter(shape).fill(Fill::Values(values.to_vec()));
    // One broken element at the end of the last tensor's last chunk.
    let mut last = vec![0.5; 4099];
    last[4098] = f32::NAN;
    vec![
        case("x=1", vec![normal(&[1])]),
        case("x=63", vec![normal(&[63])]),
        case("x=4097", vec![normal(&[4097])]),
        case("x=3x5,9000,2x64", vec![normal(&[3, 5]), normal(&[9000]), normal(&[2, 64])]),
        case("x=40x4;nan_at_the_end", vec![normal(&[40, 4]), values(&[4099], &last)]),
        case("x=70;infinite", vec![values(&[70], &[1.0, -2.0, f32::NEG_INFINITY, 0.25, 3.0])]),
        case("x=5;overflow", vec![values(&[5], &[1e19, -1e19, 1e19, 1e19, 1e19])]),
        case("x=2048x1280", vec![normal(&[2048, 1280])]).benchmark(),
    ]
}
