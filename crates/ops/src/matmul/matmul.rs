use super::{padded_matrix, transposed};
use crate::cooperative::CooperativeTile;
use crate::split_k::{Extents, Parts, Reduction};
use crate::workgroup_tile::WorkgroupTile;
use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, Shape, TensorType};

/// y = f(alpha · a b + bias) + residual.
///
/// Operands: a [.., M, K]; b [K, N], shared by the batch, or [.., K, N] with a's leading extents; then `bias` [N] in f32
/// and `residual` like the result where the flags ask for them. Checkpoint matrices [N, K] are transposed when loaded. A
/// shared b may be quantised.
///
/// Gated, the first half of b's columns are values and the second half their gates, as in diffusers' GEGLU: [v, w] =
/// alpha · a b + bias and y = v · f(w) + residual, [.., M, N / 2]. So the N columns between are never stored.
#[derive(Clone, Debug)]
pub struct MatMul {
    /// a is stored [.., K, M].
    pub transpose_a: bool,
    /// b is stored [.., N, K].
    pub transpose_b: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// Whether a bias follows.
    pub bias: bool,
    /// Applied before the residual.
    pub activation: Activation,
    /// Whether the first half of the columns is multiplied by the activation of the second half.
    pub gated: bool,
    /// Whether a residual follows.
    pub residual: bool,
}

impl Default for MatMul {
    fn default() -> Self {
        MatMul {
            transpose_a: false,
            transpose_b: false,
            alpha: 1.0,
            bias: false,
            activation: Activation::None,
            gated: false,
            residual: false,
        }
    }
}

params! {
    struct StridedParams {
        m: u32, n: u32, k: u32, batch: u32,
        a_batch: u32, a_row: u32, a_column: u32,
        b_batch: u32, b_row: u32, b_column: u32,
        alpha: f32,
    }
}

params! {
    pub(super) struct TileParams { m: u32, n4: u32, k4: u32, a_batch4: u32, b_batch4: u32, alpha: f32, batch: u32, part4: u32 }
}

impl TileParams {
    /// Of `batch` products alpha [m, k] [k, n], the inner axis in one part.
    fn of(batch: usize, [m, k, n]: [usize; 3], b_is_shared: bool, alpha: f32) -> Self {
        TileParams {
            m: m as u32,
            n4: (n / 4) as u32,
            k4: (k / 4) as u32,
            a_batch4: (m * k / 4) as u32,
            b_batch4: if b_is_shared { 0 } else { (k * n / 4) as u32 },
            alpha,
            batch: batch as u32,
            part4: (k / 4) as u32,
        }
    }
}

/// Products of `batch` pairs of f32 matrices [m, k] and [k, n] on a CPU device, k and n multiples of 4, as one step of another operator's variant,
/// which binds a, b, nothing, nothing and y. `None` where there are too many.
pub(crate) fn product_on_cpu(limits: &Capabilities, batch: usize, [m, k, n]: [usize; 3]) -> Option<Dispatch> {
    let params = TileParams::of(batch, [m, k, n], false, 1.0);
    let dispatch = match limits.subgroup_lanes {
        8 => Dispatch::new("matmul_subgroup_tile", params),
        _ => Dispatch::new("matmul_register_tile", params).constant("TALL", 1),
    };
    let grid = [m.div_ceil(8), n.div_ceil(32), batch];
    let fits = grid.iter().all(|&groups| groups <= limits.max_workgroups as usize);
    fits.then(|| dispatch.constant("BIAS", 0).constant("RESIDUAL", 0).grid(grid[0], grid[1], grid[2]))
}

/// Extents of one product, with a shared b folded into more rows.
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) m: usize,
    /// Columns of b.
    pub(super) n: usize,
    pub(super) k: usize,
    /// Columns of the result.
    width: usize,
    pub(super) b_is_shared: bool,
}

impl MatMul {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "matmul",
        summary: "Matrix product, plain, batched or transposed, with bias, activation, gate and residual",
        shaders: &[
            "matmul_cooperative",
            "matmul_workgroup_tile",
            "matmul_subgroup_tile",
            "matmul_register_tile",
            "matmul_strided",
            "split_k_reduce",
            "matmul_transposed_subgroup_tile",
            "matmul_transposed_register_tile",
            "matmul_left_transposed_subgroup_tile",
            "matmul_left_transposed_tile",
        ],
        cases,
    };

    /// A product with a bias: a linear layer.
    pub fn linear() -> Self {
        MatMul { bias: true, ..MatMul::default() }
    }

    fn sizes(&self, inputs: &[TensorType]) -> Result<Sizes> {
        let expected = 2 + usize::from(self.bias) + usize::from(self.residual);
        expect_operands("matmul", inputs, expected)?;
        let fail = |why: &str| Error::operator("matmul", format!("{why}: {} ({})", types(inputs), self.attributes()));
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        if a.rank() < 2 || b.rank() < 2 {
            return Err(fail("operands need two axes"));
        }
        let (rows, k) = match self.transpose_a {
            false => (a[a.rank() - 2], a.last()),
            true => (a.last(), a[a.rank() - 2]),
        };
        let (bk, n) = match self.transpose_b {
            false => (b[b.rank() - 2], b.last()),
            true => (b.last(), b[b.rank() - 2]),
        };
        if bk != k {
            return Err(fail("inner extents differ"));
        }
        let b_is_shared = b.rank() == 2;
        if self.gated && n % 2 != 0 {
            return Err(fail("half of the columns are gates, so that their number must be even"));
        }
        let width = if self.gated { n / 2 } else { n };
        if inputs[1].dtype.is_quantized() {
            // Others become so before they are lowered, see [`Operator::padded`].
            let padded = padded_matrix(bk, n).filter(|_| !self.gated && !self.residual).unwrap_or([bk, n]);
            // A transposed one is as the product before has it.
            let stored = if self.transpose_b { [n, bk] } else { padded };
            let whole = b_is_shared && fits_quantized(&TensorType::new(inputs[1].dtype, stored));
            if self.transpose_a || !whole || self.transpose_b && self.gated {
                return Err(fail(
                    "a quantised right operand must be one matrix, rows in blocks of 32, columns in fours",
                ));
            }
            if padded == [bk, n] && width % 4 != 0 {
                return Err(fail("with gates the columns of a quantised right operand must be a multiple of 8"));
            }
        } else if inputs[0].dtype == DType::F16 && inputs[1].dtype != DType::F16 {
            return Err(fail("f16 activations need an f16 right operand"));
        }
        if !b_is_shared && b[..b.rank() - 2] != a[..a.rank() - 2] {
            return Err(fail("leading extents differ"));
        }
        let batch: usize = a[..a.rank() - 2].iter().product();
        let (batch, m) = if b_is_shared && !self.transpose_a { (1, batch * rows) } else { (batch, rows) };
        if m == 0 || n == 0 || k == 0 || batch == 0 {
            return Err(fail("an extent is zero"));
        }
        Ok(Sizes { batch, m, n, k, width, b_is_shared })
    }
}

impl Operator for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn attributes(&self) -> String {
        // Said where it is so, which is in few places.
        let gated = if self.gated { ";gated=true" } else { "" };
        let transpose_a = if self.transpose_a { "transpose_a=true;" } else { "" };
        format!(
            "{transpose_a}transpose_b={};alpha={};bias={};f={};residual={}{gated}",
            self.transpose_b,
            self.alpha,
            self.bias,
            self.activation.label(),
            self.residual
        )
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let sizes = self.sizes(inputs)?;
        let mut shape = inputs[0].shape.to_vec();
        let rank = shape.len();
        if self.transpose_a {
            shape[rank - 2] = shape[rank - 1];
        }
        shape[rank - 1] = sizes.width;
        let output = TensorType::new(inputs[0].dtype, shape);
        if self.bias && inputs[2] != TensorType::f32([sizes.n]) {
            return Err(Error::operator("matmul", format!("bias must be f32[{}], got {}", sizes.n, inputs[2])));
        }
        if self.residual && inputs.last() != Some(&output) {
            return Err(Error::operator("matmul", format!("residual must be {output}, got {}", types(inputs))));
        }
        Ok(output)
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let s = self.sizes(cx.inputs)?;
        let (a, b) = (cx.inputs[0].dtype, cx.inputs[1].dtype);
        let bias = if self.bias { Slot::Input(2) } else { Slot::Unused };
        let residual = if self.residual { Slot::Input(cx.inputs.len() - 1) } else { Slot::Unused };
        let finish = |d: Dispatch| {
            let d = d
                .weight_storage(a, b)
                .activation(self.activation)
                .constant("BIAS", self.bias as u32)
                .constant("RESIDUAL", self.residual as u32)
                .bind([Slot::Input(0), Slot::Input(1), bias, residual, Slot::Output]);
            if self.gated { d.constant("GATED", 1) } else { d }
        };
        let mut variants = Vec::new();
        let params = TileParams::of(s.batch, [s.m, s.k, s.n], s.b_is_shared, self.alpha);
        let end = Reduction {
            rows: s.batch * s.m,
            columns: s.n,
            alpha: self.alpha,
            bias,
            activation: self.activation,
            gated: self.gated,
            residual,
            image: None,
        };
        // Workgroups of `columns` x `rows` elements of the product, as a whole or in parts of `inner` elements of the inner axis.
        let product = |name,
                       shader,
                       [rows, columns]: [usize; 2],
                       parts: Option<(Parts, usize)>,
                       apply: &dyn Fn(Dispatch) -> Dispatch| {
            let layers = s.batch * parts.map_or(1, |(p, _)| p.count);
            let grid = |d: Dispatch| d.grid(s.n.div_ceil(columns), s.m.div_ceil(rows), layers);
            let fits =
                s.n.div_ceil(columns).max(s.m.div_ceil(rows)).max(layers) <= cx.capabilities.max_workgroups as usize;
            let variant = match parts {
                None => Some(Variant::single(name, grid(apply(finish(Dispatch::new(shader, params)))))),
                Some((parts, inner)) => {
                    let params = TileParams { part4: (inner / 4) as u32, ..params };
                    let kernel = grid(apply(Dispatch::new(shader, params)));
                    end.variant(name, kernel, [a, b], parts, cx.capabilities.max_binding_bytes)
                }
            };
            variant.filter(|_| fits)
        };
        // Register tiles: workgroups of `columns` x `rows` elements of the result.
        let tile = |name, shader, columns: usize, rows: usize| {
            let dispatch = finish(Dispatch::new(shader, params));
            // They run along M first: all rows meet the same columns of b while those are cached.
            Variant::single(name, dispatch.grid(s.m.div_ceil(rows), s.width.div_ceil(columns), s.batch))
        };
        let limits = cx.capabilities;
        let extents = Extents { batch: s.batch, rows: s.m, columns: s.n, k: s.k };
        let fits =
            |rows: usize| s.m.div_ceil(rows).max(s.n.div_ceil(32)).max(s.batch) <= limits.max_workgroups as usize;
        let plain = !self.transpose_a && !self.transpose_b;
        let plain_end = !self.bias && !self.residual && !self.gated && self.activation == Activation::None;
        let right_transposed = self.transpose_b && !self.transpose_a && !self.gated;
        let left_transposed = self.transpose_a && !self.transpose_b && !self.gated;
        let fours = s.width.is_multiple_of(4) && (!left_transposed || s.m.is_multiple_of(4));
        let tiled = (plain || right_transposed || left_transposed) && fours && s.k.is_multiple_of(4);
        if plain && tiled {
            let on_cpu = limits.kind == DeviceKind::Cpu;
            let register = fits(4).then(|| tile("register_tile", "matmul_register_tile", 32, 4));
            let tall = (fits(4) && on_cpu)
                .then(|| tile("tall_register_tile", "matmul_register_tile", 32, 8).constant("TALL", 1));
            let long = self.cost(cx.inputs, cx.output).flops >= LONG_IN_REGISTERS;
            let registers = if long { [tall, register] } else { [register, tall] };
            let lanes = fits(8) && on_cpu && limits.subgroup_lanes == 8;
            let subgroup = lanes.then(|| tile("subgroup_tile", "matmul_subgroup_tile", 32, 8));
            variants.extend(subgroup.into_iter().chain(registers.into_iter().flatten()));
        } else if right_transposed && tiled {
            variants = transposed::right(limits, &s, params, finish);
        } else if left_transposed && plain_end && fours {
            variants = transposed::left(cx, &s, self.alpha);
        }
        if tiled {
            variants = WorkgroupTile::offer(variants, limits, extents, |t, parts| {
                let (name, inner) = (t.name(parts), parts.map(|p| (p, t.inner(p.steps))));
                product(name, "matmul_workgroup_tile", [t.rows(), t.columns()], inner, &|d| {
                    t.apply(d, s.k).feature("left_transposed", left_transposed).feature("transposed", right_transposed)
                })
            });
        }
        if a == DType::F16
            && (plain || right_transposed)
            && s.k.is_multiple_of(8)
            && s.width.is_multiple_of(8)
            && fits(32)
        {
            variants = CooperativeTile::offer(variants, limits, extents, |t, parts| {
                let (name, inner) = (t.name(parts), parts.map(|p| (p, t.inner(p.steps))));
                product(name, "matmul_cooperative", [t.rows(), t.columns()], inner, &|d| {
                    t.apply(d, s.k).feature("transposed", right_transposed)
                })
            });
        }
        if b.is_quantized() {
            return Ok(variants);
        }
        let (a_row, a_column) = if self.transpose_a { (1, s.m) } else { (s.k, 1) };
        let (b_row, b_column) = if self.transpose_b { (1, s.k) } else { (s.n, 1) };
        let params = StridedParams {
            m: s.m as u32,
            n: s.n as u32,
            k: s.k as u32,
            batch: s.batch as u32,
            a_batch: (s.m * s.k) as u32,
            a_row: a_row as u32,
            a_column: a_column as u32,
            b_batch: if s.b_is_shared { 0 } else { (s.k * s.n) as u32 },
            b_row: b_row as u32,
            b_column: b_column as u32,
            alpha: self.alpha,
        };
        let strided = finish(Dispatch::new("matmul_strided", params)).over(s.batch * s.m * s.width);
        variants.push(Variant::single("strided", strided));
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let s = self.sizes(&types)?;
        let output = self.infer(&types)?;
        let (a, b) = (inputs[0].as_f32()?, inputs[1].as_f32()?);
        let bias = if self.bias { Some(inputs[2].as_f32()?) } else { None };
        let residual = if self.residual { Some(inputs[inputs.len() - 1].as_f32()?) } else { None };
        let mut y = Vec::with_capacity(output.shape.count());
        let mut row_sums = vec![0f64; s.n];
        let mut row = vec![0f32; s.k];
        for g in 0..s.batch {
            let b = if s.b_is_shared { b } else { &b[g * s.k * s.n..][..s.k * s.n] };
            for m in 0..s.m {
                if self.transpose_a {
                    row.clear();
                    row.extend((0..s.k).map(|k| a[(g * s.k + k) * s.m + m]));
                } else {
                    row.copy_from_slice(&a[(g * s.m + m) * s.k..][..s.k]);
                }
                if self.transpose_b {
                    for (n, sum) in row_sums.iter_mut().enumerate() {
                        let column = &b[n * s.k..][..s.k];
                        *sum = row.iter().zip(column).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    }
                } else {
                    row_sums.fill(0.0);
                    for (k, &x) in row.iter().enumerate() {
                        let x = f64::from(x);
                        for (sum, &w) in row_sums.iter_mut().zip(&b[k * s.n..][..s.n]) {
                            *sum += x * f64::from(w);
                        }
                    }
                }
                let biased = |n: usize| row_sums[n] * f64::from(self.alpha) + bias.map_or(0.0, |b| f64::from(b[n]));
                for n in 0..s.width {
                    let v = match self.gated {
                        true => biased(n) * self.activation.apply(biased(n + s.width)),
                        false => self.activation.apply(biased(n)),
                    };
                    y.push((v + residual.map_or(0.0, |r| f64::from(r[y.len()]))) as f32);
                }
            }
        }
        HostTensor::from_f32(output.shape, y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let halves = if self.gated { 2 } else { 1 };
        let a = &inputs[0].shape;
        let k = if self.transpose_a { a[a.rank() - 2] } else { a.last() };
        let products = output.shape.count() * halves * k;
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        Cost { flops: 2 * products as u64, bytes: bytes as u64 }
    }

    fn with_epilogue(&self, epilogue: Epilogue) -> Option<Box<dyn Operator>> {
        match epilogue {
            Epilogue::Activation(f) if self.activation == Activation::None && !self.gated && !self.residual => {
                Some(Box::new(MatMul { activation: f, ..self.clone() }))
            }
            Epilogue::Gate(f) if self.activation == Activation::None && !self.gated && !self.residual => {
                Some(Box::new(MatMul { activation: f, gated: true, ..self.clone() }))
            }
            Epilogue::Residual if !self.residual => Some(Box::new(MatMul { residual: true, ..self.clone() })),
            _ => None,
        }
    }

    fn takes_quantized(&self, operand: usize) -> bool {
        operand == 1
    }

    fn padded(&self, inputs: &[TensorType]) -> Option<Vec<Shape>> {
        let b = &inputs[1].shape;
        let simple = !self.transpose_a && !self.transpose_b && b.rank() == 2 && !self.gated && !self.residual;
        let [rows, columns] = simple.then(|| padded_matrix(b[0], b[1])).flatten()?;
        let mut a = inputs[0].shape.to_vec();
        *a.last_mut()? = rows;
        let bias = self.bias.then(|| Shape::from([columns]));
        Some([Shape::from(a), Shape::from([rows, columns])].into_iter().chain(bias).collect())
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        use Value::{Operand, Upstream};
        if self.gated || self.transpose_a {
            return Err(rule.fail("has no gradient rule where gated or with a transposed left operand"));
        }
        let mut up = Upstream;
        if self.activation != Activation::None {
            let before = MatMul { activation: Activation::None, residual: false, ..self.clone() };
            let operands: Vec<_> = (0..2 + usize::from(self.bias)).map(Operand).collect();
            let before = rule.apply(before, operands)?;
            up = rule.apply(ActivationGradient(self.activation), [before, up])?;
        }
        let product = MatMul { alpha: self.alpha, ..MatMul::default() };
        if rule.needs(0) {
            let da = rule.apply(MatMul { transpose_b: !self.transpose_b, ..product.clone() }, [up, Operand(1)])?;
            rule.set(0, da);
        }
        if rule.needs(1) {
            let (b, mut left, mut right) = (rule.ty(Operand(1)), Operand(0), up);
            if b.shape.rank() == 2 {
                // One sum over all rows of the batch.
                for value in [&mut left, &mut right] {
                    let shape = rule.shape(*value);
                    *value = rule.reshape(*value, [shape.count() / shape.last(), shape.last()])?;
                }
            }
            let operands = if self.transpose_b { [right, left] } else { [left, right] };
            let db = rule.apply(MatMul { transpose_a: true, ..product }, operands)?;
            let db = rule.cast(db, b.dtype)?;
            rule.set(1, db);
        }
        if self.bias && rule.needs(2) {
            let sum = rule.sum_to(up, 2)?;
            rule.set(2, sum);
        }
        if self.residual {
            rule.set(rule.operands() - 1, Upstream);
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, op: MatMul, a: &[usize], b: Operand, more: Vec<Operand>| {
        let mut operands = vec![Operand::activation(a), b];
        operands.extend(more);
        Case::new(name, op, operands, Tolerance::Sum(*a.last().unwrap_or(&1)))
    };
    let weight = |k: usize, n: usize| Operand::weight([k, n]);
    let mut cases = vec![
        case("m=1;k=4;n=4", MatMul::default(), &[1, 4], weight(4, 4), vec![]),
        case("m=5;k=12;n=36", MatMul::default(), &[5, 12], weight(12, 36), vec![]),
        case("m=67;k=20;n=132", MatMul::default(), &[67, 20], weight(20, 132), vec![]),
        case("m=3;k=7;n=5", MatMul::default(), &[3, 7], weight(7, 5), vec![]),
        case("b=2;m=77;k=64;n=40;bias", MatMul::linear(), &[2, 77, 64], weight(64, 40), vec![Operand::parameter([40])]),
    ];
    let all = MatMul { activation: Activation::Silu, residual: true, alpha: 0.5, ..MatMul::linear() };
    for (m, k, n) in [(9, 16, 20), (7, 12, 68), (6, 10, 3)] {
        let more = vec![Operand::parameter([n]), Operand::activation([2, m, n])];
        let name = format!("b=2;m={m};k={k};n={n};bias;silu;residual;alpha=0.5");
        cases.push(case(&name, all.clone(), &[2, m, k], weight(k, n), more));
    }
    // Whole blocks, so that these also run with quantised weights.
    for (m, k, n) in [(1, 32, 4), (13, 96, 36), (70, 64, 132)] {
        let more = vec![Operand::parameter([n]), Operand::activation([2, m, n])];
        let name = format!("b=2;m={m};k={k};n={n};blocks;bias;silu;residual;alpha=0.5");
        cases.push(case(&name, all.clone(), &[2, m, k], weight(k, n), more));
    }
    // Around the tiles' edges: 4, 8 and 64 rows, 32 and 64 columns, steps of 4.
    let edges = [(3, 4, 28), (4, 8, 32), (7, 4, 32), (8, 60, 36), (9, 64, 28), (63, 8, 60), (64, 4, 64), (65, 68, 68)];
    for (m, k, n) in edges {
        cases.push(case(&format!("m={m};k={k};n={n};edge"), MatMul::default(), &[m, k], weight(k, n), vec![]));
    }
    // Whole eights around the edges of cooperative tiles: 32, 64 and 128 rows and columns, steps of 32.
    for (m, k, n) in [(33, 40, 72), (64, 32, 64), (129, 72, 136), (130, 96, 264)] {
        let more = vec![Operand::parameter([n]), Operand::activation([2, m, n])];
        cases.push(case(&format!("b=2;m={m};k={k};n={n};eights"), all.clone(), &[2, m, k], weight(k, n), more));
    }
    // Inner axes that are split into parts, the last of them shorter.
    for (m, k, n) in [(77, 288, 68), (5, 324, 36), (33, 416, 136)] {
        let more = vec![Operand::parameter([n]), Operand::activation([2, m, n])];
        cases.push(case(&format!("b=2;m={m};k={k};n={n};long"), all.clone(), &[2, m, k], weight(k, n), more));
    }
    let op = MatMul { activation: Activation::Gelu, gated: true, ..MatMul::linear() };
    cases.push(case("m=9;k=320;n=144;gated;long", op, &[9, 320], weight(320, 144), vec![Operand::parameter([144])]));
    cases.push(case(
        "batched=3;m=6;k=264;n=40;long",
        MatMul::default(),
        &[3, 6, 264],
        Operand::activation([3, 264, 40]),
        vec![],
    ));
    let gelu = MatMul { activation: Activation::Gelu, ..MatMul::default() };
    cases.push(case("m=13;k=32;n=16;gelu", gelu, &[13, 32], weight(32, 16), vec![]));
    // Around the tiles' edges with half of the columns gates: 16 and 32 columns of the result.
    let gated = MatMul { activation: Activation::Gelu, gated: true, ..MatMul::linear() };
    for (m, k, n) in [
        (1, 4, 8),
        (9, 20, 24),
        (13, 32, 40),
        (65, 64, 72),
        (8, 12, 64),
        (70, 96, 136),
        (5, 7, 6),
        (6, 8, 4),
        (131, 64, 272),
    ] {
        let name = format!("m={m};k={k};n={n};bias;gelu;gated");
        cases.push(case(&name, gated.clone(), &[m, k], weight(k, n), vec![Operand::parameter([n])]));
    }
    let op = MatMul { alpha: 0.5, residual: true, activation: Activation::Silu, ..gated.clone() };
    let more = vec![Operand::parameter([72]), Operand::activation([2, 11, 36])];
    cases.push(case("b=2;m=11;k=32;n=72;bias;silu;gated;residual;alpha=0.5", op, &[2, 11, 32], weight(32, 72), more));
    let op = MatMul { transpose_b: true, bias: false, ..gated.clone() };
    let b = Operand::activation([3, 24, 8]);
    cases.push(case("batched=3;m=5;k=8;n=24;gelu;gated;transposed", op, &[3, 5, 8], b, vec![]));
    let op = MatMul { bias: false, ..gated.clone() };
    let b = Operand::activation([3, 8, 24]);
    cases.push(case("batched=3;m=5;k=8;n=24;gelu;gated", op, &[3, 5, 8], b, vec![]));
    for (m, k, n) in [(6, 8, 12), (65, 20, 72), (5, 3, 7), (67, 40, 72)] {
        let b = Operand::activation([2, 3, k, n]);
        cases.push(case(&format!("batched=2x3;m={m};k={k};n={n}"), MatMul::default(), &[2, 3, m, k], b, vec![]));
        let b = Operand::activation([2, 3, n, k]);
        let op = MatMul { transpose_b: true, ..MatMul::default() };
        cases.push(case(&format!("batched=2x3;m={m};k={k};n={n};transposed"), op, &[2, 3, m, k], b, vec![]));
    }
    for (m, k, n) in [(1024, 1024, 1024), (4096, 640, 640), (1024, 1280, 10240), (77, 2048, 1280)] {
        cases.push(case(&format!("m={m};k={k};n={n}"), MatMul::default(), &[m, k], weight(k, n), vec![]).benchmark());
    }
    // SDXL's feed-forward at 1024 x 1024.
    for (m, k, n) in [(4096, 640, 5120), (1024, 1280, 10240)] {
        let more = vec![Operand::parameter([n])];
        let name = format!("m={m};k={k};n={n};bias;gelu;gated");
        cases.push(case(&name, gated.clone(), &[m, k], weight(k, n), more).benchmark());
    }
    for (shape, k, m, n, b) in [
        (vec![7, 5], 7, 5, 3, vec![7, 3]),
        (vec![2, 40, 12], 40, 12, 8, vec![2, 40, 8]),
        (vec![2, 6, 4], 6, 4, 5, vec![6, 5]),
    ] {
        let shared = if b.len() < shape.len() { ";shared" } else { "" };
        let name = format!("transpose_a;batch={};m={m};k={k};n={n}{shared}", shape.len() - 1);
        let operands = vec![Operand::activation(shape), Operand::activation(b)];
        let operator = MatMul { transpose_a: true, alpha: 0.5, ..MatMul::default() };
        cases.push(Case::new(name, operator, operands, Tolerance::Sum(k)));
    }
    // A weight as another product has it: around the tiles' edges, and whole blocks, which also run quantised.
    // Whole eights around the edges of cooperative tiles, and an inner axis that is split into parts, come last.
    let edges = [(1, 4, 32), (7, 8, 28), (9, 36, 64), (63, 60, 36), (65, 68, 68), (70, 132, 96), (5, 6, 7)];
    for (m, k, n) in edges.into_iter().chain([(129, 72, 136), (64, 288, 264), (36, 288, 96), (129, 72, 160)]) {
        let op = MatMul { transpose_b: true, ..MatMul::default() };
        cases.push(case(&format!("m={m};k={k};n={n};transposed"), op, &[m, k], Operand::weight([n, k]), vec![]));
    }
    for (m, k, n) in [(9, 20, 32), (33, 40, 64)] {
        let op = MatMul { transpose_b: true, ..all.clone() };
        let more = vec![Operand::parameter([n]), Operand::activation([2, m, n])];
        let name = format!("b=2;m={m};k={k};n={n};transposed;bias;silu;residual;alpha=0.5");
        cases.push(case(&name, op, &[2, m, k], Operand::weight([n, k]), more));
    }
    for (m, k, n) in [(4096, 640, 640), (1024, 10240, 1280), (1024, 1280, 5120)] {
        let op = MatMul { transpose_b: true, ..MatMul::default() };
        let case = case(&format!("m={m};k={k};n={n};transposed"), op, &[m, k], Operand::weight([n, k]), vec![]);
        cases.push(case.benchmark());
    }
    for (k, m, n) in [(582, 1024, 2048), (64, 2048, 1280)] {
        let operands = vec![Operand::activation([k, m]), Operand::activation([k, n])];
        let operator = MatMul { transpose_a: true, ..MatMul::default() };
        let name = format!("transpose_a;m={m};k={k};n={n}");
        cases.push(Case::new(name, operator, operands, Tolerance::Sum(k)).benchmark());
    }
    for (m, k, n) in [(36, 33, 20), (4, 7, 68), (12, 3, 36), (8, 64, 32), (132, 20, 68), (68, 300, 132)] {
        let operands = vec![Operand::activation([k, m]), Operand::weight([k, n])];
        let operator = MatMul { transpose_a: true, ..MatMul::default() };
        cases.push(Case::new(format!("transpose_a;m={m};k={k};n={n};weight"), operator, operands, Tolerance::Sum(k)));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_shapes() {
        let error = MatMul::default().infer(&[TensorType::f32([2, 3]), TensorType::f32([4, 5])]).unwrap_err();
        assert!(error.to_string().contains("f32[2, 3] x f32[4, 5]"), "{error}");
    }

    #[test]
    fn gates_halve_the_columns() {
        let op = MatMul { gated: true, ..MatMul::default() };
        let infer = |n: usize, dtype: DType| op.infer(&[TensorType::f32([2, 32]), TensorType::new(dtype, [32, n])]);
        assert_eq!(infer(8, DType::F32).unwrap(), TensorType::f32([2, 4]));
        assert!(infer(7, DType::F32).unwrap_err().to_string().contains("even"));
        // Quantised weights are read four columns at a time, and values and gates each need whole fours.
        assert_eq!(infer(8, DType::Q8).unwrap(), TensorType::f32([2, 4]));
        assert!(infer(12, DType::Q8).unwrap_err().to_string().contains("multiple of 8"));
    }

    #[test]
    fn gates_count_as_work() {
        let inputs = [TensorType::f32([2, 32]), TensorType::f32([32, 8])];
        let flops = |gated: bool| {
            let op = MatMul { gated, ..MatMul::default() };
            op.cost(&inputs, &op.infer(&inputs).unwrap()).flops
        };
        assert_eq!(flops(true), flops(false));
    }

    #[test]
    fn half_weights_pack_under_f32_activations() {
        let d = Dispatch::new("matmul_strided", <StridedParams as bytemuck::Zeroable>::zeroed());
        assert_eq!(d.weight_storage(DType::F32, DType::F16).features, ["w16"]);
    }
}
