use crate::conv::Window;
use crate::*;
use pulid_tensor::{HostTensor, Result, TensorType};

/// The mean under each window of x [N, H, W, C]. Pixels outside count as zeros, or not at all.
#[derive(Clone, Debug)]
pub struct AveragePool2d {
    /// Rows and columns of a window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Rows and columns around the image: top, left, bottom, right. Less than a window, so that every window covers
    /// some pixel.
    pub padding: [usize; 4],
    /// Whether a last, partly covered window counts.
    pub ceil_mode: bool,
    /// Whether padded pixels count in the mean. Those that only `ceil_mode` adds never do.
    pub count_include_pad: bool,
}

params! {
    struct AveragePoolParams {
        count: u32, height: u32, width: u32, channels: u32, out_height: u32, out_width: u32,
        kernel_height: u32, kernel_width: u32, stride_y: u32, stride_x: u32,
        pad_top: u32, pad_left: u32, pad_bottom: u32, pad_right: u32,
    }
}

impl AveragePool2d {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "average_pool2d",
        summary: "Mean under each window, with or without the padding",
        shaders: &["average_pool2d"],
        cases,
    };

    /// Square windows of `kernel` pixels, `stride` apart, with the same padding on all sides.
    pub fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        AveragePool2d {
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [padding; 4],
            ceil_mode: false,
            count_include_pad: true,
        }
    }

    fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, dilation: [1; 2], padding: self.padding }
    }
}

impl Operator for AveragePool2d {
    fn name(&self) -> &'static str {
        "average_pool2d"
    }

    fn attributes(&self) -> String {
        let (ceil, include) = (self.ceil_mode, self.count_include_pad);
        format!("{};ceil_mode={ceil};count_include_pad={include}", self.window().label())
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("average_pool2d", inputs, 1)?;
        let x = &inputs[0];
        let [height, width] = self.window().pooled("average_pool2d", x, self.ceil_mode)?;
        Ok(TensorType::new(x.dtype, [x.shape[0], height, width, x.shape[3]]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (x, y) = (&cx.inputs[0], cx.output);
        let n = |v: usize| v as u32;
        let params = AveragePoolParams {
            count: n(y.shape.count()),
            height: n(x.shape[1]),
            width: n(x.shape[2]),
            channels: n(x.shape[3]),
            out_height: n(y.shape[1]),
            out_width: n(y.shape[2]),
            kernel_height: n(self.kernel[0]),
            kernel_width: n(self.kernel[1]),
            stride_y: n(self.stride[0]),
            stride_x: n(self.stride[1]),
            pad_top: n(self.padding[0]),
            pad_left: n(self.padding[1]),
            pad_bottom: n(self.padding[2]),
            pad_right: n(self.padding[3]),
        };
        let dispatch = Dispatch::new("average_pool2d", params)
            .storage(x.dtype)
            .constant("PADDED", self.count_include_pad as u32)
            .bind([Slot::Input(0), Slot::Output])
            .over(y.shape.count());
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let input = inputs[0].tensor_type();
        let output = self.infer(std::slice::from_ref(&input))?;
        let x = inputs[0].as_f32()?;
        let channels = input.shape[3];
        // Rows or columns of a window inside the padded image.
        let covered = |axis: usize, window: usize| {
            let start = window * self.stride[axis];
            let padded = input.shape[1 + axis] + self.padding[axis] + self.padding[axis + 2];
            (start + self.kernel[axis]).min(padded) - start
        };
        let mut y = Vec::with_capacity(output.shape.count());
        self.window().for_each(&input, &output, |[row, column], pixels| {
            let count = if self.count_include_pad { covered(0, row) * covered(1, column) } else { pixels.len() };
            for c in 0..channels {
                let sum: f64 = pixels.iter().map(|&p| f64::from(x[p * channels + c])).sum();
                y.push((sum / count as f64) as f32);
            }
        });
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let flops = output.shape.count() * self.kernel[0] * self.kernel[1];
        Cost { flops: flops as u64, bytes: (inputs[0].bytes() + output.bytes()) as u64 }
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if self.kernel != self.stride || self.padding != [0; 4] || self.ceil_mode {
            return Err(rule.fail("has no gradient rule but for windows side by side, without padding"));
        }
        let (x, y) = (rule.shape(Value::Operand(0)), rule.shape(Value::Upstream));
        let [rows, columns] = self.kernel;
        let share = (1.0 / (rows * columns) as f64) as f32;
        let each = rule.apply(Unary(Activation::Affine(share, 0.0)), [Value::Upstream])?;
        let each = rule.reshape(each, [y[0] * y[1], 1, y[2], 1, y[3]])?;
        let each = rule.apply(Expand::new([y[0] * y[1], rows, y[2], columns, y[3]]), [each])?;
        let mut dx = rule.reshape(each, [y[0], y[1] * rows, y[2] * columns, y[3]])?;
        // Rows and columns that no window reaches.
        let rest = [0, x[1] - y[1] * rows, x[2] - y[2] * columns, 0];
        if rest != [0; 4] {
            dx = rule.apply(Pad::zeros([0; 4], rest), [dx])?;
        }
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |x: [usize; 4], op: AveragePool2d| {
        let name = format!("x={}x{}x{}x{};{}", x[0], x[1], x[2], x[3], op.attributes());
        let terms = op.kernel[0] * op.kernel[1];
        Case::new(name, op, vec![Operand::activation(x)], Tolerance::Sum(terms))
    };
    let mut cases =
        vec![case([1, 1, 1, 1], AveragePool2d::square(1, 1, 0)), case([1, 7, 7, 6], AveragePool2d::square(7, 1, 0))];
    cases.push(case([2, 7, 5, 3], AveragePool2d { kernel: [3, 2], stride: [3, 2], ..AveragePool2d::square(1, 1, 0) }));
    for count_include_pad in [false, true] {
        let op = |kernel, stride, padding| AveragePool2d {
            count_include_pad,
            ..AveragePool2d::square(kernel, stride, padding)
        };
        cases.extend([
            case([2, 8, 10, 4], op(2, 2, 0)),
            case([1, 9, 7, 5], op(3, 2, 1)),
            case([1, 5, 8, 3], AveragePool2d { ceil_mode: true, ..op(2, 2, 0) }),
            case([1, 5, 4, 3], AveragePool2d { ceil_mode: true, ..op(2, 2, 1) }),
            case([2, 8, 7, 3], AveragePool2d { kernel: [3, 2], stride: [2, 1], padding: [1, 0, 2, 1], ..op(1, 1, 0) }),
        ]);
    }
    // Without large numbers: whatever else is in their sum is lost.
    let fill = Fill::every_class().only(|v| v.abs() <= 4.0 || v.is_infinite() || v.is_nan());
    let mut classes = case([1, 9, 7, 3], AveragePool2d::square(3, 2, 1));
    classes.name += ";every_class";
    classes.operands[0].fill = fill;
    cases.push(classes);
    cases.push(case([1, 256, 256, 64], AveragePool2d::square(2, 2, 0)).benchmark());
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_pytorch_on_partial_windows() {
        // torch.nn.functional.avg_pool2d(torch.arange(12.).reshape(1, 1, 3, 4), 2, 2, padding=1, ceil_mode=True)
        let x = HostTensor::from_fn([1, 3, 4, 1], |i| i as f32);
        let op = AveragePool2d { ceil_mode: true, ..AveragePool2d::square(2, 2, 1) };
        let y = op.reference(&[&x]).unwrap();
        assert_eq!(y.as_f32().unwrap(), [0.0, 0.75, 0.75, 3.0, 7.5, 4.5]);
        let y = AveragePool2d { count_include_pad: false, ..op }.reference(&[&x]).unwrap();
        assert_eq!(y.as_f32().unwrap(), [0.0, 1.5, 3.0, 6.0, 7.5, 9.0]);
    }
}
