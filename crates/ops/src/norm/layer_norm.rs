use super::prefer_serial;
use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// y = (x - mean) / sqrt(variance + eps)·gain + bias, statistics over the last axis.
///
/// Operands: x [.., C]; then gain f32 [C] and bias f32 [C] where the flags ask for them. Result: x's type.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
    /// Whether a gain follows.
    pub gain: bool,
    /// Whether a bias follows.
    pub bias: bool,
}

params! {
    struct LayerNormParams { rows: u32, width: u32, count: f32, eps: f32 }
}

impl LayerNorm {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "layer_norm",
        summary: "Normalisation over the last axis, with gain and bias",
        shaders: &["layer_norm_serial", "layer_norm_workgroup"],
        cases,
    };

    /// With gain and bias.
    pub fn new(eps: f32) -> Self {
        LayerNorm { eps, gain: true, bias: true }
    }
}

impl Operator for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn attributes(&self) -> String {
        format!("eps={:e};gain={};bias={}", self.eps, self.gain, self.bias)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("layer_norm", inputs, 1 + usize::from(self.gain) + usize::from(self.bias))?;
        let vector = TensorType::f32([inputs[0].shape.last()]);
        if inputs[0].shape.rank() == 0 || !inputs[0].dtype.is_float() || inputs[1..].iter().any(|t| *t != vector) {
            let detail = format!("gain and bias must be {vector}, got {} ({})", types(inputs), self.attributes());
            return Err(Error::operator("layer_norm", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let channels = cx.output.shape.last();
        let rows = cx.output.shape.count() / channels.max(1);
        let by_four = channels % 4 == 0;
        let width = if by_four { channels / 4 } else { channels };
        let params = LayerNormParams { rows: rows as u32, width: width as u32, count: channels as f32, eps: self.eps };
        let gain = if self.gain { Slot::Input(1) } else { Slot::Unused };
        let bias = if self.bias { Slot::Input(1 + usize::from(self.gain)) } else { Slot::Unused };
        let dispatch = |shader| {
            Dispatch::new(shader, params)
                .storage(cx.output.dtype)
                .feature("vec4", by_four)
                .constant("GAIN", self.gain as u32)
                .constant("BIAS", self.bias as u32)
                .bind([Slot::Input(0), gain, bias, Slot::Output])
        };
        let mut variants = vec![
            Variant::single("workgroup", dispatch("layer_norm_workgroup").groups(rows)),
            Variant::single("serial", dispatch("layer_norm_serial").over(rows)),
        ];
        if prefer_serial(cx.capabilities.kind, rows) {
            variants.reverse();
        }
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let width = output.shape.last();
        let gain = if self.gain { Some(inputs[1].as_f32()?) } else { None };
        let bias = if self.bias { Some(inputs[inputs.len() - 1].as_f32()?) } else { None };
        let mut y = Vec::with_capacity(output.shape.count());
        for row in inputs[0].as_f32()?.chunks_exact(width.max(1)) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
            let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
            y.extend(row.iter().enumerate().map(|(c, &v)| {
                let v = (f64::from(v) - mean) * scale * gain.map_or(1.0, |g| f64::from(g[c]));
                (v + bias.map_or(0.0, |b| f64::from(b[c]))) as f32
            }));
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if rule.needs(0) {
            let mut operands = vec![Value::Operand(0), Value::Upstream];
            if self.gain {
                operands.insert(1, Value::Operand(1));
            }
            let dx = rule.apply(LayerNormGradient { eps: self.eps, gain: self.gain }, operands)?;
            rule.set(0, dx);
        }
        if self.gain && rule.needs(1) {
            // In f32: half precision would round every product before the sum.
            let x = rule.cast(Value::Operand(0), DType::F32)?;
            let upstream = rule.cast(Value::Upstream, DType::F32)?;
            let normalised = rule.apply(LayerNorm { gain: false, bias: false, ..self.clone() }, [x])?;
            let products = rule.mul(upstream, normalised)?;
            let sum = rule.sum_to(products, 1)?;
            rule.set(1, sum);
        }
        let bias = 1 + usize::from(self.gain);
        if self.bias && rule.needs(bias) {
            let sum = rule.sum_to(Value::Upstream, bias)?;
            rule.set(bias, sum);
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, op: LayerNorm, shape: &[usize]| {
        let width = *shape.last().unwrap_or(&1);
        let mut operands = vec![Operand::activation(shape)];
        operands.extend((0..usize::from(op.gain) + usize::from(op.bias)).map(|_| Operand::parameter([width])));
        Case::new(name, op, operands, Tolerance::Sum(width))
    };
    let plain = LayerNorm { gain: false, bias: false, ..LayerNorm::new(1e-6) };
    let gain = LayerNorm { bias: false, ..LayerNorm::new(1e-6) };
    let bias = LayerNorm { gain: false, ..LayerNorm::new(1e-5) };
    // A mean far larger than the deviation: sums of squares would lose the variance. The mean's own f32 rounding, up to
    // 100 · 2^-24, remains.
    let mut shifted = case("x=3x64;shifted", LayerNorm::new(1e-5), &[3, 64]);
    shifted.operands[0].fill = Fill::Values((0..61).map(|i| 100.0 + (i % 7) as f32 * 0.5).collect());
    shifted.tolerance = Tolerance::Sum(128 * 128);
    vec![
        case("x=1x1x4", LayerNorm::new(1e-5), &[1, 1, 4]),
        case("x=3x7", LayerNorm::new(1e-5), &[3, 7]),
        case("x=2x5x1", LayerNorm::new(1e-5), &[2, 5, 1]),
        case("x=3x63", LayerNorm::new(1e-5), &[3, 63]),
        case("x=3x65", LayerNorm::new(1e-5), &[3, 65]),
        case("x=2x77x64", LayerNorm::new(1e-5), &[2, 77, 64]),
        case("x=5x260;plain", plain, &[5, 260]),
        case("x=40x33;gain", gain, &[40, 33]),
        case("x=4x68;bias", bias, &[4, 68]),
        shifted,
        case("x=2x4096x640", LayerNorm::new(1e-5), &[2, 4096, 640]).benchmark(),
        case("x=2x1024x1280", LayerNorm::new(1e-5), &[2, 1024, 1280]).benchmark(),
    ]
}
