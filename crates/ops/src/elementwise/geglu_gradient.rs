use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The gradient of [`GeGlu`]: for x = [a, b] along the last axis, dx = [upstream·gelu(b), upstream·a·gelu'(b)].
///
/// Operands: x [.., 2N]; upstream [.., N] of its element type. Result: x's type.
#[derive(Clone, Debug)]
pub struct GeGluGradient;

params! {
    struct GeGluGradientParams { count: u32, width: u32 }
}

impl GeGluGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo =
        OperatorInfo { name: "geglu_gradient", summary: "Gradient of GEGLU", shaders: &["geglu_gradient"], cases };
}

impl Operator for GeGluGradient {
    fn name(&self) -> &'static str {
        "geglu_gradient"
    }

    fn attributes(&self) -> String {
        String::new()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("geglu_gradient", inputs, 2)?;
        if GeGlu.infer(&inputs[..1]).map_err(|e| e.of_operator(self.name()))? != inputs[1] {
            let detail = format!("takes x [.., 2N] and upstream [.., N], got {}", types(inputs));
            return Err(Error::operator("geglu_gradient", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let width = cx.inputs[1].shape.last();
        let by_four = width.is_multiple_of(4);
        let cell = if by_four { 4 } else { 1 };
        let count = cx.inputs[1].shape.count() / cell;
        let params = GeGluGradientParams { count: count as u32, width: (width / cell) as u32 };
        let dispatch = Dispatch::new("geglu_gradient", params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let (x, upstream, width) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[1].shape().last());
        let gelu = Activation::Gelu;
        Ok(HostTensor::from_fn(inputs[0].shape().clone(), |i| {
            let (row, column) = (i / (2 * width), i % (2 * width));
            let up = f64::from(upstream[row * width + column % width]);
            let b = f64::from(x[row * 2 * width + width + column % width]);
            let factor = if column < width { gelu.apply(b) } else { f64::from(x[i - width]) * gelu.slope(b) };
            (up * factor) as f32
        }))
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize]| {
        let mut half = shape.to_vec();
        if let Some(last) = half.last_mut() {
            *last /= 2;
        }
        let operands = vec![Operand::activation(shape), Operand::activation(half)];
        Case::new(name, GeGluGradient, operands, Tolerance::Transcendental)
    };
    vec![
        case("x=2", &[2]),
        case("x=3x5x14", &[3, 5, 14]),
        case("x=2x9x48", &[2, 9, 48]),
        case("x=2x4096x5120", &[2, 4096, 5120]).benchmark(),
    ]
}
