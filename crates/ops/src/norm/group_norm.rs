use super::group_apply::apply;
use super::group_statistics::Bands;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// y = f((x - mean) / sqrt(variance + eps)·gain + bias), statistics per image and group of consecutive channels.
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
        let bands = Bands::of(std::slice::from_ref(x), self.groups, self.eps);
        let variant = |(name, combine): (&'static str, Dispatch)| Variant {
            name,
            dispatches: vec![
                bands.partial(x, 0, Slot::Input(0)),
                bands.bind(combine, self.affine.then_some([Slot::Input(1), Slot::Input(2)]), Slot::Scratch(2)),
                apply(x, self.activation, Slot::Scratch(2)),
            ],
            scratch: vec![bands.partial_bytes(), bands.partial_bytes(), 2 * batch * channels * 4],
        };
        Ok(bands.combines(cx.capabilities.kind).into_iter().map(variant).collect())
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (batch, channels) = (output.shape[0], output.shape.last());
        let width = channels / self.groups;
        let x = inputs[0].as_f32()?;
        let affine = if self.affine { Some((inputs[1].as_f32()?, inputs[2].as_f32()?)) } else { None };
        let mut y = vec![0f32; x.len()];
        let image = x.len() / batch;
        for n in 0..batch {
            let (x, y) = (&x[n * image..][..image], &mut y[n * image..][..image]);
            for g in 0..self.groups {
                let elements = || x.chunks_exact(channels).flat_map(|row| &row[g * width..][..width]);
                let count = (image / self.groups) as f64;
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

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if (1..rule.operands()).any(|i| rule.needs(i)) {
            return Err(rule.fail("has no gradient rule for gain and bias"));
        }
        let operands: Vec<_> = (0..rule.operands()).map(Value::Operand).chain([Value::Upstream]).collect();
        let dx = rule.apply(GroupNormGradient(self.clone()), operands)?;
        rule.set(0, dx);
        Ok(())
    }

    fn two_passes(&self) -> Option<TwoPasses> {
        let (groups, eps, activation) = (self.groups, self.eps, self.activation);
        self.affine.then(|| TwoPasses {
            image: Box::new(GroupStatistics { groups, eps }),
            rows: Box::new(GroupApply { activation }),
        })
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
