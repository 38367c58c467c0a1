use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// Sinusoidal embedding of time steps (and of SDXL's size conditioning), as diffusers' `get_timestep_embedding`.
///
/// Operand: f32 [..]. Result: [.., dim]: sines then cosines of t·max_period^(-j / (dim/2 - shift)), or cosines first.
#[derive(Clone, Debug)]
pub struct TimeEmbedding {
    /// Length of an embedding.
    pub dim: usize,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from dim/2 in the exponent's denominator.
    pub downscale_freq_shift: f32,
    /// Longest period over 2π.
    pub max_period: f32,
    /// Element type of the result.
    pub output: DType,
}

params! {
    struct TimeParams { count: u32, dim: u32, flip: u32, log_ratio: f32 }
}

impl TimeEmbedding {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "time_embedding",
        summary: "Sines and cosines of time steps at geometrically spaced frequencies",
        shaders: &["time_embedding"],
        cases,
    };

    pub(super) fn log_ratio(&self) -> f64 {
        -f64::from(self.max_period).ln() / ((self.dim / 2) as f64 - f64::from(self.downscale_freq_shift))
    }
}

impl Operator for TimeEmbedding {
    fn name(&self) -> &'static str {
        "time_embedding"
    }

    fn attributes(&self) -> String {
        format!(
            "dim={};flip={};shift={};max_period={};output={}",
            self.dim, self.flip_sin_to_cos, self.downscale_freq_shift, self.max_period, self.output
        )
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("time_embedding", inputs, 1)?;
        let spread = (self.dim / 2) as f32 - self.downscale_freq_shift;
        if inputs[0].dtype != DType::F32 || !self.output.is_float() || self.dim < 2 || spread <= 0.0 {
            let detail = format!(
                "takes f32 steps, at least 2 dimensions and a shift below half of them, got {} ({})",
                inputs[0],
                self.attributes()
            );
            return Err(Error::operator("time_embedding", detail));
        }
        let mut shape = inputs[0].shape.to_vec();
        shape.push(self.dim);
        Ok(TensorType::new(self.output, shape))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.output.shape.count();
        let params = TimeParams {
            count: count as u32,
            dim: self.dim as u32,
            flip: self.flip_sin_to_cos as u32,
            log_ratio: self.log_ratio() as f32,
        };
        let dispatch = Dispatch::new("time_embedding", params)
            .storage(self.output)
            .bind([Slot::Input(0), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type()])?;
        let t = inputs[0].as_f32()?;
        let half = self.dim / 2;
        Ok(HostTensor::from_fn(output.shape, |i| {
            let column = i % self.dim;
            if column >= 2 * half {
                return 0.0;
            }
            let phase = f64::from(t[i / self.dim]) * (self.log_ratio() * (column % half) as f64).exp();
            if (column >= half) != self.flip_sin_to_cos { phase.cos() as f32 } else { phase.sin() as f32 }
        }))
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let operands = [Value::Operand(0), Value::Upstream];
        let dt = rule.apply(TimeEmbeddingGradient(self.clone()), operands)?;
        rule.set(0, dt);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    // A phase up to 1000 rad carries f32 rounding of up to 1000 · 2^-23 from the product and again from exp, here as in
    // PyTorch; 8 · 2^-23 · sqrt(250²) is that bound.
    let tolerance = Tolerance::Sum(250 * 250);
    let steps = |shape: &[usize]| {
        Operand::parameter(shape).fill(Fill::Values(vec![999.0, 0.0, 1.0, 786.0, 427.0, 59.0, 500.5, 128.0]))
    };
    let small = |shape: &[usize]| Operand::parameter(shape).fill(Fill::Values(vec![0.0, 1.0, 2.0, 0.5]));
    let early = Operand::parameter([2, 3]).fill(Fill::Uniform(0.25, 3.0));
    let embedding = |dim: usize, output: DType| TimeEmbedding {
        dim,
        flip_sin_to_cos: true,
        downscale_freq_shift: 0.0,
        max_period: 10_000.0,
        output,
    };
    let odd = TimeEmbedding { flip_sin_to_cos: false, downscale_freq_shift: 1.0, ..embedding(7, DType::F32) };
    vec![
        Case::new("dim=320;steps", embedding(320, DType::F32), vec![steps(&[8])], tolerance),
        Case::new("dim=256;sizes=2x6", embedding(256, DType::F32), vec![steps(&[2, 6])], tolerance),
        Case::new("dim=32;f16", embedding(32, DType::F16), vec![steps(&[3])], tolerance),
        Case::new("dim=7;shift=1;sines", odd, vec![small(&[4])], Tolerance::Transcendental),
        Case::new("dim=6;early", embedding(6, DType::F32), vec![early], Tolerance::Transcendental),
        Case::new("dim=320;small", embedding(320, DType::F32), vec![small(&[4])], Tolerance::Transcendental),
    ]
}
