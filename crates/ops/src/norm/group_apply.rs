use super::group_statistics::{FEWEST_ROWS, cells, most_chunks};
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};
use std::ops::Range;

/// y = f(x·scale + shift), scale and shift per image and channel: the second half of a group norm.
///
/// Operands: x [N, .., C]; affine f32 [2, N, C], scales before shifts, as [`GroupStatistics`] gives it. Result: x's type.
#[derive(Clone, Debug)]
pub struct GroupApply {
    /// f.
    pub activation: Activation,
}

params! {
    struct ApplyParams { rows: u32, width: u32, chunks: u32, chunk_rows: u32, count: u32 }
}

/// How the elements of an image [N, .., C] are shared out: a cell of channels of a chunk of rows for each invocation.
pub(super) struct Chunks {
    pub rows: usize,
    /// Cells of a row.
    pub width: usize,
    pub chunks: usize,
    pub chunk_rows: usize,
    /// Whether a cell is four channels.
    pub by_four: bool,
    /// Invocations.
    pub count: usize,
}

impl Chunks {
    pub fn of(x: &TensorType) -> Chunks {
        let (batch, channels) = (x.shape[0], x.shape.last());
        let rows = x.shape.count() / (batch * channels);
        let (unit, by_four) = cells(channels);
        let width = channels / unit;
        let chunk_rows = rows.div_ceil(most_chunks(width)).max(rows.min(FEWEST_ROWS));
        let chunks = rows.div_ceil(chunk_rows);
        Chunks { rows, width, chunks, chunk_rows, by_four, count: batch * chunks * width }
    }
}

/// The dispatch that applies the map in `affine` to operand 0.
pub(super) fn apply(x: &TensorType, activation: Activation, affine: Slot) -> Dispatch {
    let c = Chunks::of(x);
    let params = ApplyParams {
        rows: c.rows as u32,
        width: c.width as u32,
        chunks: c.chunks as u32,
        chunk_rows: c.chunk_rows as u32,
        count: c.count as u32,
    };
    Dispatch::new("group_norm_apply", params)
        .storage(x.dtype)
        .feature("vec4", c.by_four)
        .activation(activation)
        .bind([Slot::Input(0), affine, Slot::Output])
        .over(c.count)
}

impl GroupApply {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "group_apply",
        summary: "Scale and shift per image and channel, with activation: the second half of a group norm",
        shaders: &["group_norm_apply"],
        cases,
    };
}

impl Operator for GroupApply {
    fn name(&self) -> &'static str {
        "group_apply"
    }

    fn attributes(&self) -> String {
        format!("f={}", self.activation.label())
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("group_apply", inputs, 2)?;
        let x = &inputs[0];
        let fits = x.shape.rank() >= 2
            && x.dtype.is_float()
            && x.shape.count() > 0
            && inputs[1] == TensorType::f32([2, x.shape[0], x.shape.last()]);
        match fits {
            true => Ok(x.clone()),
            false => {
                Err(Error::operator("group_apply", format!("takes x [N, .., C] and f32[2, N, C]: {}", types(inputs))))
            }
        }
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        Ok(vec![Variant::single("chunks", apply(cx.output, self.activation, Slot::Input(1)))])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (batch, channels) = (output.shape[0], output.shape.last());
        let (x, affine) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let (scale, shift) = affine.split_at(batch * channels);
        let image = x.len() / batch;
        let value = |(i, &v): (usize, &f32)| {
            let at = i / image * channels + i % channels;
            self.activation.apply(f64::from(v) * f64::from(scale[at]) + f64::from(shift[at])) as f32
        };
        HostTensor::from_f32(output.shape, x.iter().enumerate().map(value).collect())
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        Cost { flops: 3 * output.shape.count() as u64, bytes: (inputs[0].bytes() + output.bytes()) as u64 }
    }

    fn with_epilogue(&self, epilogue: Epilogue) -> Option<Box<dyn Operator>> {
        match epilogue {
            Epilogue::Activation(f) if self.activation == Activation::None => {
                Some(Box::new(GroupApply { activation: f }))
            }
            _ => None,
        }
    }

    fn rows(&self, _: &[TensorType], rows: Range<usize>) -> Option<RowsOf> {
        Some(RowsOf::same(self, rows, [true, false]).cheap())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, activation: Activation, shape: &[usize]| {
        let channels = *shape.last().unwrap_or(&1);
        let operands = vec![Operand::activation(shape), Operand::parameter([2, shape[0], channels])];
        Case::new(name, GroupApply { activation }, operands, Tolerance::Sum(4))
    };
    vec![
        case("x=2x7x5x6", Activation::None, &[2, 7, 5, 6]),
        case("x=2x33x64;silu", Activation::Silu, &[2, 33, 64]),
        case("x=1x65x66x8;silu", Activation::Silu, &[1, 65, 66, 8]),
    ]
}
