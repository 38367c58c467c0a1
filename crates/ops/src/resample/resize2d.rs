use super::coordinate::Fraction;
use super::sum_of_blocks;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// How values between pixels are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Interpolation {
    /// The pixel at the rounded position.
    Nearest(Rounding),
    /// Two pixels along each axis.
    Bilinear,
    /// Four pixels along each axis under Keys' kernel with the given coefficient (PyTorch and ONNX: -0.75).
    Bicubic(f32),
}

/// Resizes x [N, H, W, C] to [N, height, width, C]; positions outside read the border pixel. No antialiasing.
#[derive(Clone, Debug)]
pub struct Resize2d {
    /// Rows and columns of the result.
    pub size: [usize; 2],
    /// How values between pixels are found.
    pub interpolation: Interpolation,
    /// Where the result's pixels lie in the input.
    pub coordinates: Coordinates,
    /// Factors by which rows and columns grow, where a file states them and they differ from the ratio of the sizes.
    pub scales: Option<[f64; 2]>,
}

params! {
    struct ResizeParams {
        count: u32, height: u32, width: u32, channels: u32, out_height: u32, out_width: u32,
        scale_y: i32, offset_y: i32, divisor_y: i32,
        scale_x: i32, offset_x: i32, divisor_x: i32,
        cubic: f32,
    }
}

impl Resize2d {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "resize2d",
        summary: "Resizing to any size: nearest, bilinear, bicubic; half-pixel, corner-aligned or asymmetric positions",
        shaders: &["resize2d"],
        cases,
    };

    /// Bilinear as in PyTorch.
    pub fn bilinear(size: [usize; 2], align_corners: bool) -> Self {
        let coordinates = if align_corners { Coordinates::AlignCorners } else { Coordinates::HalfPixel };
        Resize2d { size, interpolation: Interpolation::Bilinear, coordinates, scales: None }
    }

    /// Bicubic as in PyTorch.
    pub fn bicubic(size: [usize; 2], align_corners: bool) -> Self {
        Resize2d { interpolation: Interpolation::Bicubic(-0.75), ..Self::bilinear(size, align_corners) }
    }

    /// PyTorch's `nearest`.
    pub fn nearest(size: [usize; 2]) -> Self {
        let interpolation = Interpolation::Nearest(Rounding::Floor);
        Resize2d { size, interpolation, coordinates: Coordinates::Asymmetric, scales: None }
    }

    fn fractions(&self, x: &TensorType) -> Result<[Fraction; 2]> {
        let rounding = match self.interpolation {
            Interpolation::Nearest(rounding) => Some(rounding),
            _ => None,
        };
        let axis = |i: usize| {
            let factor = self.scales.map(|s| s[i]);
            Fraction::new(self.coordinates, rounding, x.shape[1 + i], self.size[i], factor)
        };
        Ok([axis(0)?, axis(1)?])
    }

    /// The input pixels and weights that output `d` of an axis of `extent` pixels is made of.
    fn taps(&self, fraction: &Fraction, d: usize, extent: usize) -> Vec<(usize, f64)> {
        let (whole, t) = fraction.at(d);
        let clamp = |i: i64| i.clamp(0, extent as i64 - 1) as usize;
        match self.interpolation {
            Interpolation::Nearest(_) => vec![(clamp(whole), 1.0)],
            Interpolation::Bilinear => vec![(clamp(whole), 1.0 - t), (clamp(whole + 1), t)],
            Interpolation::Bicubic(a) => {
                let a = f64::from(a);
                let near = |t: f64| ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
                let far = |t: f64| ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a;
                let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
                (0i64..).zip(weights).map(|(i, w)| (clamp(whole - 1 + i), w)).collect()
            }
        }
    }
}

impl Operator for Resize2d {
    fn name(&self) -> &'static str {
        "resize2d"
    }

    fn attributes(&self) -> String {
        let mode = match self.interpolation {
            Interpolation::Nearest(rounding) => format!("nearest({rounding:?})"),
            Interpolation::Bilinear => "bilinear".to_owned(),
            Interpolation::Bicubic(a) => format!("bicubic({a})"),
        };
        let scales = self.scales.map_or("sizes".to_owned(), |s| format!("{},{}", s[0], s[1]));
        format!("size={}x{};mode={mode};at={:?};scales={scales}", self.size[0], self.size[1], self.coordinates)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("resize2d", inputs, 1)?;
        let x = &inputs[0];
        if x.shape.rank() != 4 || x.shape.count() == 0 || self.size.contains(&0) {
            let why = format!("takes an image [N, H, W, C] with pixels, got {x} to {:?}", self.size);
            return Err(Error::operator("resize2d", why));
        }
        self.fractions(x)?;
        Ok(TensorType::new(x.dtype, [x.shape[0], self.size[0], self.size[1], x.shape[3]]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let x = &cx.inputs[0];
        let [y_axis, x_axis] = self.fractions(x)?;
        let (mode, cubic) = match self.interpolation {
            Interpolation::Nearest(_) => (0u32, 0.0),
            Interpolation::Bilinear => (1, 0.0),
            Interpolation::Bicubic(a) => (2, a),
        };
        let count = cx.output.shape.count();
        let params = ResizeParams {
            count: count as u32,
            height: x.shape[1] as u32,
            width: x.shape[2] as u32,
            channels: x.shape[3] as u32,
            out_height: self.size[0] as u32,
            out_width: self.size[1] as u32,
            scale_y: y_axis.scale,
            offset_y: y_axis.offset,
            divisor_y: y_axis.divisor,
            scale_x: x_axis.scale,
            offset_x: x_axis.offset,
            divisor_x: x_axis.divisor,
            cubic,
        };
        let dispatch = Dispatch::new("resize2d", params)
            .storage(x.dtype)
            .constant("MODE", mode)
            .bind([Slot::Input(0), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("flat", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let input = inputs[0].tensor_type();
        let output = self.infer(std::slice::from_ref(&input))?;
        let x = inputs[0].as_f32()?;
        let (height, width, channels) = (input.shape[1], input.shape[2], input.shape[3]);
        let [y_axis, x_axis] = self.fractions(&input)?;
        let columns: Vec<_> = (0..self.size[1]).map(|d| self.taps(&x_axis, d, width)).collect();
        let mut y = Vec::with_capacity(output.shape.count());
        let mut sums = vec![0f64; channels];
        for n in 0..input.shape[0] {
            for out_y in 0..self.size[0] {
                let rows = self.taps(&y_axis, out_y, height);
                for columns in &columns {
                    sums.fill(0.0);
                    for &(row, row_weight) in &rows {
                        for &(column, weight) in columns {
                            let pixel = &x[((n * height + row) * width + column) * channels..][..channels];
                            for (sum, &v) in sums.iter_mut().zip(pixel) {
                                *sum += row_weight * weight * f64::from(v);
                            }
                        }
                    }
                    y.extend(sums.iter().map(|&v| v as f32));
                }
            }
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let x = rule.ty(Value::Operand(0));
        let repeats = [0, 1].map(|axis| self.size[axis] / x.shape[1 + axis]);
        let fractions = self.fractions(&x)?;
        let repeated = |axis: usize| {
            let extent = x.shape[1 + axis];
            repeats[axis] * extent == self.size[axis]
                && (0..self.size[axis])
                    .all(|d| self.taps(&fractions[axis], d, extent).first() == Some(&(d / repeats[axis], 1.0)))
        };
        if !matches!(self.interpolation, Interpolation::Nearest(_)) || !repeated(0) || !repeated(1) {
            return Err(rule.fail("has no gradient rule but where every pixel is repeated a whole number of times"));
        }
        let dx = sum_of_blocks(rule, repeats)?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |x: [usize; 4], op: Resize2d| {
        let tolerance = match op.interpolation {
            Interpolation::Nearest(_) => Tolerance::Exact,
            Interpolation::Bilinear => Tolerance::Sum(4),
            Interpolation::Bicubic(_) => Tolerance::Sum(16),
        };
        let name = format!("x={}x{}x{}x{};{}", x[0], x[1], x[2], x[3], op.attributes());
        Case::new(name, op, vec![Operand::activation(x)], tolerance)
    };
    // Every pixel a whole number of times.
    let mut cases = vec![case([2, 3, 4, 3], Resize2d::nearest([6, 12]))];
    for (x, size) in [([2, 5, 7, 3], [9, 8]), ([1, 8, 6, 4], [4, 5]), ([1, 3, 1, 2], [1, 6])] {
        for align_corners in [false, true] {
            cases.push(case(x, Resize2d::bilinear(size, align_corners)));
            cases.push(case(x, Resize2d::bicubic(size, align_corners)));
        }
        cases.push(case(x, Resize2d { coordinates: Coordinates::Asymmetric, ..Resize2d::bilinear(size, false) }));
        cases.push(case(x, Resize2d::nearest(size)));
        for rounding in [Rounding::Floor, Rounding::Ceil, Rounding::RoundPreferFloor, Rounding::RoundPreferCeil] {
            let interpolation = Interpolation::Nearest(rounding);
            for coordinates in [Coordinates::HalfPixel, Coordinates::AlignCorners] {
                cases.push(case(x, Resize2d { size, interpolation, coordinates, scales: None }));
            }
        }
    }
    let scaled = Resize2d { scales: Some([1.7, 0.6]), ..Resize2d::bilinear([8, 4], false) };
    cases.push(case([1, 5, 7, 3], scaled.clone()));
    let coordinates = Coordinates::Asymmetric;
    cases.push(case(
        [1, 5, 7, 3],
        Resize2d { coordinates, interpolation: Resize2d::nearest([1, 1]).interpolation, ..scaled },
    ));
    let x = Operand::activation([1, 3, 2, 3]).fill(Fill::every_class());
    cases.push(Case::new("x=1x3x2x3;every_class", Resize2d::nearest([4, 5]), vec![x], Tolerance::Exact));
    cases.push(case([1, 64, 64, 256], Resize2d::bilinear([512, 512], true)).benchmark());
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_agree_with_pytorch() {
        // torch.nn.functional.interpolate(torch.arange(4.).reshape(1, 1, 1, 4), size=(1, 7), ...)
        let x = HostTensor::from_f32([1, 1, 4, 1], vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        let check = |op: Resize2d, want: [f32; 7]| {
            let y = op.reference(&[&x]).unwrap();
            for (got, want) in y.as_f32().unwrap().iter().zip(want) {
                assert!((got - want).abs() < 1e-4, "{op:?}: {y:?}");
            }
        };
        check(Resize2d::bilinear([1, 7], false), BILINEAR);
        check(Resize2d::bilinear([1, 7], true), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
        check(Resize2d::bicubic([1, 7], false), BICUBIC);
        check(Resize2d::nearest([1, 7]), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0]);
    }

    const BILINEAR: [f32; 7] = [0.0, 0.357143, 0.928571, 1.5, 2.071429, 2.642857, 3.0];
    const BICUBIC: [f32; 7] = [-0.099216, 0.279245, 0.896592, 1.5, 2.103409, 2.720754, 3.099216];
}
