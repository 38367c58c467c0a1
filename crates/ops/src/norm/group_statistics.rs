use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The affine map that group norm amounts to: scale = gain / sqrt(variance + eps), shift = bias - mean·scale, for each image
/// and channel, with statistics over groups of consecutive channels of all bands of the image.
///
/// Operands: the bands, one or more x [N, .., C] that differ in their second axis only, several of them for one image only
/// (N = 1), all but the last of the same size; then gain f32 [C] and bias f32 [C]. Result: f32 [2, N, C], scales before
/// shifts, for [`GroupApply`]. With it an image too large for one binding is normalised as a whole.
#[derive(Clone, Debug)]
pub struct GroupStatistics {
    /// Number of groups; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
}

params! {
    struct ChunkParams { rows: u32, width: u32, chunks: u32, chunk_rows: u32, count: u32, first: u32 }
}

params! {
    struct CombineParams {
        rows: u32, channels: u32, chunks: u32, chunk_rows: u32, groups: u32, eps: f32, count: u32,
    }
}

/// How statistics are taken: every band in chunks of rows (pixels), then all chunks together.
pub(super) struct Bands {
    batch: usize,
    channels: usize,
    groups: usize,
    eps: f32,
    /// Rows of each band and of all together.
    rows: Vec<usize>,
    total: usize,
    chunk_rows: usize,
}

/// Invocations that keep the largest GPUs busy while each reads a channel's rows one after the other.
const INVOCATIONS: usize = 1 << 17;

/// Chunks of an image at most, where `width` invocations share a row: enough of them to occupy a GPU, few enough that a workgroup
/// combines their partial sums in some turns.
pub(super) fn most_chunks(width: usize) -> usize {
    (INVOCATIONS / width).clamp(256, 2048)
}

/// Rows of a chunk at least, so that what an invocation reads once (its channels' parameters) serves many.
pub(super) const FEWEST_ROWS: usize = 32;

/// Rows of a chunk: enough chunks to occupy a device, few enough that combining them stays cheap. A chunk never reaches
/// over the end of a band, so several bands are cut in whole chunks.
fn chunk_rows(rows: &[usize], channels: usize) -> usize {
    let total: usize = rows.iter().sum();
    let wanted = total.div_ceil(most_chunks(channels / cells(channels).0)).max(total.min(FEWEST_ROWS));
    match rows {
        [_] => wanted,
        _ => (1..=rows[0].min(wanted)).rev().find(|n| rows[0].is_multiple_of(*n)).unwrap_or(1),
    }
}

impl Bands {
    pub(super) fn of(bands: &[TensorType], groups: usize, eps: f32) -> Bands {
        let (batch, channels) = (bands[0].shape[0], bands[0].shape.last());
        let rows: Vec<usize> = bands.iter().map(|b| b.shape.count() / (batch * channels)).collect();
        let (total, chunk_rows) = (rows.iter().sum(), chunk_rows(&rows, channels));
        Bands { batch, channels, groups, eps, rows, total, chunk_rows }
    }

    fn chunks(&self, band: usize) -> usize {
        self.rows[band].div_ceil(self.chunk_rows)
    }

    /// Bytes of the means of all chunks; their squares take as many.
    pub(super) fn partial_bytes(&self) -> usize {
        self.batch * (0..self.rows.len()).map(|i| self.chunks(i)).sum::<usize>() * self.channels * 4
    }

    /// Statistics of the chunks of a band, to scratch buffers 0 and 1.
    pub(super) fn partial(&self, x: &TensorType, band: usize, slot: Slot) -> Dispatch {
        let (unit, by_four) = cells(self.channels);
        let width = self.channels / unit;
        let count = self.batch * self.chunks(band) * width;
        let params = ChunkParams {
            rows: self.rows[band] as u32,
            width: width as u32,
            chunks: self.chunks(band) as u32,
            chunk_rows: self.chunk_rows as u32,
            count: count as u32,
            first: ((0..band).map(|i| self.chunks(i)).sum::<usize>() * width) as u32,
        };
        Dispatch::new("group_norm_partial", params)
            .storage(x.dtype)
            .feature("vec4", by_four)
            .bind([slot, Slot::Scratch(0), Slot::Scratch(1)])
            .over(count)
    }

    /// The ways to combine chunks, best first; complete them with [`Bands::bind`].
    pub(super) fn combines(&self, kind: DeviceKind) -> Vec<(&'static str, Dispatch)> {
        let params = CombineParams {
            rows: self.total as u32,
            channels: self.channels as u32,
            chunks: self.total.div_ceil(self.chunk_rows) as u32,
            chunk_rows: self.chunk_rows as u32,
            groups: self.groups as u32,
            eps: self.eps,
            count: (self.groups * self.batch) as u32,
        };
        let mut ways = vec![("chunks", Dispatch::new("group_norm_combine", params).grid(self.groups, self.batch, 1))];
        if kind == DeviceKind::Cpu {
            let serial = Dispatch::new("group_norm_combine_serial", params).over(self.groups * self.batch);
            ways.insert(0, ("serial_chunks", serial));
        }
        ways
    }

    /// Binds gain and bias, where there are any, and the result.
    pub(super) fn bind(&self, combine: Dispatch, affine: Option<[Slot; 2]>, result: Slot) -> Dispatch {
        let [gain, bias] = affine.unwrap_or([Slot::Unused; 2]);
        let has = affine.is_some() as u32;
        let slots = [Slot::Scratch(0), Slot::Scratch(1), gain, bias, result];
        combine.constant("GAIN", has).constant("BIAS", has).bind(slots)
    }
}

/// Channels of one element of the shaders' arrays.
pub(super) fn cells(channels: usize) -> (usize, bool) {
    if channels.is_multiple_of(4) { (4, true) } else { (1, false) }
}

impl GroupStatistics {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "group_statistics",
        summary: "Scale and shift of a group norm, from all bands of an image",
        shaders: &["group_norm_partial", "group_norm_combine", "group_norm_combine_serial"],
        cases,
    };
}

impl Operator for GroupStatistics {
    fn name(&self) -> &'static str {
        "group_statistics"
    }

    fn attributes(&self) -> String {
        format!("groups={};eps={:e}", self.groups, self.eps)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let fail = |why: String| {
            Error::operator("group_statistics", format!("{why}: {} ({})", types(inputs), self.attributes()))
        };
        let Some((bands, [gain, bias])) = inputs.split_last_chunk::<2>().filter(|(bands, _)| !bands.is_empty()) else {
            return Err(fail("takes one or more bands, gain and bias".into()));
        };
        let first = &bands[0].shape;
        if first.rank() < 2 || !bands[0].dtype.is_float() || bands.iter().any(|b| b.shape.count() == 0) {
            return Err(fail("needs float elements with a batch and a channel axis".into()));
        }
        let channels = first.last();
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            return Err(fail(format!("{} groups do not divide {channels} channels", self.groups)));
        }
        if *gain != TensorType::f32([channels]) || gain != bias {
            return Err(fail(format!("gain and bias must be f32[{channels}]")));
        }
        if bands.len() > 1 {
            let alike = |b: &TensorType| {
                let s = &b.shape;
                b.dtype == bands[0].dtype
                    && s.rank() == first.rank()
                    && s.rank() > 2
                    && s[0] == 1
                    && s[2..] == first[2..]
            };
            if !bands.iter().all(alike) {
                return Err(fail("several bands must be of one image and differ in height only".into()));
            }
            let (last, others) = (bands[bands.len() - 1].shape[1], &bands[..bands.len() - 1]);
            if others.iter().any(|b| b.shape[1] != first[1]) || last > first[1] {
                return Err(fail("all bands but the last must be of one height, the last not higher".into()));
            }
        }
        Ok(TensorType::f32([2, first[0], channels]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.inputs.len() - 2;
        let bands = Bands::of(&cx.inputs[..count], self.groups, self.eps);
        let partials: Vec<_> = (0..count).map(|i| bands.partial(&cx.inputs[i], i, Slot::Input(i))).collect();
        let variant = |(name, combine): (&'static str, Dispatch)| {
            let combine = bands.bind(combine, Some([Slot::Input(count), Slot::Input(count + 1)]), Slot::Output);
            let dispatches = partials.iter().cloned().chain([combine]).collect();
            Variant { name, dispatches, scratch: vec![bands.partial_bytes(); 2] }
        };
        Ok(bands.combines(cx.capabilities.kind).into_iter().map(variant).collect())
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (batch, channels) = (output.shape[1], output.shape[2]);
        let width = channels / self.groups;
        let bands = inputs[..inputs.len() - 2].iter().map(|t| t.as_f32()).collect::<Result<Vec<_>>>()?;
        let (gain, bias) = (inputs[inputs.len() - 2].as_f32()?, inputs[inputs.len() - 1].as_f32()?);
        let mut affine = vec![0f32; output.shape.count()];
        for n in 0..batch {
            for g in 0..self.groups {
                let elements = || {
                    let image =
                        bands.iter().flat_map(|x| x[n * (x.len() / batch)..][..x.len() / batch].chunks_exact(channels));
                    image.flat_map(|row| &row[g * width..][..width]).map(|&v| f64::from(v))
                };
                let count = elements().count() as f64;
                let mean = elements().sum::<f64>() / count;
                let variance = elements().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
                for c in g * width..(g + 1) * width {
                    let scale = f64::from(gain[c]) / (variance + f64::from(self.eps)).sqrt();
                    affine[n * channels + c] = scale as f32;
                    affine[(batch + n) * channels + c] = (f64::from(bias[c]) - mean * scale) as f32;
                }
            }
        }
        HostTensor::from_f32(output.shape, affine)
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, groups: usize, bands: &[&[usize]]| {
        let channels = *bands[0].last().unwrap_or(&1);
        let mut operands: Vec<_> = bands.iter().map(|b| Operand::activation(*b)).collect();
        operands.extend([Operand::parameter([channels]), Operand::parameter([channels])]);
        let length = bands.iter().map(|b| b[1..].iter().product::<usize>()).sum::<usize>() / groups;
        Case::new(name, GroupStatistics { groups, eps: 1e-5 }, operands, Tolerance::Sum(length))
    };
    vec![
        case("x=2x7x5x6", 3, &[&[2, 7, 5, 6]]),
        case("bands=4,4,1;width=5;channels=8", 2, &[&[1, 4, 5, 8], &[1, 4, 5, 8], &[1, 1, 5, 8]]),
        case("bands=3,3,3,2;width=7;channels=6", 2, &[&[1, 3, 7, 6], &[1, 3, 7, 6], &[1, 3, 7, 6], &[1, 2, 7, 6]]),
        case("bands=40,23;width=66;channels=64", 32, &[&[1, 40, 66, 64], &[1, 23, 66, 64]]),
    ]
}
