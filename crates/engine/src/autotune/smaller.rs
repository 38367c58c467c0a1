//! A smaller piece of the same work: what the reference computes at once stands for what would take it minutes.

use pulid_ops::{Capabilities, LowerContext, Operator, Variant};
use pulid_tensor::TensorType;
use std::ops::Range;

/// Extents that axes are cut to where there is too much work. The first is more than most kernels' tiles and no multiple of
/// one, so that kernels meet whole tiles and parts of them; the others come to it where it is not enough.
const EXTENTS: [usize; 5] = [141, 77, 29, 13, 5];

/// What longer extents come to first where those alone do not do: cut as short as they ask, a product's inner axis cannot be in parts.
const LONG: usize = 1279;

/// Extents that are left alone: batches, windows, colours.
const SMALL: usize = 8;

/// How far below an extent one is looked for that is no multiple of a tile.
const EDGE: usize = 128;

/// The edge of the smallest tile: a multiple of a larger one is one of this too.
const TILE: usize = 32;

/// Operand types of `operator` with at most `flops` operations, for which every one of `variants` runs the same kernels: the same
/// shaders, features and constants, so that only sizes in the parameters differ. No extent that may be otherwise is a multiple of
/// a tile. `None` where no such types are found.
///
/// It knows no operator: equal extents are cut alike, as far as [`Operator::infer`] and [`Operator::lower`] go along.
pub(super) fn smaller(
    operator: &dyn Operator,
    capabilities: &Capabilities,
    inputs: &[TensorType],
    variants: &[Variant],
    flops: u64,
) -> Option<Vec<TensorType>> {
    let search = Search { operator, capabilities, variants };
    let mut types = inputs.to_vec();
    for extent in extents(inputs, SMALL) {
        if let Some((_, found)) = search.cut(&types, extent, |from| from.saturating_sub(EDGE).max(1)..from) {
            types = found;
        }
    }
    search.cut_to(types.clone(), flops).or_else(|| {
        for extent in extents(&types, LONG) {
            if let Some((_, found)) = search.cut_alone(&types, extent, 1..LONG + 1) {
                types = found;
            }
        }
        search.cut_to(types, flops)
    })
}

/// Every extent above `least`, smallest first.
fn extents(types: &[TensorType], least: usize) -> Vec<usize> {
    let mut all: Vec<usize> = types.iter().flat_map(|t| t.shape.iter().copied()).filter(|&e| e > least).collect();
    all.sort_unstable();
    all.dedup();
    all
}

struct Search<'a> {
    operator: &'a dyn Operator,
    capabilities: &'a Capabilities,
    variants: &'a [Variant],
}

impl Search<'_> {
    fn flops(&self, types: &[TensorType]) -> u64 {
        self.operator.infer(types).map_or(u64::MAX, |output| self.operator.cost(types, &output).flops)
    }

    /// The types with extents cut by [`EXTENTS`] until there are no more than `flops` operations.
    fn cut_to(&self, mut types: Vec<TensorType>, flops: u64) -> Option<Vec<TensorType>> {
        for most in EXTENTS {
            while self.flops(&types) > flops {
                let all = extents(&types, most.max(SMALL));
                let cuts = all.iter().filter_map(|&e| self.cut(&types, e, |from| 1..from.min(most + 1)));
                // One that is enough and leaves most, else the one that goes furthest.
                let worth = |(to, types): &(usize, Vec<TensorType>)| match self.flops(types) {
                    left if left <= flops => (true, *to, left),
                    left => (false, 0, u64::MAX - left),
                };
                let Some((_, best)) = cuts.max_by_key(worth) else { break };
                types = best;
            }
        }
        (self.flops(&types) <= flops).then_some(types)
    }

    /// What an extent is cut to, and the types then: the most of the range that `to` gives for it with which the kernels stay the
    /// same, multiples of a tile only where nothing else will do. Where it only changes together with another one, as an image's
    /// with that of half of it, both are cut.
    fn cut(
        &self,
        types: &[TensorType],
        extent: usize,
        to: impl Fn(usize) -> Range<usize>,
    ) -> Option<(usize, Vec<TensorType>)> {
        let pairs = || {
            let others = extents(types, SMALL).into_iter().filter(|&other| other != extent);
            let pair = others.flat_map(|other| to(other).rev().map(move |o| (other, o)));
            pair.flat_map(|o| to(extent).rev().map(move |e| [(extent, e), o])).collect()
        };
        self.cut_alone(types, extent, to(extent)).or_else(|| self.first(types, pairs()))
    }

    /// The same of one extent by itself.
    fn cut_alone(&self, types: &[TensorType], extent: usize, to: Range<usize>) -> Option<(usize, Vec<TensorType>)> {
        self.first(types, to.rev().map(|e| [(extent, e)]).collect())
    }

    /// The first of `candidates` with which the kernels stay the same, those with a multiple of a tile after all others: what its
    /// first change cuts to, and the types.
    fn first<const N: usize>(
        &self,
        types: &[TensorType],
        mut candidates: Vec<[(usize, usize); N]>,
    ) -> Option<(usize, Vec<TensorType>)> {
        candidates.sort_by_key(|changes| changes.iter().any(|(_, to)| to.is_multiple_of(TILE)));
        let mut changed = candidates.into_iter().map(|changes| (changes[0].1, replaced(types, &changes)));
        changed.find(|(_, types)| runs_the_same(self.operator, self.capabilities, types, self.variants))
    }
}

/// The types with some extents replaced.
fn replaced(types: &[TensorType], changes: &[(usize, usize)]) -> Vec<TensorType> {
    let change = |e: &usize| changes.iter().find(|(from, _)| from == e).map_or(*e, |(_, to)| *to);
    types.iter().map(|t| TensorType::new(t.dtype, t.shape.iter().map(change).collect::<Vec<_>>())).collect()
}

/// Whether each of `variants` is there for operands of these types too, with the same kernels.
fn runs_the_same(
    operator: &dyn Operator,
    capabilities: &Capabilities,
    types: &[TensorType],
    variants: &[Variant],
) -> bool {
    let Ok(output) = operator.infer(types) else { return false };
    let Ok(there) = operator.lower(&LowerContext { capabilities, inputs: types, output: &output }) else {
        return false;
    };
    variants.iter().all(|wanted| there.iter().any(|found| found.name == wanted.name && same_kernels(found, wanted)))
}

fn same_kernels(a: &Variant, b: &Variant) -> bool {
    let kernels = |v: &Variant| -> Vec<_> {
        v.dispatches.iter().map(|d| (d.shader, d.features.clone(), d.constants.clone())).collect()
    };
    kernels(a) == kernels(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_ops::{Conv2d, DeviceKind, MatMul, Storage, operators};

    const FLOPS: u64 = super::super::trial::REFERENCE_FLOPS;

    fn device(kind: DeviceKind) -> Capabilities {
        let subgroup_lanes = if kind == DeviceKind::Cpu { 8 } else { 0 };
        Capabilities { shader_f16: true, subgroup_lanes, ..Capabilities::baseline(kind) }
    }

    /// The variants for these types on a device, and the smaller types.
    fn cut_down(
        operator: &dyn Operator,
        capabilities: &Capabilities,
        types: &[TensorType],
    ) -> (Vec<Variant>, Option<Vec<TensorType>>) {
        let output = operator.infer(types).unwrap();
        let variants = operator.lower(&LowerContext { capabilities, inputs: types, output: &output }).unwrap();
        let less = smaller(operator, capabilities, types, &variants, FLOPS);
        (variants, less)
    }

    #[test]
    fn every_operator_of_a_real_network_has_a_smaller_case() {
        let mut seen = 0;
        for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
            let capabilities = device(kind);
            for case in operators().flat_map(|(_, info)| (info.cases)()).filter(|c| c.benchmark) {
                for storage in case.storages() {
                    let types = case.types(storage);
                    let (variants, less) = cut_down(case.operator.as_ref(), &capabilities, &types);
                    if variants.len() < 2 {
                        continue;
                    }
                    let place = format!("{} {} on {kind:?}", case.operator.name(), case.name);
                    let less = less.unwrap_or_else(|| panic!("{place} has none"));
                    assert!(runs_the_same(case.operator.as_ref(), &capabilities, &less, &variants), "{place}");
                    for (small, real) in less.iter().zip(&types) {
                        assert_eq!((small.dtype, small.shape.rank()), (real.dtype, real.shape.rank()), "{place}");
                        let larger = small.shape.iter().zip(real.shape.iter()).any(|(s, r)| s > r);
                        assert!(!larger, "{place}: {small} of {real}");
                    }
                    seen += 1;
                }
            }
        }
        assert!(seen > 100, "{seen}");
    }

    #[test]
    fn tiles_are_met_in_whole_and_in_part() {
        let large = [TensorType::f32([4096, 1280]), TensorType::f32([1280, 5120])];
        let less = cut_down(&MatMul::default(), &device(DeviceKind::Discrete), &large).1.unwrap();
        // The kernels for whole steps of 16 along the products' axis are others than those for part of one.
        assert_eq!(less, [TensorType::f32([141, 1264]), TensorType::f32([1264, 140])]);
        // Parts of a long axis need one that is no shorter than that.
        let long = [TensorType::f32([1024, 10240]), TensorType::f32([1280, 10240])];
        let gradient = MatMul { transpose_b: true, ..MatMul::default() };
        let less = cut_down(&gradient, &device(DeviceKind::Discrete), &long).1.unwrap();
        assert_eq!(less, [TensorType::f32([141, 1264]), TensorType::f32([140, 1264])]);
        let convolution = [[1, 64, 64, 320], [3, 3, 320, 320]].map(TensorType::f32);
        let conv = Conv2d { padding: [1; 4], ..Conv2d::default() };
        let less = cut_down(&conv, &device(DeviceKind::Discrete), &convolution).1.unwrap();
        assert_eq!(less, [[1, 13, 13, 112], [3, 3, 112, 112]].map(TensorType::f32));
    }

    #[test]
    fn extents_that_depend_on_each_other_are_cut_together() {
        let conv = Conv2d { stride: [2, 2], residual: true, ..Conv2d::same(1) };
        let (c, d) = (256, 512);
        let large = [[1, 112, 96, c], [3, 3, c, d]].map(TensorType::f32);
        let large = [&large[..], &[TensorType::f32([d]), TensorType::f32([1, 56, 48, d])]].concat();
        for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
            let less = cut_down(&conv, &device(kind), &large).1.unwrap();
            assert!(less[3].shape[1] < 56 && less[3].shape[2] < 48 && less[3].shape[3] < d, "{less:?}");
        }
    }

    #[test]
    fn what_cannot_be_cut_is_not() {
        let capabilities = device(DeviceKind::Discrete);
        // Heads of 160 wide take 16 queries at a time, and those of 80 and less 32: another kernel.
        let attention = pulid_ops::Attention::new(16);
        let types = vec![TensorType::f32([1, 7, 16 * 160]); 3];
        let (variants, _) = cut_down(&attention, &capabilities, &types);
        let most = |flops| smaller(&attention, &capabilities, &types, &variants, flops);
        assert!(most(1_000_000).is_some_and(|less| less[0].shape[2] > 16 * 80));
        assert!(most(100_000).is_none());
    }

    #[test]
    fn storage_stays() {
        let types = [TensorType::f32([4096, 640]), TensorType::new(pulid_tensor::DType::Q8, [640, 640])];
        let less = cut_down(&MatMul::default(), &device(DeviceKind::Discrete), &types).1.unwrap();
        assert_eq!(less[1].dtype, types[1].dtype);
        assert!(Storage::Q8Weights.quantized() == Some(less[1].dtype) && less[1].shape[0] % 32 == 0, "{less:?}");
    }
}
