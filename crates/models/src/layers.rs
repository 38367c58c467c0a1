//! The layers that networks are made of, by the names of their weights: `vs.linear(g, "to_out.0", x, 640)`.

use crate::Vars;
use crate::vars::channels_last;
use pulid_graph::{Graph, NodeId, Rate};
use pulid_ops::{
    Activation, Attention, Binary, Cast, Concat, Conv2d, Expand, Gather, GroupNorm, LayerNorm, MatMul, Reduce,
    Resize2d, Rotary, Slice, Unary, UpsampleNearest,
};
use pulid_tensor::{DType, HostTensor, Result, Shape, TensorType};

/// Geometry of a convolution over channels-last images.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Rows and columns of the window.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Zeros around the image: top, left, bottom, right.
    pub padding: [usize; 4],
}

impl Conv {
    /// A window over one pixel.
    pub const POINT: Conv = Conv { kernel: 1, stride: 1, padding: [0; 4] };
    /// 3 x 3, the result as large as the image.
    pub const SAME_3: Conv = Conv { kernel: 3, stride: 1, padding: [1; 4] };

    /// A window of odd size, the result as large as the image.
    pub const fn same(kernel: usize) -> Conv {
        Conv { kernel, stride: 1, padding: [kernel / 2; 4] }
    }

    /// The same window at every `stride`-th place.
    pub const fn every(self, stride: usize) -> Conv {
        Conv { stride, ..self }
    }

    /// The operator.
    pub fn operator(self, bias: bool, activation: Activation) -> Conv2d {
        let padding = self.padding;
        Conv2d { stride: [self.stride; 2], padding, bias, activation, ..Conv2d::default() }
    }
}

impl Vars {
    /// x [.., K] to [.., n] by `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn linear(&self, g: &mut Graph, name: &str, x: NodeId, n: usize) -> Result<NodeId> {
        self.scope(g, name, |vs, g| {
            let weight = vs.matrix(g, "weight", g.shape(x).last(), n)?;
            let bias = vs.parameter(g, "bias", [n])?;
            g.apply(MatMul::linear(), &[x, weight, bias])
        })
    }

    /// [`Vars::linear`] without a bias.
    ///
    /// # Errors
    /// When the weight is missing or mismatched.
    pub fn linear_no_bias(&self, g: &mut Graph, name: &str, x: NodeId, n: usize) -> Result<NodeId> {
        self.scope(g, name, |vs, g| {
            let weight = vs.matrix(g, "weight", g.shape(x).last(), n)?;
            g.apply(MatMul::default(), &[x, weight])
        })
    }

    /// x [N, H, W, I] to [N, H', W', out] by `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn conv2d(&self, g: &mut Graph, name: &str, x: NodeId, out: usize, conv: Conv) -> Result<NodeId> {
        self.scope(g, name, |vs, g| {
            let weight = vs.filters(g, "weight", [out, g.shape(x).last(), conv.kernel, conv.kernel])?;
            let bias = vs.parameter(g, "bias", [out])?;
            g.apply(conv.operator(true, Activation::None), &[x, weight, bias])
        })
    }

    /// [`Vars::conv2d`] without a bias.
    ///
    /// # Errors
    /// When the weight is missing or mismatched.
    pub fn conv2d_no_bias(&self, g: &mut Graph, name: &str, x: NodeId, out: usize, conv: Conv) -> Result<NodeId> {
        self.scope(g, name, |vs, g| {
            let weight = vs.filters(g, "weight", [out, g.shape(x).last(), conv.kernel, conv.kernel])?;
            g.apply(conv.operator(false, Activation::None), &[x, weight])
        })
    }

    /// [`Vars::conv2d_no_bias`] followed by batch norm in its evaluation form, folded into filters and bias when they
    /// are loaded; the number of outputs is the file's.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn conv2d_batch_norm(&self, g: &mut Graph, name: &str, norm: &str, x: NodeId, conv: Conv) -> Result<NodeId> {
        let key = format!("{name}.weight");
        let (kernel, inputs) = (conv.kernel, g.shape(x).last());
        let out = self.extent(&key, 4, 0)?;
        let oihw = [out, inputs, kernel, kernel];
        let found = self.shape(&key)?;
        if found != Shape::from(oihw) {
            return Err(self.error(&key, format!("expected {}, found {found}", Shape::from(oihw))));
        }
        let statistics = ["weight", "bias", "running_mean", "running_var"].map(|part| format!("{norm}.{part}"));
        for part in &statistics {
            self.extent(part, 1, 0)?;
        }
        let reads: Vec<_> = statistics.iter().chain([&key]).cloned().collect();
        let reads: Vec<_> = reads.iter().map(String::as_str).collect();
        // The factor and the offset of each output channel.
        let affine = move |vs: &Vars| -> Result<(Vec<f32>, Vec<f32>)> {
            let read = |i: usize| Ok(vs.tensor(&statistics[i], [out])?.to_f32_vec());
            let (gain, bias, mean, variance) = (read(0)?, read(1)?, read(2)?, read(3)?);
            let scale: Vec<f64> =
                (0..out).map(|o| f64::from(gain[o]) / (f64::from(variance[o]) + BATCH_NORM_EPS).sqrt()).collect();
            let offset = (0..out).map(|o| (f64::from(bias[o]) - f64::from(mean[o]) * scale[o]) as f32).collect();
            Ok((scale.iter().map(|&s| s as f32).collect(), offset))
        };
        let offset = affine.clone();
        let bias_name = format!("{norm}.bias");
        let bias = self.computed(g, &bias_name, &reads, "batch norm's offset", TensorType::f32([out]), move |vs| {
            HostTensor::from_f32([out], offset(vs)?.1)
        });
        let dtype = self.weight_dtype(&key)?;
        let hwio = TensorType::new(dtype, [kernel, kernel, inputs, out]);
        let weight = self.computed(g, &key.clone(), &reads, "batch norm's filters", hwio, move |vs| {
            let scale = affine(vs)?.0;
            let filters = channels_last(&vs.tensor(&key, oihw)?.cast(DType::F32))?;
            let scaled = filters.as_f32()?.iter().enumerate().map(|(i, w)| w * scale[i % out]).collect();
            HostTensor::from_f32([kernel, kernel, inputs, out], scaled)
        });
        g.scoped(name, |g| g.apply(conv.operator(true, Activation::None), &[x, weight, bias]))
    }

    /// Group norm over channels-last x by `name.weight` and `name.bias`, then `f`.
    ///
    /// # Errors
    /// When a weight is missing or mismatched, or the groups do not divide the channels.
    pub fn group_norm(
        &self,
        g: &mut Graph,
        name: &str,
        x: NodeId,
        groups: usize,
        eps: f32,
        f: Activation,
    ) -> Result<NodeId> {
        self.scope(g, name, |vs, g| {
            let channels = g.shape(x).last();
            let gain = vs.parameter(g, "weight", [channels])?;
            let bias = vs.parameter(g, "bias", [channels])?;
            g.apply(GroupNorm { activation: f, ..GroupNorm::new(groups, eps) }, &[x, gain, bias])
        })
    }

    /// Layer norm over the last axis by `name.weight` and `name.bias`.
    ///
    /// # Errors
    /// When a weight is missing or mismatched.
    pub fn layer_norm(&self, g: &mut Graph, name: &str, x: NodeId, eps: f32) -> Result<NodeId> {
        self.scope(g, name, |vs, g| {
            let channels = g.shape(x).last();
            let gain = vs.parameter(g, "weight", [channels])?;
            let bias = vs.parameter(g, "bias", [channels])?;
            g.apply(LayerNorm::new(eps), &[x, gain, bias])
        })
    }

    /// A tensor as it is, of the type of the values between operators.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn activation_weight(&self, g: &mut Graph, name: &str, shape: impl Into<Shape>) -> Result<NodeId> {
        self.constant_of(g, name, &shape.into(), self.dtype())
    }

    /// An f32 input of the contract, as the network's own type.
    ///
    /// # Errors
    /// When the name is taken or the shape too large to address.
    pub fn input(&self, g: &mut Graph, name: &str, shape: impl Into<Shape>, rate: Rate) -> Result<NodeId> {
        let x = g.input(name, TensorType::f32(shape), rate)?;
        g.scoped(name, |g| cast(g, x, self.dtype()))
    }

    /// An output of the contract, as f32.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn output(&self, g: &mut Graph, name: &str, x: NodeId) -> Result<()> {
        let x = g.scoped(name, |g| cast(g, x, DType::F32))?;
        g.output(name, x)
    }
}

/// Epsilon of PyTorch's BatchNorm2d.
const BATCH_NORM_EPS: f64 = 1e-5;

/// f(x).
///
/// # Errors
/// Never for a float.
pub fn activation(g: &mut Graph, f: Activation, x: NodeId) -> Result<NodeId> {
    if f == Activation::None { Ok(x) } else { g.apply(Unary(f), &[x]) }
}

/// a + b with broadcasting. Give the operand that changes less often first: the sum is fused into what computes the
/// second, and work that does not change between steps stays out of the step.
///
/// # Errors
/// When the shapes do not broadcast.
pub fn add(g: &mut Graph, a: NodeId, b: NodeId) -> Result<NodeId> {
    g.apply(Binary::add(), &[a, b])
}

/// Nearest neighbour to a size: the way up of UNet and VAE doubles, or stops one row or column short of it.
///
/// # Errors
/// When x is no image.
pub fn upsample_nearest(g: &mut Graph, x: NodeId, size: [usize; 2]) -> Result<NodeId> {
    let shape = g.shape(x);
    if shape.rank() == 4 && [2 * shape[1], 2 * shape[2]] == size {
        return g.apply(UpsampleNearest { factor: 2 }, &[x]);
    }
    g.apply(Resize2d::nearest(size), &[x])
}

/// Bilinear to a size, the corner pixels staying corner pixels.
///
/// # Errors
/// When x is no image.
pub fn resize_bilinear_aligned(g: &mut Graph, x: NodeId, size: [usize; 2]) -> Result<NodeId> {
    g.apply(Resize2d::bilinear(size, true), &[x])
}

/// a·b with broadcasting.
///
/// # Errors
/// When the shapes do not broadcast.
pub fn mul(g: &mut Graph, a: NodeId, b: NodeId) -> Result<NodeId> {
    g.apply(Binary::mul(), &[a, b])
}

/// x as another float type.
///
/// # Errors
/// When x holds indices.
pub fn cast(g: &mut Graph, x: NodeId, dtype: DType) -> Result<NodeId> {
    if g.ty(x).dtype == dtype { Ok(x) } else { g.apply(Cast(dtype), &[x]) }
}

/// Values one after the other along an axis.
///
/// # Errors
/// When the shapes do not agree.
pub fn concat(g: &mut Graph, axis: usize, parts: &[NodeId]) -> Result<NodeId> {
    g.apply(Concat::new(axis), parts)
}

/// `size` elements from `start` along one axis.
///
/// # Errors
/// When they do not lie within x.
pub fn slice(g: &mut Graph, x: NodeId, axis: usize, start: usize, size: usize) -> Result<NodeId> {
    let part = Slice::along(g.shape(x), axis, start, size);
    g.apply(part, &[x])
}

/// x repeated along axes of extent 1.
///
/// # Errors
/// When x does not broadcast to the shape.
pub fn expand(g: &mut Graph, x: NodeId, shape: impl Into<Shape>) -> Result<NodeId> {
    let shape = shape.into();
    if *g.shape(x) == shape { Ok(x) } else { g.apply(Expand::new(shape), &[x]) }
}

/// Rows of a table by index.
///
/// # Errors
/// When the indices are no indices.
pub fn gather(g: &mut Graph, table: NodeId, indices: NodeId) -> Result<NodeId> {
    g.apply(Gather::default(), &[table, indices])
}

/// The mean of the rows of x [B, L, C], as [B, 1, C].
///
/// # Errors
/// When x has other axes.
pub fn mean_of_rows(g: &mut Graph, x: NodeId) -> Result<NodeId> {
    g.apply(Reduce::mean([1]), &[x])
}

/// The mean of an image [N, H, W, C], as [N, 1, 1, C].
///
/// # Errors
/// When x is no image.
pub fn global_average(g: &mut Graph, x: NodeId) -> Result<NodeId> {
    g.apply(Reduce::mean([1, 2]), &[x])
}

/// What an attention does beside its heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attend {
    /// Number of heads; they divide the channels.
    pub heads: usize,
    /// Each query sees the keys up to its own position only.
    pub causal: bool,
    /// Keys and values of zeros after the given ones.
    pub zero_keys: usize,
}

impl Attend {
    /// Plain attention.
    pub fn heads(heads: usize) -> Self {
        Attend { heads, causal: false, zero_keys: 0 }
    }
}

/// Attention of q [B, L, C] over k and v [B, S, C]: softmax(q kᵀ / √head) v for each head.
///
/// # Errors
/// When the shapes do not agree.
pub fn attention(g: &mut Graph, q: NodeId, k: NodeId, v: NodeId, how: Attend) -> Result<NodeId> {
    let operator = Attention { causal: how.causal, zero_keys: how.zero_keys as u32, ..Attention::new(how.heads) };
    g.apply(operator, &[q, k, v])
}

/// Rotates neighbouring channels of each head of x [B, T, C] by the angles whose cosines and sines are given, each f32
/// [T, head].
///
/// # Errors
/// When the shapes do not agree.
pub fn rotary(g: &mut Graph, x: NodeId, [cos, sin]: [NodeId; 2], heads: usize) -> Result<NodeId> {
    g.apply(Rotary { heads }, &[x, cos, sin])
}
