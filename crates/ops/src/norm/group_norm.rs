use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = f((x - mean) / sqrt(variance + eps)·gain + bias), statistics per picture and group of consecutive channels.
///
/// Operands: x [N, .., C], channels last; then gain f32 [C] and bias f32 [C] where `affine` is set. Result: x's type.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// Number of groups; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether gain and bias follow.
    pub affine: bool,
    /// f.
    pub activation: Activation,
}

params! {
    struct ChunkParams { rows: u32, width: u32, chunks: u32, chunk_rows: u32, count: u32 }
}

params! {
    struct CombineParams {
        rows: u32, channels: u32, chunks: u32, chunk_rows: u32, groups: u32, eps: f32, count: u32,
    }
}

impl GroupNorm {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "group_norm",
        summary: "Normalisation per group of channels, with gain, bias and activation",
        shaders: &["group_norm_partial", "group_norm_combine", "group_norm_combine_serial", "group_norm_apply"],
        cases,
    };

    /// With gain and bias.
    pub fn new(groups: usize, eps: f32) -> Self {
        GroupNorm { groups, eps, affine: true, activation: Activation::None }
    }
}

/// Rows of a chunk: enough chunks to occupy a device, few enough that combining them stays cheap.
fn chunk_rows(rows: usize) -> usize {
    (rows.div_ceil(256)).max(rows.min(32))
}

impl Operator for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn attributes(&self) -> String {
        format!("groups={};eps={:e};affine={};f={}", self.groups, self.eps, self.affine, self.activation.label())
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("group_norm", inputs, if self.affine { 3 } else { 1 })?;
        let x = &inputs[0];
        let channels = x.shape.last();
        let fail =
            |why: String| Error::operator("group_norm", format!("{why}: {} ({})", types(inputs), self.attributes()));
        if x.shape.rank() < 2 || !x.dtype.is_float() || x.shape.count() == 0 {
            return Err(fail("needs float elements with a batch and a channel axis".into()));
        }
        if self.groups == 0 || channels % self.groups != 0 {
            return Err(fail(format!("{} groups do not divide {channels} channels", self.groups)));
        }
        if inputs[1..].iter().any(|t| *t != TensorType::f32([channels])) {
            return Err(fail(format!("gain and bias must be f32[{channels}]")));
        }
        Ok(x.clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let x = cx.output;
        let (batch, channels) = (x.shape[0], x.shape.last());
        let rows = x.shape.count() / (batch * channels);
        let chunk_rows = chunk_rows(rows);
        let chunks = rows.div_ceil(chunk_rows);
        let by_four = channels % 4 == 0;
        let width = if by_four { channels / 4 } else { channels };
        let count = batch * chunks * width;
        let by_chunk = ChunkParams {
            rows: rows as u32,
            width: width as u32,
            chunks: chunks as u32,
            chunk_rows: chunk_rows as u32,
            count: count as u32,
        };
        let combine = CombineParams {
            rows: rows as u32,
            channels: channels as u32,
            chunks: chunks as u32,
            chunk_rows: chunk_rows as u32,
            groups: self.groups as u32,
            eps: self.eps,
            count: (self.groups * batch) as u32,
        };
        let vector = |i| if self.affine { Slot::Input(i) } else { Slot::Unused };
        let statistics = |combine: Dispatch| {
            combine.constant("GAIN", self.affine as u32).constant("BIAS", self.affine as u32).bind([
                Slot::Scratch(0),
                Slot::Scratch(1),
                vector(1),
                vector(2),
                Slot::Scratch(2),
                Slot::Scratch(3),
            ])
        };
        let first = Dispatch::new("group_norm_partial", by_chunk)
            .storage(x.dtype)
            .feature("vec4", by_four)
            .bind([Slot::Input(0), Slot::Scratch(0), Slot::Scratch(1)])
            .over(count);
        let last = Dispatch::new("group_norm_apply", by_chunk)
            .storage(x.dtype)
            .feature("vec4", by_four)
            .activation(self.activation)
            .bind([Slot::Input(0), Slot::Scratch(2), Slot::Scratch(3), Slot::Output])
            .over(count);
        let partials = batch * chunks * channels * 4;
        let vectors = batch * channels * 4;
        let variant = |name, combine: Dispatch| Variant {
            name,
            dispatches: vec![first.clone(), statistics(combine), last.clone()],
            scratch: vec![partials, partials, vectors, vectors],
        };
        let chunks = Dispatch::new("group_norm_combine", combine).grid(self.groups, batch, 1);
        let mut variants = vec![variant("chunks", chunks)];
        if cx.capabilities.kind == DeviceKind::Cpu {
            let serial = Dispatch::new("group_norm_combine_serial", combine).over(self.groups * batch);
            variants.insert(0, variant("serial_chunks", serial));
        }
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (batch, channels) = (output.shape[0], output.shape.last());
        let width = channels / self.groups;
        let x = inputs[0].as_f32()?;
        let affine = if self.affine { Some((inputs[1].as_f32()?, inputs[2].as_f32()?)) } else { None };
        let mut y = vec![0f32; x.len()];
        let picture = x.len() / batch;
        for n in 0..batch {
            let (x, y) = (&x[n * picture..][..picture], &mut y[n * picture..][..picture]);
            for g in 0..self.groups {
                let elements = || x.chunks_exact(channels).flat_map(|row| &row[g * width..][..width]);
                let count = (picture / self.groups) as f64;
                let mean = elements().map(|&v| f64::from(v)).sum::<f64>() / count;
                let variance = elements().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
                let scale = 1.0 / (variance + f64::from(self.eps)).sqrt();
                for (row, out) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
                    for c in g * width..(g + 1) * width {
                        let v = (f64::from(row[c]) - mean) * scale;
                        let v = affine.map_or(v, |(gain, bias)| v * f64::from(gain[c]) + f64::from(bias[c]));
                        out[c] = self.activation.apply(v) as f32;
                    }
                }
            }
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        // Statistics and application each read x.
        let bytes = 2 * inputs[0].bytes() + output.bytes();
        Cost { flops: 6 * output.shape.count() as u64, bytes: bytes as u64 }
    }

    fn with_epilogue(&self, epilogue: Epilogue) -> Option<Box<dyn Operator>> {
        match epilogue {
            Epilogue::Activation(f) if self.activation == Activation::None => {
                Some(Box::new(GroupNorm { activation: f, ..self.clone() }))
            }
            _ => None,
        }
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
        let length = shape[1..].iter().product::<usize>() / op.groups;
        Case::new(name, op, operands, Tolerance::Sum(length))
    };
    let plain = GroupNorm { affine: false, ..GroupNorm::new(3, 1e-5) };
    let silu = |groups| GroupNorm { activation: Activation::Silu, ..GroupNorm::new(groups, 1e-5) };
    // A mean far larger than the deviation: plain sums of squares would lose the variance. x·scale + shift rounds at the
    // size of mean / deviation, here about 100.
    let mut shifted = case("x=1x9x5x16;shifted", GroupNorm::new(4, 1e-5), &[1, 9, 5, 16]);
    shifted.operands[0].fill = Fill::Values((0..61).map(|i| 100.0 + (i % 7) as f32 * 0.5).collect());
    shifted.tolerance = Tolerance::Sum(128 * 128);
    vec![
        case("x=1x1x1x4", GroupNorm::new(2, 1e-5), &[1, 1, 1, 4]),
        case("x=2x7x5x6;plain", plain, &[2, 7, 5, 6]),
        case("x=2x8x8x40;groups=4", GroupNorm::new(4, 1e-6), &[2, 8, 8, 40]),
        case("x=2x33x64;silu", silu(32), &[2, 33, 64]),
        case("x=1x65x66x8;silu", silu(2), &[1, 65, 66, 8]),
        case("x=1x300x30x1;silu", silu(1), &[1, 300, 30, 1]),
        shifted,
        case("x=2x64x64x320;silu", silu(32), &[2, 64, 64, 320]).benchmark(),
        case("x=2x32x32x1280;silu", silu(32), &[2, 32, 32, 1280]).benchmark(),
        case("x=1x128x128x64;silu", silu(32), &[1, 128, 128, 64]).benchmark(),
    ]
}
