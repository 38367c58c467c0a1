use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

/// Rotary position embedding on interleaved pairs, as EVA02's: every head's pair (x[2j], x[2j+1]) turns by an angle that
/// depends on position and j.
///
/// Operands: x [B, T, H·D]; cos and sin, f32 [T, D] each (1 and 0 in rows that are not rotated, such as the class token's).
/// Result: x's type.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// H.
    pub heads: usize,
}

params! {
    struct RotaryParams { count: u32, positions: u32, heads: u32, pairs: u32 }
}

impl Rotary {
    /// Registry entry.
    pub const INFO: OperatorInfo = OperatorInfo {
        name: "rotary",
        summary: "Rotary position embedding on interleaved pairs",
        shaders: &["rotary"],
        cases,
    };
}

impl Operator for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn attributes(&self) -> String {
        format!("heads={}", self.heads)
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<TensorType> {
        expect_operands("rotary", inputs, 3)?;
        let x = &inputs[0];
        let fail = |why: &str| Error::operator("rotary", format!("{why}: {} ({})", types(inputs), self.attributes()));
        if x.shape.rank() != 3 || !x.dtype.is_float() || self.heads == 0 || x.shape[2] % (2 * self.heads) != 0 {
            return Err(fail("x must be [B, T, H*D] with an even D"));
        }
        let table = TensorType::f32([x.shape[1], x.shape[2] / self.heads]);
        if inputs[1] != table || inputs[2] != table {
            return Err(fail("the tables must be f32 [T, D]"));
        }
        Ok(x.clone())
    }

    fn lower(&self, cx: &LowerContext<'_>) -> Result<Vec<Variant>> {
        let count = cx.output.shape.count() / 2;
        let params = RotaryParams {
            count: count as u32,
            positions: cx.output.shape[1] as u32,
            heads: self.heads as u32,
            pairs: (cx.output.shape[2] / self.heads / 2) as u32,
        };
        let dispatch = Dispatch::new("rotary", params)
            .storage(cx.output.dtype)
            .bind([Slot::Input(0), Slot::Input(1), Slot::Input(2), Slot::Output])
            .over(count);
        Ok(vec![Variant::single("pairs", dispatch)])
    }

    fn reference(&self, inputs: &[&HostTensor]) -> Result<HostTensor> {
        let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
        let output = self.infer(&types)?;
        let (positions, row) = (output.shape[1], output.shape[2]);
        let width = row / self.heads;
        let (x, cos, sin) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?);
        Ok(HostTensor::from_fn(output.shape, |i| {
            let at = (i / row) % positions * width + i % width;
            let partner = if i % 2 == 0 { -f64::from(x[i + 1]) } else { f64::from(x[i - 1]) };
            (f64::from(x[i]) * f64::from(cos[at]) + partner * f64::from(sin[at])) as f32
        }))
    }

    fn gradient(&self, rule: &mut GradientRule<'_>) -> Result<()> {
        if rule.needs(1) || rule.needs(2) {
            return Err(rule.fail("has no gradient rule for the tables"));
        }
        // Turned back. Each element of a pair has its own sine, by which the other one enters it.
        let table = rule.shape(Value::Operand(2));
        let pairs = [table.count() / 2, 2];
        let sin = rule.reshape(Value::Operand(2), pairs)?;
        let [even, odd] = [0, 1].map(|first| Slice::along(&pairs, 1, first, 1));
        let (even, odd) = (rule.apply(even, [sin])?, rule.apply(odd, [sin])?);
        let exchanged = rule.apply(Concat::new(1), [odd, even])?;
        let negated = rule.apply(Unary(Activation::Neg), [exchanged])?;
        let back = rule.reshape(negated, table)?;
        let dx = rule.apply(self.clone(), [Value::Upstream, Value::Operand(1), back])?;
        rule.set(0, dx);
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Operator> {
        Box::new(self.clone())
    }
}

fn cases() -> Vec<Case> {
    let case = |name: &str, heads: usize, [b, t, d]: [usize; 3]| {
        let table = || Operand::parameter([t, d]).fill(Fill::Uniform(-1.0, 1.0));
        let operands = vec![Operand::activation([b, t, heads * d]), table(), table()];
        Case::new(name, Rotary { heads }, operands, Tolerance::Pointwise)
    };
    vec![
        case("b=1;t=1;h=1;d=2", 1, [1, 1, 2]),
        case("b=2;t=5;h=3;d=6", 3, [2, 5, 6]),
        case("b=2;t=17;h=2;d=16", 2, [2, 17, 16]),
        case("b=1;t=577;h=16;d=64", 16, [1, 577, 64]).benchmark(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_swaps_the_pair() {
        let tensor = |v: [f32; 2]| HostTensor::from_f32([1, 2], v.to_vec()).unwrap();
        let x = HostTensor::from_f32([1, 1, 2], vec![3.0, 5.0]).unwrap();
        let y = Rotary { heads: 1 }.reference(&[&x, &tensor([0.0, 0.0]), &tensor([1.0, 1.0])]).unwrap();
        assert_eq!(y.as_f32().unwrap(), [-5.0, 3.0]);
    }
}
