//! Kernels at any size, by name: for benchmarks, on the command line and in the browser.

use pulid_ops::{
    Activation, Attention, Case, Conv2d, GroupNorm, LayerNorm, MatMul, Operand, Operator, Tolerance, operators,
};
use pulid_tensor::{Error, HostTensor, Result, TensorType};
use std::collections::BTreeMap;

/// The parts of `operator/key=value;word;...`.
struct Parts<'a> {
    name: &'a str,
    values: BTreeMap<&'a str, &'a str>,
    words: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        let mut parts = Parts { name, values: BTreeMap::new(), words: Vec::new() };
        for part in text.split(';').filter(|p| !p.is_empty()) {
            match part.split_once('=') {
                Some((key, value)) => drop(parts.values.insert(key, value)),
                None => parts.words.push(part),
            }
        }
        parts
    }

    fn fail(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid("case", format!("`{}`: {what}", self.name))
    }

    /// Numbers with `x` between them.
    fn extents(&mut self, key: &str) -> Result<Vec<usize>> {
        let text = self.values.remove(key).ok_or_else(|| self.fail(format!("`{key}=` is missing")))?;
        let parsed = text.split(['x', ',']).map(|n| n.parse().ok().filter(|&n| n > 0)).collect::<Option<Vec<_>>>();
        parsed.ok_or_else(|| self.fail(format!("`{key}={text}` is not made of positive numbers")))
    }

    fn number(&mut self, key: &str, default: Option<usize>) -> Result<usize> {
        match (self.values.contains_key(key), default) {
            (false, Some(default)) => Ok(default),
            _ => self.extents(key).map(|e| e[0]),
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|w| *w != word);
        self.words.len() < before
    }

    fn activation(&mut self) -> Activation {
        let known = [Activation::Silu, Activation::Gelu];
        known.into_iter().find(|f| self.word(&f.label())).unwrap_or_default()
    }

    fn finish(self, operator: impl Operator + 'static, operands: Vec<Operand>) -> Result<Case> {
        let unknown: Vec<_> = self.words.iter().chain(self.values.keys()).copied().collect();
        if !unknown.is_empty() {
            return Err(self.fail(format!("unknown: {}", unknown.join(", "))));
        }
        let (_, case) = self.name.split_once('/').unwrap_or_default();
        Ok(Case::new(case, operator, operands, Tolerance::Exact))
    }
}

/// The case of a name, `operator/case`: one that the operator lists, or any size of those that take most of a network's time:
/// `matmul/m=;k=;n=`, `conv2d/x=NxHxWxC;kernel=RxC;out=` (`;stride=`), `attention/b=;tq=;tk=;h=;d=`, `group_norm/x=` (`;groups=`),
/// `layer_norm/x=`; `;bias`, `;residual`, `;gelu`, `;silu` and `;gated` follow where they apply.
///
/// # Errors
/// When no operator has such a case, or the name is malformed.
pub fn case(name: &str) -> Result<Case> {
    let (operator, rest) = name.split_once('/').unwrap_or((name, ""));
    for (_, info) in operators().filter(|(_, info)| info.name == operator) {
        if let Some(case) = (info.cases)().into_iter().find(|c| c.name == rest) {
            return Ok(case);
        }
    }
    let mut p = Parts::new(name, rest);
    match operator {
        "matmul" => {
            let (m, k, n) = (p.number("m", None)?, p.number("k", None)?, p.number("n", None)?);
            let (bias, residual, gated) = (p.word("bias"), p.word("residual"), p.word("gated"));
            let operator = MatMul { bias, residual, gated, activation: p.activation(), ..MatMul::default() };
            let mut operands = vec![Operand::activation([m, k]), Operand::weight([k, n])];
            operands.extend(bias.then(|| Operand::parameter([n])));
            operands.extend(residual.then(|| Operand::activation([m, if gated { n / 2 } else { n }])));
            p.finish(operator, operands)
        }
        "conv2d" => {
            let (x, kernel) = (p.extents("x")?, p.extents("kernel")?);
            let (out, stride) = (p.number("out", None)?, p.number("stride", Some(1))?);
            let (&[batch, height, width, channels], &[rows, columns]) = (&x[..], &kernel[..]) else {
                return Err(p.fail("expected x=BATCHxHEIGHTxWIDTHxCHANNELS;kernel=ROWSxCOLUMNS"));
            };
            let (bias, residual) = (p.word("bias"), p.word("residual"));
            let (top, left) = (rows / 2, columns / 2);
            let operator = Conv2d {
                stride: [stride; 2],
                padding: [top, left, top, left],
                bias,
                residual,
                activation: p.activation(),
                ..Conv2d::default()
            };
            let mut operands = vec![Operand::activation(x.clone()), Operand::weight([rows, columns, channels, out])];
            operands.extend(bias.then(|| Operand::parameter([out])));
            let extent = |length: usize, kernel: usize| (length + 2 * (kernel / 2)).saturating_sub(kernel) / stride + 1;
            let result = [batch, extent(height, rows), extent(width, columns), out];
            operands.extend(residual.then(|| Operand::activation(result)));
            p.finish(operator, operands)
        }
        "attention" => {
            let (b, tq, tk) = (p.number("b", Some(1))?, p.number("tq", None)?, p.number("tk", None)?);
            let (heads, d) = (p.number("h", None)?, p.number("d", None)?);
            let of = |tokens: usize| Operand::activation([b, tokens, heads * d]);
            p.finish(Attention::new(heads), vec![of(tq), of(tk), of(tk)])
        }
        "group_norm" => {
            let (x, groups) = (p.extents("x")?, p.number("groups", Some(32))?);
            let channels = *x.last().unwrap_or(&1);
            let operator = GroupNorm { activation: p.activation(), ..GroupNorm::new(groups, 1e-5) };
            let parameter = || Operand::parameter([channels]);
            p.finish(operator, vec![Operand::activation(x), parameter(), parameter()])
        }
        "layer_norm" => {
            let x = p.extents("x")?;
            let parameter = || Operand::parameter([*x.last().unwrap_or(&1)]);
            let vectors = [parameter(), parameter()];
            p.finish(LayerNorm::new(1e-5), std::iter::once(Operand::activation(x.clone())).chain(vectors).collect())
        }
        _ => Err(p.fail(
            "only cases that the operator lists, and any size of matmul, conv2d, attention, group_norm, layer_norm",
        )),
    }
}

/// Operands to time on: random enough that no hardware finds them easy, and drawn faster than a case's own.
///
/// # Errors
/// When the case needs values of its own.
pub fn operands(case: &Case, types: &[TensorType]) -> Result<Vec<HostTensor>> {
    // What a kernel does with indices or special values depends on them.
    if case
        .operands
        .iter()
        .any(|o| !matches!(o.fill, pulid_ops::Fill::Normal(..)) || matches!(o.role, pulid_ops::Role::Index(_)))
    {
        return Err(Error::invalid("bench", "operands of their own"));
    }
    Ok(types.iter().enumerate().map(|(salt, ty)| noise(ty, salt as u64)).collect())
}

/// Values between -2 and 2.
pub fn noise(ty: &TensorType, salt: u64) -> HostTensor {
    // xorshift64*
    let mut state = 0x9E37_79B9_7F4A_7C15u64 ^ (salt + 1).wrapping_mul(0x0100_0000_01B3);
    let next = |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    HostTensor::from_fn(ty.shape.clone(), next).into_dtype(ty.dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_ops::Storage;

    /// Operand types and the result's.
    fn types(name: &str) -> String {
        let case = case(name).unwrap();
        let inputs = case.types(Storage::F16);
        format!("{} -> {}", pulid_ops::types(&inputs), case.operator.infer(&inputs).unwrap())
    }

    #[test]
    fn sizes_become_operands() {
        let gated = "matmul/m=8;k=16;n=32;bias;gelu;gated;residual";
        assert_eq!(types(gated), "f16[8, 16] x f16[16, 32] x f32[32] x f16[8, 16] -> f16[8, 16]");
        let strided = "conv2d/x=2x8x8x4;kernel=3x3;out=12;stride=2;residual";
        assert_eq!(types(strided), "f16[2, 8, 8, 4] x f16[3, 3, 4, 12] x f16[2, 4, 4, 12] -> f16[2, 4, 4, 12]");
        let cross = "attention/b=2;tq=8;tk=7;h=2;d=64";
        assert_eq!(types(cross), "f16[2, 8, 128] x f16[2, 7, 128] x f16[2, 7, 128] -> f16[2, 8, 128]");
        assert_eq!(types("layer_norm/x=2x3x8"), "f16[2, 3, 8] x f32[8] x f32[8] -> f16[2, 3, 8]");
    }

    #[test]
    fn what_is_wrong_with_a_name_is_said() {
        let why = |name: &str| case(name).unwrap_err().to_string();
        assert!(why("matmul/m=8;k=16").contains("`n=` is missing"));
        assert!(why("matmul/m=8;k=0;n=8").contains("positive"));
        assert!(why("matmul/m=8;k=8;n=8;relu").contains("unknown: relu"));
        assert!(why("gather/x=8").contains("any size of matmul"));
    }
}
