use super::implicit::{ImplicitProduct, TileParams};
use super::winograd::winograd;
use super::{Conv2dGradient, over_tiles};
use crate::elementwise::per_image;
use crate::split_k::{Reduction, residual_kind};
use crate::*;
use pulid_tensor::{BLOCK, DType, Error, HostTensor, Result, TensorType};
use std::ops::Range;

/// Two-dimensional convolution (cross-correlation) over channels-last images:
/// y[n, h, w, o] = f(Σ x[n, h·s + i·d - p, .., c] · weight[i, j, c, o] + bias[o]) + residual[n, h, w, o] or residual[n, o].
///
/// Operands: x [N, H, W, I]; weight [KH, KW, I / groups, O] (checkpoints store OIHW and are permuted when loaded); then
/// `bias` [O] in f32 and `residual` of the result's shape, or [N, 1, 1, O], where the flags ask for them. Outside the image x is zero.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// Step between windows, rows and columns.
    pub stride: [usize; 2],
    /// Step between the taps of a window, rows and columns.
    pub dilation: [usize; 2],
    /// Zero rows and columns around the image: top, left, bottom, right.
    pub padding: [usize; 4],
    /// Number of independent channel groups; I for a depthwise convolution.
    pub groups: usize,
    /// Whether a bias follows.
    pub bias: bool,
    /// Applied before the residual.
    pub activation: Activation,
    /// Whether a residual follows.
    pub residual: bool,
}

impl Default for Conv2d {
    fn default() -> Self {
        Conv2d {
            stride: [1; 2],
            dilation: [1; 2],
            padding: [0; 4],
            groups: 1,
            bias: false,
            activation: Activation::None,
            residual: false,
        }
    }
}

params! {
    struct DirectParams {
        count: u32, height: u32, width: u32, channels: u32,
        out_height: u32, out_width: u32, out_channels: u32,
        kernel_height: u32, kernel_width: u32,
        stride_y: u32, stride_x: u32, dilation_y: u32, dilation_x: u32,
        pad_top: u32, pad_left: u32,
        group_inputs: u32, group_outputs: u32,
    }
}

/// Most output channels for which lanes run along pixels instead of channels: the VAE's 3, the UNet's 4 and the face parser's 19 leave
/// most lanes of a tile of 32 columns idle.
const FEW_OUTPUTS: usize = 19;

impl Conv2d {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "conv2d",
        summary: "Two-dimensional convolution: strided, dilated, grouped, padded on each side, with bias, activation and \
                  residual",
        shaders: &[
            "conv2d_cooperative",
            "conv2d_workgroup_tile",
            "conv2d_subgroup_tile",
            "conv2d_register_tile",
            "conv2d_few_inputs",
            "conv2d_few_outputs",
            "conv2d_direct",
            "conv2d_winograd_input",
            "conv2d_winograd_weight",
            "conv2d_winograd_output",
            "matmul_register_tile",
            "matmul_subgroup_tile",
            "split_k_reduce",
        ],
        cases,
    };

    /// A convolution with a bias, step one and the same padding on all sides.
    pub fn same(padding: usize) -> Self {
        Conv2d { padding: [padding; 4], bias: true, ..Conv2d::default() }
    }

    /// Whether the last operand is a residual that is the same for all pixels of an image. Of images of one pixel it is one of the
    /// result's shape.
    fn is_per_image(&self, last: &TensorType, output: &TensorType) -> bool {
        self.residual
            && last != output
            && last.dtype == output.dtype
            && Some(&last.shape) == per_image(&output.shape).as_ref()
    }

    fn window(&self, weight: &TensorType) -> Window {
        Window {
            kernel: [weight.shape[0], weight.shape[1]],
            stride: self.stride,
            dilation: self.dilation,
            padding: self.padding,
        }
    }
}

impl Operator for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn attributes(&self) -> String {
        let pair = |v: [usize; 2]| format!("{},{}", v[0], v[1]);
        let p = self.padding;
        format!(
            "stride={};dilation={};padding={},{},{},{};groups={};bias={};f={};residual={}",
            pair(self.stride),
            pair(self.dilation),
            p[0],
            p[1],
            p[2],
            p[3],
            self.groups,
            self.bias,
            self.activation.label(),
            self.residual
        )
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("conv2d", inputs, 2 + usize::from(self.bias) + usize::from(self.residual))?;
        let fail = |why: &str| Error::operator("conv2d", format!("{why}: {} ({})", types(inputs), self.attributes()));
        let (x, weight) = (&inputs[0], &inputs[1]);
        if x.shape.rank() != 4 || weight.shape.rank() != 4 {
            return Err(fail("takes x [N, H, W, I] and weight [KH, KW, I / groups, O]"));
        }
        if !x.dtype.is_float() || weight.dtype == DType::U32 {
            return Err(fail("takes floating-point operands"));
        }
        if weight.dtype.is_quantized() {
            // Whole blocks within each tap.
            if self.groups != 1 || !weight.shape[2].is_multiple_of(BLOCK) || !fits_quantized(weight) {
                return Err(fail("quantised weights need one group, inputs in multiples of 32, outputs of 4"));
            }
        } else if x.dtype == DType::F16 && weight.dtype != DType::F16 {
            return Err(fail("f16 activations need f16 weights"));
        }
        let (channels, out_channels) = (x.shape[3], weight.shape[3]);
        if self.groups == 0 || weight.shape[2] * self.groups != channels || !out_channels.is_multiple_of(self.groups) {
            return Err(fail("channels, weight and groups do not agree"));
        }
        if x.shape.count() == 0 || out_channels == 0 {
            return Err(fail("an extent is zero"));
        }
        let [height, width] = self.window(weight).output("conv2d", x.shape[1], x.shape[2], false)?;
        let output = TensorType::new(x.dtype, [x.shape[0], height, width, out_channels]);
        if self.bias && inputs[2] != TensorType::f32([out_channels]) {
            return Err(fail("bias must be f32 of the output channels"));
        }
        let fits = |t: &TensorType| *t == output || self.is_per_image(t, &output);
        if self.residual && !inputs.last().is_some_and(fits) {
            return Err(fail(&format!("residual must be {output}, or the same for all pixels of an image")));
        }
        Ok(output)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (x, weight, y) = (&cx.inputs[0], &cx.inputs[1], cx.output);
        let n = |v: usize| v as u32;
        let bias = if self.bias { Slot::Input(2) } else { Slot::Unused };
        let residual = if self.residual { Slot::Input(cx.inputs.len() - 1) } else { Slot::Unused };
        let by_image = cx.inputs.last().is_some_and(|t| self.is_per_image(t, y));
        let end = |d: Dispatch| {
            d.activation(self.activation)
                .constant("BIAS", self.bias as u32)
                .constant("RESIDUAL", residual_kind(residual, by_image))
        };
        let finish = |d: Dispatch| {
            let slots = [Slot::Input(0), Slot::Input(1), bias, residual, Slot::Output];
            end(d.weight_storage(x.dtype, weight.dtype)).bind(slots)
        };
        let (channels, out_channels) = (x.shape[3], y.shape[3]);
        let pixels = y.shape.count() / out_channels;
        // Channels in units of the shader's elements: vec4 or scalars.
        let params = |in_unit: usize, out_unit: usize| TileParams {
            pixels: n(pixels),
            height: n(x.shape[1]),
            width: n(x.shape[2]),
            in_channels: n(channels / in_unit),
            out_height: n(y.shape[1]),
            out_width: n(y.shape[2]),
            out_channels: n(out_channels / out_unit),
            kernel_height: n(weight.shape[0]),
            kernel_width: n(weight.shape[1]),
            stride_y: n(self.stride[0]),
            stride_x: n(self.stride[1]),
            dilation_y: n(self.dilation[0]),
            dilation_x: n(self.dilation[1]),
            pad_top: n(self.padding[0]),
            pad_left: n(self.padding[1]),
            part: 0,
        };
        let tile = |name, shader, in_unit: usize, out_unit: usize| {
            (name, finish(Dispatch::new(shader, params(in_unit, out_unit))))
        };
        // Workgroups of `columns` channels x `rows` pixels.
        let limit = cx.capabilities.max_workgroups as usize;
        let over = |(name, dispatch): (&'static str, Dispatch), columns: usize, rows: usize| {
            // Register tiles run along pixels first: all pixels meet the same weights while those are cached.
            let dispatch = over_tiles(dispatch, [pixels, out_channels], [rows, columns], false, limit);
            Variant::single(name, dispatch)
        };
        let end_of_parts = Reduction {
            rows: pixels,
            columns: out_channels,
            alpha: 1.0,
            bias,
            activation: self.activation,
            gated: false,
            residual,
            image: by_image.then_some(y.shape[1] * y.shape[2]),
        };
        let product = ImplicitProduct { cx, params: params(4, 4), end: end_of_parts, gradient_of: None, finish };
        let mut variants = Vec::new();
        let vec4 = (channels.is_multiple_of(4), out_channels.is_multiple_of(4));
        let on_cpu = cx.capabilities.kind == DeviceKind::Cpu;
        let few_outputs = !weight.dtype.is_quantized()
            && self.groups == 1
            && vec4.0
            && out_channels <= FEW_OUTPUTS
            && pixels.div_ceil(64) <= limit;
        let few_outputs = few_outputs.then(|| {
            let wide = out_channels > 4;
            let (name, dispatch) = tile("few_outputs", "conv2d_few_outputs", 4, 1);
            let dispatch = dispatch.constant("WIDE", wide as u32);
            let layers = out_channels.div_ceil(if wide { 8 } else { 4 });
            Variant::single(name, dispatch.grid(pixels.div_ceil(64), 1, layers))
        });
        if !on_cpu {
            variants.extend(few_outputs.clone());
        }
        if self.groups == 1 && vec4 == (true, true) {
            let register = over(tile("register_tile", "conv2d_register_tile", 4, 4), 32, 4);
            let tall_register =
                over(tile("tall_register_tile", "conv2d_register_tile", 4, 4), 32, 8).constant("TALL", 1);
            let subgroup = over(tile("subgroup_tile", "conv2d_subgroup_tile", 4, 4), 32, 8);
            let tall = over(tile("tall_subgroup_tile", "conv2d_subgroup_tile", 4, 4), 32, 16).constant("TALL", 1);
            let flops = self.cost(cx.inputs, cx.output).flops;
            let long = flops >= LONG;
            let tall_register = on_cpu.then_some(tall_register);
            let registers = match flops >= LONG_IN_REGISTERS {
                true => [tall_register, Some(register)],
                false => [Some(register), tall_register],
            };
            let lanes = if long { [tall, subgroup] } else { [subgroup, tall] };
            let lanes = lanes.into_iter().filter(|_| cx.capabilities.subgroup_lanes == 8);
            // Twice as fast as tiles in registers; tiles of subgroups lose by it as often as they gain.
            let winograd = winograd(self, cx, params(4, 4), end, [bias, residual]);
            let others = lanes.filter(|_| on_cpu).chain(winograd).chain(registers.into_iter().flatten());
            variants.extend(product.workgroup_tiles(others));
        }
        // A CPU device skips idle lanes, so its register tile loses little to few channels.
        if on_cpu {
            variants.extend(few_outputs);
        }
        if self.groups == 1 && vec4 == (false, true) {
            variants.push(over(tile("few_inputs", "conv2d_few_inputs", 1, 4), 32, 4));
        }
        let eights = channels.is_multiple_of(8) && out_channels.is_multiple_of(8);
        if x.dtype == DType::F16 && self.groups == 1 && eights {
            variants = product.cooperative_tiles(variants);
        }
        if weight.dtype.is_quantized() {
            return Ok(variants);
        }
        let params = DirectParams {
            count: n(y.shape.count()),
            height: n(x.shape[1]),
            width: n(x.shape[2]),
            channels: n(channels),
            out_height: n(y.shape[1]),
            out_width: n(y.shape[2]),
            out_channels: n(out_channels),
            kernel_height: n(weight.shape[0]),
            kernel_width: n(weight.shape[1]),
            stride_y: n(self.stride[0]),
            stride_x: n(self.stride[1]),
            dilation_y: n(self.dilation[0]),
            dilation_x: n(self.dilation[1]),
            pad_top: n(self.padding[0]),
            pad_left: n(self.padding[1]),
            group_inputs: n(weight.shape[2]),
            group_outputs: n(out_channels / self.groups),
        };
        let direct = finish(Dispatch::new("conv2d_direct", params)).over(y.shape.count());
        variants.push(Variant::single("direct", direct));
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let window = self.window(&types[1]);
        let (x, weight) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let bias = if self.bias { Some(inputs[2].as_f32()?) } else { None };
        let residual = if self.residual { Some(inputs[inputs.len() - 1].as_f32()?) } else { None };
        let by_image = types.last().is_some_and(|t| self.is_per_image(t, &output));
        let (height, width, channels) = (types[0].shape[1], types[0].shape[2], types[0].shape[3]);
        let (group_inputs, out_channels) = (types[1].shape[2], types[1].shape[3]);
        let group_outputs = out_channels / self.groups;
        let mut y = Vec::with_capacity(output.shape.count());
        let mut sums = vec![0f64; out_channels];
        for (n, oy, ox) in pixels(&output) {
            sums.fill(0.0);
            for i in 0..window.kernel[0] {
                let Some(row) = window.position(0, oy, i, height) else { continue };
                for j in 0..window.kernel[1] {
                    let Some(column) = window.position(1, ox, j, width) else { continue };
                    let pixel = &x[((n * height + row) * width + column) * channels..][..channels];
                    let tap = &weight[(i * window.kernel[1] + j) * group_inputs * out_channels..];
                    for (c, &value) in pixel.iter().enumerate() {
                        let (group, c) = (c / group_inputs, c % group_inputs);
                        let first = group * group_outputs;
                        let filters = &tap[c * out_channels + first..][..group_outputs];
                        for (sum, &w) in sums[first..].iter_mut().zip(filters) {
                            *sum += f64::from(value) * f64::from(w);
                        }
                    }
                }
            }
            for (o, &sum) in sums.iter().enumerate() {
                let v = sum + bias.map_or(0.0, |b| f64::from(b[o]));
                let at = if by_image { n * out_channels + o } else { y.len() };
                let v = self.activation.apply(v) + residual.map_or(0.0, |r| f64::from(r[at]));
                y.push(v as f32);
            }
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let weight = &inputs[1].shape;
        let products = output.shape.count() * weight[0] * weight[1] * weight[2];
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: 2 * products as u64, bytes: bytes as u64 }
    }

    fn with_epilogue(&self, epilogue: Epilogue) -> Option<Box<dyn Operator>> {
        match epilogue {
            Epilogue::Activation(f) if self.activation == Activation::None && !self.residual => {
                Some(Box::new(Conv2d { activation: f, ..self.clone() }))
            }
            Epilogue::Residual | Epilogue::PerImage if !self.residual => {
                Some(Box::new(Conv2d { residual: true, ..self.clone() }))
            }
            _ => None,
        }
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if rule.needs(1) {
            return Err(rule.fail("has no gradient rule for the weight"));
        }
        if self.residual {
            let last = rule.operands() - 1;
            let sum = rule.sum_to(Value::Upstream, last)?;
            rule.set(last, sum);
        }
        let mut upstream = Value::Upstream;
        if self.activation != Activation::None && (0..2 + usize::from(self.bias)).any(|i| rule.needs(i)) {
            let operands: Vec<_> = (0..2 + usize::from(self.bias)).map(Value::Operand).collect();
            let plain = Conv2d { activation: Activation::None, residual: false, ..self.clone() };
            let before = rule.apply(plain, operands)?;
            upstream = rule.apply(ActivationGradient(self.activation), [before, upstream])?;
        }
        if self.bias && rule.needs(2) {
            let sum = rule.sum_to(upstream, 2)?;
            rule.set(2, sum);
        }
        if rule.needs(0) {
            let (x, weight) = (rule.ty(Value::Operand(0)), rule.shape(Value::Operand(1)));
            let op = Conv2dGradient::of(self, &x, [weight[0], weight[1]], &rule.ty(Value::Result));
            let dx = rule.apply(op, [upstream, Value::Operand(1)])?;
            rule.set(0, dx);
        }
        Ok(())
    }

    fn takes_quantized(&self, operand: usize) -> bool {
        operand == 1
    }

    fn rows(&self, inputs: &[TensorType], rows: Range<usize>) -> Option<RowsOf> {
        let [top, left, _, right] = self.padding;
        let (height, weight) = (inputs[0].shape[1], &inputs[1]);
        let reach = self.dilation[0] * (weight.shape[0] - 1) + 1;
        // Rows under the windows, counted from the first row of padding.
        let (from, to) = (rows.start * self.stride[0], rows.end.checked_sub(1)? * self.stride[0] + reach);
        let inside = from.saturating_sub(top)..to.saturating_sub(top).min(height);
        let output = self.infer(inputs).ok()?;
        if inside.is_empty() || inputs.last().is_some_and(|t| self.is_per_image(t, &output)) {
            return None;
        }
        let padding = [top.saturating_sub(from), left, to.saturating_sub(top + height), right];
        let mut operands = vec![None; inputs.len()];
        operands[0] = Some(inside);
        if self.residual {
            operands[inputs.len() - 1] = Some(rows.clone());
        }
        let operator = Conv2d { padding, ..self.clone() };
        Some(RowsOf { operator: Box::new(operator), operands, rows, cheap: false })
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

/// Every (n, y, x) of an [N, H, W, C] tensor in storage order.
pub(super) fn pixels(t: &TensorType) -> impl Iterator<Item = (usize, usize, usize)> {
    let (batch, height, width) = (t.shape[0], t.shape[1], t.shape[2]);
    (0..batch * height * width).map(move |p| (p / (height * width), p / width % height, p % width))
}

/// A case named by its sizes: x [N, H, W, I] with kernel [KH, KW] to `out_channels`, operands as the flags ask.
fn case(op: Conv2d, x: [usize; 4], kernel: [usize; 2], out_channels: usize) -> Case {
    let shape = [kernel[0], kernel[1], x[3] / op.groups, out_channels];
    let terms = shape[0] * shape[1] * shape[2];
    let mut operands = vec![Operand::activation(x), Operand::weight(shape)];
    if op.bias {
        operands.push(Operand::parameter([out_channels]));
    }
    let window = Window { kernel, stride: op.stride, dilation: op.dilation, padding: op.padding };
    if let (true, Ok([h, w])) = (op.residual, window.output("conv2d", x[1], x[2], false)) {
        operands.push(Operand::activation([x[0], h, w, out_channels]));
    }
    let size = format!("x={}x{}x{}x{};kernel={}x{}", x[0], x[1], x[2], x[3], kernel[0], kernel[1]);
    let name = format!("{size};out={out_channels};{}", op.attributes());
    Case::new(name, op, operands, Tolerance::Sum(terms))
}

/// The same with a residual for each image.
fn per_image_case(op: Conv2d, x: [usize; 4], kernel: [usize; 2], out_channels: usize) -> Case {
    let mut case = case(op, x, kernel, out_channels);
    case.name += ";per_image";
    case.operands.pop();
    case.operands.push(Operand::activation([x[0], 1, 1, out_channels]));
    case
}

fn cases() -> Vec<Case> {
    let all = |f| Conv2d { activation: f, residual: true, ..Conv2d::same(1) };
    let mut cases = vec![
        // Tile edges: channel and pixel counts that are not multiples of a tile.
        case(Conv2d::default(), [1, 1, 1, 4], [1, 1], 4),
        case(Conv2d::same(0), [1, 5, 7, 12], [1, 1], 36),
        case(Conv2d::same(1), [2, 5, 7, 8], [3, 3], 20),
        case(Conv2d::same(1), [1, 9, 3, 16], [3, 3], 68),
        case(Conv2d::same(1), [2, 9, 8, 20], [3, 3], 132),
        case(Conv2d { stride: [2, 2], padding: [0, 0, 1, 1], ..all(Activation::Silu) }, [1, 8, 9, 12], [3, 3], 72),
        case(Conv2d { stride: [2, 2], ..Conv2d::same(1) }, [1, 9, 11, 8], [3, 3], 12),
        case(Conv2d { stride: [2, 2], padding: [0, 0, 1, 1], ..Conv2d::same(0) }, [1, 8, 8, 8], [3, 3], 8),
        case(Conv2d { padding: [2, 0, 1, 3], ..Conv2d::default() }, [1, 4, 5, 4], [3, 2], 4),
        case(Conv2d { dilation: [2, 3], ..Conv2d::same(2) }, [1, 9, 10, 8], [3, 3], 16),
        case(Conv2d { stride: [4, 4], ..Conv2d::same(0) }, [1, 16, 16, 3], [4, 4], 24),
        // Around them: 4, 8, 16 and 64 pixels, 32 and 64 channels.
        case(Conv2d::same(1), [1, 1, 3, 4], [3, 3], 28),
        case(Conv2d::same(1), [1, 1, 4, 8], [3, 3], 32),
        case(Conv2d::same(1), [1, 1, 7, 4], [3, 3], 36),
        case(Conv2d::same(1), [1, 2, 4, 8], [3, 3], 32),
        case(Conv2d::same(0), [1, 3, 3, 4], [1, 1], 28),
        case(Conv2d::same(1), [1, 3, 5, 4], [3, 3], 64),
        case(Conv2d::same(1), [1, 4, 4, 8], [3, 3], 60),
        case(Conv2d::same(1), [1, 1, 17, 4], [3, 3], 68),
        case(Conv2d::same(0), [1, 7, 9, 8], [1, 1], 64),
        case(Conv2d::same(1), [1, 8, 8, 4], [3, 3], 60),
        case(Conv2d::same(1), [1, 5, 13, 4], [3, 3], 68),
        // Few channels in or out: the first and last layers of the networks.
        case(Conv2d::same(1), [2, 9, 9, 4], [3, 3], 64),
        case(Conv2d::same(1), [1, 9, 9, 3], [3, 3], 32),
        case(Conv2d::same(1), [1, 7, 9, 64], [3, 3], 4),
        case(Conv2d::same(1), [1, 7, 9, 32], [3, 3], 3),
        case(Conv2d::same(0), [1, 5, 6, 32], [1, 1], 19),
        case(Conv2d { dilation: [2, 1], stride: [1, 2], ..all(Activation::Relu) }, [2, 9, 8, 8], [3, 3], 16),
        // Epilogues in every variant.
        case(all(Activation::Silu), [2, 6, 5, 8], [3, 3], 12),
        case(all(Activation::LeakyRelu(0.1)), [2, 6, 5, 6], [3, 3], 10),
        case(all(Activation::Relu), [1, 6, 5, 3], [3, 3], 8),
        case(all(Activation::Silu), [1, 6, 5, 8], [3, 3], 3),
        case(Conv2d { bias: false, residual: true, ..Conv2d::default() }, [1, 6, 5, 8], [1, 1], 8),
        case(Conv2d { activation: Activation::Gelu, ..Conv2d::default() }, [1, 6, 5, 8], [1, 1], 8),
        // Whole blocks of input channels, so that these also run with quantised weights.
        case(Conv2d::same(1), [1, 3, 5, 32], [3, 3], 4),
        case(Conv2d { stride: [2, 2], ..all(Activation::Silu) }, [2, 9, 7, 64], [3, 3], 68),
        case(all(Activation::None), [1, 4, 5, 96], [1, 1], 36),
        // Whole eights of channels around the edges of cooperative tiles: 32 and 64 pixels and channels, steps of 32 channels.
        case(all(Activation::Silu), [2, 5, 7, 40], [3, 3], 72),
        case(Conv2d { stride: [2, 2], dilation: [2, 1], ..Conv2d::same(1) }, [1, 19, 23, 64], [3, 3], 136),
        case(Conv2d { bias: false, residual: true, ..Conv2d::default() }, [1, 9, 15, 72], [1, 1], 264),
        // Winograd's tiles of 2 x 2 pixels beyond the edges, and under padding on one side.
        case(Conv2d { padding: [2, 0, 1, 3], ..all(Activation::Relu) }, [2, 9, 10, 20], [3, 3], 24),
        // Inner axes that are split into parts, the last of them shorter.
        case(all(Activation::Silu), [2, 5, 7, 40], [3, 3], 68),
        case(Conv2d { stride: [2, 1], dilation: [1, 2], ..Conv2d::same(1) }, [1, 9, 8, 64], [3, 3], 40),
        case(all(Activation::None), [1, 6, 6, 288], [1, 1], 72),
        // A residual for each image: whole, with an inner axis in parts, of few channels, of odd ones.
        per_image_case(all(Activation::Silu), [2, 5, 7, 40], [3, 3], 72),
        per_image_case(all(Activation::None), [3, 6, 6, 288], [1, 1], 72),
        per_image_case(all(Activation::None), [2, 7, 9, 32], [3, 3], 3),
        per_image_case(all(Activation::None), [2, 7, 9, 3], [3, 3], 32),
        per_image_case(Conv2d { groups: 2, ..all(Activation::None) }, [2, 5, 6, 6], [3, 3], 6),
        // Groups.
        case(Conv2d { groups: 2, ..Conv2d::same(1) }, [1, 5, 6, 8], [3, 3], 12),
        case(Conv2d { groups: 6, ..all(Activation::Relu) }, [2, 5, 6, 6], [3, 3], 6),
        case(Conv2d { groups: 3, bias: false, ..Conv2d::same(1) }, [1, 5, 5, 3], [3, 3], 9),
    ];
    let benchmarks = [
        (Conv2d::same(1), [1, 64, 64, 320], 3, 320),
        (Conv2d::same(1), [1, 32, 32, 640], 3, 640),
        (Conv2d::same(1), [1, 128, 128, 4], 3, 320),
        (Conv2d::same(1), [1, 128, 128, 320], 3, 4),
        (Conv2d::same(1), [1, 256, 256, 128], 3, 3),
        (Conv2d { stride: [14, 14], ..Conv2d::same(0) }, [1, 336, 336, 3], 14, 1024),
        (Conv2d::same(0), [1, 64, 64, 640], 1, 320),
        (Conv2d { stride: [2, 2], ..Conv2d::same(1) }, [1, 64, 64, 320], 3, 320),
        (Conv2d { groups: 64, ..Conv2d::same(1) }, [1, 64, 64, 64], 3, 64),
    ];
    cases.extend(benchmarks.map(|(op, x, k, out)| case(op, x, [k, k], out).benchmark()));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_shapes() {
        let inputs = [TensorType::f32([1, 8, 8, 3]), TensorType::f32([3, 3, 4, 8])];
        let error = Conv2d::default().infer(&inputs).unwrap_err();
        assert!(error.to_string().contains("f32[1, 8, 8, 3] x f32[3, 3, 4, 8]"), "{error}");
        let inputs = [TensorType::f32([1, 2, 8, 3]), TensorType::f32([3, 3, 3, 8])];
        assert!(Conv2d::default().infer(&inputs).is_err(), "the kernel is larger than the image");
    }

    #[test]
    fn reference_of_a_hand_computed_image() {
        // A 2x2 image under a 2x2 kernel with one row of padding on top: column sums weighted by rows.
        let x = HostTensor::from_f32([1, 2, 2, 1], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let w = HostTensor::from_f32([2, 2, 1, 1], vec![1.0, 10.0, 100.0, 1000.0]).unwrap();
        let op = Conv2d { padding: [1, 0, 0, 0], ..Conv2d::default() };
        let y = op.reference(&[&x, &w]).unwrap();
        assert_eq!(y.as_f32().unwrap(), [2100.0, 4321.0]);
    }
}
