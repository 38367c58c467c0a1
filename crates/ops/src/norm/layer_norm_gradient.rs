use super::prefer_serial;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The gradient of [`LayerNorm`] in x: for the normalised x̂ and w = upstream·gain,
/// dx = (w - mean(w) - x̂·mean(w·x̂)) / sqrt(variance + eps), means over the last axis.
///
/// Operands: x [.., C]; gain f32 [C] where the flag asks for it; upstream of x's type, which is the result's too.
#[derive(Clone, Debug)]
pub struct LayerNormGradient {
    /// Added to the variance.
    pub eps: f32,
    /// Whether a gain follows x.
    pub gain: bool,
}

params! {
    struct LayerNormGradientParams { rows: u32, width: u32, count: f32, eps: f32 }
}

impl LayerNormGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "layer_norm_gradient",
        summary: "Gradient of a layer norm in x",
        shaders: &["layer_norm_gradient_serial", "layer_norm_gradient_workgroup"],
        cases,
    };
}

impl Operator for LayerNormGradient {
    fn name(&self) -> &'static str {
        "layer_norm_gradient"
    }

    fn attributes(&self) -> String {
        format!("eps={:e};gain={}", self.eps, self.gain)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("layer_norm_gradient", inputs, 2 + usize::from(self.gain))?;
        let (x, upstream) = (&inputs[0], &inputs[inputs.len() - 1]);
        let vector = TensorType::f32([x.shape.last()]);
        if x.shape.rank() == 0 || !x.dtype.is_float() || upstream != x || (self.gain && inputs[1] != vector) {
            let detail = format!("takes x, gain {vector} if any, and upstream as x: {}", types(inputs));
            return Err(Error::operator("layer_norm_gradient", detail));
        }
        Ok(x.clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let channels = cx.output.shape.last();
        let rows = cx.output.shape.count() / channels.max(1);
        let by_four = channels % 4 == 0;
        let width = if by_four { channels / 4 } else { channels };
        let params =
            LayerNormGradientParams { rows: rows as u32, width: width as u32, count: channels as f32, eps: self.eps };
        let gain = if self.gain { Slot::Input(1) } else { Slot::Unused };
        let dispatch = |shader| {
            Dispatch::new(shader, params)
                .storage(cx.output.dtype)
                .feature("vec4", by_four)
                .constant("GAIN", self.gain as u32)
                .bind([Slot::Input(0), Slot::Input(cx.inputs.len() - 1), gain, Slot::Output])
        };
        let mut variants = vec![
            Variant::single("workgroup", dispatch("layer_norm_gradient_workgroup").groups(rows)),
            Variant::single("serial", dispatch("layer_norm_gradient_serial").over(rows)),
        ];
        if prefer_serial(cx.capabilities.kind, rows) {
            variants.reverse();
        }
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let width = output.shape.last().max(1);
        let gain = if self.gain { Some(inputs[1].as_f32()?) } else { None };
        let (x, upstream) = (inputs[0].as_f32()?, inputs[inputs.len() - 1].as_f32()?);
        let mut dx = Vec::with_capacity(x.len());
        for (x, upstream) in x.chunks_exact(width).zip(upstream.chunks_exact(width)) {
            let mean_of = |value: &dyn Fn(usize) -> f64| (0..width).map(value).sum::<f64>() / width as f64;
            let mean = mean_of(&|c| f64::from(x[c]));
            let rate = 1.0 / (mean_of(&|c| (f64::from(x[c]) - mean).powi(2)) + f64::from(self.eps)).sqrt();
            let normalised = |c: usize| (f64::from(x[c]) - mean) * rate;
            let weighted = |c: usize| f64::from(upstream[c]) * gain.map_or(1.0, |g| f64::from(g[c]));
            let (sum, product) = (mean_of(&weighted), mean_of(&|c| weighted(c) * normalised(c)));
            dx.extend((0..width).map(|c| (rate * (weighted(c) - sum - normalised(c) * product)) as f32));
        }
        HostTensor::from_f32(output.shape, dx)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: 14 * output.shape.count() as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, gain: bool, shape: &[usize]| {
        let width = *shape.last().unwrap_or(&1);
        let mut operands = vec![Operand::activation(shape)];
        operands.extend(gain.then(|| Operand::parameter([width])));
        operands.push(Operand::activation(shape));
        let op = LayerNormGradient { eps: 1e-5, gain };
        Case::new(name, op, operands, Tolerance::Sum(width.max(64)))
    };
    // A mean far larger than the deviation: the mean's own rounding, up to 100 · 2^-24, remains.
    let mut shifted = case("x=3x64;shifted", true, &[3, 64]);
    shifted.operands[0].fill = Fill::Values((0..61).map(|i| 100.0 + (i % 7) as f32 * 0.5).collect());
    shifted.tolerance = Tolerance::Sum(128 * 128);
    vec![
        // One element is its own mean; of two or three the gradient is nearly zero, a difference of large numbers. Without a gain, whose
        // product NVIDIA's driver fuses with the difference, so that the product's rounding error is left of it.
        case("x=2x5x1", false, &[2, 5, 1]),
        case("x=3x7", true, &[3, 7]),
        case("x=1x1x12", false, &[1, 1, 12]),
        case("x=3x63", true, &[3, 63]),
        case("x=3x65", false, &[3, 65]),
        case("x=2x77x64", true, &[2, 77, 64]),
        case("x=5x260;plain", false, &[5, 260]),
        case("x=40x33", true, &[40, 33]),
        shifted,
        case("x=2x4096x640", true, &[2, 4096, 640]).benchmark(),
        case("x=2x1024x1280", true, &[2, 1024, 1280]).benchmark(),
    ]
}
