use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// The gradient of [`TimeEmbedding`] in its time steps: the sum of the upstream times each column's derivative, f·cos(t·f) of a
/// sine and -f·sin(t·f) of a cosine.
///
/// Operands: time steps f32 [..]; upstream [.., dim] of any float type. Result: f32 [..].
#[derive(Clone, Debug)]
pub struct TimeEmbeddingGradient(pub TimeEmbedding);

params! {
    struct TimeGradientParams { count: u32, dim: u32, flip: u32, log_ratio: f32 }
}

impl TimeEmbeddingGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "time_embedding_gradient",
        summary: "Gradient of the time embedding in its time steps",
        shaders: &["time_embedding_gradient"],
        cases,
    };
}

impl Operator for TimeEmbeddingGradient {
    fn name(&self) -> &'static str {
        "time_embedding_gradient"
    }

    fn attributes(&self) -> String {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands(self.name(), inputs, 2)?;
        if self.0.infer(&inputs[..1]).map_err(|e| e.of_operator(self.name()))?.shape != inputs[1].shape
            || !inputs[1].dtype.is_float()
        {
            let detail =
                format!("takes steps [..] and upstream [.., dim], got {} ({})", types(inputs), self.attributes());
            return Err(Error::operator(self.name(), detail));
        }
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.output.shape.count();
        let params = TimeGradientParams {
            count: count as u32,
            dim: self.0.dim as u32,
            flip: self.0.flip_sin_to_cos as u32,
            log_ratio: self.0.log_ratio() as f32,
        };
        let dispatch = Dispatch::new("time_embedding_gradient", params)
            .storage(cx.inputs[1].dtype)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let (t, upstream, half) = (inputs[0].as_f32()?, inputs[1].as_f32()?, self.0.dim / 2);
        Ok(HostTensor::from_fn(inputs[0].shape().clone(), |row| {
            let column = |j: usize| {
                let frequency = (self.0.log_ratio() * (j % half) as f64).exp();
                let phase = f64::from(t[row]) * frequency;
                let slope = if (j >= half) != self.0.flip_sin_to_cos { -phase.sin() } else { phase.cos() };
                f64::from(upstream[row * self.0.dim + j]) * frequency * slope
            };
            (0..2 * half).map(column).sum::<f64>() as f32
        }))
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: 4 * inputs[1].shape.count() as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    // Phases carry the rounding that the embedding's cases allow for.
    let tolerance = Tolerance::Sum(250 * 250);
    let small = Fill::Values(vec![0.25, 1.0, 2.0, 0.5]);
    let large = Fill::Values(vec![999.0, 0.0, 1.0, 786.0, 427.0, 59.0, 500.5, 128.0]);
    let case = |name: &str, dim: usize, t: &[usize], fill: &Fill, flip_sin_to_cos: bool| {
        let shift = if flip_sin_to_cos { 0.0 } else { 1.0 };
        let embedding = TimeEmbedding {
            dim,
            flip_sin_to_cos,
            downscale_freq_shift: shift,
            max_period: 10_000.0,
            output: DType::F32,
        };
        let upstream = [t, &[dim]].concat();
        let operands = vec![Operand::parameter(t).fill(fill.clone()), Operand::activation(upstream)];
        Case::new(name, TimeEmbeddingGradient(embedding), operands, tolerance)
    };
    vec![
        case("dim=320;steps", 320, &[8], &large, true),
        case("dim=256;sizes=2x6", 256, &[2, 6], &large, true),
        case("dim=7;shift=1;sines", 7, &[4], &small, false),
        case("dim=320;small", 320, &[70], &small, true),
    ]
}
