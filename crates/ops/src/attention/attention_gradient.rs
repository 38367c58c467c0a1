//! What the two gradients of [`Attention`] share: operands, parameters, reference.

use super::attention::{Sizes, TILE_SUMS};
use crate::*;
use pulid_tensor::{Error, HostTensor, Result, TensorType};

params! {
    struct SerialParams { batch: u32, tq: u32, tk: u32, heads: u32, width: u32, scale: f32 }
}

/// Whether the tiled kernels take heads of this width.
pub(super) fn tiled(width: usize) -> bool {
    width.is_multiple_of(4) && width / 4 * 16 <= TILE_SUMS
}

/// Lanes of the tiled variants, best first: a CPU device passes barriers almost for free in a workgroup of one SIMD width.
pub(super) fn lanes(kind: DeviceKind) -> &'static [(&'static str, u32)] {
    match kind {
        DeviceKind::Cpu => &[("narrow_tile", 8), ("tile", 64)],
        _ => &[("tile", 64)],
    }
}

/// The extents of a gradient operator over q, k, v, the upstream [B, Tq, H·D], the logarithms of the softmax's
/// sums and the products of upstream and result, both [B, H, Tq] in f32.
///
/// # Errors
/// Names the shapes.
pub(super) fn sizes(operator: &'static str, attention: &Attention, inputs: &[TensorType]) -> Result<Sizes> {
    expect_operands(operator, inputs, 6)?;
    let fail = |why: &str| Error::operator(operator, format!("{why}: {} ({})", types(inputs), attention.attributes()));
    if attention.mask {
        return Err(fail("takes no mask"));
    }
    let s = attention.sizes(&inputs[..3]).map_err(|e| e.of_operator(operator))?;
    let statistics = TensorType::f32([s.batch, s.heads, s.tq]);
    if inputs[3] != inputs[0] || inputs[4] != statistics || inputs[5] != statistics {
        return Err(fail("the upstream must be as q, the logarithms of sums and the products f32 [B, H, Tq]"));
    }
    Ok(s)
}

/// A dispatch of a plain variant, without bindings and grid.
pub(super) fn serial(shader: &'static str, attention: &Attention, s: &Sizes) -> Dispatch {
    let params = SerialParams {
        batch: s.batch as u32,
        tq: s.tq as u32,
        tk: s.tk as u32,
        heads: s.heads as u32,
        width: s.width as u32,
        scale: attention.scale_for(s.width) as f32,
    };
    Dispatch::new(shader, params)
}

/// A query and a key that it sees.
pub(super) struct Pair {
    /// First elements of the query's and the key's head.
    pub(super) query: usize,
    pub(super) key: usize,
    /// The softmax's weight.
    pub(super) weight: f64,
    /// The gradient in the unscaled score, times the scale.
    pub(super) slope: f64,
}

/// Visits every pair of a query and a key that it sees.
pub(super) fn visit(attention: &Attention, inputs: &[&HostTensor], mut each: impl FnMut(Pair)) -> Result<Sizes> {
    let types: Vec<_> = inputs.iter().map(|t| t.tensor_type()).collect();
    let s = attention.sizes(&types[..3])?;
    let (q, k, v, upstream) = (inputs[0].as_f32()?, inputs[1].as_f32()?, inputs[2].as_f32()?, inputs[3].as_f32()?);
    let (log_sum, dots) = (inputs[4].as_f32()?, inputs[5].as_f32()?);
    let (row, scale) = (s.heads * s.width, attention.scale_for(s.width));
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    for statistics in 0..s.batch * s.heads * s.tq {
        let (b, h, i) = (statistics / (s.heads * s.tq), statistics / s.tq % s.heads, statistics % s.tq);
        let query = (b * s.tq + i) * row + h * s.width;
        let end = if attention.causal { s.tk.min(i + 1) } else { s.tk };
        for j in 0..end {
            let key = (b * s.tk + j) * row + h * s.width;
            let score = scale * dot(&q[query..][..s.width], &k[key..]);
            let weight = (score - f64::from(log_sum[statistics])).exp();
            let slope = weight * (dot(&upstream[query..][..s.width], &v[key..]) - f64::from(dots[statistics]));
            each(Pair { query, key, weight, slope: slope * scale });
        }
    }
    Ok(s)
}

/// Cases of both: queries, keys, heads and their width.
pub(super) fn cases(operator: impl Fn(Attention) -> Box<dyn Operator>) -> Vec<Case> {
    let case = |name: &str, attention: Attention, [b, tq, tk, d]: [usize; 4]| {
        let row = attention.heads * d;
        let mut operands: Vec<_> = [tq, tk, tk, tq].iter().map(|&t| Operand::activation([b, t, row])).collect();
        // As large as they are of scores of unit variance.
        let log_sum = Fill::Normal((tk as f32).ln() + 0.5, 0.3);
        operands.push(Operand::parameter([b, attention.heads, tq]).fill(log_sum));
        operands.push(Operand::parameter([b, attention.heads, tq]).fill(Fill::Normal(0.0, 0.5)));
        Case {
            name: format!("b={b};tq={tq};tk={tk};h={};d={d}{name}", attention.heads),
            operator: operator(attention),
            operands,
            tolerance: Tolerance::Transcendental,
            benchmark: false,
            large: false,
        }
    };
    let plain = Attention::new;
    let causal = |heads| Attention { causal: true, ..plain(heads) };
    let scaled = Attention { scale: Some(0.3), ..plain(2) };
    let mut cases = vec![
        case("", plain(1), [1, 1, 1, 4]),
        case("", plain(2), [1, 1, 77, 16]),
        case("", plain(2), [2, 33, 65, 40]),
        case("", plain(2), [1, 65, 19, 64]),
        case("", plain(1), [1, 9, 13, 80]),
        case("", plain(1), [1, 37, 35, 160]),
        case("", plain(2), [1, 10, 34, 20]),
        case("", plain(3), [1, 5, 6, 7]),
        case("", plain(1), [2, 4, 3, 162]),
        case(";causal", causal(2), [2, 6, 6, 10]),
        case(";causal", causal(2), [2, 77, 77, 16]),
        case(";causal", causal(1), [1, 37, 21, 24]),
        case(";causal", causal(1), [1, 21, 37, 24]),
        case(";scale=0.3", scaled, [1, 12, 40, 16]),
        // Several chunks of queries.
        case("", plain(2), [2, 391, 5, 16]),
        case(";causal", causal(1), [1, 300, 70, 8]),
    ];
    // Around the tiles' edges: 16 or 32 queries, 8, 16 or 32 keys.
    for (tq, tk) in [(7, 32), (8, 31), (15, 17), (17, 16), (31, 33), (32, 32), (33, 15), (33, 64), (64, 63)] {
        cases.push(case(";edge", plain(2), [1, tq, tk, 16]));
    }
    for (tq, tk, heads) in [(4096, 4096, 10), (1024, 1024, 20), (4096, 77, 10), (1024, 77, 20), (4096, 32, 10)] {
        cases.push(case("", plain(heads), [1, tq, tk, 64]).benchmark());
    }
    cases
}
