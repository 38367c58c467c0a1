use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};
use std::fmt;
use std::str::FromStr;

/// How identity attention is kept from disturbing text attention: PuLID's `ortho` and `ortho_v2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ortho {
    /// Added as it is.
    Off,
    /// Without its part along the text attention.
    V1,
    /// Without that part where the first identity tokens get little attention.
    V2,
}

impl Ortho {
    /// Every kind.
    pub const ALL: [Ortho; 3] = [Ortho::Off, Ortho::V1, Ortho::V2];

    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Ortho::Off => "off",
            Ortho::V1 => "v1",
            Ortho::V2 => "v2",
        }
    }
}

impl fmt::Display for Ortho {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Ortho {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let detail = || format!("`{text}` is none of off, v1, v2");
        Ortho::ALL.into_iter().find(|o| o.name() == text).ok_or_else(|| Error::invalid("ortho", detail()))
    }
}

/// y = h + s·r, PuLID's identity cross-attention added to text cross-attention, all in f32 until stored.
///
/// With p = (Σₜ h·i / Σₜ h·h)·h per image and channel (0 where h is 0), r is i ([`Ortho::Off`]), i - p ([`Ortho::V1`])
/// or i + (a - 1)·p ([`Ortho::V2`]), where a[b, t] is the mean over heads of what softmax(q kᵀ), unscaled, gives to the
/// first five keys.
///
/// Operands: h and i [B, T, C], outputs of text and identity attention; s [B] f32, the strength of the identity in each
/// image; for V2 also q [B, T, H·D] and k [B, N, H·D]. Result: h's type, h itself where s is 0.
/// Source: PuLID's `attention_processor.py`, where the kinds are `ortho` and `ortho_v2`. It is an operator, and no graph of
/// smaller ones, since those would store h, i and p several times over.
#[derive(Clone, Debug)]
pub struct IdentityProjection {
    /// Kind of projection.
    pub mode: Ortho,
    /// H; used by V2.
    pub heads: usize,
    /// Keys of zeros that follow k; used by V2.
    pub zero_keys: u32,
}

/// Chunks of rows at most over which sums are taken: every one is added up again by each invocation that needs the sum.
const MOST_CHUNKS: usize = 128;

/// Rows of a chunk at least: fewer would cost more to combine than to sum.
const FEWEST_ROWS: usize = 16;

/// Rows of a chunk and their number.
pub(super) fn chunks_of(rows: usize) -> [usize; 2] {
    let chunk_rows = rows.div_ceil(MOST_CHUNKS).max(rows.min(FEWEST_ROWS));
    [chunk_rows, rows.div_ceil(chunk_rows)]
}

params! {
    struct SumParams { rows: u32, width: u32, chunks: u32, chunk_rows: u32, count: u32 }
}

params! {
    struct RatioParams { channels: u32, chunks: u32, count: u32 }
}

params! {
    struct WeightParams { positions: u32, keys: u32, heads: u32, width: u32, zero_keys: f32, zeros_first: f32 }
}

params! {
    struct ApplyParams { count: u32, rows: u32, width: u32 }
}

/// Identity tokens whose attention [`Ortho::V2`] sums.
pub(super) const FIRST_KEYS: usize = 5;

impl IdentityProjection {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "identity_projection",
        summary: "PuLID's identity attention added to text attention, projected off it",
        shaders: &["identity_sums", "identity_ratio", "identity_weight", "identity_apply"],
        cases,
    };

    /// Computes a of [`Ortho::V2`], [B, T] in f32, from q and k among the operands.
    pub(super) fn weight_dispatch(&self, inputs: &[TensorType], [q, k]: [usize; 2], a: Slot) -> Dispatch {
        let (batch, positions, keys) = (inputs[q].shape[0], inputs[q].shape[1], inputs[k].shape[1]);
        let elements = inputs[q].shape[2] / self.heads;
        let by_four = elements.is_multiple_of(4);
        let params = WeightParams {
            positions: positions as u32,
            keys: keys as u32,
            heads: self.heads as u32,
            width: (if by_four { elements / 4 } else { elements }) as u32,
            zero_keys: self.zero_keys as f32,
            zeros_first: FIRST_KEYS.saturating_sub(keys).min(self.zero_keys as usize) as f32,
        };
        Dispatch::new("identity_weight", params)
            .storage(inputs[q].dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(q), Slot::Input(k), a])
            .grid(positions.div_ceil(64), batch, 1)
    }

    /// a[b, t] of [`Ortho::V2`].
    pub(super) fn weights(&self, q: &HostTensor, k: &HostTensor) -> Result<Vec<f64>> {
        let (batch, positions, row) = (q.shape()[0], q.shape()[1], q.shape()[2]);
        let (keys, width) = (k.shape()[1], row / self.heads);
        let (q, k) = (q.as_f32()?, k.as_f32()?);
        let mut weights = Vec::with_capacity(batch * positions);
        // Zero keys come after the others and have score 0.
        let mut scores = vec![0f64; keys + self.zero_keys as usize];
        for b in 0..batch {
            for t in 0..positions {
                let mut mean = 0.0;
                for h in 0..self.heads {
                    let query = &q[(b * positions + t) * row + h * width..][..width];
                    for (j, score) in scores[..keys].iter_mut().enumerate() {
                        let key = &k[(b * keys + j) * row + h * width..][..width];
                        *score = query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    }
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                    mean += scores.iter().take(FIRST_KEYS).map(|s| (s - top).exp()).sum::<f64>() / sum;
                }
                weights.push(mean / self.heads as f64);
            }
        }
        Ok(weights)
    }
}

impl Operator for IdentityProjection {
    fn name(&self) -> &'static str {
        "identity_projection"
    }

    fn attributes(&self) -> String {
        format!("mode={};heads={};zero_keys={}", self.mode, self.heads, self.zero_keys)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("identity_projection", inputs, if self.mode == Ortho::V2 { 5 } else { 3 })?;
        let h = &inputs[0];
        let fail = |why: &str| {
            Error::operator("identity_projection", format!("{why}: {} ({})", types(inputs), self.attributes()))
        };
        if h.shape.rank() != 3 || h.shape.count() == 0 || !h.dtype.is_float() || inputs[1] != *h {
            return Err(fail("h and i must be [B, T, C] of one float type"));
        }
        if inputs[2] != TensorType::f32([h.shape[0]]) {
            return Err(fail("s must be f32 [B]"));
        }
        if let [_, _, _, q, k] = inputs {
            let ranks = q.shape.rank() == 3 && k.shape.rank() == 3 && q.dtype == h.dtype && k.dtype == h.dtype;
            let agree = ranks
                && q.shape[..2] == h.shape[..2]
                && k.shape[0] == h.shape[0]
                && k.shape[1] > 0
                && k.shape[2] == q.shape[2];
            if !agree || self.heads == 0 || q.shape[2] == 0 || q.shape[2] % self.heads != 0 {
                return Err(fail("q must be [B, T, H*D], k [B, N, H*D]"));
            }
        }
        Ok(h.clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (batch, rows, channels) = (cx.output.shape[0], cx.output.shape[1], cx.output.shape[2]);
        let storage = cx.output.dtype;
        let by_four = channels % 4 == 0;
        let cell = if by_four { 4 } else { 1 };
        let width = channels / cell;
        let [chunk_rows, chunks] = chunks_of(rows);
        let mut dispatches = Vec::new();
        let mut scratch = Vec::new();
        let (mut ratio, mut weight) = (Slot::Unused, Slot::Unused);
        if self.mode != Ortho::Off {
            let count = batch * chunks * width;
            let params = SumParams {
                rows: rows as u32,
                width: width as u32,
                chunks: chunks as u32,
                chunk_rows: chunk_rows as u32,
                count: count as u32,
            };
            dispatches.push(
                Dispatch::new("identity_sums", params)
                    .storage(storage)
                    .feature("vec4", by_four)
                    .bind([Slot::Input(0), Slot::Input(1), Slot::Scratch(0), Slot::Scratch(1)])
                    .over(count),
            );
            let count = batch * channels;
            let params = RatioParams { channels: channels as u32, chunks: chunks as u32, count: count as u32 };
            dispatches.push(
                Dispatch::new("identity_ratio", params)
                    .bind([Slot::Scratch(0), Slot::Scratch(1), Slot::Scratch(2)])
                    .over(count),
            );
            let partials = batch * chunks * channels * 4;
            scratch.extend([partials, partials, batch * channels * 4]);
            ratio = Slot::Scratch(2);
        }
        if self.mode == Ortho::V2 {
            dispatches.push(self.weight_dispatch(cx.inputs, [3, 4], Slot::Scratch(3)));
            scratch.push(batch * rows * 4);
            weight = Slot::Scratch(3);
        }
        let count = cx.output.shape.count() / cell;
        let params = ApplyParams { count: count as u32, rows: rows as u32, width: width as u32 };
        dispatches.push(
            Dispatch::new("identity_apply", params)
                .storage(storage)
                .feature("vec4", by_four)
                .constant("MODE", self.mode as u32)
                .bind([Slot::Input(0), Slot::Input(1), Slot::Input(2), ratio, weight, Slot::Output])
                .over(count),
        );
        Ok(vec![Variant { name: "chunks", dispatches, scratch }])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (rows, channels) = (output.shape[1], output.shape[2]);
        let (h, i, scale) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?);
        let mut ratio = vec![0f64; output.shape[0] * channels];
        for (n, ratio) in ratio.iter_mut().enumerate() {
            let elements = || (0..rows).map(|t| ((n / channels) * rows + t) * channels + n % channels);
            let product: f64 = elements().map(|e| f64::from(h[e]) * f64::from(i[e])).sum();
            let square: f64 = elements().map(|e| f64::from(h[e]).powi(2)).sum();
            *ratio = if square > 0.0 { product / square } else { 0.0 };
        }
        let weights = match self.mode {
            Ortho::V2 => self.weights(inputs[3], inputs[4])?,
            _ => Vec::new(),
        };
        Ok(HostTensor::from_fn(output.shape, |e| {
            let p = ratio[e / (rows * channels) * channels + e % channels] * f64::from(h[e]);
            let part = match self.mode {
                Ortho::Off => 0.0,
                Ortho::V1 => -p,
                Ortho::V2 => (weights[e / channels] - 1.0) * p,
            };
            let scale = f64::from(scale[e / (rows * channels)]);
            (f64::from(h[e]) + scale * (f64::from(i[e]) + part)) as f32
        }))
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        let scores = inputs.get(4).map_or(0, |k| 2 * inputs[3].shape.count() * k.shape[1]);
        Cost { flops: (8 * output.shape.count() + scores) as u64, bytes: bytes as u64 }
    }

    fn passes_when_zero(&self) -> Option<Passes> {
        Some(Passes { zero: 2, result: 0 })
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        use Value::{Operand, Upstream};
        let shape = rule.shape(Upstream);
        if rule.needs(2) {
            // What the identity adds at strength 1.
            let ones = rule.apply(Unary(Activation::Affine(0.0, 1.0)), [Operand(2)])?;
            let mut operands: Vec<_> = (0..rule.operands()).map(Operand).collect();
            operands[2] = ones;
            let whole = rule.apply(self.clone(), operands)?;
            let added = rule.apply(Binary::sub(), [whole, Operand(0)])?;
            let product = rule.mul(Upstream, added)?;
            let product = rule.reshape(product, [shape[0], shape[1] * shape[2]])?;
            let product = rule.cast(product, DType::F32)?;
            let axes = vec![1];
            let ds = rule.apply(Reduce { reduction: Reduction::Sum, axes, keep_dims: false }, [product])?;
            rule.set(2, ds);
        }
        if self.mode == Ortho::Off {
            rule.set(0, Upstream);
            if rule.needs(1) {
                let strength = rule.reshape(Operand(2), [shape[0], 1, 1])?;
                let di = rule.mul(Upstream, strength)?;
                rule.set(1, di);
            }
            return Ok(());
        }
        let operands: Vec<_> = [Upstream].into_iter().chain((0..rule.operands()).map(Operand)).collect();
        if rule.needs(0) || rule.needs(1) {
            let both = rule.apply(IdentityProjectionGradient(self.clone()), operands.clone())?;
            let (packed, row) = (rule.shape(both), shape[2]);
            for operand in [0, 1] {
                if rule.needs(operand) {
                    let part = rule.apply(Slice::along(&packed, 2, operand * row, row), [both])?;
                    rule.set(operand, part);
                }
            }
        }
        if rule.needs(3) || rule.needs(4) {
            let slopes = rule.apply(IdentityScoreGradient(self.clone()), operands)?;
            for (operand, other) in [(3, 4), (4, 3)] {
                if !rule.needs(operand) {
                    continue;
                }
                let (own, far) = (rule.ty(Operand(operand)), rule.shape(Operand(other)));
                let heads = rule.reshape(Operand(other), [far[0], far[1], self.heads, far[2] / self.heads])?;
                let heads = rule.apply(Permute::new([0, 2, 1, 3]), [heads])?;
                let product = MatMul { transpose_a: operand == 4, ..MatMul::default() };
                let gradient = rule.apply(product, [slopes, heads])?;
                let gradient = rule.apply(Permute::new([0, 2, 1, 3]), [gradient])?;
                let gradient = rule.reshape(gradient, own.shape)?;
                let gradient = rule.cast(gradient, own.dtype)?;
                rule.set(operand, gradient);
            }
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |mode: Ortho, zero_keys: u32, [b, t, c]: [usize; 3], [keys, heads, d]: [usize; 3]| {
        let mut name = format!("mode={};b={b};t={t};c={c}", mode.name());
        // Identity attention resembles text attention only in part.
        let strengths = Operand::parameter([b]).fill(Fill::Values(vec![0.8, 0.5]));
        let mut operands = vec![Operand::activation([b, t, c]), Operand::activation([b, t, c]), strengths];
        if mode == Ortho::V2 {
            name += &format!(";keys={keys};h={heads};d={d};zero_keys={zero_keys}");
            operands.push(Operand::activation([b, t, heads * d]).fill(Fill::Normal(0.0, 0.7)));
            operands.push(Operand::activation([b, keys, heads * d]).fill(Fill::Normal(0.0, 0.7)));
        }
        let op = IdentityProjection { mode, heads, zero_keys };
        Case::new(name, op, operands, Tolerance::Transcendental)
    };
    // A channel in which the text's attention is zero has no ratio.
    let mut silent = case(Ortho::V1, 0, [1, 3, 4], [1, 1, 1]);
    silent.name += ";zero_channel";
    silent.operands[0].fill = Fill::Values(vec![0.0, 1.0, -0.5, 2.0]);
    vec![
        silent,
        case(Ortho::Off, 0, [2, 5, 7], [1, 1, 1]),
        case(Ortho::Off, 0, [2, 5, 8], [1, 1, 1]),
        case(Ortho::V1, 0, [2, 5, 7], [1, 1, 1]),
        case(Ortho::V1, 0, [1, 37, 16], [1, 1, 1]),
        case(Ortho::V1, 0, [2, 1, 4], [1, 1, 1]),
        case(Ortho::V2, 20, [2, 65, 16], [32, 2, 8]),
        case(Ortho::V2, 8, [1, 9, 15], [10, 3, 5]),
        case(Ortho::V2, 3, [2, 6, 8], [3, 2, 4]),
        case(Ortho::V2, 0, [1, 4, 8], [6, 2, 4]),
        case(Ortho::V2, 1, [1, 4, 6], [2, 1, 6]),
        case(Ortho::V2, 20, [2, 4096, 640], [32, 10, 64]).benchmark(),
        case(Ortho::V2, 20, [2, 1024, 1280], [32, 20, 64]).benchmark(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_leaves_nothing_along_the_text_attention() {
        let h = HostTensor::from_fn([2, 5, 3], |i| ((i * 7) % 11) as f32 - 4.5);
        let i = HostTensor::from_fn([2, 5, 3], |i| ((i * 5) % 13) as f32 - 6.0);
        let op = IdentityProjection { mode: Ortho::V1, heads: 1, zero_keys: 0 };
        let y = op.reference(&[&h, &i, &HostTensor::from_fn([2], |_| 1.0)]).unwrap();
        let (y, h) = (y.as_f32().unwrap(), h.as_f32().unwrap());
        for (b, c) in [(0, 0), (0, 2), (1, 1)] {
            let along: f32 = (0..5).map(|t| (b * 5 + t) * 3 + c).map(|e| (y[e] - h[e]) * h[e]).sum();
            assert!(along.abs() < 1e-3, "{along}");
        }
    }

    #[test]
    fn scale_zero_is_text_attention_alone() {
        let h = HostTensor::from_fn([1, 4, 4], |i| i as f32 * 0.3 - 2.0);
        let i = HostTensor::from_fn([1, 4, 4], |i| 1.0 - i as f32);
        let op = IdentityProjection { mode: Ortho::V1, heads: 1, zero_keys: 0 };
        assert_eq!(op.reference(&[&h, &i, &HostTensor::from_fn([1], |_| 0.0)]).unwrap(), h);
    }
}
