use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// A crop through an affine map: y[n, v, u] = x[n] at (sx, sy) = M[n]·(u, v, 1), bilinear, zero outside. Pixel centres lie at whole
/// coordinates, as in OpenCV's `warpAffine` with `WARP_INVERSE_MAP`.
///
/// Operands: x [N, H, W, C]; M [N, 2, 3] in f32. Result: [N, height, width, C] of x's element type.
#[derive(Clone, Debug)]
pub struct AffineSample {
    /// Rows and columns of the result.
    pub size: [usize; 2],
}

/// The gradient of [`AffineSample`] in the image. The matrix has none: it comes from landmarks that are found, not computed.
///
/// Operands: upstream [N, h, w, C]; M [N, 2, 3] in f32. Result: [N, height, width, C] of the upstream's element type.
#[derive(Clone, Debug)]
pub struct AffineSampleGradient {
    /// Rows and columns of the image.
    pub size: [usize; 2],
}

params! {
    struct SampleParams { count: u32, height: u32, width: u32, channels: u32, out_height: u32, out_width: u32 }
}

fn infer(name: &str, inputs: &[TensorType], [height, width]: [usize; 2]) -> Result<TensorType> {
    expect_operands(name, inputs, 2)?;
    let x = &inputs[0];
    let fits = x.shape.rank() == 4 && x.shape.count() > 0 && x.dtype.is_float() && height > 0 && width > 0;
    if !fits || inputs[1] != TensorType::f32([x.shape[0], 2, 3]) {
        let detail = format!("takes an image [N, H, W, C] and f32 [N, 2, 3], got {}", types(inputs));
        return Err(Error::operator(name, detail));
    }
    Ok(TensorType::new(x.dtype, [x.shape[0], height, width, x.shape[3]]))
}

/// The one dispatch of an operator that maps an image of `[height, width]` to a crop of `crop`.
fn variant(shader: &'static str, ty: &TensorType, [height, width]: [usize; 2], crop: [usize; 2]) -> Variant {
    let count = ty.shape.count();
    let params = SampleParams {
        count: count as u32,
        height: height as u32,
        width: width as u32,
        channels: ty.shape.last() as u32,
        out_height: crop[0] as u32,
        out_width: crop[1] as u32,
    };
    let slots = [Slot::Input(0), Slot::Input(1), Slot::Output];
    Variant::single("flat", Dispatch::new(shader, params).storage(ty.dtype).bind(slots).over(count))
}

/// What a crop's pixels read: calls `visit` with image, pixel of the crop, pixel of the image and weight.
fn reads(
    matrix: &[f32],
    [height, width]: [usize; 2],
    crop: [usize; 2],
    mut visit: impl FnMut(usize, usize, usize, f64),
) {
    for (image, m) in matrix.chunks_exact(6).enumerate() {
        let m: Vec<f64> = m.iter().map(|&v| f64::from(v)).collect();
        for to in 0..crop[0] * crop[1] {
            let (u, v) = ((to % crop[1]) as f64, (to / crop[1]) as f64);
            let (sx, sy) = (m[0] * u + m[1] * v + m[2], m[3] * u + m[4] * v + m[5]);
            for (row, down) in [(sy.floor(), 1.0 - (sy - sy.floor())), (sy.floor() + 1.0, sy - sy.floor())] {
                for (column, right) in [(sx.floor(), 1.0 - (sx - sx.floor())), (sx.floor() + 1.0, sx - sx.floor())] {
                    let inside = row >= 0.0 && column >= 0.0 && row < height as f64 && column < width as f64;
                    if inside {
                        visit(image, to, row as usize * width + column as usize, down * right);
                    }
                }
            }
        }
    }
}

impl AffineSample {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "affine_sample",
        summary: "A crop of an image through an affine map, bilinear",
        shaders: &["affine_sample"],
        cases,
    };
}

impl AffineSampleGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "affine_sample_gradient",
        summary: "Gradient of a crop in its image",
        shaders: &["affine_sample_gradient"],
        cases: gradient_cases,
    };
}

impl Operator for AffineSample {
    fn name(&self) -> &'static str {
        "affine_sample"
    }

    fn attributes(&self) -> String {
        format!("size={},{}", self.size[0], self.size[1])
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        infer("affine_sample", inputs, self.size)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let x = &cx.inputs[0].shape;
        Ok(vec![variant("affine_sample", cx.output, [x[1], x[2]], self.size)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let (from, channels, x) = (inputs[0].shape(), output.shape.last(), inputs[0].as_f32()?);
        let mut y = vec![0f64; output.shape.count()];
        let (pixels, crop) = (from[1] * from[2], self.size[0] * self.size[1]);
        reads(inputs[1].as_f32()?, [from[1], from[2]], self.size, |image, to, pixel, weight| {
            for c in 0..channels {
                y[(image * crop + to) * channels + c] += weight * f64::from(x[(image * pixels + pixel) * channels + c]);
            }
        });
        HostTensor::from_f32(output.shape, y.into_iter().map(|v| v as f32).collect())
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let x = rule.shape(Value::Operand(0));
        let operator = AffineSampleGradient { size: [x[1], x[2]] };
        let dx = rule.apply(operator, [Value::Upstream, Value::Operand(1)])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

impl Operator for AffineSampleGradient {
    fn name(&self) -> &'static str {
        "affine_sample_gradient"
    }

    fn attributes(&self) -> String {
        format!("size={},{}", self.size[0], self.size[1])
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        infer("affine_sample_gradient", inputs, self.size)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let crop = &cx.inputs[0].shape;
        Ok(vec![variant("affine_sample_gradient", cx.output, self.size, [crop[1], crop[2]])])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let output = self.infer(&[inputs[0].tensor_type(), inputs[1].tensor_type()])?;
        let (from, channels, up) = (inputs[0].shape(), output.shape.last(), inputs[0].as_f32()?);
        let mut dx = vec![0f64; output.shape.count()];
        let (pixels, crop) = (self.size[0] * self.size[1], from[1] * from[2]);
        reads(inputs[1].as_f32()?, self.size, [from[1], from[2]], |image, to, pixel, weight| {
            for c in 0..channels {
                dx[(image * pixels + pixel) * channels + c] +=
                    weight * f64::from(up[(image * crop + to) * channels + c]);
            }
        });
        HostTensor::from_f32(output.shape, dx.into_iter().map(|v| v as f32).collect())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

/// Maps whose numbers are short in binary, so that coordinates are the same in f32 and f64: halved and turned, enlarged and moved
/// outside, mirrored, and one onto a line.
const MAPS: [[f32; 6]; 4] = [
    [1.75, -0.5, 1.25, 0.5, 1.75, -0.75],
    [0.375, 0.125, -1.5, -0.125, 0.375, 3.0],
    [-1.0, 0.0, 8.0, 0.0, 1.0, 0.0],
    [0.5, 0.5, 1.0, 0.25, 0.25, 0.5],
];

fn operands(image: [usize; 4], map: usize) -> Vec<Operand> {
    let matrix = Fill::Values(MAPS[map].into_iter().chain(MAPS[(map + 1) % MAPS.len()]).collect());
    vec![Operand::activation(image), Operand::parameter([image[0], 2, 3]).fill(matrix)]
}

fn cases() -> Vec<Case> {
    let case = |[h, w, c]: [usize; 3], size: [usize; 2], map: usize| {
        let name = format!("x=2x{h}x{w}x{c};size={}x{};map={map}", size[0], size[1]);
        Case::new(name, AffineSample { size }, operands([2, h, w, c], map), Tolerance::Pointwise)
    };
    let large = Case::new(
        "x=1x1024x1024x3;size=112x112",
        AffineSample { size: [112, 112] },
        operands([1, 1024, 1024, 3], 0),
        Tolerance::Pointwise,
    );
    vec![
        case([9, 11, 3], [7, 5], 0),
        case([9, 11, 3], [13, 17], 1),
        case([5, 9, 1], [5, 9], 2),
        case([1, 1, 4], [3, 3], 3),
        large.benchmark(),
    ]
}

fn gradient_cases() -> Vec<Case> {
    let case = |[h, w, c]: [usize; 3], size: [usize; 2], map: usize| {
        let name = format!("upstream=2x{h}x{w}x{c};size={}x{};map={map}", size[0], size[1]);
        let operator = AffineSampleGradient { size };
        Case::new(name, operator, operands([2, h, w, c], map), Tolerance::Sum(h * w))
    };
    let large = Case::new(
        "upstream=1x112x112x3;size=1024x1024",
        AffineSampleGradient { size: [1024, 1024] },
        operands([1, 112, 112, 3], 0),
        Tolerance::Sum(4),
    );
    vec![
        case([7, 5, 3], [9, 11], 0),
        case([13, 17, 3], [9, 11], 1),
        case([5, 9, 1], [5, 9], 2),
        case([3, 3, 4], [1, 1], 3),
        case([6, 4, 2], [5, 7], 3),
        large.benchmark(),
    ]
}
