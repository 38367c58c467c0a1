use super::conv2d::pixels;
use super::implicit::{self, ImplicitProduct};
use super::over_tiles;
use crate::split_k::Reduction;
use crate::*;
use pulid_tensor::{BLOCK, DType, Error, HostTensor, Result, Shape, TensorType};

/// The gradient of [`Conv2d`] in x: dx[n, y, x, c] = Σ upstream[n, h, w, o]·weight[i, j, c, o] over the windows (h, w) that have
/// the pixel under their tap (i, j), y = h·s + i·d - p.
///
/// Operands: upstream [N, OH, OW, O]; weight [KH, KW, I / groups, O], as the convolution reads it. Result: [N, H, W, I] of
/// upstream's type, H = (OH - 1)·s + d·(KH - 1) + 1 + rest - padding.
#[derive(Clone, Debug)]
pub struct Conv2dGradient {
    /// The convolution's step between windows, rows and columns.
    pub stride: [usize; 2],
    /// The convolution's step between the taps of a window, rows and columns.
    pub dilation: [usize; 2],
    /// The convolution's zero rows and columns around the image: top, left, bottom, right.
    pub padding: [usize; 4],
    /// Number of independent channel groups.
    pub groups: usize,
    /// Rows and columns of the padded image behind the last window, less than a stride.
    pub rest: [usize; 2],
}

params! {
    struct DirectParams {
        count: u32, height: u32, width: u32, up_channels: u32,
        out_height: u32, out_width: u32, out_channels: u32,
        kernel_height: u32, kernel_width: u32,
        stride_y: u32, stride_x: u32, dilation_y: u32, dilation_x: u32,
        pad_top: u32, pad_left: u32,
        group_inputs: u32, group_outputs: u32,
    }
}

params! {
    struct TileParams {
        pixels: u32, height: u32, width: u32, up_channels: u32,
        out_height: u32, out_width: u32, out_channels: u32,
        kernel_height: u32, kernel_width: u32,
        stride_y: u32, stride_x: u32, dilation_y: u32, dilation_x: u32,
        pad_top: u32, pad_left: u32,
    }
}

/// Elements of upstream from which odd numbers of channels are padded to those of the tiled kernels.
const WORTH_PADDING: usize = 1024;

impl Conv2dGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "conv2d_gradient",
        summary: "Gradient of a convolution in its image",
        shaders: &[
            "conv2d_cooperative",
            "conv2d_workgroup_tile",
            "conv2d_gradient_subgroup_tile",
            "conv2d_gradient_register_tile",
            "conv2d_gradient_direct",
            "split_k_reduce",
        ],
        cases,
    };

    /// That of a convolution of `x` with a kernel of `kernel` rows and columns that gives `y`.
    pub(super) fn of(op: &Conv2d, x: &TensorType, kernel: [usize; 2], y: &TensorType) -> Self {
        let rest = [0, 1].map(|axis| {
            let padded = x.shape[1 + axis] + op.padding[axis] + op.padding[axis + 2];
            let covered = (y.shape[1 + axis] - 1) * op.stride[axis] + op.dilation[axis] * (kernel[axis] - 1) + 1;
            padded - covered
        });
        Conv2dGradient { stride: op.stride, dilation: op.dilation, padding: op.padding, groups: op.groups, rest }
    }

    /// Extent of the result along an axis; `None` where it is not positive, or a parameter does not fit.
    fn extent(&self, axis: usize, upstream: usize, kernel: usize) -> Option<usize> {
        let (stride, dilation) = (self.stride[axis], self.dilation[axis]);
        if stride == 0 || dilation == 0 || self.rest[axis] >= stride {
            return None;
        }
        let windows = upstream.checked_sub(1)?.checked_mul(stride)?;
        let covered = windows.checked_add(kernel.checked_sub(1)?.checked_mul(dilation)?)?;
        let padded = covered.checked_add(1)?.checked_add(self.rest[axis])?;
        padded.checked_sub(self.padding[axis])?.checked_sub(self.padding[axis + 2]).filter(|&extent| extent > 0)
    }
}

impl Conv2dGradient {
    /// It as a convolution of upstream, whose rows and columns lie a stride apart, with flipped taps and channels in and out swapped:
    /// each side padded by what a window reaches beyond the padding (less than nothing: cut off).
    fn product<'a>(&self, cx: &'a LowerContext<'a>) -> ImplicitProduct<'a, impl Fn(Dispatch) -> Dispatch> {
        let (upstream, weight, dx) = (&cx.inputs[0], &cx.inputs[1], cx.output);
        let n = |v: usize| v as u32;
        let (inputs, outputs) = (dx.shape[3], upstream.shape[3]);
        let pixels = dx.shape.count() / inputs;
        // Below zero it wraps, as the kernels' arithmetic does.
        let padding =
            |axis: usize| n(self.dilation[axis] * (weight.shape[axis] - 1)).wrapping_sub(n(self.padding[axis]));
        let params = implicit::TileParams {
            pixels: n(pixels),
            height: n(upstream.shape[1]),
            width: n(upstream.shape[2]),
            in_channels: n(outputs / 4),
            out_height: n(dx.shape[1]),
            out_width: n(dx.shape[2]),
            out_channels: n(inputs / 4),
            kernel_height: n(weight.shape[0]),
            kernel_width: n(weight.shape[1]),
            stride_y: 1,
            stride_x: 1,
            dilation_y: n(self.dilation[0]),
            dilation_x: n(self.dilation[1]),
            pad_top: padding(0),
            pad_left: padding(1),
            part: 0,
        };
        let end = Reduction {
            rows: pixels,
            columns: inputs,
            alpha: 1.0,
            bias: Slot::Unused,
            activation: Activation::None,
            gated: false,
            residual: Slot::Unused,
            image: None,
        };
        let types = [upstream.dtype, weight.dtype];
        let finish = move |d: Dispatch| {
            let slots = [Slot::Input(0), Slot::Input(1), Slot::Unused, Slot::Unused, Slot::Output];
            d.weight_storage(types[0], types[1]).bind(slots)
        };
        ImplicitProduct { cx, params, end, gradient_of: Some(self.stride), finish }
    }
}

impl Operator for Conv2dGradient {
    fn name(&self) -> &'static str {
        "conv2d_gradient"
    }

    fn attributes(&self) -> String {
        let (s, d, p, r) = (self.stride, self.dilation, self.padding, self.rest);
        format!(
            "stride={},{};dilation={},{};padding={},{},{},{};groups={};rest={},{}",
            s[0], s[1], d[0], d[1], p[0], p[1], p[2], p[3], self.groups, r[0], r[1]
        )
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("conv2d_gradient", inputs, 2)?;
        let fail =
            |why: &str| Error::operator("conv2d_gradient", format!("{why}: {} ({})", types(inputs), self.attributes()));
        let (upstream, weight) = (&inputs[0], &inputs[1]);
        if upstream.shape.rank() != 4 || weight.shape.rank() != 4 {
            return Err(fail("takes upstream [N, OH, OW, O] and weight [KH, KW, I / groups, O]"));
        }
        if !upstream.dtype.is_float() || weight.dtype == DType::U32 {
            return Err(fail("takes floating-point operands"));
        }
        if weight.dtype.is_quantized() {
            if self.groups != 1 || !weight.shape[2].is_multiple_of(BLOCK) || !fits_quantized(weight) {
                return Err(fail("quantised weights need one group, inputs in multiples of 32, outputs of 4"));
            }
        } else if upstream.dtype == DType::F16 && weight.dtype != DType::F16 {
            return Err(fail("f16 activations need f16 weights"));
        }
        let outputs = weight.shape[3];
        if self.groups == 0 || outputs != upstream.shape[3] || !outputs.is_multiple_of(self.groups) {
            return Err(fail("channels, weight and groups do not agree"));
        }
        if upstream.shape.count() == 0 || weight.shape.count() == 0 {
            return Err(fail("an extent is zero"));
        }
        let extent = |axis: usize| self.extent(axis, upstream.shape[1 + axis], weight.shape[axis]);
        let (Some(height), Some(width)) = (extent(0), extent(1)) else {
            return Err(fail("no image has this gradient"));
        };
        let channels = weight.shape[2].checked_mul(self.groups).ok_or_else(|| fail("there are too many channels"))?;
        Ok(TensorType::new(upstream.dtype, [upstream.shape[0], height, width, channels]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (upstream, weight, dx) = (&cx.inputs[0], &cx.inputs[1], cx.output);
        let n = |v: usize| v as u32;
        let (inputs, outputs) = (dx.shape[3], upstream.shape[3]);
        let pixels = dx.shape.count() / inputs;
        let finish = |d: Dispatch| {
            d.weight_storage(upstream.dtype, weight.dtype).bind([Slot::Input(0), Slot::Input(1), Slot::Output])
        };
        let params = TileParams {
            pixels: n(pixels),
            height: n(upstream.shape[1]),
            width: n(upstream.shape[2]),
            up_channels: n(outputs / 4),
            out_height: n(dx.shape[1]),
            out_width: n(dx.shape[2]),
            out_channels: n(inputs / 4),
            kernel_height: n(weight.shape[0]),
            kernel_width: n(weight.shape[1]),
            stride_y: n(self.stride[0]),
            stride_x: n(self.stride[1]),
            dilation_y: n(self.dilation[0]),
            dilation_x: n(self.dilation[1]),
            pad_top: n(self.padding[0]),
            pad_left: n(self.padding[1]),
        };
        let strided = self.stride != [1, 1];
        let limit = cx.capabilities.max_workgroups as usize;
        let on_cpu = cx.capabilities.kind == DeviceKind::Cpu;
        // Workgroups of 32 channels x `rows` pixels, along pixels first: all pixels meet the same weights while those are cached.
        let tile = |name, shader, rows: usize| {
            let dispatch = finish(Dispatch::new(shader, params)).constant("STRIDED", strided as u32);
            Variant::single(name, over_tiles(dispatch, [pixels, inputs], [rows, 32], false, limit))
        };
        let mut variants = Vec::new();
        if self.groups == 1 && inputs.is_multiple_of(4) && outputs.is_multiple_of(4) {
            let register = tile("register_tile", "conv2d_gradient_register_tile", 4);
            let subgroup = |name, rows| tile(name, "conv2d_gradient_subgroup_tile", rows);
            let tall = subgroup("tall_subgroup_tile", 16).constant("TALL", 1);
            let low = subgroup("subgroup_tile", 8);
            let long = self.cost(cx.inputs, cx.output).flops >= LONG;
            let lanes = if long { [tall, low] } else { [low, tall] };
            let lanes = lanes.into_iter().filter(|_| on_cpu && cx.capabilities.subgroup_lanes == 8);
            let product = self.product(cx);
            variants = product.workgroup_tiles(lanes.chain([register]));
            let eights = inputs.is_multiple_of(8) && outputs.is_multiple_of(8);
            if upstream.dtype == DType::F16 && !strided && eights {
                variants = product.cooperative_tiles(variants);
            }
        }
        if weight.dtype.is_quantized() {
            return Ok(variants);
        }
        let params = DirectParams {
            count: n(dx.shape.count()),
            height: n(upstream.shape[1]),
            width: n(upstream.shape[2]),
            up_channels: n(outputs),
            out_height: n(dx.shape[1]),
            out_width: n(dx.shape[2]),
            out_channels: n(inputs),
            kernel_height: n(weight.shape[0]),
            kernel_width: n(weight.shape[1]),
            stride_y: n(self.stride[0]),
            stride_x: n(self.stride[1]),
            dilation_y: n(self.dilation[0]),
            dilation_x: n(self.dilation[1]),
            pad_top: n(self.padding[0]),
            pad_left: n(self.padding[1]),
            group_inputs: n(weight.shape[2]),
            group_outputs: n(outputs / self.groups),
        };
        let direct = finish(Dispatch::new("conv2d_gradient_direct", params)).over(dx.shape.count());
        variants.push(Variant::single("direct", direct));
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let kernel = [types[1].shape[0], types[1].shape[1]];
        let window = Window { kernel, stride: self.stride, dilation: self.dilation, padding: self.padding };
        let (upstream, weight) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let (height, width, channels) = (output.shape[1], output.shape[2], output.shape[3]);
        let (group_inputs, outputs) = (types[1].shape[2], types[1].shape[3]);
        let group_outputs = outputs / self.groups;
        // Every product of the convolution, added to the pixel that it took.
        let mut dx = vec![0f64; output.shape.count()];
        for ((n, oy, ox), up) in pixels(&types[0]).zip(upstream.chunks_exact(outputs)) {
            for i in 0..kernel[0] {
                let Some(row) = window.position(0, oy, i, height) else { continue };
                for j in 0..kernel[1] {
                    let Some(column) = window.position(1, ox, j, width) else { continue };
                    let pixel = &mut dx[((n * height + row) * width + column) * channels..][..channels];
                    let tap = &weight[(i * kernel[1] + j) * group_inputs * outputs..];
                    for (c, sum) in pixel.iter_mut().enumerate() {
                        let first = c / group_inputs * group_outputs;
                        let filters = &tap[c % group_inputs * outputs + first..][..group_outputs];
                        let products = filters.iter().zip(&up[first..]).map(|(&w, &u)| f64::from(w) * f64::from(u));
                        *sum += products.sum::<f64>();
                    }
                }
            }
        }
        HostTensor::from_f32(output.shape, dx.into_iter().map(|v| v as f32).collect())
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let weight = &inputs[1].shape;
        let products = inputs[0].shape.count() * weight[0] * weight[1] * weight[2];
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: 2 * products as u64, bytes: bytes as u64 }
    }

    fn takes_quantized(&self, operand: usize) -> bool {
        operand == 1
    }

    fn padded(&self, inputs: &[TensorType]) -> Option<Vec<Shape>> {
        let (upstream, weight) = (&inputs[0].shape, &inputs[1].shape);
        let tiled = weight[2].is_multiple_of(4) && weight[3].is_multiple_of(4);
        // An image's three colours, in or out. Smaller gradients take less time than the dispatches around them.
        if self.groups != 1 || tiled || inputs[1].dtype.is_quantized() || upstream.count() < WORTH_PADDING {
            return None;
        }
        let [rows, columns, inputs, outputs] = [weight[0], weight[1], weight[2], weight[3]];
        let (inputs, outputs) = (inputs.next_multiple_of(4), outputs.next_multiple_of(4));
        let upstream = [upstream[0], upstream[1], upstream[2], outputs];
        Some(vec![upstream.into(), [rows, columns, inputs, outputs].into()])
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

/// A case named by its sizes: upstream [N, OH, OW, O] of a convolution with kernel [KH, KW] over `inputs` channels.
fn case(op: Conv2dGradient, upstream: [usize; 4], kernel: [usize; 2], inputs: usize) -> Case {
    let shape = [kernel[0], kernel[1], inputs / op.groups, upstream[3]];
    let terms = kernel[0] * kernel[1] * upstream[3] / op.groups;
    let operands = vec![Operand::activation(upstream), Operand::weight(shape)];
    let [n, h, w, o] = upstream;
    let name = format!("up={n}x{h}x{w}x{o};kernel={}x{};in={inputs};{}", kernel[0], kernel[1], op.attributes());
    Case::new(name, op, operands, Tolerance::Sum(terms))
}

fn cases() -> Vec<Case> {
    let same = |padding: usize| Conv2dGradient {
        stride: [1; 2],
        dilation: [1; 2],
        padding: [padding; 4],
        groups: 1,
        rest: [0; 2],
    };
    let by_two = |rest: [usize; 2]| Conv2dGradient { stride: [2; 2], rest, ..same(1) };
    let mut cases = vec![
        // Tile edges: 4, 8, 16 and 64 pixels, 32 and 64 channels, 16 steps.
        case(same(0), [1, 1, 1, 4], [1, 1], 4),
        case(same(0), [1, 5, 7, 12], [1, 1], 36),
        case(same(1), [2, 5, 7, 8], [3, 3], 20),
        case(same(1), [1, 9, 3, 16], [3, 3], 68),
        case(same(1), [2, 9, 8, 20], [3, 3], 132),
        case(same(1), [1, 1, 3, 4], [3, 3], 28),
        case(same(1), [1, 1, 4, 8], [3, 3], 32),
        case(same(1), [1, 2, 4, 12], [3, 3], 64),
        case(same(0), [1, 7, 9, 8], [1, 1], 64),
        case(same(1), [1, 8, 8, 4], [3, 3], 60),
        case(same(1), [1, 5, 13, 36], [3, 3], 68),
        // Whole eights of channels around the edges of cooperative tiles, and inner axes that are split into parts.
        case(same(1), [2, 5, 7, 40], [3, 3], 72),
        case(Conv2dGradient { padding: [3, 0, 1, 2], ..same(0) }, [1, 9, 8, 64], [2, 3], 136),
        case(Conv2dGradient { dilation: [2, 1], ..same(1) }, [1, 6, 9, 72], [3, 3], 40),
        case(same(0), [1, 6, 6, 288], [1, 1], 264),
        // Strides, with rows and columns that no window reaches.
        case(by_two([0, 0]), [1, 5, 6, 12], [3, 3], 8),
        case(by_two([1, 0]), [2, 4, 5, 8], [3, 3], 36),
        case(by_two([1, 1]), [1, 4, 4, 8], [1, 1], 8),
        case(Conv2dGradient { padding: [0, 0, 1, 1], ..by_two([0, 0]) }, [1, 4, 4, 8], [3, 3], 8),
        case(Conv2dGradient { stride: [4, 4], ..same(0) }, [1, 4, 4, 24], [4, 4], 3),
        case(Conv2dGradient { stride: [1, 2], dilation: [2, 1], ..same(1) }, [2, 7, 4, 16], [3, 3], 8),
        case(Conv2dGradient { stride: [3, 2], rest: [2, 1], ..same(0) }, [1, 3, 4, 8], [2, 2], 4),
        // Paddings that differ, one wider than the window; dilations.
        case(Conv2dGradient { padding: [2, 0, 1, 3], ..same(0) }, [1, 5, 7, 4], [3, 2], 4),
        case(Conv2dGradient { padding: [3, 2, 3, 2], ..same(0) }, [1, 9, 8, 4], [1, 1], 8),
        case(Conv2dGradient { dilation: [2, 3], ..same(2) }, [1, 9, 8, 16], [3, 3], 8),
        // Few channels in or out: the first and last layers of the networks.
        case(same(1), [2, 9, 9, 64], [3, 3], 4),
        case(same(1), [1, 9, 9, 32], [3, 3], 3),
        case(same(1), [1, 7, 9, 3], [3, 3], 32),
        case(same(0), [1, 5, 6, 6], [1, 1], 10),
        // Whole blocks of input channels, so that these also run with quantised weights.
        case(same(1), [1, 3, 5, 4], [3, 3], 32),
        case(by_two([0, 1]), [2, 5, 4, 68], [3, 3], 64),
        case(same(0), [1, 4, 5, 36], [1, 1], 96),
        case(same(1), [1, 5, 7, 40], [3, 3], 96),
        case(same(0), [1, 4, 5, 288], [1, 1], 64),
        // Groups.
        case(Conv2dGradient { groups: 2, ..same(1) }, [1, 5, 6, 12], [3, 3], 8),
        case(Conv2dGradient { groups: 6, ..same(1) }, [2, 5, 6, 6], [3, 3], 6),
        case(Conv2dGradient { groups: 3, ..by_two([0, 0]) }, [1, 3, 3, 9], [3, 3], 3),
    ];
    let benchmarks = [
        (same(1), [1, 64, 64, 320], 3, 320),
        (same(1), [1, 32, 32, 1280], 3, 1280),
        (same(1), [1, 256, 256, 128], 3, 128),
        (same(1), [1, 256, 256, 3], 3, 128),
        (same(1), [1, 128, 128, 320], 3, 4),
        (same(0), [1, 64, 64, 320], 1, 640),
        (by_two([0, 1]), [1, 32, 32, 320], 3, 320),
        (Conv2dGradient { groups: 64, ..same(1) }, [1, 64, 64, 64], 3, 64),
    ];
    cases.extend(benchmarks.map(|(op, upstream, k, inputs)| case(op, upstream, [k, k], inputs).benchmark()));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_image_has_are_refused() {
        let types = [TensorType::f32([1, 1, 1, 4]), TensorType::f32([3, 3, 4, 4])];
        let op = |padding, rest| Conv2dGradient { stride: [2; 2], dilation: [1; 2], padding, groups: 1, rest };
        assert_eq!(op([1; 4], [0; 2]).infer(&types).unwrap().shape.to_vec(), [1, 1, 1, 4]);
        for (padding, rest) in [([2; 4], [0; 2]), ([1; 4], [2, 0]), ([usize::MAX; 4], [0; 2])] {
            let error = op(padding, rest).infer(&types).unwrap_err();
            assert!(error.to_string().contains("f32[1, 1, 1, 4] x f32[3, 3, 4, 4]"), "{error}");
        }
    }
}
