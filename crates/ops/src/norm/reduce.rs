use crate::strided::{Walk, offsets};
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// What [`Reduce`] computes. Codes are shared with `shaders/norm/reduce_*.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The sum.
    Sum,
    /// The mean.
    Mean,
    /// The largest element.
    Max,
    /// The product.
    Product,
}

impl Reduction {
    const fn label(self) -> &'static str {
        match self {
            Reduction::Sum => "sum",
            Reduction::Mean => "mean",
            Reduction::Max => "max",
            Reduction::Product => "product",
        }
    }
}

/// Sum, mean, maximum or product over axes.
///
/// Operand: x of any shape. Result: x's element type, the reduced axes of extent 1 or left out.
#[derive(Clone, Debug)]
pub struct Reduce {
    /// The function.
    pub reduction: Reduction,
    /// Axes to reduce, each once.
    pub axes: Vec<usize>,
    /// Whether reduced axes stay with extent 1.
    pub keep_dims: bool,
}

params! {
    struct ReduceParams {
        near: [u32; 4], far: [u32; 4],
        x_near: [u32; 4], x_far: [u32; 4],
        inner: [u32; 4], inner_stride: [u32; 4],
        count: u32, scale: f32,
    }
}

/// Extents and strides of the kept and of the reduced axes.
struct Split {
    kept: Vec<usize>,
    kept_strides: Vec<usize>,
    reduced: Vec<usize>,
    reduced_strides: Vec<usize>,
}

impl Reduce {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "reduce",
        summary: "Sum, mean, maximum or product over axes",
        shaders: &["reduce_serial", "reduce_workgroup"],
        cases,
    };

    /// A mean that keeps the reduced axes.
    pub fn mean(axes: impl Into<Vec<usize>>) -> Self {
        Reduce { reduction: Reduction::Mean, axes: axes.into(), keep_dims: true }
    }

    fn split(&self, x: &TensorType) -> Split {
        let strides = x.shape.strides();
        let of = |wanted: bool| {
            (0..x.shape.rank())
                .filter(|axis| self.axes.contains(axis) == wanted)
                .map(|axis| (x.shape[axis], strides[axis]))
                .unzip()
        };
        let (kept, kept_strides) = of(false);
        let (reduced, reduced_strides) = of(true);
        Split { kept, kept_strides, reduced, reduced_strides }
    }
}

/// Elements of a result from which a workgroup of 64 shares them: four for each invocation.
const WORTH_SHARING: usize = 256;

/// Results that do not occupy a GPU by one invocation each: large ones keep tens of thousands in flight.
const FEW_RESULTS: usize = 16_384;

/// Elements of a result that one invocation may sum up. Mesa's llvmpipe makes at most 65,535 turns of all loops of an invocation together, and
/// ends them there without a word; those around the innermost loop together make no more turns than it.
const MOST_ELEMENTS: usize = 65_535 / 2;

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn attributes(&self) -> String {
        format!("op={};axes={:?};keep={}", self.reduction.label(), self.axes, self.keep_dims)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("reduce", inputs, 1)?;
        let x = &inputs[0];
        let mut seen = self.axes.clone();
        seen.sort_unstable();
        seen.dedup();
        let fail = |why: &str| Error::operator("reduce", format!("{why}: {x} ({})", self.attributes()));
        if seen.len() != self.axes.len() || seen.last().is_some_and(|&a| a >= x.shape.rank()) {
            return Err(fail("the axes must be different axes of the operand"));
        }
        if !x.dtype.is_float() || x.shape.count() == 0 {
            return Err(fail("the operand must hold float elements"));
        }
        let split = self.split(x);
        Walk::new(&split.kept, &[&split.kept_strides]).check("reduce")?;
        if Walk::new(&split.reduced, &[&split.reduced_strides]).extents.len() > 4 {
            return Err(fail("reduces at most 4 separate groups of axes"));
        }
        let shape: Vec<usize> = (0..x.shape.rank())
            .filter_map(|axis| match (self.axes.contains(&axis), self.keep_dims) {
                (false, _) => Some(x.shape[axis]),
                (true, true) => Some(1),
                (true, false) => None,
            })
            .collect();
        Ok(TensorType::new(x.dtype, shape))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let split = self.split(&cx.inputs[0]);
        let walk = Walk::new(&split.kept, &[&split.kept_strides]);
        let inner = Walk::new(&split.reduced, &[&split.reduced_strides]);
        let (near, far) = walk.extent_vectors();
        let (x_near, x_far) = walk.stride_vectors(0);
        let length = inner.count();
        let params = ReduceParams {
            near,
            far,
            x_near,
            x_far,
            inner: inner.extent_vectors().0,
            inner_stride: inner.stride_vectors(0).0,
            count: walk.count() as u32,
            scale: if self.reduction == Reduction::Mean { 1.0 / length as f32 } else { 1.0 },
        };
        let dispatch = |shader| {
            Dispatch::new(shader, params)
                .storage(cx.output.dtype)
                .constant("REDUCTION", self.reduction as u32)
                .constant("RANK", walk.rank())
                .bind([Slot::Input(0), Slot::Output])
        };
        let mut variants = vec![Variant::single("serial", dispatch("reduce_serial").over(walk.count()))];
        // Products are rare and short.
        if self.reduction == Reduction::Product {
            return Ok(variants);
        }
        if length > MOST_ELEMENTS {
            variants.clear();
        }
        variants.push(Variant::single("workgroup", dispatch("reduce_workgroup").groups(walk.count())));
        if cx.capabilities.kind != DeviceKind::Cpu && length >= WORTH_SHARING && walk.count() < FEW_RESULTS {
            variants.reverse();
        }
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let ty = inputs[0].tensor_type();
        let output = self.infer(std::slice::from_ref(&ty))?;
        let x = inputs[0].as_f32()?;
        let split = self.split(&ty);
        let y = offsets(&split.kept, &split.kept_strides, 0)
            .map(|first| {
                let elements = offsets(&split.reduced, &split.reduced_strides, first).map(|i| f64::from(x[i]));
                match self.reduction {
                    Reduction::Sum => elements.sum::<f64>() as f32,
                    Reduction::Mean => (elements.sum::<f64>() / split.reduced.iter().product::<usize>() as f64) as f32,
                    Reduction::Max => elements.fold(f64::NEG_INFINITY, f64::max) as f32,
                    Reduction::Product => elements.product::<f64>() as f32,
                }
            })
            .collect();
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        Cost { flops: inputs[0].shape.count() as u64, bytes: (inputs[0].bytes() + output.bytes()) as u64 }
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        let x = rule.shape(Value::Operand(0));
        let mut kept = x.to_vec();
        self.axes.iter().for_each(|&axis| kept[axis] = 1);
        let count: usize = self.axes.iter().map(|&axis| x[axis]).product();
        let mut up = rule.reshape(Value::Upstream, kept)?;
        match self.reduction {
            Reduction::Sum => {}
            Reduction::Mean => {
                up = rule.apply(Unary(Activation::Affine((1.0 / count as f64) as f32, 0.0)), [up])?;
            }
            Reduction::Max | Reduction::Product => {
                return Err(rule.fail("has no gradient rule but for sums and means"));
            }
        }
        if rule.shape(up) != x {
            up = rule.apply(Expand::new(x), [up])?;
        }
        rule.set(0, up);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let text = |s: &[usize], by: &str| s.iter().map(usize::to_string).collect::<Vec<_>>().join(by);
    let shapes: [(&[usize], &[usize], bool); 7] = [
        (&[2, 3, 5, 7], &[1, 2], true),
        (&[3, 5], &[1], false),
        (&[3, 5], &[0, 1], false),
        (&[2, 3, 4, 5, 6], &[0, 2, 4], true),
        (&[2, 3, 2, 3, 2, 3], &[1, 3], false),
        (&[1, 1, 9], &[0, 1], false),
        (&[4, 700], &[1], true),
    ];
    for (shape, axes, keep_dims) in shapes {
        let length: usize = axes.iter().map(|&a| shape[a]).product();
        for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Max] {
            let op = Reduce { reduction, axes: axes.to_vec(), keep_dims };
            let name =
                format!("op={};x={};axes={};keep={keep_dims}", reduction.label(), text(shape, "x"), text(axes, ","));
            // A sum may cancel, so its error is held against the size of what it adds.
            let x = Operand::activation(shape).fill(Fill::Uniform(0.1, 2.0));
            cases.push(Case::new(name, op, vec![x], Tolerance::Sum(length)));
        }
    }
    for (shape, axes, keep_dims) in [(&[2, 3, 5, 7][..], &[1, 2][..], true), (&[3, 5], &[0, 1], false)] {
        let op = Reduce { reduction: Reduction::Product, axes: axes.to_vec(), keep_dims };
        let name = format!("op=product;x={};axes={};keep={keep_dims}", text(shape, "x"), text(axes, ","));
        let x = Operand::activation(shape).fill(Fill::Uniform(0.5, 1.5));
        cases.push(Case::new(name, op, vec![x], Tolerance::Sum(15)));
    }
    let classes = Fill::every_class().only(|v| !v.is_nan());
    // Beside the lanes of a workgroup, and nothing that is larger than the smallest number.
    for (width, label, fill) in [
        (63, "every_class", classes.clone()),
        (64, "normal", Fill::Normal(0.0, 1.0)),
        (65, "normal", Fill::Normal(0.0, 1.0)),
        (5, "minus_infinity", Fill::Values(vec![f32::NEG_INFINITY])),
        (65, "minus_infinity", Fill::Values(vec![f32::NEG_INFINITY])),
        (65, "lowest", Fill::Values(vec![f32::MIN])),
    ] {
        let op = Reduce { reduction: Reduction::Max, axes: vec![1], keep_dims: false };
        let x = Operand::activation([3, width]).fill(fill);
        cases.push(Case::new(format!("op=max;x=3x{width};axes=1;{label}"), op, vec![x], Tolerance::Exact));
    }
    for width in [63, 64, 65] {
        let op = Reduce { reduction: Reduction::Sum, axes: vec![1], keep_dims: false };
        let x = Operand::activation([3, width]).fill(Fill::Uniform(0.1, 2.0));
        cases.push(Case::new(format!("op=sum;x=3x{width};axes=1"), op, vec![x], Tolerance::Sum(width)));
    }
    let x = vec![Operand::activation([1, 64, 64, 320])];
    cases.push(Case::new("op=mean;x=1x64x64x320;axes=1,2", Reduce::mean([1, 2]), x, Tolerance::Sum(4096)).benchmark());
    cases
}
