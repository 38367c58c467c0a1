use super::identity_projection::chunks_of;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The gradients of [`IdentityProjection`] in h and i, side by side, for [`Ortho::V1`] (a = 0) and [`Ortho::V2`].
///
/// With r = Σₜ h·i / B and B = Σₜ h·h per image and channel, e = s·(a - 1)·g and R = Σₜ e·h for the upstream g:
/// dh = g + r·e + (R / B)·(i - 2·r·h) and di = s·g + (R / B)·h, where B = 0 drops r and R / B.
///
/// Operands: g [B, T, C], then those of [`IdentityProjection`]. Result: [B, T, 2·C] of g's element type, dh before di.
#[derive(Clone, Debug)]
pub struct IdentityProjectionGradient(pub IdentityProjection);

params! {
    struct SumParams { rows: u32, width: u32, chunks: u32, chunk_rows: u32, count: u32 }
}

params! {
    struct FactorParams { channels: u32, chunks: u32, count: u32 }
}

params! {
    struct ApplyParams { count: u32, rows: u32, width: u32 }
}

impl IdentityProjectionGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "identity_projection_gradient",
        summary: "Gradients of PuLID's identity projection in text and identity attention, side by side",
        shaders: &["identity_weight", "identity_gradient_sums", "identity_gradient_factors", "identity_gradient_apply"],
        cases: || cases_of(&[Ortho::V1, Ortho::V2], |op| Box::new(IdentityProjectionGradient(op))),
    };
}

impl Operator for IdentityProjectionGradient {
    fn name(&self) -> &'static str {
        "identity_projection_gradient"
    }

    fn attributes(&self) -> String {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let fail =
            |why: &str| Error::operator(self.name(), format!("{why}: {} ({})", types(inputs), self.attributes()));
        let [g, operands @ ..] = inputs else { return Err(fail("takes an upstream")) };
        if self.0.mode == Ortho::Off {
            return Err(fail("is for modes v1 and v2"));
        }
        if self.0.infer(operands).map_err(|e| e.of_operator(self.name()))? != *g {
            return Err(fail("the upstream must be as h"));
        }
        Ok(TensorType::new(g.dtype, [g.shape[0], g.shape[1], 2 * g.shape[2]]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let g = &cx.inputs[0];
        let (batch, rows, channels) = (g.shape[0], g.shape[1], g.shape[2]);
        let by_four = channels.is_multiple_of(4);
        let width = if by_four { channels / 4 } else { channels };
        let [chunk_rows, chunks] = chunks_of(rows);
        let mut dispatches = Vec::new();
        let mut scratch = vec![batch * chunks * 3 * channels * 4, batch * 2 * channels * 4];
        let mut weight = Slot::Unused;
        let mode = self.0.mode as u32;
        if self.0.mode == Ortho::V2 {
            weight = Slot::Scratch(2);
            scratch.push(batch * rows * 4);
            dispatches.push(self.0.weight_dispatch(cx.inputs, [4, 5], weight));
        }
        let count = batch * chunks * width;
        let params = SumParams {
            rows: rows as u32,
            width: width as u32,
            chunks: chunks as u32,
            chunk_rows: chunk_rows as u32,
            count: count as u32,
        };
        dispatches.push(
            Dispatch::new("identity_gradient_sums", params)
                .storage(g.dtype)
                .feature("vec4", by_four)
                .constant("MODE", mode)
                .bind([Slot::Input(0), Slot::Input(1), Slot::Input(2), weight, Slot::Scratch(0)])
                .over(count),
        );
        let count = batch * channels;
        let params = FactorParams { channels: channels as u32, chunks: chunks as u32, count: count as u32 };
        dispatches.push(
            Dispatch::new("identity_gradient_factors", params)
                .bind([Slot::Scratch(0), Slot::Input(3), Slot::Scratch(1)])
                .over(count),
        );
        let count = batch * rows * width;
        let params = ApplyParams { count: count as u32, rows: rows as u32, width: width as u32 };
        let operands = [Slot::Input(0), Slot::Input(1), Slot::Input(2), Slot::Input(3), Slot::Scratch(1), weight];
        dispatches.push(
            Dispatch::new("identity_gradient_apply", params)
                .storage(g.dtype)
                .feature("vec4", by_four)
                .constant("MODE", mode)
                .bind(operands.into_iter().chain([Slot::Output]).collect::<Vec<_>>())
                .over(count),
        );
        Ok(vec![Variant { name: "chunks", dispatches, scratch }])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (rows, channels) = (types[0].shape[1], types[0].shape[2]);
        let (g, h, i, scale) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?, inputs[3].as_f32()?);
        let weights = match self.0.mode {
            Ortho::V2 => self.0.weights(inputs[4], inputs[5])?,
            _ => vec![0.0; types[0].shape[0] * rows],
        };
        // e of element n.
        let along =
            |n: usize| f64::from(scale[n / (rows * channels)]) * (weights[n / channels] - 1.0) * f64::from(g[n]);
        let mut factors = vec![(0f64, 0f64); types[0].shape[0] * channels];
        for (n, (ratio, share)) in factors.iter_mut().enumerate() {
            let elements = || (0..rows).map(|t| ((n / channels) * rows + t) * channels + n % channels);
            let square: f64 = elements().map(|e| f64::from(h[e]).powi(2)).sum();
            if square > 0.0 {
                *ratio = elements().map(|e| f64::from(h[e]) * f64::from(i[e])).sum::<f64>() / square;
                *share = elements().map(|e| along(e) * f64::from(h[e])).sum::<f64>() / square;
            }
        }
        Ok(HostTensor::from_fn(output.shape, |n| {
            let (position, column) = (n / (2 * channels), n % (2 * channels));
            let e = position * channels + column % channels;
            let (g, h, i) = (f64::from(g[e]), f64::from(h[e]), f64::from(i[e]));
            let (ratio, share) = factors[position / rows * channels + column % channels];
            let value = match column < channels {
                true => g + ratio * along(e) + share * (i - 2.0 * ratio * h),
                false => f64::from(scale[position / rows]) * g + share * h,
            };
            value as f32
        }))
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let forward = self.0.cost(&inputs[1..], &inputs[0]);
        Cost { flops: 2 * forward.flops, bytes: forward.bytes + output.bytes() as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

/// Cases of a gradient of the projection in these modes.
pub(super) fn cases_of(modes: &[Ortho], operator: impl Fn(IdentityProjection) -> Box<dyn Operator>) -> Vec<Case> {
    let case = |mode: Ortho, zero_keys: u32, [b, t, c]: [usize; 3], [keys, heads, d]: [usize; 3]| {
        let mut name = format!("mode={};b={b};t={t};c={c}", mode.name());
        let strengths = Operand::parameter([b]).fill(Fill::Values(vec![0.8, 0.5]));
        let mut operands = vec![Operand::activation([b, t, c]); 3];
        operands.push(strengths);
        if mode == Ortho::V2 {
            name += &format!(";keys={keys};h={heads};d={d};zero_keys={zero_keys}");
            operands.push(Operand::activation([b, t, heads * d]).fill(Fill::Normal(0.0, 0.7)));
            operands.push(Operand::activation([b, keys, heads * d]).fill(Fill::Normal(0.0, 0.7)));
        }
        let operator = operator(IdentityProjection { mode, heads, zero_keys });
        Case { name, operator, operands, tolerance: Tolerance::Transcendental, benchmark: false, large: false }
    };
    // A channel in which the text's attention is zero has no ratio.
    let mut silent = case(Ortho::V1, 0, [1, 3, 4], [1, 1, 1]);
    silent.name += ";zero_channel";
    silent.operands[1].fill = Fill::Values(vec![0.0, 1.0, -0.5, 2.0]);
    let all = vec![
        (Ortho::V1, silent),
        (Ortho::V1, case(Ortho::V1, 0, [2, 5, 7], [1, 1, 1])),
        (Ortho::V1, case(Ortho::V1, 0, [1, 37, 16], [1, 1, 1])),
        (Ortho::V1, case(Ortho::V1, 0, [2, 1, 4], [1, 1, 1])),
        (Ortho::V2, case(Ortho::V2, 20, [2, 65, 16], [32, 2, 8])),
        (Ortho::V2, case(Ortho::V2, 8, [1, 9, 15], [10, 3, 5])),
        (Ortho::V2, case(Ortho::V2, 3, [2, 6, 8], [3, 2, 4])),
        (Ortho::V2, case(Ortho::V2, 0, [1, 4, 8], [6, 2, 4])),
        (Ortho::V2, case(Ortho::V2, 1, [1, 4, 6], [2, 1, 6])),
        (Ortho::V2, case(Ortho::V2, 20, [2, 4096, 640], [32, 10, 64]).benchmark()),
        (Ortho::V2, case(Ortho::V2, 20, [2, 1024, 1280], [32, 20, 64]).benchmark()),
    ];
    all.into_iter().filter(|(mode, _)| modes.contains(mode)).map(|(_, case)| case).collect()
}
