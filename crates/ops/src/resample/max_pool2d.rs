use crate::conv::Window;
use crate::*;
use pulid_tensor::{HostTensor, Result, TensorType};

/// The largest value under each window of x [N, H, W, C]; outside the image counts as minus infinity.
#[derive(Clone, Debug)]
pub struct MaxPool2d {
    /// Rows and columns of a window.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Step between the taps of a window. No more than the image's extent where there is padding.
    pub dilation: [usize; 2],
    /// Rows and columns around the image: top, left, bottom, right. Less than a window, so that every window covers
    /// some pixel.
    pub padding: [usize; 4],
    /// Whether a last, partly covered window counts.
    pub ceil_mode: bool,
}

params! {
    struct MaxPoolParams {
        count: u32, height: u32, width: u32, channels: u32, out_height: u32, out_width: u32,
        kernel_height: u32, kernel_width: u32, stride_y: u32, stride_x: u32, dilation_y: u32, dilation_x: u32,
        pad_top: u32, pad_left: u32,
    }
}

impl MaxPool2d {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "max_pool2d",
        summary: "Largest value under each window",
        shaders: &["max_pool2d"],
        cases,
    };

    /// Square windows of `kernel` pixels, `stride` apart, with the same padding on all sides.
    pub fn square(kernel: usize, stride: usize, padding: usize) -> Self {
        MaxPool2d {
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            padding: [padding; 4],
            ceil_mode: false,
        }
    }

    fn window(&self) -> Window {
        Window { kernel: self.kernel, stride: self.stride, dilation: self.dilation, padding: self.padding }
    }
}

impl Operator for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn attributes(&self) -> String {
        format!("{};ceil_mode={}", self.window().label(), self.ceil_mode)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("max_pool2d", inputs, 1)?;
        let x = &inputs[0];
        let [height, width] = self.window().pooled("max_pool2d", x, self.ceil_mode)?;
        Ok(TensorType::new(x.dtype, [x.shape[0], height, width, x.shape[3]]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (x, y) = (&cx.inputs[0], cx.output);
        let n = |v: usize| v as u32;
        let params = MaxPoolParams {
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
            dilation_y: n(self.dilation[0]),
            dilation_x: n(self.dilation[1]),
            pad_top: n(self.padding[0]),
            pad_left: n(self.padding[1]),
        };
        let dispatch = Dispatch::new("max_pool2d", params)
            .storage(x.dtype)
            .bind([Slot::Input(0), Slot::Output])
            .over(y.shape.count());
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let input = inputs[0].tensor_type();
        let output = self.infer(std::slice::from_ref(&input))?;
        let x = inputs[0].as_f32()?;
        let channels = input.shape[3];
        let mut y = Vec::with_capacity(output.shape.count());
        self.window().for_each(&input, &output, |_, pixels| {
            for c in 0..channels {
                y.push(pixels.iter().map(|&p| x[p * channels + c]).fold(f32::NEG_INFINITY, f32::max));
            }
        });
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let flops = output.shape.count() * self.kernel[0] * self.kernel[1];
        Cost { flops: flops as u64, bytes: (inputs[0].bytes() + output.bytes()) as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |x: [usize; 4], op: MaxPool2d| {
        let name = format!("x={}x{}x{}x{};{}", x[0], x[1], x[2], x[3], op.attributes());
        Case::new(name, op, vec![Operand::activation(x)], Tolerance::Exact)
    };
    let uneven =
        MaxPool2d { kernel: [3, 2], stride: [2, 1], dilation: [2, 1], padding: [1, 0, 2, 1], ceil_mode: false };
    let mut cases = vec![
        case([1, 1, 1, 1], MaxPool2d::square(1, 1, 0)),
        case([2, 8, 10, 4], MaxPool2d::square(2, 2, 0)),
        case([1, 9, 7, 5], MaxPool2d::square(3, 2, 1)),
        case([1, 5, 8, 3], MaxPool2d { ceil_mode: true, ..MaxPool2d::square(2, 2, 0) }),
        case([1, 5, 4, 3], MaxPool2d { ceil_mode: true, ..MaxPool2d::square(2, 2, 1) }),
        case([2, 8, 7, 3], uneven),
        case([1, 256, 256, 64], MaxPool2d::square(3, 2, 1)).benchmark(),
    ];
    // WGSL leaves the maximum of a number and NaN open.
    let classes = Fill::every_class().only(|v| !v.is_nan());
    for (label, fill) in [("every_class", classes), ("minus_infinity", Fill::Values(vec![f32::NEG_INFINITY]))] {
        let x = Operand::activation([1, 9, 7, 3]).fill(fill);
        cases.push(Case::new(format!("x=1x9x7x3;{label}"), MaxPool2d::square(3, 2, 1), vec![x], Tolerance::Exact));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_pytorch_on_partial_windows() {
        // torch.nn.functional.max_pool2d(torch.arange(12.).reshape(1, 1, 3, 4), 2, 2, padding=1, ceil_mode=True)
        let x = HostTensor::from_fn([1, 3, 4, 1], |i| i as f32);
        let op = MaxPool2d { ceil_mode: true, ..MaxPool2d::square(2, 2, 1) };
        let y = op.reference(&[&x]).unwrap();
        assert_eq!(y.as_f32().unwrap(), [0.0, 2.0, 3.0, 8.0, 10.0, 11.0]);
    }

    #[test]
    fn windows_in_the_padding_are_refused() {
        let error = MaxPool2d::square(2, 1, 2).infer(&[TensorType::f32([1, 4, 4, 1])]).unwrap_err();
        assert!(error.to_string().contains("padding"), "{error}");
        // Taps at rows -3, -1 and 1 of an image of one.
        let over = MaxPool2d { kernel: [3, 1], dilation: [2, 1], padding: [3, 0, 1, 0], ..MaxPool2d::square(1, 1, 0) };
        let error = over.infer(&[TensorType::f32([1, 1, 1, 1])]).unwrap_err();
        assert!(error.to_string().contains("further apart"), "{error}");
        assert!(over.infer(&[TensorType::f32([1, 2, 1, 1])]).is_ok());
    }
}
