use super::identity_projection::{FIRST_KEYS, chunks_of};
use super::identity_projection_gradient::cases_of;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The gradient of [`IdentityProjection`] with [`Ortho::V2`] in its scores q kᵀ: with P the softmax over the keys and those of zeros,
/// F its share of the first five and r the projection's ratio, dS = alpha·P·([j is of the first five] - F), where
/// alpha[b, t] = (s / H)·Σ_c g·r·h for the upstream g. Then dq = dS k and dk = dSᵀ q, head by head.
///
/// Operands: g [B, T, C], then those of [`IdentityProjection`]. Result: f32 [B, H, T, N].
#[derive(Clone, Debug)]
pub struct IdentityScoreGradient(pub IdentityProjection);

params! {
    struct SumParams { rows: u32, width: u32, chunks: u32, chunk_rows: u32, count: u32 }
}

params! {
    struct RatioParams { channels: u32, chunks: u32, count: u32 }
}

params! {
    struct AlphaParams { rows: u32, width: u32, count: u32, heads: f32 }
}

params! {
    struct ScoreParams { positions: u32, keys: u32, heads: u32, width: u32, zero_keys: f32, zeros_first: f32 }
}

impl IdentityScoreGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "identity_score_gradient",
        summary: "Gradient of PuLID's identity projection in the scores of identity attention",
        shaders: &["identity_sums", "identity_ratio", "identity_alpha", "identity_score_gradient"],
        cases: || cases_of(&[Ortho::V2], |op| Box::new(IdentityScoreGradient(op))),
    };
}

impl Operator for IdentityScoreGradient {
    fn name(&self) -> &'static str {
        "identity_score_gradient"
    }

    fn attributes(&self) -> String {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let fail =
            |why: &str| Error::operator(self.name(), format!("{why}: {} ({})", types(inputs), self.attributes()));
        let [g, operands @ ..] = inputs else { return Err(fail("takes an upstream")) };
        if self.0.mode != Ortho::V2 {
            return Err(fail("is for mode v2"));
        }
        if self.0.infer(operands).map_err(|e| e.of_operator(self.name()))? != *g {
            return Err(fail("the upstream must be as h"));
        }
        Ok(TensorType::f32([g.shape[0], self.0.heads, g.shape[1], operands[4].shape[1]]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let g = &cx.inputs[0];
        let (batch, rows, channels) = (g.shape[0], g.shape[1], g.shape[2]);
        let by_four = channels.is_multiple_of(4);
        let width = if by_four { channels / 4 } else { channels };
        let [chunk_rows, chunks] = chunks_of(rows);
        let count = batch * chunks * width;
        let params = SumParams {
            rows: rows as u32,
            width: width as u32,
            chunks: chunks as u32,
            chunk_rows: chunk_rows as u32,
            count: count as u32,
        };
        let sums = Dispatch::new("identity_sums", params)
            .storage(g.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(1), Slot::Input(2), Slot::Scratch(0), Slot::Scratch(1)])
            .over(count);
        let count = batch * channels;
        let params = RatioParams { channels: channels as u32, chunks: chunks as u32, count: count as u32 };
        let ratio = Dispatch::new("identity_ratio", params)
            .bind([Slot::Scratch(0), Slot::Scratch(1), Slot::Scratch(2)])
            .over(count);
        let count = batch * rows;
        let heads = self.0.heads as f32;
        let params = AlphaParams { rows: rows as u32, width: width as u32, count: count as u32, heads };
        let alpha = Dispatch::new("identity_alpha", params)
            .storage(g.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Input(3), Slot::Scratch(2), Slot::Scratch(3)])
            .groups(count);
        let (keys, elements) = (cx.inputs[5].shape[1], cx.inputs[4].shape[2] / self.0.heads);
        let by_four = elements.is_multiple_of(4);
        let params = ScoreParams {
            positions: rows as u32,
            keys: keys as u32,
            heads: self.0.heads as u32,
            width: (if by_four { elements / 4 } else { elements }) as u32,
            zero_keys: self.0.zero_keys as f32,
            zeros_first: FIRST_KEYS.saturating_sub(keys).min(self.0.zero_keys as usize) as f32,
        };
        let scores = Dispatch::new("identity_score_gradient", params)
            .storage(g.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(4), Slot::Input(5), Slot::Scratch(3), Slot::Output])
            .grid(rows.div_ceil(64), self.0.heads, batch);
        let partials = batch * chunks * channels * 4;
        let scratch = vec![partials, partials, batch * channels * 4, batch * rows * 4];
        Ok(vec![Variant { name: "chunks", dispatches: vec![sums, ratio, alpha, scores], scratch }])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (rows, channels) = (types[0].shape[1], types[0].shape[2]);
        let (g, h, i, scale) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?, inputs[3].as_f32()?);
        let (q, k) = (inputs[4].as_f32()?, inputs[5].as_f32()?);
        let (keys, row) = (types[5].shape[1], types[5].shape[2]);
        let width = row / self.0.heads;
        let mut y = vec![0f32; output.shape.count()];
        for b in 0..types[0].shape[0] {
            let ratios: Vec<f64> = (0..channels)
                .map(|c| {
                    let elements = || (0..rows).map(|t| (b * rows + t) * channels + c);
                    let square: f64 = elements().map(|e| f64::from(h[e]).powi(2)).sum();
                    let product: f64 = elements().map(|e| f64::from(h[e]) * f64::from(i[e])).sum();
                    if square > 0.0 { product / square } else { 0.0 }
                })
                .collect();
            for t in 0..rows {
                let from = (b * rows + t) * channels;
                let sum: f64 = (0..channels).map(|c| f64::from(g[from + c]) * ratios[c] * f64::from(h[from + c])).sum();
                let alpha = f64::from(scale[b]) * sum / self.0.heads as f64;
                for head in 0..self.0.heads {
                    let query = &q[(b * rows + t) * row + head * width..][..width];
                    let mut weights = vec![0f64; keys + self.0.zero_keys as usize];
                    for (j, weight) in weights[..keys].iter_mut().enumerate() {
                        let key = &k[(b * keys + j) * row + head * width..];
                        *weight = query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    }
                    let top = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    weights.iter_mut().for_each(|w| *w = (*w - top).exp());
                    let sum: f64 = weights.iter().sum();
                    let first: f64 = weights.iter().take(FIRST_KEYS).sum::<f64>() / sum;
                    let at = ((b * self.0.heads + head) * rows + t) * keys;
                    for (j, y) in y[at..][..keys].iter_mut().enumerate() {
                        let own = if j < FIRST_KEYS { 1.0 } else { 0.0 };
                        *y = (alpha * weights[j] / sum * (own - first)) as f32;
                    }
                }
            }
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let forward = self.0.cost(&inputs[1..], &inputs[0]);
        Cost { flops: forward.flops, bytes: forward.bytes + output.bytes() as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}
