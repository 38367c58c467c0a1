use super::group_apply::Chunks;
use super::group_statistics::Bands;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The gradient of [`GroupNorm`] in x: for the normalised x̂, w = gain·upstream·f'(x̂·gain + bias) and
/// dx = (w - mean(w) - x̂·mean(w·x̂)) / sqrt(variance + eps), means over a group of channels of an image.
///
/// Operands: x [N, .., C]; gain and bias f32 [C] where the norm has them; upstream of x's type, which is the result's too.
#[derive(Clone, Debug)]
pub struct GroupNormGradient(pub GroupNorm);

params! {
    struct PassParams { rows: u32, width: u32, chunks: u32, chunk_rows: u32, count: u32 }
}

params! {
    struct CombineParams { rows: u32, channels: u32, chunks: u32, width: u32, batch: u32 }
}

impl GroupNormGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "group_norm_gradient",
        summary: "Gradient of a group norm and its activation in x",
        shaders: &[
            "group_norm_partial",
            "group_norm_combine",
            "group_norm_combine_serial",
            "group_norm_gradient_partial",
            "group_norm_gradient_combine",
            "group_norm_gradient_apply",
        ],
        cases,
    };
}

impl Operator for GroupNormGradient {
    fn name(&self) -> &'static str {
        "group_norm_gradient"
    }

    fn attributes(&self) -> String {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let Some((upstream, operands)) = inputs.split_last() else {
            return Err(Error::operator("group_norm_gradient", "takes a group norm's operands and upstream"));
        };
        let output = self.0.infer(operands).map_err(|e| e.of_operator(self.name()))?;
        if *upstream != output {
            let detail = format!("upstream must be {output}, got {upstream} ({})", self.attributes());
            return Err(Error::operator("group_norm_gradient", detail));
        }
        Ok(output)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (x, c) = (cx.output, Chunks::of(cx.output));
        let (batch, channels, groups) = (x.shape[0], x.shape.last(), self.0.groups);
        let bands = Bands::of(std::slice::from_ref(x), groups, self.0.eps);
        let upstream = Slot::Input(cx.inputs.len() - 1);
        let [gain, bias] = if self.0.affine { [Slot::Input(1), Slot::Input(2)] } else { [Slot::Unused; 2] };
        let (affine, sums, means) = (Slot::Scratch(2), Slot::Scratch(3), Slot::Scratch(4));
        let params = PassParams {
            rows: c.rows as u32,
            width: c.width as u32,
            chunks: c.chunks as u32,
            chunk_rows: c.chunk_rows as u32,
            count: c.count as u32,
        };
        let pass = |shader, last: &[Slot]| {
            Dispatch::new(shader, params)
                .storage(x.dtype)
                .feature("vec4", c.by_four)
                .activation(self.0.activation)
                .constant("GAIN", self.0.affine as u32)
                .constant("BIAS", self.0.affine as u32)
                .bind([&[Slot::Input(0), upstream, affine, gain, bias], last].concat())
                .over(c.count)
        };
        let combine = CombineParams {
            rows: c.rows as u32,
            channels: channels as u32,
            chunks: c.chunks as u32,
            width: (channels / groups) as u32,
            batch: batch as u32,
        };
        let combine = Dispatch::new("group_norm_gradient_combine", combine).bind([sums, means]).grid(groups, batch, 1);
        let per_channel = batch * channels * 4;
        let variant = |(name, statistics): (&'static str, Dispatch)| Variant {
            name,
            dispatches: vec![
                bands.partial(x, 0, Slot::Input(0)),
                // Without gain and bias: rate and shift of the normalised x.
                bands.bind(statistics, None, affine),
                pass("group_norm_gradient_partial", &[sums]),
                combine.clone(),
                pass("group_norm_gradient_apply", &[means, Slot::Output]),
            ],
            scratch: vec![
                bands.partial_bytes(),
                bands.partial_bytes(),
                2 * per_channel,
                2 * per_channel * c.chunks,
                2 * per_channel,
            ],
        };
        Ok(bands.combines(cx.capabilities.kind).into_iter().map(variant).collect())
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (batch, channels) = (output.shape[0], output.shape.last());
        let width = channels / self.0.groups;
        let (x, upstream) = (inputs[0].as_f32()?, inputs[inputs.len() - 1].as_f32()?);
        let affine = if self.0.affine { Some((inputs[1].as_f32()?, inputs[2].as_f32()?)) } else { None };
        let mut dx = vec![0f32; x.len()];
        let image = x.len() / batch;
        for (n, g) in (0..batch).flat_map(|n| (0..self.0.groups).map(move |g| (n, g))) {
            let rows = image / channels;
            let places: Vec<_> =
                (0..rows).flat_map(|row| (0..width).map(move |c| n * image + row * channels + g * width + c)).collect();
            let mean_of =
                |value: &dyn Fn(usize) -> f64| places.iter().map(|&i| value(i)).sum::<f64>() / places.len() as f64;
            let mean = mean_of(&|i| f64::from(x[i]));
            let rate = 1.0 / (mean_of(&|i| (f64::from(x[i]) - mean).powi(2)) + f64::from(self.0.eps)).sqrt();
            let normalised = |i: usize| (f64::from(x[i]) - mean) * rate;
            let weighted = |i: usize| {
                let (gain, bias) = affine
                    .map_or((1.0, 0.0), |(gain, bias)| (f64::from(gain[i % channels]), f64::from(bias[i % channels])));
                gain * f64::from(upstream[i]) * self.0.activation.slope(normalised(i) * gain + bias)
            };
            let (sum, product) = (mean_of(&weighted), mean_of(&|i| weighted(i) * normalised(i)));
            for &i in &places {
                dx[i] = (rate * (weighted(i) - sum - normalised(i) * product)) as f32;
            }
        }
        HostTensor::from_f32(output.shape, dx)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        // Statistics read x, sums and result read x and upstream.
        let bytes = 5 * inputs[0].bytes() + output.bytes();
        Cost { flops: 20 * output.shape.count() as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, op: GroupNorm, shape: &[usize]| {
        let channels = *shape.last().unwrap_or(&1);
        let mut operands = vec![Operand::activation(shape)];
        if op.affine {
            operands.extend([Operand::parameter([channels]), Operand::parameter([channels])]);
        }
        operands.push(Operand::activation(shape));
        let length = shape[1..].iter().product::<usize>() / op.groups;
        // Exponentials of the activation beside the sums.
        let tolerance = match op.activation {
            Activation::None => Tolerance::Sum(length.max(64)),
            _ => Tolerance::Transcendental,
        };
        Case::new(name, GroupNormGradient(op), operands, tolerance)
    };
    let plain = GroupNorm { affine: false, ..GroupNorm::new(3, 1e-5) };
    let f = |groups, activation| GroupNorm { activation, ..GroupNorm::new(groups, 1e-5) };
    let silu = |groups| f(groups, Activation::Silu);
    // A mean far larger than the deviation: the normalised x rounds at the size of mean / deviation, here about 100.
    let mut shifted = case("x=1x9x5x16;shifted", GroupNorm::new(4, 1e-5), &[1, 9, 5, 16]);
    shifted.operands[0].fill = Fill::Values((0..61).map(|i| 100.0 + (i % 7) as f32 * 0.5).collect());
    shifted.tolerance = Tolerance::Sum(128 * 128);
    vec![
        // Groups of five elements: those of one or two have gradients near zero, as differences of large numbers.
        case("x=1x1x5x2", GroupNorm::new(2, 1e-5), &[1, 1, 5, 2]),
        case("x=2x7x5x6;plain", plain, &[2, 7, 5, 6]),
        case("x=2x8x8x40;groups=4", GroupNorm::new(4, 1e-6), &[2, 8, 8, 40]),
        case("x=2x33x64;silu", silu(32), &[2, 33, 64]),
        case("x=1x65x66x8;silu", silu(2), &[1, 65, 66, 8]),
        case("x=1x300x30x1;silu", silu(1), &[1, 300, 30, 1]),
        case("x=3x6x5x12;gelu", f(2, Activation::Gelu), &[3, 6, 5, 12]),
        shifted,
        case("x=2x64x64x320;silu", silu(32), &[2, 64, 64, 320]).benchmark(),
        case("x=2x32x32x1280;silu", silu(32), &[2, 32, 32, 1280]).benchmark(),
        case("x=1x512x512x128;silu", silu(32), &[1, 512, 512, 128]).benchmark(),
    ]
}
