use super::Attention;
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// The logarithm of the sum that [`Attention`]'s softmax divides by: y = ln(zero_keys + Σⱼ exp(scale·q kᵀ)), which its gradients
/// recompute weights from. For attention without a mask.
///
/// Operands: q [B, Tq, H·D] and k [B, Tk, H·D]. Result: f32 [B, H, Tq].
#[derive(Clone, Debug)]
pub struct AttentionLogSum(pub Attention);

params! {
    struct LogSumParams { tq: u32, tk: u32, heads: u32, width: u32, scale: f32, zero_keys: f32 }
}

impl AttentionLogSum {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "attention_log_sum",
        summary: "Logarithm of the sum that attention's softmax divides by",
        shaders: &["attention_log_sum"],
        cases,
    };
}

impl Operator for AttentionLogSum {
    fn name(&self) -> &'static str {
        "attention_log_sum"
    }

    fn attributes(&self) -> String {
        self.0.attributes()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("attention_log_sum", inputs, 2)?;
        if self.0.mask {
            let detail = format!("takes no mask: {} ({})", types(inputs), self.attributes());
            return Err(Error::operator("attention_log_sum", detail));
        }
        let operands = [inputs[0].clone(), inputs[1].clone(), inputs[1].clone()];
        let s = self.0.sizes(&operands).map_err(|e| e.of_operator(self.name()))?;
        Ok(TensorType::f32([s.batch, s.heads, s.tq]))
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let (q, k) = (&cx.inputs[0], &cx.inputs[1]);
        let (heads, width) = (self.0.heads, q.shape[2] / self.0.heads);
        let by_four = width.is_multiple_of(4);
        let params = LogSumParams {
            tq: q.shape[1] as u32,
            tk: k.shape[1] as u32,
            heads: heads as u32,
            width: (if by_four { width / 4 } else { width }) as u32,
            scale: self.0.scale_for(width) as f32,
            zero_keys: self.0.zero_keys as f32,
        };
        let dispatch = Dispatch::new("attention_log_sum", params)
            .storage(q.dtype)
            .feature("vec4", by_four)
            .constant("CAUSAL", self.0.causal as u32)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Output])
            .grid(q.shape[1].div_ceil(64), heads, q.shape[0]);
        Ok(vec![Variant::single("queries", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (tq, tk, row) = (types[0].shape[1], types[1].shape[1], types[0].shape[2]);
        let (heads, width) = (self.0.heads, row / self.0.heads);
        let (q, k, scale) = (inputs[0].as_f32()?, inputs[1].as_f32()?, self.0.scale_for(width));
        Ok(HostTensor::from_fn(output.shape, |at| {
            let (b, h, i) = (at / (heads * tq), at / tq % heads, at % tq);
            let query = &q[(b * tq + i) * row + h * width..][..width];
            let end = if self.0.causal { tk.min(i + 1) } else { tk };
            let score = |j: usize| {
                let key = &k[(b * tk + j) * row + h * width..];
                scale * query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
            };
            let scores: Vec<f64> = (0..end).map(score).collect();
            let first = if self.0.zero_keys > 0 { 0.0 } else { f64::NEG_INFINITY };
            let top = scores.iter().copied().fold(first, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            (top + (sum + f64::from(self.0.zero_keys) * (-top).exp()).ln()) as f32
        }))
    }

    fn cost(&self, inputs: &[TensorType], output: &TensorType) -> Cost {
        let bytes = inputs.iter().map(TensorType::bytes).sum::<usize>() + output.bytes();
        let flops = 2 * inputs[0].shape.count() * inputs[1].shape[1] / if self.0.causal { 2 } else { 1 };
        Cost { flops: flops as u64, bytes: bytes as u64 }
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, attention: Attention, [b, tq, tk, d]: [usize; 4]| {
        let row = attention.heads * d;
        let operands = vec![Operand::activation([b, tq, row]), Operand::activation([b, tk, row])];
        let name = format!("b={b};tq={tq};tk={tk};h={};d={d}{name}", attention.heads);
        Case::new(name, AttentionLogSum(attention), operands, Tolerance::Transcendental)
    };
    let plain = Attention::new;
    let causal = |heads| Attention { causal: true, ..plain(heads) };
    let zero_keys = |heads, zero_keys| Attention { zero_keys, ..plain(heads) };
    vec![
        case("", plain(1), [1, 1, 1, 4]),
        case("", plain(2), [2, 65, 33, 16]),
        case("", plain(3), [1, 5, 6, 7]),
        case(";causal", causal(2), [2, 70, 70, 8]),
        case(";causal", causal(1), [1, 37, 21, 6]),
        case(";zero_keys=8", zero_keys(2, 8), [2, 5, 32, 16]),
        case(";zero_keys=1", zero_keys(1, 1), [1, 3, 4, 6]),
        case(";scale=20", Attention { scale: Some(20.0), ..plain(2) }, [1, 12, 40, 16]),
        case(";scale=20;zero_keys=2", Attention { scale: Some(20.0), ..zero_keys(2, 2) }, [1, 12, 5, 16]),
        case("", plain(10), [1, 4096, 4096, 64]).benchmark(),
        case("", plain(20), [1, 1024, 1024, 64]).benchmark(),
        case("", plain(10), [1, 4096, 77, 64]).benchmark(),
    ]
}
