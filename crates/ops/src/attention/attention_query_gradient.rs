use super::attention::TILE_SUMS;
use super::{Attention, attention_gradient};
use crate::*;
use pulid_tensor::{HostTensor, Result, TensorType};

/// The gradient of [`Attention`] in its queries: dq = scale·dS k with dS = P·(upstream vᵀ - dots), P = exp(scale·q kᵀ - log_sum), per
/// head and without storing either (Dao et al., arXiv 2205.14135, appendix B). For attention without a mask.
///
/// Operands: q [B, Tq, H·D]; k and v [B, Tk, H·D]; upstream as q; log_sum, of [`AttentionLogSum`], and dots, the [`HeadDot`] of
/// upstream and result, f32 [B, H, Tq]. Result: q's type.
#[derive(Clone, Debug)]
pub struct AttentionQueryGradient(pub Attention);

params! {
    struct TileParams { tq: u32, tk: u32, heads: u32, width: u32, scale: f32 }
}

impl AttentionQueryGradient {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "attention_query_gradient",
        summary: "Gradient of attention in its queries",
        shaders: &["attention_query_gradient_tile", "attention_query_gradient_serial"],
        cases: || attention_gradient::cases(|attention| Box::new(AttentionQueryGradient(attention))),
    };
}

impl Operator for AttentionQueryGradient {
    fn name(&self) -> &'static str {
        "attention_query_gradient"
    }

    fn attributes(&self) -> String {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        attention_gradient::sizes(self.name(), &self.0, inputs)?;
        Ok(inputs[0].clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let s = attention_gradient::sizes(self.name(), &self.0, cx.inputs)?;
        let finish = |d: Dispatch| {
            let slots = (0..6).map(Slot::Input).chain([Slot::Output]);
            d.storage(cx.output.dtype).constant("CAUSAL", self.0.causal as u32).bind(slots.collect::<Vec<_>>())
        };
        let mut variants = Vec::new();
        if attention_gradient::tiled(s.width) {
            let params = TileParams {
                tq: s.tq as u32,
                tk: s.tk as u32,
                heads: s.heads as u32,
                width: (s.width / 4) as u32,
                scale: self.0.scale_for(s.width) as f32,
            };
            let queries = if s.width / 4 * 32 <= TILE_SUMS { 32 } else { 16 };
            variants.extend(attention_gradient::lanes(cx.capabilities.kind).iter().map(|&(name, lanes)| {
                let dispatch = finish(Dispatch::new("attention_query_gradient_tile", params))
                    .constant("QUERIES", queries as u32)
                    .constant("LANES", lanes)
                    .grid(s.tq.div_ceil(queries), s.heads, s.batch);
                Variant::single(name, dispatch)
            }));
        }
        let serial = finish(attention_gradient::serial("attention_query_gradient_serial", &self.0, &s))
            .over(cx.output.shape.count());
        variants.push(Variant::single("serial", serial));
        Ok(variants)
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let k = inputs[1].as_f32()?;
        let mut dq = vec![0f64; inputs[0].shape().count()];
        let width = inputs[0].shape().last() / self.0.heads;
        attention_gradient::visit(&self.0, inputs, |pair| {
            let key = &k[pair.key..];
            dq[pair.query..][..width].iter_mut().zip(key).for_each(|(dq, &k)| *dq += pair.slope * f64::from(k));
        })?;
        Ok(HostTensor::from_fn(inputs[0].shape().clone(), |i| dq[i] as f32))
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        // Three products of every query with every key.
        let flops = 6 * output.shape.count() * inputs[1].shape[1] / if self.0.causal { 2 } else { 1 };
        Cost { flops: flops as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}
