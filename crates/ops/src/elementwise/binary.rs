use crate::strided::{Walk, offsets};
use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, Shape, TensorType};
use std::ops::Range;

/// What [`Binary`] computes. Codes are shared with `shaders/elementwise/binary.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryFunction {
    /// a + b.
    Add,
    /// a - b.
    Sub,
    /// a·b.
    Mul,
    /// a / b.
    Div,
    /// The larger.
    Max,
    /// The smaller.
    Min,
    /// a to the power b.
    Pow,
    /// 1 where a < b, else 0.
    Less,
    /// 1 where a <= b, else 0.
    LessOrEqual,
    /// 1 where a = b, else 0.
    Equal,
}

impl BinaryFunction {
    const ALL: [(BinaryFunction, &'static str); 10] = [
        (BinaryFunction::Add, "add"),
        (BinaryFunction::Sub, "sub"),
        (BinaryFunction::Mul, "mul"),
        (BinaryFunction::Div, "div"),
        (BinaryFunction::Max, "max"),
        (BinaryFunction::Min, "min"),
        (BinaryFunction::Pow, "pow"),
        (BinaryFunction::Less, "less"),
        (BinaryFunction::LessOrEqual, "less_or_equal"),
        (BinaryFunction::Equal, "equal"),
    ];

    /// Canonical name, for example `add`.
    pub const fn label(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Whether the result is 1 or 0.
    pub const fn compares(self) -> bool {
        matches!(self, BinaryFunction::Less | BinaryFunction::LessOrEqual | BinaryFunction::Equal)
    }

    /// The function in double precision.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        match self {
            BinaryFunction::Add => a + b,
            BinaryFunction::Sub => a - b,
            BinaryFunction::Mul => a * b,
            BinaryFunction::Div => a / b,
            BinaryFunction::Max => a.max(b),
            BinaryFunction::Min => a.min(b),
            BinaryFunction::Pow => a.powf(b),
            BinaryFunction::Less => f64::from(a < b),
            BinaryFunction::LessOrEqual => f64::from(a <= b),
            BinaryFunction::Equal => f64::from(a == b),
        }
    }
}

/// y = f(a op b), broadcast by NumPy's rule.
///
/// Operands: a; b of a's type, or f32 under f16 activations (vectors of parameters). The result has a's element type.
#[derive(Clone, Debug)]
pub struct Binary {
    /// op.
    pub function: BinaryFunction,
    /// f.
    pub activation: Activation,
}

params! {
    struct BinaryParams {
        near: [u32; 4], far: [u32; 4],
        a_near: [u32; 4], a_far: [u32; 4],
        b_near: [u32; 4], b_far: [u32; 4],
        count: u32,
    }
}

impl Binary {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "binary",
        summary: "Add, subtract, multiply, divide, max, min, power or comparison of two operands, with broadcasting",
        shaders: &["binary"],
        cases,
    };

    /// The plain function.
    pub fn new(function: BinaryFunction) -> Self {
        Binary { function, activation: Activation::None }
    }

    /// a + b.
    pub fn add() -> Self {
        Self::new(BinaryFunction::Add)
    }

    /// a - b.
    pub fn sub() -> Self {
        Self::new(BinaryFunction::Sub)
    }

    /// a·b.
    pub fn mul() -> Self {
        Self::new(BinaryFunction::Mul)
    }

    /// a / b.
    pub fn div() -> Self {
        Self::new(BinaryFunction::Div)
    }

    /// The strides of both operands along the result.
    fn strides(a: &TensorType, b: &TensorType, y: &TensorType) -> Result<(Vec<usize>, Vec<usize>)> {
        match (a.shape.broadcast_strides(&y.shape), b.shape.broadcast_strides(&y.shape)) {
            (Some(a), Some(b)) => Ok((a, b)),
            _ => Err(Error::operator("binary", format!("{a} and {b} do not broadcast to {y}"))),
        }
    }
}

impl Operator for Binary {
    fn name(&self) -> &'static str {
        "binary"
    }

    fn attributes(&self) -> String {
        format!("op={};f={}", self.function.label(), self.activation.label())
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("binary", inputs, 2)?;
        let (a, b) = (&inputs[0], &inputs[1]);
        if !a.dtype.is_float() || (b.dtype != a.dtype && b.dtype != DType::F32) {
            let detail = format!("operands must share a float type, or the second be f32: {}", types(inputs));
            return Err(Error::operator("binary", detail));
        }
        let shape = a.shape.broadcast(&b.shape).ok_or_else(|| {
            Error::operator("binary", format!("shapes do not broadcast: {} ({})", types(inputs), self.attributes()))
        })?;
        let output = TensorType::new(a.dtype, shape);
        let (sa, sb) = Self::strides(a, b, &output)?;
        Walk::new(&output.shape, &[&sa, &sb]).check("binary")?;
        Ok(output)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (a, b) = (&cx.inputs[0], &cx.inputs[1]);
        let (sa, sb) = Self::strides(a, b, cx.output)?;
        let walk = Walk::new(&cx.output.shape, &[&sa, &sb]);
        let cells = walk.by_four(&[]);
        let by_four = cells.is_some();
        let walk = cells.unwrap_or(walk);
        let (near, far) = walk.extent_vectors();
        let (a_near, a_far) = walk.stride_vectors(0);
        let (b_near, b_far) = walk.stride_vectors(1);
        let count = walk.count();
        let params = BinaryParams { near, far, a_near, a_far, b_near, b_far, count: count as u32 };
        let dispatch = Dispatch::new("binary", params)
            .storage(a.dtype)
            .feature("vec4", by_four)
            .feature("wide", a.dtype != b.dtype)
            .activation(self.activation)
            .constant("FUNCTION", self.function as u32)
            .constant("RANK", walk.rank())
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .over(count);
        Ok(vec![Variant::single(if by_four { "cells" } else { "elements" }, dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types = [inputs[0].tensor_type(), inputs[1].tensor_type()];
        let output = self.infer(&types)?;
        let (sa, sb) = Self::strides(&types[0], &types[1], &output)?;
        let (a, b) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let y = offsets(&output.shape, &sa, 0)
            .zip(offsets(&output.shape, &sb, 0))
            .map(|(i, j)| self.activation.apply(self.function.apply(f64::from(a[i]), f64::from(b[j]))) as f32)
            .collect();
        HostTensor::from_f32(output.shape, y)
    }

    fn as_epilogue(&self, operand: usize, inputs: &[TensorType]) -> Option<Epilogue> {
        let plain = self.function == BinaryFunction::Add && self.activation == Activation::None;
        let [a, b] = inputs else { return None };
        let (x, other) = if operand == 0 { (a, b) } else { (b, a) };
        match plain && x.dtype == other.dtype {
            true if x == other => Some(Epilogue::Residual),
            true => (Some(&other.shape) == per_image(&x.shape).as_ref()).then_some(Epilogue::PerImage),
            false => None,
        }
    }

    fn with_epilogue(&self, epilogue: Epilogue) -> Option<Box<dyn Operator>> {
        match epilogue {
            Epilogue::Activation(f) if self.activation == Activation::None => {
                Some(Box::new(Binary { activation: f, ..self.clone() }))
            }
            _ => None,
        }
    }

    fn rows(&self, inputs: &[TensorType], rows: Range<usize>) -> Option<RowsOf> {
        let result = self.infer(inputs).ok()?.shape;
        // Vectors of channels are the same for all rows.
        let usable = inputs.iter().all(|t| t.shape == result || t.shape.rank() < 2);
        usable.then(|| RowsOf::same(self, rows, inputs.iter().map(|t| t.shape == result)))
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        use Value::{Operand, Upstream};
        let (a, b) = (Operand(0), Operand(1));
        let mut up = Upstream;
        let plain = Binary::new(self.function);
        if self.activation != Activation::None {
            let before = rule.apply(plain.clone(), [a, b])?;
            up = rule.apply(ActivationGradient(self.activation), [before, up])?;
        }
        let negative = Unary(Activation::Neg);
        let mut sides = [None, None];
        match self.function {
            BinaryFunction::Add => sides = [Some(up), Some(up)],
            BinaryFunction::Sub => {
                sides[0] = Some(up);
                if rule.needs(1) {
                    sides[1] = Some(rule.apply(negative, [up])?);
                }
            }
            BinaryFunction::Mul => {
                if rule.needs(0) {
                    sides[0] = Some(rule.mul(up, b)?);
                }
                if rule.needs(1) {
                    sides[1] = Some(rule.mul(up, a)?);
                }
            }
            BinaryFunction::Div => {
                let quotient = rule.apply(Binary::div(), [up, b])?;
                sides[0] = Some(quotient);
                if rule.needs(1) {
                    let ratio = rule.apply(plain, [a, b])?;
                    let product = rule.mul(quotient, ratio)?;
                    sides[1] = Some(rule.apply(negative, [product])?);
                }
            }
            BinaryFunction::Max | BinaryFunction::Min => {
                // Who has the gradient, 0 or 1; equal operands share it, as in PyTorch.
                let less = rule.apply(Binary::new(BinaryFunction::Less), [a, b])?;
                let equal = rule.apply(Binary::new(BinaryFunction::Equal), [a, b])?;
                let half = rule.apply(Unary(Activation::Affine(0.5, 0.0)), [equal])?;
                let of_larger_b = rule.apply(Binary::add(), [less, half])?;
                let of_larger_a = rule.apply(Unary(Activation::Affine(-1.0, 1.0)), [of_larger_b])?;
                let shares = match self.function {
                    BinaryFunction::Max => [of_larger_a, of_larger_b],
                    _ => [of_larger_b, of_larger_a],
                };
                for (side, share) in shares.into_iter().enumerate() {
                    if rule.needs(side) {
                        sides[side] = Some(rule.mul(up, share)?);
                    }
                }
            }
            BinaryFunction::Pow => return Err(rule.fail("has no gradient rule for powers")),
            BinaryFunction::Less | BinaryFunction::LessOrEqual | BinaryFunction::Equal => {
                return Err(rule.fail("has no gradient: it compares"));
            }
        }
        for (i, side) in sides.into_iter().enumerate() {
            if let (Some(side), true) = (side, rule.needs(i)) {
                let sum = rule.sum_to(side, i)?;
                rule.set(i, sum);
            }
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

/// The shape of one value for each image and channel of [N, .., C]: [N, 1, .., 1, C].
pub(crate) fn per_image(shape: &Shape) -> Option<Shape> {
    let [first, middle @ .., last] = shape.extents() else { return None };
    let ones = middle.iter().map(|_| 1);
    Some(std::iter::once(*first).chain(ones).chain([*last]).collect::<Vec<_>>().into())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: [(&[usize], &[usize]); 9] = [
        (&[3, 5], &[3, 5]),
        (&[2, 3, 8], &[2, 3, 8]),
        (&[2, 3, 8], &[2, 1, 8]),
        (&[1], &[1]),
        (&[2, 7], &[1]),
        (&[4, 1, 3], &[5, 1]),
        (&[1, 12], &[2, 3, 12]),
        (&[2, 1, 3, 1, 2, 1], &[1, 3, 1, 4, 1, 5]),
        (&[2, 1, 2, 1, 2, 1, 3], &[1, 3, 1, 2, 1, 2, 3]),
    ];
    let text = |s: &[usize]| s.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    for (a, b) in shapes {
        let operands = vec![Operand::activation(a), Operand::activation(b)];
        cases.push(Case::new(
            format!("op=add;a={};b={}", text(a), text(b)),
            Binary::add(),
            operands,
            Tolerance::Pointwise,
        ));
    }
    // Comparisons have cases of their own: random operands are seldom equal.
    for (function, label) in BinaryFunction::ALL.into_iter().filter(|(f, _)| !f.compares()) {
        for n in [6, 7] {
            let a = Operand::activation([5, n]).fill(Fill::Uniform(0.2, 3.0));
            // f32 parameters under f16 activations.
            let b = Operand::parameter([n]).fill(Fill::Uniform(0.5, 2.0));
            let name = format!("op={label};a=5x{n};vector");
            let tolerance = Tolerance::Transcendental;
            cases.push(Case::new(name, Binary::new(function), vec![a, b], tolerance));
        }
    }
    for (function, label) in BinaryFunction::ALL.into_iter().filter(|(f, _)| f.compares()) {
        for n in [7, 8] {
            let a = Operand::activation([5, n]).fill(Fill::Values(vec![0.0, 1.0, -2.0, 0.5, 0.25]));
            let b = Operand::activation([n]).fill(Fill::Values(vec![0.0, 0.5, -2.0]));
            let name = format!("op={label};a=5x{n}");
            cases.push(Case::new(name, Binary::new(function), vec![a, b], Tolerance::Exact));
        }
    }
    // Every pair of classes, which is where infinity minus infinity and the like are.
    for (function, label) in BinaryFunction::ALL.into_iter().filter(|(f, _)| *f != BinaryFunction::Pow) {
        let fill = match function {
            BinaryFunction::Div => Fill::divisors(),
            // WGSL leaves the larger and the smaller of a number and NaN open.
            BinaryFunction::Max | BinaryFunction::Min => Fill::normal_classes().only(|v| !v.is_nan()),
            _ => Fill::normal_classes(),
        };
        let (a, b) = (Operand::activation([19, 1]).fill(fill.clone()), Operand::activation([1, 19]).fill(fill));
        let name = format!("op={label};every_class");
        cases.push(Case::new(name, Binary::new(function), vec![a, b], Tolerance::Pointwise));
    }
    let bases = Operand::activation([2, 8]).fill(Fill::Values(vec![-2.0, -1.5, 0.0, 0.0, 3.0, -3.0, 0.5, 1.0]));
    let exponents = Operand::activation([8]).fill(Fill::Values(vec![3.0, 2.0, 2.0, 0.0, -2.0, -1.0, 0.5, 7.5]));
    let pow = Binary::new(BinaryFunction::Pow);
    cases.push(Case::new("op=pow;signs", pow, vec![bases, exponents], Tolerance::Transcendental));
    let relu = Binary { activation: Activation::Relu, ..Binary::add() };
    let operands = vec![Operand::activation([3, 9]), Operand::activation([3, 9])];
    cases.push(Case::new("op=add;a=3x9;relu", relu, operands, Tolerance::Pointwise));
    let vector = vec![Operand::activation([2, 3, 12]), Operand::parameter([12])];
    cases.push(Case::new("op=mul;a=2x3x12;vector", Binary::mul(), vector, Tolerance::Pointwise));
    let big = vec![Operand::activation([2, 64, 64, 320]), Operand::activation([2, 64, 64, 320])];
    cases.push(Case::new("op=add;a=2x64x64x320", Binary::add(), big, Tolerance::Pointwise).benchmark());
    let big = vec![Operand::activation([2, 64, 64, 320]), Operand::activation([2, 1, 1, 320])];
    cases.push(Case::new("op=add;a=2x64x64x320;b=2x1x1x320", Binary::add(), big, Tolerance::Pointwise).benchmark());
    cases
}
