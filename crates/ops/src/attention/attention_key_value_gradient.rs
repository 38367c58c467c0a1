use super::attention::AT_ONCE;
use super::{Attention, attention_gradient};
use crate::*;
use pulid_tensor::{DType, HostTensor, Result, TensorType};

/// The gradients of [`Attention`] in its keys and values, side by side: dk = scale·dSᵀ q and dv = Pᵀ upstream, with dS and P of
/// [`AttentionQueryGradient`], whose operands these are. For attention without a mask.
///
/// Result: [B, Tk, 2·H·D] of q's element type, dk before dv. Keys of zeros have no gradient.
#[derive(Clone, Debug)]
pub struct AttentionKeyValueGradient(pub Attention);

params! {
    struct TileParams { tq: u32, tk: u32, heads: u32, width: u32, batch: u32, chunk: u32, scale: f32 }
}

params! {
    struct CombineParams { count: u32, chunks: u32 }
}

/// Queries of a tile.
const QUERIES: usize = 32;

/// Queries of a chunk at least: fewer would cost more to combine than to sum.
const FEWEST_QUERIES: usize = 128;

/// Largest product of a tile's keys and D / 4: the vec4 of workgroup memory for each of its two sums.
const TILE_KEY_SUMS: usize = 320;

impl AttentionKeyValueGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "attention_key_value_gradient",
        summary: "Gradients of attention in its keys and values, side by side",
        shaders: &[
            "attention_key_value_gradient_tile",
            "attention_key_value_combine",
            "attention_key_value_gradient_serial",
        ],
        cases: || attention_gradient::cases(|attention| Box::new(AttentionKeyValueGradient(attention))),
    };
}

impl Operator for AttentionKeyValueGradient {
    fn name(&self) -> &'static str {
        "attention_key_value_gradient"
    }

    fn attributes(&self) -> String {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        let s = attention_gradient::sizes(self.name(), &self.0, inputs)?;
        Ok(TensorType::new(inputs[0].dtype, [s.batch, s.tk, 2 * s.heads * s.width]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let s = attention_gradient::sizes(self.name(), &self.0, cx.inputs)?;
        let (storage, count) = (cx.output.dtype, cx.output.shape.count());
        let finish = |d: Dispatch, output: Slot| {
            let slots = (0..6).map(Slot::Input).chain([output]);
            d.storage(storage).constant("CAUSAL", self.0.causal as u32).bind(slots.collect::<Vec<_>>())
        };
        let mut variants = Vec::new();
        if attention_gradient::tiled(s.width) {
            let keys = if s.width / 4 * 16 <= TILE_KEY_SUMS { 16 } else { 8 };
            // Few keys make few workgroups, so that these part the queries.
            let groups = s.tk.div_ceil(keys) * s.heads * s.batch;
            let chunks = AT_ONCE.div_ceil(groups).min(s.tq.div_ceil(FEWEST_QUERIES));
            let chunk = s.tq.div_ceil(chunks).next_multiple_of(QUERIES);
            let chunks = s.tq.div_ceil(chunk);
            let params = TileParams {
                tq: s.tq as u32,
                tk: s.tk as u32,
                heads: s.heads as u32,
                width: (s.width / 4) as u32,
                batch: s.batch as u32,
                chunk: chunk as u32,
                scale: self.0.scale_for(s.width) as f32,
            };
            let output = if chunks > 1 { Slot::Scratch(0) } else { Slot::Output };
            variants.extend(attention_gradient::lanes(cx.capabilities.kind).iter().map(|&(name, lanes)| {
                let tile = finish(Dispatch::new("attention_key_value_gradient_tile", params), output)
                    .feature("wide", chunks > 1 && storage == DType::F16)
                    .constant("KEYS", keys as u32)
                    .constant("LANES", lanes)
                    .grid(s.tk.div_ceil(keys), s.heads, s.batch * chunks);
                if chunks == 1 {
                    return Variant::single(name, tile);
                }
                let params = CombineParams { count: (count / 4) as u32, chunks: chunks as u32 };
                let combine = Dispatch::new("attention_key_value_combine", params)
                    .storage(storage)
                    .bind([Slot::Scratch(0), Slot::Output])
                    .over(count / 4);
                Variant { name, dispatches: vec![tile, combine], scratch: vec![chunks * count * 4] }
            }));
        }
        let serial =
            finish(attention_gradient::serial("attention_key_value_gradient_serial", &self.0, &s), Slot::Output)
                .over(count);
        variants.push(Variant::single("serial", serial));
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let (q, upstream) = (inputs[0].as_f32()?, inputs[3].as_f32()?);
        let row = inputs[1].shape().last();
        let (keys, width) = (inputs[1].shape().count(), row / self.0.heads);
        let (mut dk, mut dv) = (vec![0f64; keys], vec![0f64; keys]);
        attention_gradient::visit(&self.0, inputs, |pair| {
            for c in 0..width {
                dk[pair.key + c] += pair.slope * f64::from(q[pair.query + c]);
                dv[pair.key + c] += pair.weight * f64::from(upstream[pair.query + c]);
            }
        })?;
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        Ok(HostTensor::from_fn(self.infer(&types)?.shape, |i| {
            let (key, column) = (i / (2 * row), i % (2 * row));
            (if column < row { dk[key * row + column] } else { dv[key * row + column - row] }) as f32
        }))
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        // Four products of every query with every key.
        let flops = 8 * inputs[0].shape.count() * inputs[1].shape[1] / if self.0.causal { 2 } else { 1 };
        Cost { flops: flops as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}
