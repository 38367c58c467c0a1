//! Products whose inner axis is split into parts (split K): where a result has too few tiles to keep a GPU busy, workgroups share
//! a tile, each sums a part of the axis, and a second dispatch adds the parts and finishes the result.

use crate::{Activation, Dispatch, Slot, Variant, params};
use pulid_tensor::{DType, TensorType};

/// Parts of an inner axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Number of them, at least 2.
    pub(crate) count: usize,
    /// Steps that a kernel takes at a time, to each part but the last, which may have fewer.
    pub(crate) steps: usize,
}

/// Extents of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents {
    /// Matrices of the result.
    pub(crate) batch: usize,
    /// Rows of each.
    pub(crate) rows: usize,
    /// Columns of each, gates included.
    pub(crate) columns: usize,
    /// The inner axis.
    pub(crate) k: usize,
}

impl Extents {
    /// Tiles of the result.
    pub(crate) fn tiles(self, rows: usize, columns: usize) -> usize {
        self.batch * self.rows.div_ceil(rows) * self.columns.div_ceil(columns)
    }
}

/// What decides whether to split.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Tiles of the result.
    pub(crate) workgroups: usize,
    /// Workgroups that keep the GPU busy.
    pub(crate) at_once: usize,
    /// Extent of the inner axis.
    pub(crate) k: usize,
    /// Elements of it that a kernel takes at a time.
    pub(crate) step: usize,
    /// Elements of the inner axis that are multiplied in the time in which a part's sum is written and read again.
    pub(crate) traffic: usize,
}

/// Fewest elements of the inner axis to a part.
const SHORTEST: usize = 128;

/// Most parts.
const MOST: usize = 16;

/// Elements of the inner axis that are multiplied in the time that a second dispatch takes, about.
const DISPATCH: usize = 128;

/// Rounds of workgroups beyond which the last one, which may be short, counts for little.
const FEW_ROUNDS: usize = 3;

impl Grid {
    /// The time in one part: each round of workgroups takes as long, the last one too.
    pub(crate) fn whole(self) -> usize {
        self.workgroups.next_multiple_of(self.at_once) * self.k
    }

    /// The parts by which the product is fastest, and its time, where that is less than in one part. Times are in elements of the
    /// inner axis, times workgroups.
    pub(crate) fn split(self) -> Option<(Parts, usize)> {
        let Grid { workgroups, at_once, k, step, traffic } = self;
        let all = k.div_ceil(step);
        // As many steps to each part, the last one aside, may need fewer parts.
        let parts = |count: usize| {
            let steps = all.div_ceil(count);
            Parts { count: all.div_ceil(steps), steps }
        };
        let time = |p: &Parts| {
            let rounds = (workgroups * p.count).div_ceil(at_once);
            rounds * at_once * p.steps * step + p.count * traffic * workgroups + DISPATCH * at_once
        };
        if workgroups >= FEW_ROUNDS * at_once {
            return None;
        }
        let best = (2..=MOST.min(k / SHORTEST)).map(parts).filter(|p| p.count > 1).min_by_key(time)?;
        let time = time(&best);
        (time < self.whole()).then_some((best, time))
    }
}

params! {
    struct ReduceParams { count4: u32, n4: u32, part4: u32, parts: u32, alpha: f32, image: u32 }
}

/// How the sums of the parts become the result.
pub(crate) struct Reduction {
    /// Rows of the result, those of all its matrices.
    pub(crate) rows: usize,
    /// Columns of a part's sums: values, and their gates if there are some.
    pub(crate) columns: usize,
    /// Factor of the product.
    pub(crate) alpha: f32,
    /// Where the bias is.
    pub(crate) bias: Slot,
    /// Applied before the residual.
    pub(crate) activation: Activation,
    /// Whether the second half of the columns are gates.
    pub(crate) gated: bool,
    /// Where the residual is.
    pub(crate) residual: Slot,
    /// Rows of the result that share a row of the residual, where not each has its own.
    pub(crate) image: Option<usize>,
}

impl Reduction {
    /// The variant of a kernel that stores the sums of `parts`, if they fit in a binding. The kernel comes with its constants; its
    /// activations and weights have these types.
    pub(crate) fn variant(
        &self,
        name: &'static str,
        kernel: Dispatch,
        [activations, weights]: [DType; 2],
        parts: Parts,
        largest: u64,
    ) -> Option<Variant> {
        let kernel = kernel.weight_storage(activations, weights).feature("split", true);
        let kernel = kernel.bind([Slot::Input(0), Slot::Input(1), Slot::Scratch(0)]);
        let kernel = if self.gated { kernel.constant("GATED", 1) } else { kernel };
        let width = self.columns >> u32::from(self.gated);
        let params = ReduceParams {
            count4: (self.rows * width / 4) as u32,
            n4: (self.columns / 4) as u32,
            part4: (self.rows * self.columns / 4) as u32,
            parts: parts.count as u32,
            alpha: self.alpha,
            image: self.image.unwrap_or(1) as u32,
        };
        let reduce = Dispatch::new("split_k_reduce", params)
            .storage(activations)
            .activation(self.activation)
            .constant("BIAS", u32::from(self.bias != Slot::Unused))
            .constant("RESIDUAL", residual_kind(self.residual, self.image.is_some()))
            .bind([Slot::Scratch(0), self.bias, self.residual, Slot::Output]);
        let reduce = if self.gated { reduce.constant("GATED", 1) } else { reduce };
        let bytes = TensorType::f32([parts.count, self.rows, self.columns]).bytes();
        let dispatches = vec![kernel, reduce.over(self.rows * width / 4)];
        (bytes as u64 <= largest).then(|| Variant { name, dispatches, scratch: vec![bytes] })
    }
}

/// Constant `RESIDUAL` of the shaders: none, one of the result's shape, one for each image.
pub(crate) fn residual_kind(residual: Slot, by_image: bool) -> u32 {
    match (residual, by_image) {
        (Slot::Unused, _) => 0,
        (_, false) => 1,
        (_, true) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Grid = Grid { workgroups: 60, at_once: 128, k: 2048, step: 32, traffic: 200 };

    #[test]
    fn idle_workgroups_take_parts() {
        let (parts, time) = GRID.split().unwrap();
        assert_eq!(parts, Parts { count: 2, steps: 32 });
        assert!(time < 128 * 2048);
    }

    #[test]
    fn a_last_round_that_is_nearly_empty_is_spread_over_parts() {
        // Two rounds where 130 / 128 would do: three parts make four rounds of a third.
        let grid = Grid { workgroups: 130, traffic: 0, ..GRID };
        let (parts, time) = grid.split().unwrap();
        assert!(parts.count > 2 && time < grid.whole() * 3 / 4, "{parts:?} {time}");
        // Of many rounds the last one counts for little.
        assert!(Grid { workgroups: 3 * 128 + 1, ..grid }.split().is_none());
    }

    #[test]
    fn what_keeps_a_gpu_busy_or_is_short_stays_whole() {
        assert!(Grid { workgroups: 128, ..GRID }.split().is_none());
        assert!(Grid { k: 255, ..GRID }.split().is_none());
        // Two rounds of halves take as long as one.
        assert!(Grid { workgroups: 80, k: 320, ..GRID }.split().is_none());
    }

    #[test]
    fn parts_cover_the_axis_and_none_is_empty() {
        for k in (256..3000).step_by(4) {
            for workgroups in [1, 7, 40, 130, 300] {
                let Some((parts, _)) = (Grid { workgroups, k, ..GRID }).split() else { continue };
                let steps = k.div_ceil(32);
                assert!(parts.count * parts.steps >= steps && (parts.count - 1) * parts.steps < steps, "{k} {parts:?}");
            }
        }
    }
}
