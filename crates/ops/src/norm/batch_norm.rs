use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = f((x - mean) / sqrt(variance + eps)·gain + bias) with stored statistics per channel: batch normalisation at
/// inference.
///
/// Operands: x [.., C]; gain, bias, mean, variance, each f32 [C]. Result: x's type. Where a convolution comes before,
/// fold it in with [`BatchNorm::fold`] instead.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
    /// f.
    pub activation: Activation,
}

params! {
    struct BatchNormParams { count: u32, width: u32, eps: f32 }
}

impl BatchNorm {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "batch_norm",
        summary: "Normalisation per channel with stored statistics",
        shaders: &["batch_norm"],
        cases,
    };

    /// Without activation.
    pub fn new(eps: f32) -> Self {
        BatchNorm { eps, activation: Activation::None }
    }

    /// Scale and shift per channel with y = x·scale + shift, to fold into the weights and bias of the layer before.
    ///
    /// # Errors
    /// When the vectors differ in length.
    pub fn fold(&self, gain: &[f32], bias: &[f32], mean: &[f32], variance: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let lengths = [gain.len(), bias.len(), mean.len(), variance.len()];
        if lengths.iter().any(|&n| n != gain.len()) {
            let detail = format!("gain, bias, mean and variance have {lengths:?} elements, not one length");
            return Err(Error::operator("batch_norm", detail));
        }
        Ok((0..gain.len())
            .map(|c| {
                let scale = f64::from(gain[c]) / (f64::from(variance[c]) + f64::from(self.eps)).sqrt();
                (scale as f32, (f64::from(bias[c]) - f64::from(mean[c]) * scale) as f32)
            })
            .unzip())
    }
}

impl Operator for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn attributes(&self) -> String {
        format!("eps={:e};f={}", self.eps, self.activation.label())
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("batch_norm", inputs, 5)?;
        let vector = TensorType::f32([inputs[0].shape.last()]);
        if inputs[0].shape.rank() == 0 || !inputs[0].dtype.is_float() || inputs[1..].iter().any(|t| *t != vector) {
            let detail = format!("gain, bias, mean and variance must be {vector}, got {}", types(inputs));
            return Err(Error::operator("batch_norm", detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let channels = cx.output.shape.last();
        let by_four = channels % 4 == 0;
        let cell = if by_four { 4 } else { 1 };
        let count = cx.output.shape.count() / cell;
        let params = BatchNormParams { count: count as u32, width: (channels / cell) as u32, eps: self.eps };
        let mut slots: Vec<_> = (0..5).map(Slot::Input).collect();
        slots.push(Slot::Output);
        let dispatch = Dispatch::new("batch_norm", params)
            .storage(cx.output.dtype)
            .feature("vec4", by_four)
            .activation(self.activation)
            .bind(slots)
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let channels = output.shape.last();
        let x = inputs[0].as_f32()?;
        let (gain, bias) = (inputs[1].as_f32()?, inputs[2].as_f32()?);
        let (mean, variance) = (inputs[3].as_f32()?, inputs[4].as_f32()?);
        Ok(HostTensor::from_fn(output.shape, |i| {
            let c = i % channels;
            let scale = f64::from(gain[c]) / (f64::from(variance[c]) + f64::from(self.eps)).sqrt();
            self.activation.apply((f64::from(x[i]) - f64::from(mean[c])) * scale + f64::from(bias[c])) as f32
        }))
    }

    fn with_epilogue(&self, epilogue: Epilogue) -> Option<Box<dyn Operator>> {
        match epilogue {
            Epilogue::Activation(f) if self.activation == Activation::None => {
                Some(Box::new(BatchNorm { activation: f, ..self.clone() }))
            }
            _ => None,
        }
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if (1..5).any(|i| rule.needs(i)) {
            return Err(rule.fail("has no gradient rule for gain, bias and statistics"));
        }
        let mut upstream = Value::Upstream;
        if self.activation != Activation::None {
            let before = rule.apply(BatchNorm::new(self.eps), (0..5).map(Value::Operand).collect::<Vec<_>>())?;
            upstream = rule.apply(ActivationGradient(self.activation), [before, upstream])?;
        }
        let variance = rule.apply(Unary(Activation::Affine(1.0, self.eps)), [Value::Operand(4)])?;
        let rate = rule.apply(Unary(Activation::Rsqrt), [variance])?;
        let scale = rule.mul(Value::Operand(1), rate)?;
        let dx = rule.mul(upstream, scale)?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, op: BatchNorm, shape: &[usize]| {
        let c = *shape.last().unwrap_or(&1);
        let mut operands = vec![Operand::activation(shape)];
        operands.extend((0..3).map(|_| Operand::parameter([c])));
        operands.push(Operand::parameter([c]).fill(Fill::Uniform(0.1, 3.0)));
        Case::new(name, op, operands, Tolerance::Pointwise)
    };
    let f = |activation| BatchNorm { activation, ..BatchNorm::new(1e-5) };
    vec![
        case("x=1x1", BatchNorm::new(1e-5), &[1, 1]),
        case("x=2x3x5x7", BatchNorm::new(2e-5), &[2, 3, 5, 7]),
        case("x=2x3x3x12;relu", f(Activation::Relu), &[2, 3, 3, 12]),
        case("x=2x3x3x8;tanh", f(Activation::Tanh), &[2, 3, 3, 8]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_gives_the_operator() {
        let op = BatchNorm::new(1e-5);
        let [gain, bias, mean, variance] = [[2.0, -1.0], [0.5, 0.0], [1.0, 3.0], [4.0, 0.25]];
        let (scale, shift) = op.fold(&gain, &bias, &mean, &variance).unwrap();
        let vector = |v: [f32; 2]| HostTensor::from_f32([2], v.to_vec()).unwrap();
        let x = HostTensor::from_f32([1, 2], vec![3.0, -2.0]).unwrap();
        let y = op.reference(&[&x, &vector(gain), &vector(bias), &vector(mean), &vector(variance)]).unwrap();
        for (c, (&y, &x)) in y.as_f32().unwrap().iter().zip(x.as_f32().unwrap()).enumerate() {
            assert!((y - (x * scale[c] + shift[c])).abs() < 1e-5);
        }
        assert!(op.fold(&gain, &bias[..1], &mean, &variance).is_err());
    }
}
