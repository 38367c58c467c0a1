use crate::arithmetic::Traffic;
use crate::*;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};

/// y = softmax(scale·q kᵀ + mask) v per head, fused: scores are never stored.
///
/// Operands: q [B, Tq, H·D]; k and v [B, Tk, H·D]; then, with `mask`, an additive mask [1 or B, 1 or H, Tq, Tk] in f32
/// or q's type. Result: q's type. Scores, softmax and sums are f32. A score of -1e30 or less, minus
/// infinity too, excludes its key; a row without keys gives 0.
#[derive(Clone, Debug)]
pub struct Attention {
    /// H.
    pub heads: usize,
    /// Factor of the scores, 1/√D where `None`.
    pub scale: Option<f32>,
    /// Query i sees keys 0 to i only.
    pub causal: bool,
    /// Keys and values of zeros added to the operands' own: each adds exp(0) to the softmax's sum and nothing else
    /// (PuLID's `num_zero`).
    pub zero_keys: u32,
    /// Whether a mask follows.
    pub mask: bool,
}

params! {
    struct SerialParams {
        batch: u32, tq: u32, tk: u32, heads: u32, width: u32,
        mask_batch: u32, mask_head: u32,
        scale: f32, zero_keys: f32,
    }
}

params! {
    struct TileParams {
        tq: u32, tk: u32, heads: u32, width: u32,
        mask_batch: u32, mask_head: u32,
        scale: f32, zero_keys: f32,
    }
}

/// Widest head that the fused kernels take well: the sums of a wider one, such as the VAE's of 512 channels, do not stay in registers,
/// so that they compute the scores again and again. Theirs are up to 160 wide in SD 1.5.
const WIDEST_FUSED: usize = 160;

/// Largest product of a tile's queries and D / 4: the vec4 of workgroup memory for its sums. With 32 queries it takes heads of up to 80
/// (SDXL's are 64 wide), and with scores and statistics it stays below the 16 KiB that every device has.
pub(super) const TILE_SUMS: usize = 640;

/// Extents, checked against each other.
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) tq: usize,
    pub(super) tk: usize,
    pub(super) width: usize,
    /// Elements between images and between heads of the mask, 0 where it is shared.
    mask_batch: usize,
    mask_head: usize,
}

/// Keys whose scores `attention_cooperative` holds at a time.
const COOPERATIVE_BLOCK: usize = 32;

/// Workgroups that a GPU runs at once, about: fewer leave a part of it idle.
pub(super) const AT_ONCE: usize = 256;

/// A workgroup of `attention_cooperative`.
#[derive(Clone, Copy)]
struct CooperativeTile {
    /// Of the variant.
    name: &'static str,
    /// Subgroups, each with two rows of matrices.
    strips: usize,
    /// Keys that are copied at a time.
    keys: usize,
    /// Rows and columns of a matrix.
    size: usize,
    /// Of a subgroup, the least where that varies: larger ones, which are fewer, take several turns.
    lanes: usize,
    /// The most.
    most_lanes: usize,
}

impl CooperativeTile {
    /// Variants, their subgroups and keys: more queries are fewer reads of keys and values, more keys fewer barriers.
    const NAMES: [(&'static str, usize, usize); 3] =
        [("wide_cooperative", 4, 64), ("cooperative", 4, 32), ("small_cooperative", 2, 32)];

    /// Those that a device can run, the most promising first.
    fn of(capabilities: &Capabilities, s: &Sizes) -> impl Iterator<Item = CooperativeTile> {
        let size = capabilities.cooperative_size as usize;
        let [lanes, most_lanes] = capabilities.lanes().unwrap_or_default().map(|n| n as usize);
        let (bytes, invocations) = (capabilities.max_workgroup_bytes, capabilities.max_invocations);
        let mut tiles =
            Self::NAMES.map(|(name, strips, keys)| CooperativeTile { name, strips, keys, size, lanes, most_lanes });
        if matches!(size, 8 | 16) && s.tq.div_ceil(tiles[0].queries()) * s.heads * s.batch < AT_ONCE {
            tiles.reverse();
        }
        let able = capabilities.shader_f16 && matches!(size, 8 | 16) && lanes > 0;
        let width = s.width;
        tiles
            .into_iter()
            .filter(move |t| able && t.most_lanes <= t.invocations() && t.invocations() <= invocations as usize)
            .filter(move |t| t.bytes(width) <= bytes as usize)
    }

    fn queries(self) -> usize {
        self.strips * 2 * self.size
    }

    /// Of a workgroup: at least one subgroup of any size.
    fn invocations(self) -> usize {
        self.strips * self.lanes
    }

    /// Keys and values in f16, and for each query scores and their weights; rows are padded by 8 elements.
    fn bytes(self, width: usize) -> usize {
        let tile = self.keys * 2 * (width.next_multiple_of(self.size) + 8);
        2 * tile + self.queries() * (4 + 2) * (COOPERATIVE_BLOCK + 8)
    }

    /// Rows of queries of each lane, 0 where it varies.
    fn turns(self) -> usize {
        let rows = 2 * self.size;
        if self.lanes == self.most_lanes && rows.is_multiple_of(self.lanes) { rows / self.lanes } else { 0 }
    }

    /// The dispatch with the tile's permutation and constants.
    fn apply(self, dispatch: Dispatch, s: &Sizes, kind: DeviceKind) -> Dispatch {
        dispatch
            .feature(if self.size == 8 { "coop8" } else { "coop16" }, true)
            .constant("WIDTH", (s.width / 8) as u32)
            .constant("STRIPS", self.strips as u32)
            .constant("LANES", self.invocations() as u32)
            .constant("KEYS", self.keys as u32)
            .constant("TURNS", self.turns() as u32)
            .constant("BALANCED", u32::from(kind == DeviceKind::Cpu))
    }
}

/// Queries of a workgroup of `attention_tile` where heads are not too wide, and keys at a time.
const TILE_QUERIES: usize = 32;
const TILE_KEYS: usize = 32;

/// Queries of a workgroup of `attention_workgroup_tile`, with 8 and with 4 rows to each of its 64 invocations, and the bytes of
/// workgroup memory that the first takes.
const WORKGROUP_ROWS: [usize; 2] = [64, 32];
const WORKGROUP_BYTES: u32 = 14 << 10;

/// What each tile moves for each multiply-add, of heads of 64 in f16 with matrices of 16 x 16.
pub(crate) fn tile_traffic() -> Vec<(&'static str, Traffic)> {
    const HEAD: usize = 64;
    // Both products of a query and a key. Each key and value is read once for the queries of a workgroup.
    let products = (2 * HEAD) as f64;
    let memory = |queries: usize| (2 * 2 * HEAD) as f64 / queries as f64 / products;
    // A score is written, read for the maximum, read and written as a weight, and read for each four values; sums in f32 are read
    // and written for each block of keys.
    let scores = 4 * (4 + HEAD / 4) + 2 * 4 * HEAD / TILE_KEYS;
    let workgroup = scores as f64 / products;
    let tile = Traffic { matrices: false, memory: memory(TILE_QUERIES), workgroup, registers: 16.0 };
    let [large, _] = WORKGROUP_ROWS;
    // Queries are read again for each block of keys. Of an invocation's scores, 8 x 4, each product takes an element of a row and one of
    // a column, which the others of that row and column share; so do those of its sums, 8 x 8. A weight is written; what is copied is
    // written once.
    let again = (2 * HEAD) as f64 / TILE_KEYS as f64 / products;
    let shared = |rows: f64, columns: f64| 4.0 * (1.0 / rows + 1.0 / columns);
    let reads = (shared(8.0, 4.0) + shared(8.0, 8.0)) / 2.0;
    let copied = memory(large) + again;
    let workgroup = reads + 4.0 / products + 2.0 * copied;
    let workgroup_tile = Traffic { matrices: false, memory: copied, workgroup, registers: 16.0 };
    let cooperative = CooperativeTile::NAMES.map(|(name, strips, keys)| {
        let own = CooperativeTile { name, strips, keys, size: 16, lanes: 32, most_lanes: 32 };
        // A matrix of keys or values for two of queries; scores and weights, written and read; what is copied, once.
        let operands = 2.0 / (2.0 * own.size as f64);
        let scores = (2 * 4 + 2 * 2) as f64 / products;
        let memory = memory(own.queries());
        let registers = crate::cooperative::CooperativeTile::of_registers(16);
        (name, Traffic { matrices: true, memory, workgroup: operands + scores + memory, registers })
    });
    [("tile", tile), ("workgroup_tile", workgroup_tile)].into_iter().chain(cooperative).collect()
}

/// Variants of `attention_workgroup_tile` for heads of up to 64, the most promising first: more rows to an invocation are fewer reads of
/// workgroup memory, fewer are more workgroups.
fn workgroup_tiles(
    capabilities: &Capabilities,
    s: &Sizes,
    finish: impl Fn(Dispatch) -> Dispatch,
    params: TileParams,
) -> Vec<Variant> {
    if WORKGROUP_BYTES > capabilities.max_workgroup_bytes {
        return Vec::new();
    }
    let [large, _] = WORKGROUP_ROWS;
    let tile = |rows: usize| {
        let dispatch = finish(Dispatch::new("attention_workgroup_tile", params))
            .constant("WIDTH", params.width)
            .constant("TALL", u32::from(rows == large))
            .constant("FEW", u32::from(s.tk < TILE_KEYS))
            .grid(s.tq.div_ceil(rows), s.heads, s.batch);
        Variant::single(if rows == large { "workgroup_tile" } else { "small_workgroup_tile" }, dispatch)
    };
    let class = capabilities.class;
    let able = WORKGROUP_ROWS.into_iter().zip(class.widest_heads()).filter(|(_, widest)| s.width <= *widest);
    let mut tiles: Vec<_> = able.map(|(rows, _)| tile(rows)).collect();
    // As with products: 64 sums to an invocation, or 32.
    let [many, _, few, _] = class.tiles();
    if many > few || s.tq.div_ceil(large) * s.heads * s.batch < AT_ONCE {
        tiles.reverse();
    }
    tiles
}

impl Attention {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "attention",
        summary: "Fused softmax(q k^T) v: self, cross, causal, masked, with zero keys",
        shaders: &[
            "attention_serial",
            "attention_tile",
            "attention_workgroup_tile",
            "attention_subgroup_tile",
            "attention_cooperative",
        ],
        cases,
    };

    /// Plain attention with the usual scale.
    pub fn new(heads: usize) -> Self {
        Attention { heads, scale: None, causal: false, zero_keys: 0, mask: false }
    }

    pub(super) fn sizes(&self, inputs: &[TensorType]) -> Result<Sizes> {
        expect_operands("attention", inputs, 3 + usize::from(self.mask))?;
        let fail =
            |why: &str| Error::operator("attention", format!("{why}: {} ({})", types(inputs), self.attributes()));
        let (q, k) = (&inputs[0], &inputs[1]);
        if q.shape.rank() != 3 || k.shape.rank() != 3 || inputs[2] != *k || k.dtype != q.dtype || !q.dtype.is_float() {
            return Err(fail("q must be [B, Tq, H*D], k and v [B, Tk, H*D], all of one float type"));
        }
        let (batch, tq, tk, row) = (q.shape[0], q.shape[1], k.shape[1], q.shape[2]);
        if k.shape[0] != batch || k.shape[2] != row {
            return Err(fail("batch or width of q and k differ"));
        }
        if batch == 0 || tq == 0 || tk == 0 || row == 0 || self.heads == 0 || row % self.heads != 0 {
            return Err(fail("an extent is zero or the heads do not divide the width"));
        }
        let (mut mask_batch, mut mask_head) = (0, 0);
        if let Some(mask) = inputs.get(3) {
            let m = &mask.shape;
            let shared = |extent: usize, full: usize| extent == 1 || extent == full;
            let fits = m.rank() == 4 && shared(m[0], batch) && shared(m[1], self.heads) && m[2..] == [tq, tk];
            if !fits || (mask.dtype != q.dtype && mask.dtype != DType::F32) {
                return Err(fail("the mask must be [1 or B, 1 or H, Tq, Tk] in f32 or q's type"));
            }
            mask_batch = if m[0] == 1 { 0 } else { m[1] * tq * tk };
            mask_head = if m[1] == 1 { 0 } else { tq * tk };
        }
        Ok(Sizes { batch, heads: self.heads, tq, tk, width: row / self.heads, mask_batch, mask_head })
    }

    pub(super) fn scale_for(&self, width: usize) -> f64 {
        self.scale.map_or_else(|| 1.0 / (width as f64).sqrt(), f64::from)
    }
}

impl Operator for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn attributes(&self) -> String {
        format!(
            "heads={};scale={};causal={};zero_keys={};mask={}",
            self.heads,
            self.scale.map_or("auto".into(), |s| s.to_string()),
            self.causal,
            self.zero_keys,
            self.mask
        )
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        self.sizes(inputs)?;
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let s = self.sizes(cx.inputs)?;
        let storage = cx.inputs[0].dtype;
        let wide = cx.inputs.get(3).is_some_and(|m| m.dtype != storage);
        let mask = if self.mask { Slot::Input(3) } else { Slot::Unused };
        let scale = self.scale_for(s.width) as f32;
        let finish = |d: Dispatch| {
            d.storage(storage)
                .feature("wide", wide)
                .constant("CAUSAL", self.causal as u32)
                .constant("MASK", self.mask as u32)
                .bind([Slot::Input(0), Slot::Input(1), Slot::Input(2), mask, Slot::Output])
        };
        let mut variants = Vec::new();
        let params = TileParams {
            tq: s.tq as u32,
            tk: s.tk as u32,
            heads: self.heads as u32,
            width: (s.width / 4) as u32,
            mask_batch: s.mask_batch as u32,
            mask_head: s.mask_head as u32,
            scale,
            zero_keys: self.zero_keys as f32,
        };
        if s.width % 4 == 0 && s.width / 4 * 16 <= TILE_SUMS {
            let queries = if s.width / 4 * TILE_QUERIES <= TILE_SUMS { TILE_QUERIES } else { 16 };
            let tile = |name, lanes: u32| {
                let dispatch = finish(Dispatch::new("attention_tile", params))
                    .constant("QUERIES", queries as u32)
                    .constant("LANES", lanes)
                    .grid(s.tq.div_ceil(queries), self.heads, s.batch);
                Variant::single(name, dispatch)
            };
            variants.extend(workgroup_tiles(cx.capabilities, &s, finish, params));
            variants.push(tile("tile", 64));
            // On a CPU device a workgroup of one SIMD width passes barriers almost for free.
            if cx.capabilities.kind == DeviceKind::Cpu {
                variants.insert(0, tile("narrow_tile", 8));
            }
            if cx.capabilities.kind == DeviceKind::Cpu && cx.capabilities.subgroup_lanes == 8 && s.width <= 64 {
                let dispatch = finish(Dispatch::new("attention_subgroup_tile", params))
                    .constant("BLOCKS", s.width.div_ceil(32) as u32)
                    .grid(s.tq.div_ceil(8), self.heads, s.batch);
                variants.insert(0, Variant::single("subgroup_tile", dispatch));
            }
        }
        if storage == DType::F16 && s.width % 8 == 0 && s.width <= 64 && scale > 0.0 {
            let cooperative = CooperativeTile::of(cx.capabilities, &s).map(|tile| {
                let dispatch =
                    tile.apply(finish(Dispatch::new("attention_cooperative", params)), &s, cx.capabilities.kind);
                Variant::single(tile.name, dispatch.grid(s.tq.div_ceil(tile.queries()), self.heads, s.batch))
            });
            // Matrices that a CPU emulates save it nothing.
            let at = if cx.capabilities.kind == DeviceKind::Cpu { variants.len() } else { 0 };
            variants.splice(at..at, cooperative);
        }
        let params = SerialParams {
            batch: s.batch as u32,
            tq: s.tq as u32,
            tk: s.tk as u32,
            heads: self.heads as u32,
            width: s.width as u32,
            mask_batch: s.mask_batch as u32,
            mask_head: s.mask_head as u32,
            scale,
            zero_keys: self.zero_keys as f32,
        };
        let serial = finish(Dispatch::new("attention_serial", params)).over(cx.output.shape.count());
        variants.push(Variant::single("serial", serial));
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let s = self.sizes(&types)?;
        let row = s.width * self.heads;
        let (q, k, v) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?);
        let mask = if self.mask { Some(inputs[3].as_f32()?) } else { None };
        let scale = self.scale_for(s.width);
        let mut y = vec![0f32; s.batch * s.tq * row];
        let mut scores = vec![0f64; s.tk];
        let mut value = vec![0f64; s.width];
        for (b, h, i) in (0..s.batch).flat_map(|b| (0..self.heads).flat_map(move |h| (0..s.tq).map(move |i| (b, h, i))))
        {
            let start = (b * s.tq + i) * row + h * s.width;
            let query = &q[start..][..s.width];
            let key = |j: usize| (b * s.tk + j) * row + h * s.width;
            let end = if self.causal { s.tk.min(i + 1) } else { s.tk };
            for (j, score) in scores[..end].iter_mut().enumerate() {
                let dot: f64 = query.iter().zip(&k[key(j)..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let add = mask.map_or(0.0, |m| f64::from(m[b * s.mask_batch + h * s.mask_head + i * s.tk + j]));
                *score = scale * dot + add;
            }
            let first = if self.zero_keys > 0 { 0.0 } else { -1e30 };
            let top = scores[..end].iter().copied().fold(first, f64::max);
            // Without zero keys the maximum may be so low that its exponential is infinite.
            let mut sum = if self.zero_keys > 0 { f64::from(self.zero_keys) * (-top).exp() } else { 0.0 };
            value.fill(0.0);
            for (j, score) in scores[..end].iter().enumerate() {
                let p = if *score > -1e30 { (score - top).exp() } else { 0.0 };
                sum += p;
                value.iter_mut().zip(&v[key(j)..]).for_each(|(value, &v)| *value += p * f64::from(v));
            }
            if sum == 0.0 {
                continue;
            }
            y[start..][..s.width].iter_mut().zip(&value).for_each(|(y, &value)| *y = (value / sum) as f32);
        }
        HostTensor::from_f32(types[0].shape.clone(), y)
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        // Two products of every query with every key; a causal mask halves them.
        let flops = 4 * output.shape.count() * inputs[1].shape[1] / if self.causal { 2 } else { 1 };
        Cost { flops: flops as u64, bytes: bytes as u64 }
    }

    fn substitutes(&self, inputs: &[TensorType], limit: usize) -> Option<Vec<Substitute>> {
        let [q, k, _] = inputs else { return None };
        let (batch, queries, channels, keys) = (q.shape[0], q.shape[1], q.shape.last(), k.shape[1]);
        let plain = self.heads == 1 && !self.causal && self.zero_keys == 0;
        // Scores are stored, and in half precision they would be rounded.
        if !plain || channels <= WIDEST_FUSED || q.dtype != DType::F32 {
            return None;
        }
        let alpha = self.scale.unwrap_or((1.0 / (channels as f64).sqrt()) as f32);
        let score_bytes = [batch, keys, 4].iter().fold(1usize, |bytes, n| bytes.saturating_mul(*n));
        // Scores and their softmax are there together.
        let step = (limit / 2 / score_bytes.max(1)).clamp(1, queries.max(1));
        let mut all = vec![Substitute::new(Permute::new([0, 2, 1]), [Argument::Operand(1)])];
        let mut parts = Vec::new();
        for first in (0..queries).step_by(step) {
            let rows = step.min(queries - first);
            let mut part = Argument::Operand(0);
            let mut add = |operator: Box<dyn Operator>, operands: Vec<Argument>| {
                all.push(Substitute { operator, operands });
                Argument::Result(all.len() - 1)
            };
            if rows < queries {
                part = add(Box::new(Slice::along(&q.shape, 1, first, rows)), vec![part]);
            }
            let scores = add(Box::new(MatMul { alpha, ..MatMul::default() }), vec![part, Argument::Result(0)]);
            let weights = add(Box::new(Softmax), vec![scores]);
            parts.push(add(Box::<MatMul>::default(), vec![weights, Argument::Operand(2)]));
        }
        if parts.len() > 1 {
            all.push(Substitute::new(Concat::new(1), parts));
        }
        Some(all)
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        use Value::{Operand, Result as Output, Upstream};
        if self.mask {
            return Err(rule.fail("has no gradient rule with a mask"));
        }
        let log_sum = rule.apply(AttentionLogSum(self.clone()), [Operand(0), Operand(1)])?;
        let dots = rule.apply(HeadDot { heads: self.heads }, [Upstream, Output])?;
        let operands = [Operand(0), Operand(1), Operand(2), Upstream, log_sum, dots];
        if rule.needs(0) {
            let dq = rule.apply(AttentionQueryGradient(self.clone()), operands)?;
            rule.set(0, dq);
        }
        if rule.needs(1) || rule.needs(2) {
            let both = rule.apply(AttentionKeyValueGradient(self.clone()), operands)?;
            let (shape, row) = (rule.shape(both), rule.shape(Operand(1)).last());
            for operand in [1, 2] {
                if rule.needs(operand) {
                    let part = rule.apply(Slice::along(&shape, 2, (operand - 1) * row, row), [both])?;
                    rule.set(operand, part);
                }
            }
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    // Probabilities are exp of f32 sums of D products, then a weighted mean: errors of the exponent dominate.
    let case = |name: &str, op: Attention, [b, tq, tk, d]: [usize; 4], mask: Option<Operand>| {
        let row = op.heads * d;
        let mut operands = vec![Operand::activation([b, tq, row])];
        operands.extend([Operand::activation([b, tk, row]), Operand::activation([b, tk, row])]);
        operands.extend(mask);
        Case::new(name, op, operands, Tolerance::Transcendental)
    };
    let plain = Attention::new;
    let causal = |heads| Attention { causal: true, ..Attention::new(heads) };
    let masked = |heads| Attention { mask: true, ..Attention::new(heads) };
    let zero_keys = |heads, zero_keys| Attention { zero_keys, ..Attention::new(heads) };
    // Large scores: softmax must not overflow.
    let sharp = Attention { scale: Some(20.0), ..Attention::new(2) };
    let nothing = Operand::parameter([1, 1, 4, 5]).fill(Fill::Values(vec![-3e38, -3e38, -3e38, -3e38, -3e38, 0.0]));
    let excluded = Fill::Values(vec![0.0, -30000.0, -1.5, 0.0, -30000.0, 2.0, 0.25]);
    let mut cases = vec![
        case("b=1;tq=1;tk=1;h=1;d=4", plain(1), [1, 1, 1, 4], None),
        case("b=1;tq=1;tk=77;h=2;d=16", plain(2), [1, 1, 77, 16], None),
        case("b=2;tq=33;tk=65;h=2;d=40", plain(2), [2, 33, 65, 40], None),
        case("b=1;tq=17;tk=19;h=2;d=64", plain(2), [1, 17, 19, 64], None),
        case("b=1;tq=64;tk=64;h=1;d=32", plain(1), [1, 64, 64, 32], None),
        case("b=1;tq=9;tk=13;h=1;d=80", plain(1), [1, 9, 13, 80], None),
        case("b=1;tq=9;tk=35;h=1;d=160", plain(1), [1, 9, 35, 160], None),
        case("b=1;tq=10;tk=34;h=2;d=20", plain(2), [1, 10, 34, 20], None),
        case("b=1;tq=5;tk=6;h=3;d=7", plain(3), [1, 5, 6, 7], None),
        case("b=2;tq=6;tk=6;h=2;d=10;causal", causal(2), [2, 6, 6, 10], None),
        case("b=2;tq=77;tk=77;h=2;d=16;causal", causal(2), [2, 77, 77, 16], None),
        case("b=1;tq=37;tk=21;h=1;d=24;causal", causal(1), [1, 37, 21, 24], None),
        case("b=2;tq=5;tk=32;h=2;d=16;zero_keys=8", zero_keys(2, 8), [2, 5, 32, 16], None),
        case("b=1;tq=20;tk=5;h=2;d=64;zero_keys=20", zero_keys(2, 20), [1, 20, 5, 64], None),
        case("b=1;tq=3;tk=4;h=1;d=6;zero_keys=1", zero_keys(1, 1), [1, 3, 4, 6], None),
        case("b=1;tq=12;tk=40;h=2;d=16;sharp", sharp, [1, 12, 40, 16], None),
    ];
    // Around the tiles' edges: 8 and 32 queries, 32 keys.
    for (tq, tk) in [(7, 32), (8, 31), (9, 33), (31, 33), (32, 32), (33, 31), (33, 64), (64, 63)] {
        cases.push(case(&format!("b=1;tq={tq};tk={tk};h=2;d=16;edge"), plain(2), [1, tq, tk, 16], None));
    }
    // Around the edges of cooperative matrices' tiles, 32 or 128 queries, and several of them.
    for (tq, tk, d) in [(129, 77, 64), (70, 97, 64), (130, 40, 32), (64, 96, 48)] {
        cases.push(case(&format!("b=2;tq={tq};tk={tk};h=2;d={d};edge"), plain(2), [2, tq, tk, d], None));
    }
    // Scores that grow from key to key: each block of keys exceeds the maximum of those before.
    for (tq, tk, d) in [(40, 160, 64), (33, 100, 16)] {
        let name = format!("b=1;tq={tq};tk={tk};h=1;d={d};growing");
        let mut growing = case(&name, Attention { scale: Some(1.0), ..plain(1) }, [1, tq, tk, d], None);
        let fill = |v: Vec<f32>| Fill::Values(v);
        growing.operands[0] = growing.operands[0]
            .clone()
            .fill(fill((0..tq * d).map(|i| if i % d == 0 { 0.25 + (i / d % 8) as f32 } else { 0.0 }).collect()));
        growing.operands[1] = growing.operands[1]
            .clone()
            .fill(fill((0..tk * d).map(|i| if i % d == 0 { (i / d) as f32 * 0.125 } else { 0.0 }).collect()));
        cases.push(growing);
    }
    // PyTorch's masks exclude by minus infinity; a whole tile of keys may be excluded, too.
    let infinite = |count: usize| {
        let seen = |i: usize| if count > 40 { i >= 40 } else { i % 5 == 3 };
        Fill::Values((0..count).map(|i| if seen(i) { 0.5 } else { f32::NEG_INFINITY }).collect())
    };
    for (tk, d) in [(14, 16), (14, 6), (77, 16)] {
        let mask = Operand::parameter([1, 1, 1, tk]).fill(infinite(tk));
        let name = format!("b=1;tq=1;tk={tk};h=2;d={d};infinite_mask");
        cases.push(case(&name, masked(2), [1, 1, tk, d], Some(mask)));
    }
    // Row 0 sees no key at all.
    cases.push(case("b=1;tq=4;tk=5;h=1;d=8;excluded", masked(1), [1, 4, 5, 8], Some(nothing)));
    for (label, d) in [("d=16", 16), ("d=6", 6)] {
        let full = Operand::parameter([2, 2, 9, 14]).fill(excluded.clone());
        cases.push(case(&format!("b=2;tq=9;tk=14;h=2;{label};mask"), masked(2), [2, 9, 14, d], Some(full)));
        let shared = Operand::activation([1, 1, 9, 14]).fill(excluded.clone());
        cases.push(case(&format!("b=2;tq=9;tk=14;h=2;{label};shared_mask"), masked(2), [2, 9, 14, d], Some(shared)));
        let both = Attention { causal: true, zero_keys: 3, ..masked(2) };
        let heads = Operand::parameter([1, 2, 9, 9]);
        cases.push(case(&format!("b=2;tq=9;tk=9;h=2;{label};all"), both, [2, 9, 9, d], Some(heads)));
    }
    for (tq, tk, heads, d) in [(4096, 4096, 10, 64), (1024, 1024, 20, 64), (4096, 77, 10, 64), (1024, 77, 20, 64)] {
        cases.push(
            case(&format!("b=1;tq={tq};tk={tk};h={heads};d={d}"), plain(heads), [1, tq, tk, d], None).benchmark(),
        );
    }
    cases.push(case("b=1;tq=577;tk=577;h=16;d=64", plain(16), [1, 577, 577, 64], None).benchmark());
    cases.push(case("b=1;tq=256;tk=256;h=4;d=16", plain(4), [1, 256, 256, 16], None).benchmark());
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_keys_are_keys_of_zeros() {
        let tensor = |shape: [usize; 3], seed: usize| {
            HostTensor::from_fn(shape, |i| ((i * 37 + seed * 11) % 17) as f32 * 0.1 - 0.8)
        };
        let (q, k, v) = (tensor([1, 3, 8], 1), tensor([1, 5, 8], 2), tensor([1, 5, 8], 3));
        let longer = |t: &HostTensor| {
            let mut data = t.as_f32().unwrap().to_vec();
            data.resize(9 * 8, 0.0);
            HostTensor::from_f32([1, 9, 8], data).unwrap()
        };
        let zero = Attention { zero_keys: 4, ..Attention::new(2) };
        let short = zero.reference(&[&q, &k, &v]).unwrap();
        let long = Attention::new(2).reference(&[&q, &longer(&k), &longer(&v)]).unwrap();
        for (a, b) in short.as_f32().unwrap().iter().zip(long.as_f32().unwrap()) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn errors_name_the_shapes() {
        let ty = |t: usize| TensorType::f32([1, t, 10]);
        let error = Attention::new(3).infer(&[ty(2), ty(4), ty(4)]).unwrap_err();
        assert!(error.to_string().contains("f32[1, 2, 10]"), "{error}");
    }
}
